# SPDX-License-Identifier: Apache-2.0
"""The values of DICOM slices: stored numbers unpacked, checked, and brought to their unit."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import pixel_array
from pydicom.uid import UID, RLELossless, SecondaryCaptureImageStorage

from monai_llmboost.data.scans.dicom.headers import get_transfer_syntax, silence_pydicom
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.values import get_photometric
from monai_llmboost.data.scans.scan import RefusedScan

# Reading and unpacking leave the interpreter's lock; more threads than this wait for the disk.
THREADS = min(8, os.cpu_count() or 1)
# Padding so little below the lowest other value, as a part of the range of values, is dark enough.
DARK = 0.01
# What describes a frame to a decoder.
PIXEL_MODULE = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip


def read_volume(slices: Sequence[SliceHeader]) -> tuple[np.ndarray, int]:
    """The values of the slices, (columns, rows, slices), float32: stored value * slope + intercept of its own slice.

    Where low values are meant to be bright (MONOCHROME1), stored values are mirrored within their range first. What
    the header calls padding (PixelPaddingValue) lies outside of the image and gets the volume's lowest other value.

    Returns:
        The volume, and how many of its voxels are padding.

    Raises:
        RefusedScan: the pixels of a file are damaged or cannot be unpacked.
    """
    volume = np.empty((slices[0].columns, slices[0].rows, len(slices)), np.float32, order="F")
    padding: list[tuple[int, np.ndarray]] = []
    of_file: dict[Path, list[int]] = {}
    for number, part in enumerate(slices):
        of_file.setdefault(part.path, []).append(number)

    def fill(path: Path) -> None:
        parts = [slices[number] for number in of_file[path]]
        for number, part, plane in zip(of_file[path], parts, _stored(path, parts)):
            if plane.shape != (part.rows, part.columns):
                what = f"expected {path.name} as it was found, it was rewritten meanwhile: try again"
                raise RefusedScan(what, kind="damaged", may_pass=True)
            if part.padding is not None and (outside := _within(plane, part.padding)).any():
                padding.append((number, outside.T))
            slope, intercept = (default if given is None else given
                                for given, default in ((part.slope, 1.0), (part.intercept, 0.0)))  # fmt: skip
            volume[:, :, number] = (_bright_above_dark(plane, part).astype(np.float64) * slope + intercept).T

    with silence_pydicom(), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fill, of_file))
    if not np.isfinite(volume).all():
        raise RefusedScan("expected finite voxels, got values beyond float32: export the series again", kind="damaged")
    return volume, _fill_padding(volume, padding)


def digest_pixels(path: Path) -> str:
    """The sha256 of a file's stored values, however they are packed; empty if they cannot be read."""
    digest = hashlib.sha256()
    try:
        with silence_pydicom():
            data = _read(path)
            for frame in range(int(data.get("NumberOfFrames") or 1)):
                digest.update(np.ascontiguousarray(_plane(path, data, frame).astype("<i4")).tobytes())
    except RefusedScan:
        return ""
    return digest.hexdigest()


def _stored(path: Path, parts: Sequence[SliceHeader]) -> Iterator[np.ndarray]:
    """Stored values of frames or tiles of a file, each (rows, columns)."""
    data = _read(path)
    picture = _plane(path, data, 0) if parts[0].corner else None
    for part in parts:
        if picture is not None and part.corner is not None:
            row, column = part.corner
            yield picture[row : row + part.rows, column : column + part.columns]
        else:
            yield _plane(path, data, part.frame)


def _fill_padding(volume: np.ndarray, padding: Sequence[tuple[int, np.ndarray]]) -> int:
    """Give padding the lowest value of all other voxels; the number of voxels that were changed.

    Padding that is as dark as that already, such as 0 in MR, is left alone.
    """
    count = sum(int(outside.sum()) for _, outside in padding)
    if not 0 < count < volume.size:
        return 0
    inside = np.ones(volume.shape, dtype=bool)
    for number, outside in padding:
        inside[:, :, number] = ~outside
    lowest, highest = volume[inside].min(), volume[inside].max()
    filled = volume[~inside]
    if filled.max() <= lowest and filled.min() >= lowest - DARK * (highest - lowest):
        return 0
    volume[~inside] = lowest
    return count


def _within(plane: np.ndarray, bounds: tuple[int, int]) -> np.ndarray:
    low, high = bounds
    return plane == low if low == high else (plane >= low) & (plane <= high)


def _read(path: Path) -> Dataset:
    try:
        data = dcmread(path, force=True)
        data.file_meta.TransferSyntaxUID = get_transfer_syntax(data)
        data.PhotometricInterpretation = get_photometric(data)
    except Exception as error:
        raise _damaged(path, error) from None
    return data


def _plane(path: Path, data: Dataset, frame: int) -> np.ndarray:
    """Stored values of one frame, (rows, columns)."""
    try:
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and syntax != RLELossless:
            return _unpack(data, frame)
        return pixel_array(data, index=frame, raw=True)
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RefusedScan:
    """A refusal that says nothing of the error's text, which may quote the patient's tags."""
    if isinstance(error, MemoryError) or getattr(error, "strerror", None):
        what = getattr(error, "strerror", None) or "too little memory"
        return RefusedScan(
            f"expected {path.name} to be readable, got: {what}: try again, or copy it again",
            kind="damaged",
            may_pass=True,
        )
    return RefusedScan(
        f"expected pixels that can be unpacked, {path.name} is damaged, cut short or in an unknown syntax "
        f"({type(error).__name__}): copy it again, or save it uncompressed",
        kind="damaged",
    )


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


def _bright_above_dark(plane: np.ndarray, part: SliceHeader) -> np.ndarray:
    if not part.inverted:
        return plane
    lowest_plus_highest = -1 if part.signed else (1 << part.bits_stored) - 1
    return lowest_plus_highest - plane.astype(np.int32)
