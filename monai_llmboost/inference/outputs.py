# SPDX-License-Identifier: Apache-2.0
"""Outputs of a predicted case besides its row: maps, DICOM objects, a thumbnail or contours, a viewer."""

from __future__ import annotations

import base64
import math
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel
import numpy as np
import torch

from monai_llmboost.artifacts.contours import contour_picture
from monai_llmboost.inference.answers import Answers
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.cases import ScanCases
from monai_llmboost.inference.dicom.objects import CaseObjects
from monai_llmboost.inference.maps.saliency import SaliencyMaps
from monai_llmboost.inference.maps.thumbnails import thumbnail
from monai_llmboost.inference.page.viewer import Viewer, viewer_html
from monai_llmboost.inference.reasons import may_pass
from monai_llmboost.inference.rows import Row

# Largest volume that is kept for the contours of a mask. A larger one is read again for them.
KEPT_FOR_CONTOURS = 256 << 20
# Function that returns the original volume, (i, j, k), and its affine to RAS+ mm.
VolumeOf = Callable[[], tuple[np.ndarray, np.ndarray]]
# Function that returns the mask of a case, (i, j, k).
MaskOf = Callable[[], np.ndarray]


class CaseOutputs:
    """Makes the outputs of predicted cases; each volume is read once.

    Args:
        cases: the scans.
        output_dir: folder of the run.
        answers: what an answer is; its masks are drawn.
        saliency: draws maps; None draws none.
        dicom: writes DICOM objects for DICOM scans; None writes none.
        report: whether to make thumbnails and viewers for the report.
        view: names of the cases with a viewer; None takes the first predicted case if there are maps.
    """

    def __init__(
        self,
        cases: ScanCases,
        output_dir: Path,
        answers: Answers,
        saliency: SaliencyMaps | None = None,
        dicom: CaseObjects | None = None,
        report: bool = True,
        view: Sequence[str] | None = None,
    ) -> None:
        self.cases = cases
        self.output_dir = output_dir
        self.answers = answers
        self.saliency = saliency
        self.dicom = dicom
        self.report = report
        self.view = view
        self._viewers: dict[str, Viewer] = {}
        self.draws = math.prod(cases.image_shape[1:]) > 1  # features in place of a volume have no picture

    def check(self) -> None:
        """Check, once the weights are loaded, what does not concern a single case.

        Raises:
            ValueError: a case to view was not found, or the codes of structures are wrong.
        """
        if self.dicom is not None:
            self.dicom.check()
        for case in self.view or ():
            if case not in self.cases.indices:
                raise ValueError(f"--view {case!r} is none of the cases that were found: see the column case")

    def keep_volumes(self, most_bytes: int) -> None:
        """Keep volumes up to this size for cases that need a picture or a viewer."""
        viewed = self.view if self.report and idist.get_rank() == 0 else None
        if self.report and self.answers.structures:
            self.cases.keep_volumes(self.cases.indices, min(most_bytes, KEPT_FOR_CONTOURS))
            return
        self.cases.keep_volumes((viewed or ()) if self.saliency is None else self.cases.indices, most_bytes)

    def make(self, row: Row, case: Case, class_names: Sequence[str]) -> None:
        """Make all outputs of a predicted case, and add them to its row."""
        volume_of = _volume_of(self.cases, case.index, case)
        relevance = None
        if self.saliency is not None:
            relevance = self._draw_maps(self.saliency, row, case, class_names.index(row.predicted), volume_of)
        mask_of = cache(lambda: _read_mask(self.output_dir, row))
        scan = self.cases.scans[case.index]
        if self.dicom is not None and scan.format == "DICOM":
            try:
                row.dicom = self.dicom(scan, row, class_names)
            except ValueError as error:  # the source lacks what the standard requires
                row.warnings.append(f"no DICOM objects: {self.cases.reason(error)}")
        if self.report and self.draws:
            row.thumbnail = self._picture(row, case, volume_of, mask_of)
        if self._is_viewed(row.case):
            self._draw_viewer(row.case, volume_of, relevance, mask_of)

    def complete(self, rows: Sequence[Row]) -> list[Viewer]:
        """Make thumbnails and viewers that the page still lacks, and return the viewers.

        They are missing, for example, after an earlier run without a page. Cases whose viewer cannot be made get a
        warning. ``rows`` are the rows of all cases.
        """
        if not self.report:
            return []
        viewed = self._viewed_of(rows)
        self.cases.keep_volumes(viewed, sys.maxsize)
        for row in rows:
            case = None
            if not row.refused and not row.thumbnail and self.draws:
                case = self.cases.read(self.cases.indices[row.case])
                volume_of = _volume_of(self.cases, case.index, case)
                mask_of = partial(_read_mask, self.output_dir, row)
                row.thumbnail = "" if case.refused else self._picture(row, case, volume_of, mask_of)
            if row.case not in viewed or row.case in self._viewers:
                continue
            if row.refused:
                row.warnings.append("no viewer: the case is refused")
                continue
            volume_of = _volume_of(self.cases, self.cases.indices[row.case], case)
            mask_of = partial(_read_mask, self.output_dir, row)
            error = self._draw_viewer(row.case, volume_of, _read_map(self.output_dir, row), mask_of)
            if error is not None:  # the volume cannot be read any more; its prediction is kept
                row.warnings.append(f"no viewer: {self.cases.reason(error)}")
        return [self._viewers[case] for case in viewed if case in self._viewers]

    def _draw_maps(
        self, saliency: SaliencyMaps, row: Row, case: Case, class_index: int, volume_of: VolumeOf
    ) -> np.ndarray | None:
        """Write the maps of a case, and return the map of the whole network."""
        title = f"{row.case}: {row.predicted} {max(row.probabilities):.3f}"
        try:
            maps = saliency(row.case, case, class_index, lambda: volume_of()[0], title)
        # For example, a user's transforms keep no geometry. If the error may pass, the next run repeats the case.
        except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
            row.warnings.append(f"no saliency: {self.cases.reason(error)}")
            row.may_pass = row.may_pass or may_pass(error)
            return None
        row.saliency = maps.files
        return maps.values["network"]

    def _picture(self, row: Row, case: Case, volume_of: VolumeOf, mask_of: MaskOf) -> str:
        """Return the contours of the mask of a case, or a thumbnail of the network's input, in base64."""
        if not row.mask:
            return _encode(thumbnail(case.image))
        try:
            return _encode(contour_picture(*volume_of(), mask_of(), self.answers.structures))
        except (ValueError, OSError, MemoryError) as error:  # the prediction is kept
            row.warnings.append(f"no picture: {self.cases.reason(error)}")
            return ""

    def _draw_viewer(
        self, case: str, volume_of: VolumeOf, relevance: np.ndarray | None, mask_of: MaskOf
    ) -> Exception | None:
        """Draw the viewer of a case; return the error if this fails."""
        structures = self.answers.structures
        try:
            mask = mask_of() if structures else None
            self._viewers[case] = Viewer(case, viewer_html(*volume_of(), relevance, case, mask, structures))
        except (ValueError, OSError) as error:
            return error
        return None

    def _is_viewed(self, case: str) -> bool:
        """Return whether a case gets a viewer, by the cases predicted so far."""
        if not self.report or idist.get_rank() != 0:  # the first process writes the page
            return False
        if self.view is not None:
            return case in self.view
        return self.saliency is not None and all(case < earlier for earlier in self._viewers)

    def _viewed_of(self, rows: Sequence[Row]) -> list[str]:
        if self.view is not None:
            return [case for case in dict.fromkeys(self.view) if any(row.case == case for row in rows)]
        return [row.case for row in rows if not row.refused][:1] if self.saliency is not None else []


def _volume_of(cases: ScanCases, index: int, case: Case | None) -> VolumeOf:
    """Return a function for the volume of a case: the kept volume, or the volume read again, once."""

    @cache
    def read() -> tuple[np.ndarray, np.ndarray]:
        if case is None or case.volume is None:
            return cases.volume(index)
        return case.volume, case.input_affine.numpy()

    return read


def _read_map(output_dir: Path, row: Row) -> np.ndarray | None:
    path = row.saliency.get("network")
    image: Any = nibabel.load(output_dir / path) if path else None
    return None if image is None else np.asarray(image.dataobj, dtype=np.float32)


def _read_mask(output_dir: Path, row: Row) -> np.ndarray:
    image: Any = nibabel.load(output_dir / row.mask)
    return np.asanyarray(image.dataobj)


def _encode(png: bytes) -> str:
    return base64.b64encode(png).decode()
