# SPDX-License-Identifier: Apache-2.0
"""A valid series as altered by anonymisers, exporters and file systems is one volume, or refused once."""

import copy
import random

import numpy as np
import pytest
from dicom_files import OBLIQUE, dataset, geometry, random_volume, save, uid
from pydicom.uid import generate_uid

from monai_llmboost.data.scans import ScanReader, find_scans
from monai_llmboost.data.scans.dicom.paths import get_reader_paths

SLICES = 8
VOLUME = random_volume((9, 8, SLICES))
AXIAL = np.diag([-0.7, -0.9, 2.5, 1])
SAGITTAL = np.array([[0, 0, -2.5, 5], [-0.7, 0, 0, 6], [0, 0.9, 0, 7], [0, 0, 0, 1.0]])
TAGS = {
    "SeriesNumber": 4, "AcquisitionNumber": 1, "AcquisitionTime": "120000", "ImageType": ["ORIGINAL", "PRIMARY"],
    "RescaleSlope": "2", "RescaleIntercept": "-1024", "ConvolutionKernel": "soft",
}  # fmt: skip


def series(volume=VOLUME, affine=AXIAL, name="series", **tags):
    """Return a valid series as name -> dataset, in the order of positions."""
    files = {}
    for k in range(volume.shape[2]):
        data = dataset(volume[:, :, k].T, series=name, instance=str(k), InstanceNumber=k + 1)
        for keyword, value in {**geometry(affine, k), **TAGS, **tags}.items():
            setattr(data, keyword, value)
        files[f"{name}-{k:03d}.dcm"] = data
    return files


