# SPDX-License-Identifier: Apache-2.0
"""Predictions and relevance maps as DICOM objects of the patient they belong to, written with highdicom.

Here alone identity is kept: the patient and study of the source images are copied into what is derived from them, as
the standard demands. Nothing of it comes into a name, a message or a log, and no pixel of the source is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from monai_llmboost import __version__
from monai_llmboost.data import Scan
from monai_llmboost.data.scans.dicom.stacks import find_dicom_stacks
from monai_llmboost.inference.dicom.maker import MAKER, highdicom
from monai_llmboost.inference.dicom.map import write_parametric_map
from monai_llmboost.inference.dicom.report import write_structured_report
from monai_llmboost.inference.dicom.sources import read_sources
from monai_llmboost.inference.maps.saliency import folder_of

# What the maps are, by their codes' names; others count as saliency.
QUANTITIES = {name: "GradientWeightedClassActivation" for name in ("before_booster", "after_booster")}


class DicomObjects:
    """Writes a case's report, and its maps where there are some, as ``output_dir/dicom/NAME/{report,MAP}.dcm``.

    Args:
        output_dir: folder of the run.
        facts: what makes the predictions, see :func:`monai_llmboost.inference.run_facts`.
        volume: which of the volumes of a scan is predicted, as given to the reader.

    Raises:
        ImportError: highdicom is not installed.
    """

    def __init__(self, output_dir: str | Path, facts: Mapping[str, Any], volume: int | None = None) -> None:
        highdicom()
        self.volume = volume
        self.output_dir = Path(output_dir)
        self.algorithm = {
            "name": str(facts.get("bundle") or MAKER),
            "version": str(facts.get("bundle_version") or __version__),
            "weights_sha256": str(facts["weights"]["sha256"]),
            "block_fingerprint": str((facts.get("block") or {}).get("fingerprint", "")),
            "description": str(facts.get("task", "")),
        }

    def __call__(self, scan: Scan, row: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, str]:
        """Write the objects of one predicted case; paths below ``output_dir``, parted by "/".

        Args:
            scan: a DICOM scan.
            row: its ``probabilities``, ``predicted``, ``warnings``, and ``saliency``: paths of maps as NIfTI on the
                scan's own grid, below ``output_dir``.
            class_names: names of the classes.

        Raises:
            ValueError: see :func:`write_structured_report`; also a file in the way that is not from here.
        """
        paths, frames = _images_of(scan, self.volume)
        sources = read_sources(paths)
        folder = self.output_dir / "dicom" / folder_of(scan.name)
        files = {"report": folder / "report.dcm"}
        write_structured_report(
            files["report"],
            sources,
            class_names,
            row["probabilities"],
            row["predicted"],
            self.algorithm,
            row["warnings"],
            frames,
            overwrite=_is_from_here(files["report"]),
        )
        for name, place in row["saliency"].items():
            if not place.endswith((".nii", ".nii.gz")):
                continue  # the picture
            image: Any = nibabel.load(self.output_dir / place)
            files[name] = folder / f"{name}.dcm"
            write_parametric_map(
                files[name],
                sources,
                np.asarray(image.dataobj, dtype=np.float32),
                image.affine,
                name,
                self.algorithm,
                QUANTITIES.get(name, "Saliency"),
                frames,
                overwrite=_is_from_here(files[name]),
            )
        return {name: path.relative_to(self.output_dir).as_posix() for name, path in files.items()}


def _images_of(scan: Scan, volume: int | None) -> tuple[list[Path], list[int]]:
    """The files that a volume of a scan is made of, and its frames, from 1, in a multi-frame file; else none."""
    if len(scan.files) > 1 and len(scan.shape) == 3:
        return list(scan.files), []
    stacks, _ = find_dicom_stacks(scan.files)
    (stack,) = (stack for stack in stacks if stack.digest == scan.stack)
    slices = stack.layouts[volume or 0].slices
    files = list(dict.fromkeys(part.path for part in slices))
    of_frames = len(files) == 1 and slices[0].corner is None  # a mosaic is one picture
    return files, [part.frame + 1 for part in slices] if of_frames else []


def _is_from_here(path: Path) -> bool:
    """Whether a file is an object that was written here before, as an interrupted run leaves it."""
    if not path.is_file():
        return False
    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"]).get("Manufacturer") == MAKER
    except InvalidDicomError:
        return False
