# SPDX-License-Identifier: Apache-2.0
"""The part of a plan that is of classification: the network's input, and the size of its training."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monai_llmboost.data.labelled import CaseList, LabelledCase
from monai_llmboost.inspection.plans.extent import Extents, choose_crop, fit_spacing, shape_of
from monai_llmboost.inspection.plans.lines import Lines
from monai_llmboost.inspection.survey import CaseSurvey

# Voxels of a batch, in inputs of the most voxels.
BATCH_INPUTS = 16
LARGEST_BATCH, SMALLEST_BATCH = 32, 2
# An epoch has about this number of steps or more.
STEPS = 8
# A training has about this number of steps, and at least and at most so many epochs.
TRAINING_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 600, 15, 100
# Memory of a training in addition to the prepared scans: copies of a batch, for the augmentation and the network; and
# copies of the largest scan, because some are prepared at the same time.
BATCH_COPIES, SCAN_COPIES = 24, 20
# Fewer training cases than these call for stronger augmentation, and for a smaller network.
STRONG_BELOW, MEDIUM_BELOW, SMALL_NETWORK_BELOW = 100, 1000, 200
# Strides of the first convolution, the cheapest first; three stages after it halve the volume.
STEM_STRIDES, HALVINGS, LEAST_LAST = (3, 2, 1), 3, 2


def add_size(
    lines: Lines, cases: CaseList, training: Sequence[LabelledCase], used: Sequence[CaseSurvey], most_voxels: int
) -> None:
    """Add orientation, spacing, crop and shape."""
    lines.add("orientation", "RAS", "axes of the patient: to the right, to the front, to the head")
    extents = Extents.of(used, training)
    choice = choose_crop(extents)
    crop = lines.add("crop", choice.crop, choice.reason)
    lines.add("foreground_above", choice.above, choice.above_reason)
    margin = lines.add("margin_mm", *extents.margin(crop))
    most = most_voxels / len(cases.channels)
    median = extents.median_spacing
    sizes = extents.sizes_mm(crop, margin, most)
    fitted = fit_spacing(median, sizes, most)
    why = f"the median of {len(used)} training cases"
    if fitted != median:
        why += f" ({_product(median)}), made coarser because the scans would not fit {most_voxels} voxels"
    spacing = lines.add("spacing_mm", fitted, why)
    shape, reason = shape_of(extents, crop, spacing, sizes)
    lines.add("image_shape", [len(cases.channels), *shape], reason)


def add_training(lines: Lines, count: int, most_voxels: int) -> None:
    """Add size of batch, augmentation and size of the network."""
    _, *shape = lines.values["image_shape"]
    voxels = math.prod(lines.values["image_shape"])
    fit = max(1, BATCH_INPUTS * most_voxels // voxels)
    batch = min(LARGEST_BATCH, fit, max(1, count // STEPS))
    batch = max(SMALLEST_BATCH, 2 ** int(math.log2(max(batch, 1))))
    lines.add("batch_size", batch, f"{count} training cases of {voxels} voxels")
    steps = -(-count // batch)
    epochs = min(max(round(TRAINING_STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    lines.add("epochs", epochs, f"{epochs * steps} steps of a batch")
    strength = "strong" if count < STRONG_BELOW else "medium" if count < MEDIUM_BELOW else "light"
    lines.add("augmentation", strength, f"{count} training cases")
    lines.add("hidden_size", 64 if count < SMALL_NETWORK_BELOW else 128, f"{count} training cases")
    lines.add("num_blocks", 1, "a small network")
    stride = next((one for one in STEM_STRIDES if _last_side(min(shape), one) >= LEAST_LAST), STEM_STRIDES[-1])
    last = " x ".join(str(_last_side(side, stride)) for side in shape)
    lines.add("stem_stride", stride, f"the network's last feature map has {last} voxels")


def memory_bytes(lines: Lines, used: Sequence[CaseSurvey], kept: int) -> tuple[int, int]:
    """Return the bytes of the prepared scans, and those of a training in addition, at most.

    The latter are a batch in training, and the scans that are prepared at one time.
    """
    voxels = math.prod(lines.values["image_shape"])
    largest = max(math.prod(one.shape) * len(record.measures) for record in used for one in record.measures)
    return 4 * kept * voxels, 4 * (BATCH_COPIES * lines.values["batch_size"] * voxels + SCAN_COPIES * largest)


def _last_side(side: int, stride: int) -> int:
    for step in (stride, *[2] * HALVINGS):
        side = -(-side // step)
    return side


def _product(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.3g}" for value in values) + " mm"
