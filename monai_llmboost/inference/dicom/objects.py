# SPDX-License-Identifier: Apache-2.0
"""Predictions and relevance maps as DICOM objects of the source's patient and study, written with highdicom.

Only these objects contain the patient's identity: patient and study of the source images are copied, as the standard
requires. No file name, message or log contains them, and no pixel of the source is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import nibabel
import numpy as np
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from monai_llmboost import __version__
from monai_llmboost.arguments import check_switch
from monai_llmboost.artifacts.contours import colours_of
from monai_llmboost.data import Scan
from monai_llmboost.data.labelled.listed import first_channel
from monai_llmboost.data.scans.dicom.stacks import find_dicom_stacks
from monai_llmboost.inference.case_folder import case_folder
from monai_llmboost.inference.dicom.codes import Segment, segments_of
from monai_llmboost.inference.dicom.maker import MAKER, highdicom
from monai_llmboost.inference.dicom.map import write_parametric_map
from monai_llmboost.inference.dicom.report import write_structured_report
from monai_llmboost.inference.dicom.segmentation import write_seg
from monai_llmboost.inference.dicom.sources import SourceImages, read_sources
from monai_llmboost.inference.masks.structure_masks import StructureMasks
from monai_llmboost.inference.rows import Row

# Quantity of each map, as the name of its code; other maps are saliency.
QUANTITIES = {name: "GradientWeightedClassActivation" for name in ("before_booster", "after_booster")}


class CaseObjects(Protocol):
    """Writes the DICOM objects of a case; :class:`DicomObjects` and :class:`DicomMasks` implement it.

    Example:
        >>> objects: CaseObjects = DicomObjects("out", provenance)  # doctest: +SKIP
    """

    def check(self) -> None:
        """Check, once the weights are loaded, what concerns all cases.

        Raises:
            ValueError: an invalid option.
        """

    def __call__(self, scan: Scan, row: Row, class_names: Sequence[str]) -> dict[str, str]:
        """Write the objects of a predicted case, and return their paths relative to the output folder."""


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
        self.algorithm = _algorithm(made_by)

    def check(self) -> None:
        """Check nothing: there are no options."""

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


class DicomMasks:
    """Writes the mask of a case as a DICOM Segmentation, ``output_dir/dicom/NAME/segmentation.dcm``.

    Args:
        output_dir: folder of the run.
        masks: the answers, which know the values and names of the structures.
        provenance: provenance of the predictions, see :func:`monai_llmboost.inference.run_provenance`.
        volume: index of the predicted volume of a scan, as given to the reader.
        codes: CSV or JSON file with codes and colours of structures, see :func:`segments_of`; None codes all as
            "Anatomical Structure".
        labelmap: write Label Map Segmentations, see :func:`write_seg`.

    Raises:
        ValueError: from :meth:`check`, a wrong table of codes.
        ImportError: highdicom is not installed.

    Example:
        >>> write = DicomMasks("out", masks, provenance, codes="codes.csv")  # doctest: +SKIP
        >>> write(scan, row, masks.class_names)  # doctest: +SKIP
        {'segmentation': 'dicom/series-1/segmentation.dcm'}
    """

    def __init__(
        self,
        output_dir: str | Path,
        masks: StructureMasks,
        provenance: Mapping[str, Any],
        volume: int | None = None,
        codes: str | Path | None = None,
        labelmap: bool = False,
    ) -> None:
        highdicom()
        check_switch("labelmap", labelmap)
        self.output_dir = Path(output_dir)
        self.masks = masks
        self.volume = volume
        self.codes = codes
        self.labelmap = labelmap
        self.algorithm = _algorithm(provenance)

    def check(self) -> None:
        """Check the table of codes."""
        self._segments()

    def _segments(self) -> list[Segment]:
        structures = self.masks.structures
        return segments_of(structures, colours_of(structures), self.codes)

    def __call__(self, scan: Scan, row: Row, class_names: Sequence[str]) -> dict[str, str]:
        """Write the segmentation of one predicted case.

        Args:
            scan: a DICOM scan.
            row: its row; its mask is a file on the scan's original grid.
            class_names: names of the classes; the structures have them too.

        Raises:
            ValueError: see :func:`write_seg`; also an existing file that was not written by this package.
        """
        found = _images_of(scan, self.volume)
        file = self.output_dir / "dicom" / case_folder(scan.name) / "segmentation.dcm"
        image: Any = nibabel.load(self.output_dir / row.mask)
        write_seg(
            file,
            SourceImages(read_sources(found.files), found.frames),
            np.asanyarray(image.dataobj),
            image.affine,
            self._segments(),
            self.algorithm,
            self.labelmap,
            overwrite=_is_ours(file),
        )
        return {"segmentation": file.relative_to(self.output_dir).as_posix()}


def _algorithm(provenance: Mapping[str, Any]) -> dict[str, str]:
    """Return what identifies the network in objects."""
    return {
        "name": str(provenance.get("bundle") or MAKER),
        "version": str(provenance.get("bundle_version") or __version__),
        "weights_sha256": str(provenance["weights"]["sha256"]),
        "block_fingerprint": str((provenance.get("block") or {}).get("fingerprint", "")),
        "description": str(provenance.get("task", "")),
    }


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
