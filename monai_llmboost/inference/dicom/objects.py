# SPDX-License-Identifier: Apache-2.0
"""Predictions and relevance maps as DICOM objects of the source's patient and study, written with highdicom.

Only these objects contain the patient's identity: patient and study of the source images are copied, as the standard
requires. No file name, message or log contains them, and no pixel of the source is read.
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
from monai_llmboost.data.labelled.listed import first_channel
from monai_llmboost.data.scans.dicom.stacks import find_dicom_stacks
from monai_llmboost.inference.case_folder import case_folder
from monai_llmboost.inference.dicom.maker import MAKER, highdicom
from monai_llmboost.inference.dicom.map import write_parametric_map
from monai_llmboost.inference.dicom.report import write_structured_report
from monai_llmboost.inference.dicom.sources import SourceImages, read_sources
from monai_llmboost.inference.rows import Row

# Quantity of each map, as the name of its code; other maps are saliency.
QUANTITIES = {name: "GradientWeightedClassActivation" for name in ("before_booster", "after_booster")}


class DicomObjects:
    """Writes the report and the maps of a case as ``output_dir/dicom/NAME/{report,MAP}.dcm``.

    Args:
        output_dir: folder of the run.
        provenance: provenance of the predictions, see :func:`monai_llmboost.inference.run_provenance`.
        volume: index of the predicted volume of a scan, as given to the reader.
        facts: the name of ``provenance`` in earlier copies of bundles.

    Raises:
        ImportError: highdicom is not installed.

    Example:
        >>> write = DicomObjects("out", provenance)  # doctest: +SKIP
        >>> write(scan, row, class_names=["benign", "malignant"])  # doctest: +SKIP
        {'report': 'dicom/series-1/report.dcm'}
    """

    def __init__(
        self,
        output_dir: str | Path,
        provenance: Mapping[str, Any] | None = None,
        volume: int | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        highdicom()
        self.volume = volume
        self.output_dir = Path(output_dir)
        made_by = facts if provenance is None else provenance
        if made_by is None:
            raise ValueError("there is no provenance: give what run_provenance returns")
        self.algorithm = {
            "name": str(made_by.get("bundle") or MAKER),
            "version": str(made_by.get("bundle_version") or __version__),
            "weights_sha256": str(made_by["weights"]["sha256"]),
            "block_fingerprint": str((made_by.get("block") or {}).get("fingerprint", "")),
            "description": str(made_by.get("task", "")),
        }

    def __call__(self, scan: Scan, row: Row, class_names: Sequence[str]) -> dict[str, str]:
        """Write the objects of one predicted case.

        Args:
            scan: a DICOM scan.
            row: its row; its maps are files on the scan's original grid.
            class_names: names of the classes.

        Returns:
            Paths relative to ``output_dir``, with "/".

        Raises:
            ValueError: see :func:`write_structured_report`; also an existing file that was not written by this class.
        """
        found = _images_of(scan, self.volume)
        source = SourceImages(read_sources(found.files), found.frames)
        folder = self.output_dir / "dicom" / case_folder(scan.name)
        files = {"report": folder / "report.dcm"}
        write_structured_report(
            files["report"],
            source,
            class_names,
            row.probabilities,
            row.predicted,
            self.algorithm,
            row.warnings,
            overwrite=_is_ours(files["report"]),
        )
        for name, file in row.saliency.items():
            if not file.endswith((".nii", ".nii.gz")):
                continue  # the preview
            image: Any = nibabel.load(self.output_dir / file)
            files[name] = folder / f"{name}.dcm"
            write_parametric_map(
                files[name],
                source,
                np.asarray(image.dataobj, dtype=np.float32),
                image.affine,
                name,
                self.algorithm,
                QUANTITIES.get(name, "Saliency"),
                overwrite=_is_ours(files[name]),
            )
        return {name: path.relative_to(self.output_dir).as_posix() for name, path in files.items()}


def _images_of(scan: Scan, volume: int | None) -> SourceImages:
    """Return the files of a volume of a scan, and its frames from 1 if it is in a multi-frame file.

    Of a case of several channels these are the files of the first, on whose grid the maps are.
    """
    scan = first_channel(scan)
    if len(scan.files) > 1 and len(scan.shape) == 3:
        return SourceImages(scan.files)
    stacks, _ = find_dicom_stacks(scan.files)
    (stack,) = (stack for stack in stacks if stack.digest == scan.stack)
    slices = stack.layouts[volume or 0].slices
    files = list(dict.fromkeys(part.path for part in slices))
    of_frames = len(files) == 1 and slices[0].corner is None  # a mosaic is one image
    return SourceImages(files, [part.frame + 1 for part in slices] if of_frames else [])


def _is_ours(path: Path) -> bool:
    """Return whether a file was written by this package, for example by an interrupted run."""
    if not path.is_file():
        return False
    try:
        return dcmread(path, stop_before_pixels=True, specific_tags=["Manufacturer"]).get("Manufacturer") == MAKER
    except InvalidDicomError:
        return False
