# SPDX-License-Identifier: Apache-2.0
"""Stored values of DICOM slices, read or decoded, and the volume that they make."""

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

from monai_llmboost.data.scans.dicom.blocks import Blocks, get_block_slices
from monai_llmboost.data.scans.dicom.headers import get_transfer_syntax, silence_pydicom
from monai_llmboost.data.scans.dicom.plain import is_unchanged, iterate_plain, make_rewritten
from monai_llmboost.data.scans.dicom.slices import SliceHeader
from monai_llmboost.data.scans.dicom.values import get_photometric
from monai_llmboost.data.scans.scan import RefusedScan

# Reading and decoding release the interpreter's lock; more threads than this wait for the disk.
MAX_THREADS = min(8, os.cpu_count() or 1)
# Attributes that a decoder needs.
PIXEL_MODULE = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit",
    "PixelRepresentation",
)  # fmt: skip


def read_volume(slices: Sequence[SliceHeader]) -> tuple[np.ndarray, int]:
    """Read the values of slices, (columns, rows, slices), float32: stored value * slope + intercept of each slice.

    Stored values of MONOCHROME1 images are first mirrored within their range, so that bright is high. Padding
    (PixelPaddingValue) is set to the volume's lowest other value.

    Returns:
        The volume, and the number of its voxels that are padding.

    Raises:
        RefusedScan: the pixels of a file are damaged or cannot be decoded.
    """
    blocks = Blocks(slices)
    of_file: dict[Path, list[int]] = {}
    for number, part in enumerate(slices):
        of_file.setdefault(part.path, []).append(number)

    def fill(paths: Sequence[Path]) -> None:
        planes = (
            (number, plane)
            for path in paths
            for number, plane in zip(of_file[path], _iterate_checked(path, [slices[n] for n in of_file[path]]))
        )
        blocks.write(planes)

    with silence_pydicom(), ThreadPoolExecutor(MAX_THREADS) as threads:
        list(threads.map(fill, _share_files(slices, list(of_file))))
    return blocks.finish()


def _share_files(slices: Sequence[SliceHeader], paths: list[Path]) -> list[list[Path]]:
    """Return groups of files that a thread reads together: some uncompressed slices, or a single file."""
    if any(part.plain is None or part.frames > 1 for part in slices):
        return [[path] for path in paths]
    size = get_block_slices(slices[0].rows * slices[0].columns)
    return [paths[start : start + size] for start in range(0, len(paths), size)]


def digest_pixels(path: Path) -> str:
    """Return the sha256 of a file's stored values, independent of compression; empty if they cannot be read."""
    digest = hashlib.sha256()
    try:
        with silence_pydicom():
            data = _read(path)
            for frame in range(int(data.get("NumberOfFrames") or 1)):
                digest.update(np.ascontiguousarray(_decode_frame(path, data, frame).astype("<i4")).tobytes())
    except RefusedScan:
        return ""
    return digest.hexdigest()


def _iterate_checked(path: Path, parts: Sequence[SliceHeader]) -> Iterator[np.ndarray]:
    """Yield the stored values of frames or tiles of a file, each of the size in its header."""
    for part, plane in zip(parts, _iterate_stored(path, parts)):
        if plane.shape != (part.rows, part.columns):
            raise make_rewritten(path)
        yield plane


def _iterate_stored(path: Path, parts: Sequence[SliceHeader]) -> Iterator[np.ndarray]:
    """Yield the stored values of frames or tiles of a file, each (rows, columns)."""
    if (pixels := parts[0].plain) is not None and parts[0].corner is None:
        try:
            with path.open("rb") as file:
                if is_unchanged(file, pixels):
                    yield from iterate_plain(file, path, pixels, parts)
                    return
        except OSError as error:
            raise _make_refusal(path, error) from None
    data = _read(path)
    mosaic = _decode_frame(path, data, 0) if parts[0].corner else None
    for part in parts:
        if mosaic is not None and part.corner is not None:
            row, column = part.corner
            yield mosaic[row : row + part.rows, column : column + part.columns]
        else:
            yield _decode_frame(path, data, part.frame)


def _read(path: Path) -> Dataset:
    try:
        data = dcmread(path, force=True)
        data.file_meta.TransferSyntaxUID = get_transfer_syntax(data)
        data.PhotometricInterpretation = get_photometric(data)
    except Exception as error:
        raise _make_refusal(path, error) from None
    return data


def _decode_frame(path: Path, data: Dataset, frame: int) -> np.ndarray:
    """Return the stored values of one frame, (rows, columns)."""
    try:
        syntax = data.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated and syntax != RLELossless:
            return _decode_by_gdcm(data, frame)
        return pixel_array(data, index=frame, raw=True)
    except Exception as error:
        raise _make_refusal(path, error) from None


def _make_refusal(path: Path, error: Exception) -> RefusedScan:
    """Return a refusal without the error's text, which may quote tags of the patient."""
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


def _decode_by_gdcm(data: Dataset, frame: int) -> np.ndarray:
    """Decode one compressed frame by GDCM.

    GDCM gets the frame as a separate secondary capture, because its handling of slope, intercept and MONOCHROME1
    depends on the SOP class, and in a multi-frame file it applies the first frame's slope to all frames.
    """
    count = int(data.get("NumberOfFrames") or 1)
    offsets = (data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths) if "ExtendedOffsetTable" in data else None
    code = get_frame(data.PixelData, frame, number_of_frames=count, extended_offsets=offsets)
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = data.file_meta.TransferSyntaxUID
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    for keyword in PIXEL_MODULE:
        if keyword in data:
            setattr(image, keyword, data[keyword].value)
    image.PhotometricInterpretation = "MONOCHROME2"
    image.PixelData = encapsulate([code])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "frame.dcm"
        image.save_as(path, enforce_file_format=True)
        sitk.ProcessObject.GlobalWarningDisplayOff()
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        plane = sitk.GetArrayFromImage(reader.Execute()).reshape(data.Rows, data.Columns)
    return plane.astype(f"{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}")
