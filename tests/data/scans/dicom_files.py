# SPDX-License-Identifier: Apache-2.0
"""Make DICOM files of a known volume and affine, voxel (i, j, k) -> RAS+ mm, and compare what is found in them."""

import hashlib
import re
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian

from monai_llmboost.data.scans import ScanReader, find_scans
from monai_llmboost.data.scans.dicom.paths import get_reader_paths

# Must never appear in a message, a name or an output.
SECRETS = {"PatientName": "Secret^Name", "PatientID": "secret-id", "PatientBirthDate": "19990102",
           "SeriesDescription": "secret words", "StudyDescription": "secret words"}  # fmt: skip
# Parallel to no axis, with three voxel sizes, right-handed in the order of sorted slices.
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = (
    np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]]) @ np.array([[1.0, 0, 0], [0, 0.96, 0.28], [0, -0.28, 0.96]])
) * [0.7, 0.9, 2.5]
OBLIQUE[:3, 3] = 11.5, -20.25, 31


def uid(words):
    """Return a valid UID for a text, the same each time."""
    return "2.25." + str(int(hashlib.sha256(words.encode()).hexdigest()[:30], 16))


def random_volume(shape=(9, 8, 6), low=-1000, high=2000, seed=0):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


def geometry(affine, k=0):
    """Return position, orientation and pixel spacing of slice k as DICOM attributes."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    sizes = np.linalg.norm(lps[:3, :2], axis=0)
    orientation = (lps[:3, :2] / sizes).T.ravel()
    return {
        "ImagePositionPatient": [f"{x:.10g}" for x in lps[:3, 3] + k * lps[:3, 2]],
        "ImageOrientationPatient": [f"{x:.10g}" for x in orientation],
        "PixelSpacing": [f"{sizes[1]:.10g}", f"{sizes[0]:.10g}"],
    }


def dataset(pixels, sop_class=CTImageStorage, series="series", instance="0", **tags):
    """Return an image object with pixels (rows, columns) or (frames, rows, columns), without geometry."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = sop_class
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = uid(f"{series}/{instance}")
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study"), uid(series)
    data.FrameOfReferenceUID = uid("frame of reference")
    data.Modality = "MR" if sop_class == EnhancedMRImageStorage else "CT"
    for keyword, value in SECRETS.items():
        setattr(data, keyword, value)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.Rows, data.Columns = pixels.shape[-2:]
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    data.add_new(0x7FE00010, "OB" if pixels.dtype.itemsize == 1 else "OW", np.ascontiguousarray(pixels).tobytes())
    for keyword, value in tags.items():
        if value is None:
            delattr(data, keyword)
        else:
            setattr(data, keyword, value)
    return data


def save(data, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder, volume, affine=OBLIQUE, series="series", first=0, change=None, suffix=".dcm", **tags):
    """Write one file for each slice, in the order of k; ``change(data, k)`` may alter it, or return False to omit it.

    InstanceNumber runs against the order of the slices, and so do the names.
    """
    paths = []
    for k in range(volume.shape[2]):
        number = first + volume.shape[2] - k
        data = dataset(volume[:, :, k].T, series=series, instance=str(number), InstanceNumber=number)
        for keyword, value in {**geometry(affine, k), **tags}.items():
            setattr(data, keyword, value)
        if change and change(data, k) is False:
            continue
        paths.append(save(data, Path(folder) / f"{series}-{number:03d}{suffix}"))
    return paths


def write_multiframe(path, volume, affine=OBLIQUE, order=None, sop_class=EnhancedCTImageStorage, change=None, **tags):
    """Write an enhanced file with a frame for each slice in ``order``; ``change(groups, k)`` may alter its groups.

    With a 4-D volume there is a frame for each slice of each volume, separated by TemporalPositionIndex and the
    dimension index. Frame ``f`` is slice ``order[f] % slices`` of volume ``order[f] // slices``.
    """
    volumes = volume[..., None] if volume.ndim == 3 else volume
    slices = volumes.shape[2]
    order = list(range(slices * volumes.shape[3])) if order is None else [int(f) for f in order]
    frames = np.stack([volumes[:, :, f % slices, f // slices].T for f in order])
    data = dataset(frames, sop_class=sop_class, series=Path(path).stem)
    shared, places = Dataset(), geometry(affine)
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=places["ImageOrientationPatient"])]
    shared.PixelMeasuresSequence = [item(PixelSpacing=places["PixelSpacing"], SliceThickness="2.5")]
    shared.PixelValueTransformationSequence = [item(RescaleSlope="1", RescaleIntercept="-1024")]
    data.SharedFunctionalGroupsSequence = [shared]
    data.DimensionIndexSequence = [item(DimensionIndexPointer=Tag(tag)) for tag in (0x00209057, 0x00209128)]
    groups = []
    for f in order:
        k, t = f % slices, f // slices
        frame = Dataset()
        content = item(InStackPositionNumber=k + 1, TemporalPositionIndex=t + 1, DimensionIndexValues=[k + 1, t + 1])
        frame.FrameContentSequence = [content]
        position = geometry(affine, k)["ImagePositionPatient"]
        frame.PlanePositionSequence = [item(ImagePositionPatient=position)]
        if change:
            change(frame, f)
        groups.append(frame)
    data.PerFrameFunctionalGroupsSequence = groups
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return save(data, path)


def item(**tags):
    """Return an item of a sequence."""
    data = Dataset()
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


VOLUME, OTHER = random_volume((9, 8, 12)), random_volume((9, 8, 12), seed=1)
AXIAL = np.diag([-0.7, -0.9, 2.0, 1])


def moved(mm):
    affine = AXIAL.copy()
    affine[2, 3] = mm
    return affine


def tags(**values):
    def change(data, k):
        for keyword, value in values.items():
            setattr(data, keyword, value(k) if callable(value) else value)

    return change


def scans_in(folder):
    return find_scans(folder)[0]


def voxels(scan):
    reader = ScanReader()
    return reader.get_data(reader.read(get_reader_paths(scan)))[0]


def assert_are(scans, *volumes):
    """Check that the scans are exactly these volumes."""
    assert [scan.refused for scan in scans] == [""] * len(volumes)
    found = sorted(voxels(scan).tolist() for scan in scans)
    assert found == sorted(volume.tolist() for volume in volumes)


def assert_refused_once(scans, reason):
    (scan,) = scans
    assert re.search(reason, scan.refused), scan.refused
