# SPDX-License-Identifier: Apache-2.0
"""Small DICOM series with known geometry, as sources of derived objects."""

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

SIZE = (7, 6, 5)  # columns, rows, slices
ALGORITHM = {
    "name": "a network",
    "version": "1.2",
    "weights_sha256": "a1" * 32,
    "block_fingerprint": "b2b2",
    "description": "Which organ it is",
}
# What must never appear outside of the objects; without a caret, of which highdicom warns, quoting the name.
SECRETS = {"PatientName": "Müller-Secret", "PatientID": "secret-id", "PatientBirthDate": "19990102"}
STUDY, SERIES, FRAME = "1.2.3", "1.2.3.4", "1.2.3.5"


def oblique(left_handed=False):
    """Voxels of a turned grid with three spacings to RAS+ mm; k along the normal of the slices, or against it."""
    a, b = 0.3, -0.4
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tip = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tip @ np.diag([0.7, 0.9, -2.5 if left_handed else 2.5])
    affine[:3, 3] = -30.25, 41.5, 12.125
    return affine


def in_lps(affine, *voxel):
    return (np.diag([-1, -1, 1, 1]) @ affine @ [*voxel, 1])[:3]


def image(sop_class, number, affine, modality):
    """What single and multi-frame images have in common."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = sop_class
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"{SERIES}.{number}"
    data.SpecificCharacterSet = "ISO_IR 100"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = STUDY, SERIES, FRAME
    for keyword, value in SECRETS.items():
        setattr(data, keyword, value)
    data.PatientSex, data.Modality, data.StudyDate, data.StudyTime = "F", modality, "20200102", "030405"
    data.StudyID, data.AccessionNumber, data.PositionReferenceIndicator = "s1", "a1", ""
    data.SeriesNumber, data.InstanceNumber = 3, 100 - number
    data.Columns, data.Rows = SIZE[:2]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    return data


def geometry(affine):
    axes = np.stack([in_lps(affine, *voxel) - in_lps(affine, 0, 0, 0) for voxel in ((1, 0, 0), (0, 1, 0))])
    lengths = np.linalg.norm(axes, axis=1)
    cosines = [f"{x:.13g}" for x in (axes / lengths[:, None]).ravel()]
    return cosines, [f"{x:.13g}" for x in lengths[::-1]]


def write_series(folder, affine, modality="CT", change=None):
    """A file for each slice, named against the order of slices; the files in the order of slices."""
    folder.mkdir(exist_ok=True)
    files = []
    for k in range(SIZE[2]):
        data = image(CTImageStorage if modality == "CT" else MRImageStorage, k + 1, affine, modality)
        data.ImageOrientationPatient, data.PixelSpacing = geometry(affine)
        data.ImagePositionPatient = [f"{x:.13g}" for x in in_lps(affine, 0, 0, k)]
        data.SliceThickness, data.SpacingBetweenSlices = "9", "-8"  # not the distance of the slices
        data.add_new("PixelData", "OW", np.full(SIZE[:2], 1000 + k, "<u2").tobytes())
        if change:
            change(data, k)
        files.append(folder / f"{50 - k}.dcm")
        data.save_as(files[-1], enforce_file_format=True)
    return files


def write_multiframe(path, affine, echoes=1):
    """One file whose frames are shuffled and have their geometry each; several echoes at the same places."""
    frames = [(echo, k) for echo in range(echoes) for k in range(SIZE[2])]
    frames = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]
    data = image(EnhancedMRImageStorage, 1, affine, "MR")
    data.NumberOfFrames = len(frames)
    data.SharedFunctionalGroupsSequence = [Dataset()]
    groups = []
    for echo, k in frames:
        group = Dataset()
        orientation, measures, position, effective = Dataset(), Dataset(), Dataset(), Dataset()
        orientation.ImageOrientationPatient, measures.PixelSpacing = geometry(affine)
        measures.SliceThickness = "9"
        position.ImagePositionPatient = [f"{x:.13g}" for x in in_lps(affine, 0, 0, k)]
        effective.EffectiveEchoTime = 10.0 + echo
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
        group.PlanePositionSequence, group.MREchoSequence = [position], [effective]
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = groups
    data.add_new("PixelData", "OW", np.zeros((len(frames), *SIZE[:2]), "<u2").tobytes())
    data.save_as(path, enforce_file_format=True)
    return frames
