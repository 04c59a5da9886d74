# SPDX-License-Identifier: Apache-2.0
"""What one scan is: geometry, intensities, foreground, digest of its content, and numbers of its header."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from pydicom import dcmread

from monai_llmboost.data import RefusedScan, ScanReader
from monai_llmboost.data.labelled import Source
from monai_llmboost.data.scans.dicom.headers import silence_pydicom
from monai_llmboost.data.scans.dicom.stacks import Stack
from monai_llmboost.data.transforms import CropScand

PERCENT = (0.5, 50.0, 99.5)
# Percentiles and counts are taken from some of the voxels of larger volumes, evenly chosen.
MOST_SAMPLED = 1 << 20
# Voxels among which different values are counted: a mask has few.
COUNTED = 1 << 13
# CT: air in and around the body is below, tissue above, HU.
CT_FOREGROUND = -500.0
# A NIfTI file in whole numbers with values below this is taken for CT.
CT_MINIMUM = -500.0
# Another scan's background is its smallest value, or the value of all its corners, if this part of its voxels has
# exactly this value (brains without skull, masks, padding); else what is below this part of the range up to the 99.5th
# percentile.
PLAIN_BACKGROUND, PART_OF_RANGE = 0.1, 0.1
# Margin around a foreground.
FOREGROUND_MARGIN_MM = 5.0
# Fields of a DICOM header that tell scanners and protocols apart, and no patient.
TEXT_FIELDS = ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "SequenceName", "PatientPosition")
NUMBER_FIELDS = (
    "KVP", "SliceThickness", "MagneticFieldStrength", "RepetitionTime", "EchoTime", "FlipAngle", "BitsStored",
    "RescaleSlope", "RescaleIntercept",
)  # fmt: skip

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ChannelMeasures:
    """The measures of one scan; its axes are those of the patient: x to the right, y to the front, z to the head.

    Args:
        format: ``"NIfTI"`` or ``"DICOM"``.
        modality: ``"CT"``, ``"MR"`` ...; of a NIfTI file ``"CT"`` if its values are those of CT, else empty.
        orientation: directions of the axes of the file, such as ``"LPS"``.
        shape: voxels along x, y, z.
        spacing_mm: distance of voxels along x, y, z.
        minimum: smallest value.
        maximum: largest value.
        mean: mean value.
        sd: standard deviation.
        percentiles: the 0.5th, 50th and 99.5th percentile.
        whole: share of whole numbers.
        values: number of different values among :data:`COUNTED` voxels.
        plain_background: whether the background is one value, which many voxels have.
        above: values above are foreground: -500 HU in CT, else the value of a plain background, else a tenth of the
            range above the smallest value.
        foreground_mm: size of the box around the foreground; zeros if there is none.
        foreground_range: the 0.5th and 99.5th percentile in the foreground.
        digest: sha256 of shape and voxels; the same image has the same digest in another format or orientation.
        header: other fields of the header, numbers or text.
        warnings: oddities that do not prevent reading.
    """

    format: str
    modality: str
    orientation: str
    shape: tuple[int, int, int]
    spacing_mm: Triple
    minimum: float
    maximum: float
    mean: float
    sd: float
    percentiles: Triple
    whole: float
    values: int
    plain_background: bool
    above: float
    foreground_mm: Triple
    foreground_range: tuple[float, float]
    digest: str
    header: Mapping[str, float | str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def size_mm(self) -> Triple:
        """Size of the scan along x, y, z."""
        x, y, z = (count * step for count, step in zip(self.shape, self.spacing_mm))
        return x, y, z


@dataclass(frozen=True)
class Volume:
    """A scan that was read.

    Args:
        voxels: (i, j, k).
        affine: (4, 4), voxels to RAS+ mm.
        oriented: the same voxels along x, y, z.
        spacing_mm: along x, y, z.
        meta: metadata of the reader.
        header: see :class:`ChannelMeasures`.
    """

    voxels: np.ndarray
    affine: np.ndarray
    oriented: np.ndarray
    spacing_mm: Triple
    meta: Mapping[str, Any]
    header: Mapping[str, float | str]

    @property
    def tensor(self) -> MetaTensor:
        """The volume along x, y, z with one channel, as transforms of a config see it."""
        affine = self.affine @ nibabel.orientations.inv_ornt_aff(nibabel.io_orientation(self.affine), self.voxels.shape)
        return MetaTensor(torch.from_numpy(np.ascontiguousarray(self.oriented))[None], affine=torch.as_tensor(affine))


def read_volume(source: Source, reader: ScanReader) -> Volume:
    """Read a scan.

    Raises:
        RefusedScan: it cannot be read correctly.
    """
    chosen, result = reader.read([source] if isinstance(source, str) else list(source))
    voxels, meta = chosen.get_data(result)
    header = _dicom_fields(result.files[0]) if isinstance(result, Stack) else _nifti_fields(result[1])
    affine = np.asarray(meta["affine"], dtype=float)
    orientation = nibabel.io_orientation(affine)
    steps = np.linalg.norm(affine[:3, :3], axis=0)[np.argsort(orientation[:, 0])]
    x, y, z = (float(step) for step in steps)
    oriented = nibabel.apply_orientation(voxels, orientation)
    return Volume(voxels, affine, oriented, (x, y, z), {**meta, "dicom": isinstance(result, Stack)}, header)


def measure(volume: Volume) -> ChannelMeasures:
    """Measure a scan."""
    voxels, format = volume.oriented, "DICOM" if volume.meta["dicom"] else "NIfTI"
    flat = volume.voxels.ravel(order="K")
    some = flat[:: max(1, flat.size // MOST_SAMPLED)]
    low, high = float(flat.min()), float(flat.max())
    percentiles = tuple(float(value) for value in np.percentile(some, PERCENT))
    whole = float(np.mean(some == np.rint(some)))
    modality = str(volume.meta.get("modality", ""))
    if format == "NIfTI" and low < CT_MINIMUM and whole == 1:
        modality = "CT"
    background = _background(voxels, some, low)
    plain = background is not None
    threshold = low + PART_OF_RANGE * (percentiles[2] - low) if background is None else background
    above = CT_FOREGROUND if modality == "CT" else threshold
    inside = some[some > above]
    ends = np.percentile(inside, (PERCENT[0], PERCENT[2])) if inside.size else (low, high)
    x, y, z = (int(size) for size in voxels.shape)
    return ChannelMeasures(
        format, modality, "".join(nibabel.aff2axcodes(volume.affine)), (x, y, z), volume.spacing_mm,
        low, high, float(flat.mean(dtype=np.float64)), float(flat.std(dtype=np.float64)), percentiles,  # type: ignore[arg-type]
        whole, len(np.unique(some[:: max(1, some.size // COUNTED)])),
        plain, above, _foreground_mm(volume, above), (float(ends[0]), float(ends[1])), _digest(voxels),
        volume.header, tuple(str(volume.meta.get("warnings", "")).splitlines()),
    )  # fmt: skip


def _background(voxels: np.ndarray, some: np.ndarray, low: float) -> float | None:
    """Return the value that much of a scan has exactly; ``None`` if its background is noise."""
    corners = np.unique(voxels[:: -1 + voxels.shape[0], :: -1 + voxels.shape[1], :: -1 + voxels.shape[2]])
    for value in (low, *(corners.tolist() if len(corners) == 1 else ())):
        if float(np.mean(some == np.float32(value))) >= PLAIN_BACKGROUND:
            return float(value)
    return None


def box_mm(volume: MetaTensor) -> Triple:
    """Return the size of a volume (1, x, y, z) along its axes."""
    steps = torch.linalg.norm(volume.affine[:3, :3], dim=0).tolist()
    x, y, z = (count * step for count, step in zip(volume.shape[1:], steps))
    return x, y, z


def _foreground_mm(volume: Volume, above: float) -> Triple:
    try:
        return box_mm(CropScand("image", "foreground", above)({"image": volume.tensor})["image"])
    except RefusedScan:  # no plane of it has foreground
        return 0.0, 0.0, 0.0


def _digest(voxels: np.ndarray) -> str:
    digest = hashlib.sha256(str(voxels.shape).encode())
    for plane in voxels:
        digest.update(np.ascontiguousarray(plane + np.float32(0)).data)  # -0 and 0 are one value
    return digest.hexdigest()


def _nifti_fields(header: Any) -> dict[str, float | str]:
    return {
        "type of the voxels": header.dtype.name, "scl_slope": float(header.slope), "scl_inter": float(header.inter),
        "compressed": "yes" if header.packed else "no",
    }  # fmt: skip


def _dicom_fields(path: Path) -> dict[str, float | str]:
    with silence_pydicom():
        data = dcmread(path, stop_before_pixels=True, specific_tags=[*TEXT_FIELDS, *NUMBER_FIELDS])
        fields: dict[str, float | str] = {}
        for name in (*TEXT_FIELDS, *NUMBER_FIELDS):
            try:
                value = data.get(name)
                if value not in (None, ""):
                    fields[name] = float(value) if name in NUMBER_FIELDS else str(value)[:80]
            except (ValueError, TypeError):
                continue  # several values, or text for a number: such a field is not compared
    return fields
