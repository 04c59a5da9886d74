# SPDX-License-Identifier: Apache-2.0
"""The values of DICOM slices: stored numbers unpacked, checked, and brought to their unit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import UID, RLELossless, SecondaryCaptureImageStorage

from monai_llmboost.data.scans.dicom.headers import quiet, transfer_syntax
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.scan import RefusedScan

# Reading and unpacking leave the interpreter's lock; more threads than this wait for the disk.
THREADS = min(8, os.cpu_count() or 1)
# What describes a frame to a decoder.
PIXEL_MODULE = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip


def volume_of(slices: Sequence[SliceHeader]) -> np.ndarray:
    """The values of the slices, (columns, rows, slices), float32: stored value * slope + intercept of its own slice.

    Where low values are meant to be bright (MONOCHROME1), stored values are mirrored within their range first.

    Raises:
        RefusedScan: the pixels of a file are damaged or cannot be unpacked.
    """
    volume = np.empty((slices[0].columns, slices[0].rows, len(slices)), np.float32, order="F")
    of_file: dict[Path, list[int]] = {}
    for number, part in enumerate(slices):
        of_file.setdefault(part.path, []).append(number)

    def fill(path: Path) -> None:
        parts = [slices[number] for number in of_file[path]]
        for number, part, plane in zip(of_file[path], parts, _planes(path, [part.frame for part in parts])):
            volume[:, :, number] = (plane.astype(np.float64) * part.slope + part.intercept).T

    with quiet(), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fill, of_file))
    if not np.isfinite(volume).all():
        raise RefusedScan("expected finite voxels, got values beyond float32: export the series again")
    return volume


def same_content(one: Path, other: Path) -> bool:
    """Whether two files hold the same stored values; False as well if one of them cannot be read."""
    try:
        with quiet():
            first, second = (_planes(path, None) for path in (one, other))
    except RefusedScan:
        return False
    return len(first) == len(second) and all(np.array_equal(a, b) for a, b in zip(first, second))


def _planes(path: Path, frames: Sequence[int] | None) -> list[np.ndarray]:
    """Stored values of frames of a file (all if None), each (rows, columns), bright above dark."""
    try:
        data = dcmread(path, force=True)
        if frames is None:
            frames = range(int(data.get("NumberOfFrames") or 1))
        data.file_meta.TransferSyntaxUID = syntax = transfer_syntax(data)
        if syntax.is_encapsulated and syntax != RLELossless:
            planes = [_unpack(data, frame) for frame in frames]
        else:
            planes = [pixel_array(data, index=frame, raw=True) for frame in frames]
    except Exception as error:  # whatever a damaged file leads to; its text may quote the patient's tags
        raise RefusedScan(
            f"expected pixels that can be unpacked, {path.name} is damaged, cut short or in an unknown syntax "
            f"({type(error).__name__}): copy it again, or save it uncompressed"
        ) from None  # what shows the root of a chain of errors would show that text
    return [_bright_above_dark(plane, data) for plane in planes]


def _unpack(data: Dataset, frame: int) -> np.ndarray:
    """One compressed frame, by GDCM.

    GDCM gets the frame as a plain picture of its own: what it does with slope, intercept and MONOCHROME1 depends on the
    kind of object, and of a multi-frame file it takes the first frame's slope for all.
    """
    count = int(data.get("NumberOfFrames") or 1)
    offsets = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in data else None
    code = get_frame(data.PixelData, frame, number_of_frames=count, extended_offsets=offsets)
    picture = Dataset()
    picture.file_meta = FileMetaDataset()
    picture.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    picture.SOPClassUID = picture.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    picture.SOPInstanceUID = picture.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    for keyword in PIXEL_MODULE:
        if keyword in data:
            setattr(picture, keyword, data[keyword].value)
    picture.PhotometricInterpretation = "MONOCHROME2"
    picture.PixelData = encapsulate([code])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        picture.save_as(path, enforce_file_format=True)
        sitk.ProcessObject.GlobalWarningDisplayOff()
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        plane = sitk.GetArrayFromImage(reader.Execute()).reshape(data.Rows, data.Columns)
    return plane.astype(f"{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}")


def _bright_above_dark(plane: np.ndarray, data: Dataset) -> np.ndarray:
    if data.PhotometricInterpretation != "MONOCHROME1":
        return plane
    lowest_plus_highest = -1 if data.PixelRepresentation else (1 << int(data.get("BitsStored", data.BitsAllocated))) - 1
    return lowest_plus_highest - plane.astype(np.int32)
