# SPDX-License-Identifier: Apache-2.0
"""The part of a plan that is of segmentation: spacing, patches, and the size of the training of a U-Net."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from monai_llmboost.data.labelled import CaseList, LabelledCase
from monai_llmboost.inspection.plans.extent import CPU_VOXELS, Extents, choose_crop
from monai_llmboost.inspection.plans.lines import Lines
from monai_llmboost.inspection.survey import CaseSurvey
from monai_llmboost.networks.unet import COARSE

# An axis whose spacing is more than this factor of the others' gets a low percentile of the spacings instead of their
# median, so that few cases lose planes (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z).
ANISOTROPIC, FINE_PERCENT = 3.0, 10
# Sides of a patch are multiples of 8, and 16 or more, so that a U-Net can halve them twice. Along a coarse axis, which
# it halves less often, a short side may be a multiple of 4 from 8.
MULTIPLE, SHORT_MULTIPLE, SHORT, LEAST_SIDE = 8, 4, 16, 8
# A batch has so many of the largest patches, and from 2 to 8; on a CPU 2, because there a step takes as long as its
# patches, and smaller batches give more steps.
BATCH_PATCHES, SMALLEST_BATCH, LARGEST_BATCH = 2, 2, 8
# An epoch has about this number of steps or more.
STEPS = 8
# A training has about this number of steps, and at least and at most so many epochs.
TRAINING_STEPS, FEWEST_EPOCHS, MOST_EPOCHS = 2000, 20, 300
# Fewer training cases than these call for stronger augmentation.
STRONG_BELOW, MEDIUM_BELOW = 50, 500
# Memory of a training in addition to the prepared scans: copies of a batch with the U-Net's first features; and copies
# of the largest scan, because some are prepared at the same time.
BATCH_COPIES, SCAN_COPIES = 16, 20
# First features of the U-Net on a CPU and on a GPU.
CPU_FILTERS, GPU_FILTERS = 16, 32


def add_size(
    lines: Lines, cases: CaseList, training: Sequence[LabelledCase], used: Sequence[CaseSurvey], most_voxels: int
) -> None:
    """Add orientation, crop, spacing and patch."""
    lines.add("orientation", "RAS", "axes of the patient: to the right, to the front, to the head")
    # Masks and points are of classification: a scan is segmented as a whole.
    extents = replace(Extents.of(used, training), masks=None, has_centres=False)
    choice = choose_crop(extents)
    cut = [record.name for record in used if record.label_map and record.label_map.outside > 0]
    if choice.crop == "foreground" and cut:
        why = f"structures of {len(cut)} training cases, such as {cut[0]}, reach out of the foreground"
        choice = replace(choice, crop="none", reason=why)
    crop = lines.add("crop", choice.crop, choice.reason)
    lines.add("foreground_above", choice.above, choice.above_reason)
    lines.add("margin_mm", *extents.margin(crop))
    spacing = lines.add("spacing_mm", *choose_spacing(extents))
    median = [int(side) for side in np.median(_prepared_sides(lines, used), axis=0)]
    patch = fit_patch(median, spacing, most_voxels)
    whole = " x ".join(map(str, median))
    why = f"the median prepared scan has {whole} voxels"
    if math.prod(patch) < math.prod(median):
        why += f", and a patch at most {most_voxels}"
    lines.add("image_shape", [len(cases.channels), *patch], why)


def _prepared_sides(lines: Lines, used: Sequence[CaseSurvey]) -> np.ndarray:
    """Return the voxels of the prepared cases along x, y, z (cases, 3)."""
    sizes = np.array([record.measures[0].size_mm for record in used])
    if lines.values["crop"] == "foreground":
        foreground = np.array([np.max([one.foreground_mm for one in record.measures], axis=0) for record in used])
        sizes = np.minimum(foreground + 2 * lines.values["margin_mm"], sizes)
    return np.ceil(sizes / np.array(lines.values["spacing_mm"]) - 0.01)


def choose_spacing(extents: Extents) -> tuple[list[float], str]:
    """Return the spacing of prepared scans along x, y, z, and why."""
    median, why = extents.median_spacing, f"the median of {len(extents.spacings)} training cases"
    coarse = int(np.argmax(median))
    others = [step for axis, step in enumerate(median) if axis != coarse]
    if median[coarse] <= ANISOTROPIC * max(others):
        return median, why
    fine = max(float(np.percentile(extents.spacings[:, coarse], FINE_PERCENT)), *others)
    steps = [float(f"{fine:.4g}") if axis == coarse else step for axis, step in enumerate(median)]
    return steps, f"{why}; along {'xyz'[coarse]}, where it is coarse, the {FINE_PERCENT}th percentile"


def fit_patch(median: Sequence[int], spacing: Sequence[float], most_voxels: int) -> list[int]:
    """Return the sides of a patch: those of the median scan, or of a cube in mm that has no more than so many voxels.

    Example:
        >>> fit_patch([35, 50, 36], [1.0, 1.0, 1.0], 64**3)
        [40, 56, 40]
        >>> fit_patch([512, 512, 100], [0.8, 0.8, 5.0], 64**3)
        [112, 112, 20]
    """
    coarse = [step >= COARSE * min(spacing) for step in spacing]
    ends = [_round(side, is_coarse, math.ceil) for side, is_coarse in zip(median, coarse)]
    if math.prod(ends) <= most_voxels:
        return ends
    low, high = 0.0, max(side * step for side, step in zip(ends, spacing))
    for _ in range(50):  # the largest cube in mm
        middle = (low + high) / 2
        sides = [min(end, middle / step) for end, step in zip(ends, spacing)]
        low, high = (middle, high) if math.prod(sides) <= most_voxels else (low, middle)
    cube = [_round(low / step, is_coarse, math.floor) for step, is_coarse in zip(spacing, coarse)]
    return [min(end, side) for end, side in zip(ends, cube)]


def _round(side: float, is_coarse: bool, method: Callable[[float], int]) -> int:
    multiple = SHORT_MULTIPLE if is_coarse and side < SHORT else MULTIPLE
    return max(LEAST_SIDE if is_coarse else SHORT, multiple * method(side / multiple))


def add_training(lines: Lines, count: int, most_voxels: int) -> None:
    """Add size of batch, epochs, augmentation and size of the U-Net."""
    voxels = math.prod(lines.values["image_shape"][1:])
    on_cpu = most_voxels <= CPU_VOXELS
    largest = SMALLEST_BATCH if on_cpu else LARGEST_BATCH
    fit = min(largest, BATCH_PATCHES * most_voxels // voxels, max(1, count // STEPS))
    batch = lines.add(
        "batch_size",
        max(SMALLEST_BATCH, 2 ** int(math.log2(max(fit, 1)))),
        f"{count} training cases, patches of {voxels} voxels",
    )
    steps = -(-count // batch)
    epochs = min(max(round(TRAINING_STEPS / steps), FEWEST_EPOCHS), MOST_EPOCHS)
    lines.add("epochs", epochs, f"{epochs * steps} steps of a batch")
    strength = "strong" if count < STRONG_BELOW else "medium" if count < MEDIUM_BELOW else "light"
    lines.add("augmentation", strength, f"{count} training cases")
    lines.add("filters", CPU_FILTERS if on_cpu else GPU_FILTERS, "a CPU" if on_cpu else "a GPU")


def memory_bytes(lines: Lines, used: Sequence[CaseSurvey], kept: int) -> tuple[int, int]:
    """Return the bytes of the prepared scans and label maps, and those of a training in addition, at most.

    The latter are a batch in training, and the scans that are prepared at one time.
    """
    channels, *patch = lines.values["image_shape"]
    sides = np.maximum(_prepared_sides(lines, used), patch)
    prepared = round(kept * float(np.prod(sides, axis=1).mean())) * (4 * channels + 1)
    batch = lines.values["batch_size"] * math.prod(patch)
    largest = max(math.prod(one.shape) * len(record.measures) for record in used for one in record.measures)
    return prepared, 4 * (BATCH_COPIES * lines.values["filters"] * batch + SCAN_COPIES * largest)