def some(chance, files):
    """Return the keys of a few files, of every second one, of the first half, or of all."""
    names = list(files)
    return chance.choice(
        [
            [chance.choice(names)], names[:1], names[-1:], names[::2], names[: len(names) // 2], names,
            chance.sample(names, 3),
        ]
    )  # fmt: skip


def rename(chance, files):
    style = chance.choice(["I{}", "{}", "a/b/IM{:05d}", "{}.IMA", "1.2.840.{}"])
    order = chance.sample(range(len(files)), len(files))
    return {style.format(number): data for number, data in zip(order, files.values())}


def renumber(chance, files):
    count = len(files)
    numbers = chance.choice(
        [
            range(count, 0, -1), chance.sample(range(100), count), [1] * count, [None] * count,
            [k % 4 + 1 for k in range(count)], [k // 2 + 1 for k in range(count)],
        ]
    )  # fmt: skip
    for number, data in zip(numbers, files.values()):
        data.InstanceNumber = number
    return files


def new_uids(chance, files):
    keyword = chance.choice(["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID"])
    how = chance.choice(
        ["each", "one for all", "alternating", "two halves"] if "SOP" not in keyword else ["each", "all"]
    )
    for k, data in enumerate(files.values()):
        which = {"each": k, "alternating": k % 2, "two halves": 2 * k // len(files)}.get(how, 0)
        setattr(data, keyword, generate_uid(entropy_srcs=[keyword, str(which)]))
    return files


def round_positions(chance, files):
    digits = chance.choice([4, 3, 2, 1])
    for data in files.values():
        if "ImagePositionPatient" not in data:
            continue
        data.ImagePositionPatient = [f"{float(x):.{digits}f}" for x in data.ImagePositionPatient]
    return files


def round_directions(chance, files):
    digits, turn = chance.choice([9, 6, 4]), chance.choice([0, 1e-5, 1e-4, 1e-3])
    for k, data in enumerate(files.values()):
        if "ImageOrientationPatient" not in data:
            continue
        x, y = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        angle = turn * (-1) ** k
        x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        data.ImageOrientationPatient = [f"{c:.{digits}f}" for c in (*x, *y)]
    return files


def spread(chance, files):
    folders = chance.choice(
        [lambda k: k % 2, lambda k: 2 * k // len(files), lambda k: k, lambda k: chance.randrange(3)]
    )
    return {f"{folders(k)}/{name}": data for k, (name, data) in enumerate(files.items())}


BLANKED = [
    "PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "FrameOfReferenceUID",
    "SOPInstanceUID", "InstanceNumber", "Modality", "AcquisitionNumber", "AcquisitionTime", "ImageType",
    "ConvolutionKernel", "RescaleSlope", "RescaleIntercept", "PixelRepresentation", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "BitsStored", "HighBit", "SamplesPerPixel", "Rows", "Columns",
    "BitsAllocated", "PhotometricInterpretation",
]  # fmt: skip


def blank(chance, files):
    keyword = chance.choice(BLANKED)
    for name in some(chance, files):
        if keyword in files[name]:
            delattr(files[name], keyword)
    return files


def jitter(chance, files):
    """Change measured values by rounding, and the notation of numbers."""
    keyword = chance.choice(["EchoTime", "InversionTime", "FlipAngle", "KVP", "ReconstructionDiameter"])
    written = chance.choice([["13.40", "13.41"], ["120", "120.0"], ["350", "351", "352"], ["5.00", "5.05"]])
    how = chance.choice([lambda k: k, lambda k: 2 * k // len(files), lambda k: chance.randrange(3)])
    for k, data in enumerate(files.values()):
        setattr(data, keyword, written[how(k) % len(written)])
    return files


CHANGES = [rename, renumber, new_uids, round_positions, round_directions, spread, blank, jitter]


def write(folder, files):
    for name, data in files.items():
        if "SOPInstanceUID" not in data:
            data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        save(data, folder / name)


def read_all(folder):
    """Return the volumes, as (array, affine), and the reasons of refused scans."""
    scans, _ = find_scans(folder)
    volumes, refused = [], [scan.refused for scan in scans if scan.refused]
    reader = ScanReader()
    for scan in scans:
        if scan.refused:
            continue
        try:
            array, meta = reader.get_data(reader.read(get_reader_paths(scan)))
        except ValueError as error:
            refused.append(str(error))
        else:
            volumes.append((array, meta["affine"]))
    return volumes, refused


def is_the(truth, found):
    """Return whether a volume is the original one: same values, positions within a tenth of a pixel."""
    (values, affine), (array, other) = truth, found
    if array.shape != values.shape or not np.array_equal(array, values):
        return False
    corners = np.array([[i, j, k, 1] for i in (0, 8) for j in (0, 7) for k in (0, values.shape[2] - 1)]).T
    return np.abs(((affine - other) @ corners)[:3]).max() < 0.12


def true(volume, affine=AXIAL):
    return volume.astype(np.float32) * 2 - 1024, affine


@pytest.mark.parametrize("seed", range(150))
def test_altered_series_is_one_volume_or_refused_once(tmp_path, seed):
    chance = random.Random(seed)
    affine = chance.choice([AXIAL, SAGITTAL, OBLIQUE])
    files = series(affine=affine)
    changes = [CHANGES[seed % len(CHANGES)], *chance.sample(CHANGES, chance.randrange(2))]
    for change in changes:
        files = change(chance, files)
    write(tmp_path, files)
    volumes, refused = read_all(tmp_path)
    assert len(volumes) + len(refused) == 1, (changes, volumes, refused)
    assert all(is_the(true(VOLUME, affine), found) for found in volumes), changes


OTHER = random_volume((9, 8, SLICES), seed=1)
BETWEEN, BEHIND, FAR = AXIAL.copy(), AXIAL.copy(), AXIAL.copy()
BETWEEN[2, 3], BEHIND[2, 3], FAR[2, 3] = 1.25, 2.5 * SLICES, 200


@pytest.mark.parametrize("seed", range(150))
def test_two_altered_series_are_two_volumes_or_refused_once(tmp_path, seed):
    """Under one SeriesInstanceUID or none, at the same positions, between, after or far from those of the first."""
    chance = random.Random(seed)
    place = [AXIAL, BETWEEN, BEHIND, FAR][seed % 4]
    own = chance.choice(
        [
            {"PatientID": "other"}, {"StudyInstanceUID": uid("other study")}, {"SeriesNumber": 5},
            {"AcquisitionNumber": 2}, {"ConvolutionKernel": "sharp"}, {"AcquisitionTime": "130000"}, {},
        ]
    )  # fmt: skip
    one, two = series(), series(OTHER, place, name="other", **own)
    named = chance.choice(["one series", "no series"])
    folders = chance.choice([("", ""), ("a/", "b/")])
    shows_nothing = place is BEHIND and not own.keys() & {
        "PatientID",
        "StudyInstanceUID",
        "SeriesNumber",
        "ConvolutionKernel",
    }
    if chance.random() < 0.5 and not shows_nothing:  # else it is one series of twice as many slices
        for data in two.values():
            data.InstanceNumber += len(one)
    for data in (*one.values(), *two.values()):
        data.SeriesInstanceUID = uid("series") if named == "one series" else ""
    if chance.random() < 0.5:
        (change,) = chance.sample([rename, round_positions, round_directions], 1)
        one, two = change(chance, one), change(chance, two)
    write(tmp_path / folders[0], one)
    write(tmp_path / (folders[1] or "c" * (set(one) & set(two) != set())), two)
    volumes, refused = read_all(tmp_path)
    context = (own, named, folders, [len(volumes), refused])
    if volumes:
        assert len(volumes) == 2 and not refused, context
        assert {
            i for i, truth in enumerate((true(VOLUME), true(OTHER, place))) for v in volumes if is_the(truth, v)
        } == {0, 1}
    else:
        assert len(refused) == 1, context


def test_alterations_do_what_their_names_say(tmp_path):
    write(tmp_path, copy.deepcopy(series()))
    (found,), refused = read_all(tmp_path)
    assert not refused
    assert is_the(true(VOLUME), found)
    assert not is_the(true(OTHER), found)
