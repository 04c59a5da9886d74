# SPDX-License-Identifier: Apache-2.0
"""The output of an evaluation of a segmentation: measures on each scan's own grid, and a page."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from monai_llmboost.arguments import is_positive
from monai_llmboost.data.labelled.label_maps import class_numbers, read_label_map, turn_axes
from monai_llmboost.data.labels import CASE, patients_of
from monai_llmboost.data.transforms import LoadScansd
from monai_llmboost.engines.evaluation.cases import gathered
from monai_llmboost.engines.evaluation.mask_numbers import MeasuredCase, WorstCase, mask_numbers, worst_of
from monai_llmboost.engines.evaluation.scan_metrics import PAGE_FILE
from monai_llmboost.engines.results import (
    METRICS_FILE,
    PREDICTIONS_FILE,
    check_classes,
    write_metrics,
    write_predictions,
)
from monai_llmboost.tasks import Segmentation, TrainingDiverged, measure_mask

logger = logging.getLogger("monai_llmboost")
AFFINE = "affine"  # key of batches: voxels of the prepared images to RAS+ mm (B, 4, 4)
# Probabilities (classes, x, y, z), their affine, shape and affine of the scan's own grid -> class numbers (i, j, k).
ToOwnGrid = Callable[[Tensor, np.ndarray, Sequence[int], np.ndarray], np.ndarray]


class MaskMetrics:
    """Writes ``predictions.csv``, ``metrics.json`` and ``evaluation.html`` when an evaluator of masks completes.

    The network's probabilities of a case are brought to the grid of its label map as that was drawn, and compared
    there: see :class:`monai_llmboost.tasks.StructureMeasures`. Rank 0 writes the files, on the cases of all ranks.

    Args:
        output_dir: the folder; earlier files in it are renamed, not overwritten.
        network: the network, which knows the class names of its loaded checkpoint.
        class_names: ``"background"`` and the names of the structures in the label maps.
        label_values: value of each structure in the label maps.
        reader: reader of label maps.
        to_own_grid: function that brings probabilities to another grid.
        about: metadata such as dataset and split, written next to the numbers.
        nsd_tolerance_mm: tolerance of the normalized surface Dice, mm.

    Raises:
        ValueError: a tolerance that is not positive; in the run, if the network was trained for other structures, or
            the data set does not know the files of the label maps.
        TrainingDiverged: in the run, if probabilities are not finite.

    Example:
        >>> handlers = [  # of an evaluator, after the handler that loads the weights
        ...     MaskMetrics("eval", network, ["background", "tumour"], [1], reader, to_own_grid, {"split": "test"})
        ... ]  # doctest: +SKIP
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        class_names: Sequence[str],
        label_values: Sequence[int],
        reader: Any,
        to_own_grid: ToOwnGrid,
        about: Mapping[str, Any],
        nsd_tolerance_mm: float = 1.0,
    ) -> None:
        if not is_positive(nsd_tolerance_mm):
            raise ValueError(f"nsd_tolerance_mm must be above 0, not {nsd_tolerance_mm!r}: give 1.0, say")
        self.folder = Path(output_dir)
        self.network = network
        self.class_names = class_names
        self.task = Segmentation(class_names)
        self.label_values = list(label_values)
        self.reader = reader
        self.to_own_grid = to_own_grid
        self.about = dict(about)
        self.tolerance_mm = float(nsd_tolerance_mm)
        self.cases: list[MeasuredCase] = []
        self.worst: list[WorstCase] = []

    def attach(self, engine: Engine) -> None:
        """Attach to MONAI's evaluator, whose inferer returns probabilities, before its postprocessing."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.measure)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Check the structures, and find the label maps."""
        check_classes(self.class_names, self.network)
        self.cases, self.worst = [], []
        items = getattr(_dataset(engine), "data", ())
        self.items = {str(item[CASE]): item for item in items if CASE in item}

    def measure(self, engine: Engine) -> None:
        """Measure the cases of a batch."""
        state: Any = engine.state
        affines = state.batch[AFFINE].cpu().numpy()
        for name, own, affine in zip(state.batch[CASE], state.output[CommonKeys.PRED], affines):
            if not own.isfinite().all():
                raise TrainingDiverged(f"the probabilities of the case {name} are not finite: train again")
            self.measure_case(str(name), own, affine)

    def measure_case(self, name: str, probabilities: Tensor, affine: np.ndarray) -> None:
        """Measure a case on the grid of its label map, and keep a picture of it if it is one of the worst."""
        if name not in self.items:
            raise ValueError(f"the data set has no label map of the case {name!r}: give items with case and label")
        values, own_affine = read_label_map(self.items[name][CommonKeys.LABEL], self.reader)
        label = class_numbers(values, self.label_values)
        mask = self.to_own_grid(probabilities, affine, label.shape, own_affine)
        case = MeasuredCase(name, measure_mask(mask, label, own_affine, len(self.task.structures), self.tolerance_mm))
        self.cases.append(case)
        of_worst = worst_of([*self.worst, WorstCase(case, b"")])
        if np.isfinite(case.mean_dice) and any(each.case is case for each in of_worst):
            picture = self.picture(self.items[name][CommonKeys.IMAGE], own_affine, mask, label)
            self.worst = worst_of([*self.worst, WorstCase(case, picture)])

    def picture(self, image: Any, affine: np.ndarray, mask: np.ndarray, label: np.ndarray) -> bytes:
        """Return a picture of the planes in which mask and label differ most."""
        from monai_llmboost.artifacts.contours import contour_picture, largest_planes  # imports matplotlib

        first = image if isinstance(image, (str, Path)) else next(path for path in image if path)
        image = LoadScansd(CommonKeys.IMAGE, self.reader)({CommonKeys.IMAGE: first})[CommonKeys.IMAGE]
        volume, own_affine = image[0].numpy(), image.affine.numpy()
        if volume.shape != mask.shape or not np.allclose(own_affine, affine, atol=1e-3):
            volume, _ = turn_axes(volume, own_affine, affine)
        structures = dict(enumerate(self.task.structures, start=1))
        differs = mask != label
        at = largest_planes(differs) if differs.any() else None
        return contour_picture(volume, affine, mask, structures, reference=label, at=at)

    def write(self, engine: Engine) -> None:
        """Write the files."""
        cases = sorted((case for part in gathered(self.cases) for case in part), key=lambda case: case.name)
        worst = [each for part in gathered(self.worst) for each in part]
        if idist.get_rank() != 0 or not cases:
            return
        write_predictions(self.folder / PREDICTIONS_FILE, [case.row(self.task) for case in cases])
        numbers = mask_numbers(cases, self.task, patients_of(_dataset(engine)))
        numbers |= {"nsd_tolerance_mm": self.tolerance_mm, "grid": "of each scan", "caveats": self.caveats()}
        write_metrics(self.folder / METRICS_FILE, {**self.about, **numbers})
        by_structure = ", ".join(
            f"{name} {found['dice']['mean']:.4f}"
            for name, found in numbers["structures"].items()
            if found["dice"]["cases"]
        )
        from monai_llmboost.engines.evaluation.page.masks import write_mask_page  # imports matplotlib

        write_mask_page(self.folder / PAGE_FILE, self.task, cases, worst_of(worst), self.about, numbers)
        logger.info(f"Dice {by_structure or 'of no structure'} on {len(cases)} cases: {self.folder / METRICS_FILE}")

    def caveats(self) -> list[str]:
        """Return sentences on what limits the numbers."""
        split = self.about.get("split")
        if split == "train":
            return ["The network was trained on these cases, so the numbers say nothing about other cases."]
        if split == "val" and self.about.get("weights") != "last":
            return ["The epoch was chosen on these cases, so the numbers are optimistic."]
        return []


def _dataset(engine: Engine) -> Any:
    return getattr(getattr(engine.state, "dataloader", None), "dataset", None)
