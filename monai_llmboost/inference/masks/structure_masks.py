# SPDX-License-Identifier: Apache-2.0
"""Masks of structures as files on the scan's own grid, and their volumes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.engines.utils import IterationEvents
from torch import Tensor, nn

from monai_llmboost.arguments import check_switch
from monai_llmboost.artifacts.files import atomic_path
from monai_llmboost.data import RefusedScan, Scan
from monai_llmboost.data.labelled.listed import first_channel
from monai_llmboost.data.scans.nifti.headers import read_stored_header
from monai_llmboost.data.scans.scan import to_refusal
from monai_llmboost.inference.answers import NOT_FINITE
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.case_folder import case_folder
from monai_llmboost.inference.cases import ScanCases
from monai_llmboost.inference.maps.grid import to_matrix
from monai_llmboost.inference.masks.own_grid import on_own_grid, to_own_grid
from monai_llmboost.inference.nifti import nifti_image
from monai_llmboost.networks.class_names import class_names_of, label_values_of, unwrap

MASKS, PROBABILITIES = "masks", "probabilities"
NIFTI = ".nii.gz"
# Written probabilities are multiples of this, because smaller differences have no meaning and would not compress.
STEP = np.float32(1 / 1024)


class StructureMasks:
    """Answers of a segmentation: a mask of each case on its own grid, and the volume of each structure.

    The mask is ``output_dir/masks/NAME.nii.gz`` with NAME from :func:`case_folder`, on the grid of the scan (of several
    channels: the first one), with its sform and qform if it is NIfTI; its values are those of the training's masks.
    It is written atomically. Cases that would share a file, such as ``a.nii`` and ``a.nii.gz``, get a digest.

    Args:
        network: the network, which keeps the names of its classes, the background first, and the values of its
            structures (otherwise 1, 2, ...).
        output_dir: folder of the run.
        probabilities: also write ``output_dir/probabilities/NAME/VALUE-STRUCTURE.nii.gz``, float32, rounded to
            multiples of 1/1024.
        cases: all cases of the run, for the names of masks; ``None`` knows only the masks that are written.

    Raises:
        ValueError: from :meth:`class_names`, a network that keeps none.

    Example:
        >>> masks = StructureMasks(network, "out")  # doctest: +SKIP
        >>> masks.record(scan, case, probabilities)  # doctest: +SKIP
        {'mask': 'masks/a.nii.gz', 'volume_mm3': {'anterior': 1250.0, 'posterior': 1408.0}}
    """

    # Before the evaluator's postprocessing: a label map of a large scan would not be needed twice.
    event = IterationEvents.FORWARD_COMPLETED

    def __init__(
        self,
        network: nn.Module,
        output_dir: str | Path,
        probabilities: bool = False,
        cases: ScanCases | None = None,
    ) -> None:
        check_switch("probabilities", probabilities)
        self.network = network
        self.output_dir = Path(output_dir)
        self.probabilities = probabilities
        # Not by the files that are there, because processes write at the same time.
        scans = [] if cases is None else cases.scans
        self._times = Counter(_plain_path(scan.name) for scan in scans)

    @property
    def class_names(self) -> list[str]:
        """The background and the structures, as in the network's checkpoint."""
        names = class_names_of(self.network)
        if not names:
            name = type(unwrap(self.network)).__name__
            raise ValueError(f"the network {name} keeps no class names: make it with class_names")
        return names

    @property
    def values(self) -> list[int]:
        """The value of each class in the masks; 0 for the background."""
        return [0, *(label_values_of(self.network) or range(1, len(self.class_names)))]

    @property
    def structures(self) -> dict[int, str]:
        """The value and name of each structure in the masks."""
        return dict(zip(self.values[1:], self.class_names[1:]))

    def record(self, scan: Scan, case: Case, output: Tensor) -> dict[str, Any]:
        """Write the mask of a case, and return its path and the volumes; see :class:`Answers`.

        Args:
            scan: the scan.
            case: the case, with its geometry.
            output: (classes, S0, S1, S2), probabilities on the network's grid.

        Raises:
            RefusedScan: a probability is not finite, or the scan cannot be read any more.
            ValueError: the geometry is unknown, or the number of classes is another one.
        """
        names = self.class_names[1:]
        if len(output) != len(names) + 1:
            raise ValueError(f"the network gives {len(output)} classes, and {len(names) + 1} have a name: train again")
        if not all(torch.isfinite(plane).all() for plane in output.unbind(-1)):
            raise RefusedScan(NOT_FINITE, kind="not-finite")
        own_affine = to_matrix(case.input_affine)
        grids = to_matrix(case.affine), tuple(case.input_shape.tolist()), own_affine
        source = _source_header(scan)
        classes = to_own_grid(output, *grids)
        planes = [np.bincount(plane.ravel(), minlength=len(output)) for plane in np.moveaxis(classes, 2, 0)]
        voxels = np.sum(planes, axis=0)
        mask = self._mask_path(scan.name)
        with atomic_path(mask) as path:
            nibabel.save(nifti_image(self._to_values(classes), own_affine, _description(scan.name), source), path)
        del classes
        files = self._write_probabilities(scan.name, output, grids, source) if self.probabilities else {}
        voxel_mm3 = abs(float(np.linalg.det(own_affine[:3, :3])))
        volumes = {name: round(int(number) * voxel_mm3, 3) for name, number in zip(names, voxels[1:])}
        answer = {"mask": self._relative(mask), "volume_mm3": volumes}
        return answer | ({"probability_files": files} if files else {})

    def _to_values(self, classes: np.ndarray) -> np.ndarray:
        values = self.values
        if values == list(range(len(values))):
            return classes
        return np.array(values, dtype=np.uint8 if max(values) < 256 else np.uint16)[classes]

    def _mask_path(self, name: str) -> Path:
        """Return the path of the mask of a case: its name, and a digest if it is that of another case's mask."""
        plain = _plain_path(name)
        path = self.output_dir / MASKS / plain
        if self._times[plain] <= 1 and _is_of(path, name):  # an earlier run may have had other cases
            return path
        return path.with_name(f"{case_folder(name).name}_{_digest(name)}{NIFTI}")

    def _write_probabilities(
        self,
        case: str,
        output: Tensor,
        grids: tuple[np.ndarray, tuple[int, ...], np.ndarray],
        source: nibabel.Nifti1Header | None,
    ) -> dict[str, str]:
        """Write the probabilities of each structure, and return the paths."""
        files = {}
        folder = self.output_dir / PROBABILITIES / case_folder(case)
        for name, value, values in zip(self.class_names[1:], self.values[1:], output[1:]):
            file = folder / f"{value}-{case_folder(name.replace('/', '_'))}{NIFTI}"
            found = on_own_grid(values, *grids)
            np.rint(np.divide(found, STEP, out=found), out=found)
            found *= STEP
            with atomic_path(file) as path:
                nibabel.save(nifti_image(found, grids[2], f"probability of structure {value}", source), path)
            files[name] = self._relative(file)
        return files

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.output_dir).as_posix()

    def columns(self) -> list[str]:
        """Return the path of the mask and the volume of each structure."""
        return ["mask", *(f"volume_mm3_{' '.join(name.splitlines())}" for name in self.class_names[1:])]

    def cells(self, answer: Mapping[str, Any]) -> dict[str, str]:
        """Return the cells of these columns."""
        if not answer.get("mask"):
            return {}
        volumes = (f"{answer['volume_mm3'][name]:.9g}" for name in self.class_names[1:])
        return dict(zip(self.columns(), (answer["mask"], *volumes)))

    def refused(self) -> dict[str, Any]:
        """Return no mask."""
        return {"mask": "", "volume_mm3": {}}


def _source_header(scan: Scan) -> nibabel.Nifti1Header | None:
    """Return the header of the file on whose grid the mask is, if it is NIfTI."""
    first = first_channel(scan)
    if first.format != "NIfTI":
        return None
    try:
        return read_stored_header(first.files[0])
    except OSError as error:  # such as a file that is gone: concerns only this case
        raise to_refusal(error) from error


def _plain_path(name: str) -> Path:
    """Return the path of the mask of a case in its folder; that of "a.nii" or a DICOM series "a" is "a.nii.gz"."""
    path = case_folder(name)
    return path if path.name.endswith(NIFTI) else path.with_name(f"{path.name.removesuffix('.nii')}{NIFTI}")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:12]


def _description(name: str) -> str:
    """Return the description in the header of the mask of a case."""
    return f"mask of structures, case {_digest(name)}"


def _is_of(path: Path, name: str) -> bool:
    """Return whether a mask is that of a case, or there is none."""
    try:
        header: Any = nibabel.load(path).header
    except FileNotFoundError:
        return True
    except (OSError, nibabel.filebasedimages.ImageFileError):
        return False
    return bytes(header["descrip"]).rstrip(b"\0").decode(errors="replace") == _description(name)
