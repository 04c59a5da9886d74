# SPDX-License-Identifier: Apache-2.0
"""Cases to predict from a list: several channels, masks and points, and what is wrong with a row refuses its case."""

import json

import nibabel
import numpy as np
import pytest
import torch
from dicom_files import random_volume, write_series
from monai.transforms import Compose

from monai_llmboost.data import CheckVolumed, Columns, LoadScansd, ScanReader, find_scans
from monai_llmboost.data.transforms import CropScand
from monai_llmboost.inference import ScanCases
from monai_llmboost.inference.cases import scan_digest

SHAPE = (6, 5, 4)


def write_scan(path, value=0, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(value).normal(value, 1, SHAPE).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4) if affine is None else affine), path)


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(("a", "b", "c", "d", "sub dir/Müller #1")):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz", 10 * number)
    return tmp_path / "scans"


@pytest.fixture
def write(folder):
    def run(content, name="list.csv"):
        path = folder / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return run


def open_cases(path, channels=1, crop=None, missing="refuse", image="image", shape=SHAPE, **options):
    reader = ScanReader()
    names = image.split(",") if channels > 1 else 1
    steps = [
        LoadScansd("image", reader, names, missing),
        CheckVolumed("image", channels, None),
        LoadScansd("mask", reader, like="image", allow_missing_keys=True),
    ]
    steps += [CropScand("image", crop, size_mm=[2, 2, 2])] if crop else []
    columns = Columns(image=None if image == "image" else image)
    return ScanCases(path, Compose(steps), (channels, *shape), reader, columns=columns, **options)


def voxels(*paths):
    return torch.stack([torch.tensor(nibabel.load(path).get_fdata(dtype=np.float32)) for path in paths])


def test_a_list_of_one_channel(write, folder):
    path = write('image,label\na.nii.gz,x\n"sub dir/Müller #1.nii.gz",\nb.nii.gz,nan\n')
    cases = open_cases(path)
    names = ["a.nii.gz", "sub dir/Müller #1.nii.gz", "b.nii.gz"]
    assert [scan.name for scan in cases.scans] == names and not cases.refused
    for number, name in enumerate(names):
        assert torch.equal(cases.read(number).image, voxels(folder / name))


def test_names_are_those_of_a_search(write):
    names = ["a.nii.gz", "b.nii.gz", "sub dir/Müller #1.nii.gz"]
    path = write("image\n" + "\n".join(names) + "\n")
    assert [scan.name for scan in find_scans(path)[0]] == [scan.name for scan in open_cases(path).scans]


def test_channels_are_read_in_the_order_of_the_columns(write, folder):
    path = write("T1,case,FLAIR\na.nii.gz,P1,b.nii.gz\nc.nii.gz,P2,d.nii.gz\n")
    cases = open_cases(path, 2, image="FLAIR,T1")
    assert [scan.name for scan in cases.scans] == ["P1", "P2"]
    assert torch.equal(cases.read(1).image, voxels(folder / "d.nii.gz", folder / "c.nii.gz"))
    assert np.array_equal(cases.volume(1)[0], voxels(folder / "d.nii.gz")[0])
    assert cases.read(0).input_sha256 != open_cases(path, 2, image="T1,FLAIR").read(0).input_sha256
    assert [scan.name for scan in open_cases(path, 2, image="FLAIR,T1", only="P2").scans] == ["P2"]


def test_a_missing_channel_is_refused_or_zeros(write, folder):
    path = write("T1,FLAIR\n,b.nii.gz\nc.nii.gz,d.nii.gz\n")
    cases = open_cases(path, 2, image="T1,FLAIR")
    assert "the channel T1 is missing: give it, or allow zeros" in cases.read(0).refused and not cases.read(1).refused
    case = open_cases(path, 2, image="T1,FLAIR", missing="zeros").read(0)
    assert torch.equal(case.image, torch.cat([torch.zeros(1, *SHAPE), voxels(folder / "b.nii.gz")]))
    assert case.warnings == ["the channel T1 is missing and was filled with zeros"]


def test_the_kept_volume_is_the_first_channel_that_is_there(write, folder):
    path = write("T1,FLAIR\n,b.nii.gz\nc.nii.gz,d.nii.gz\n")
    cases = open_cases(path, 2, image="T1,FLAIR", missing="zeros")
    cases.keep_volumes([scan.name for scan in cases.scans], 1 << 20)
    for number, name in enumerate(("b.nii.gz", "c.nii.gz")):
        kept = cases.read(number).volume
        assert kept.any() and np.array_equal(kept, voxels(folder / name)[0])
        assert np.array_equal(kept, cases.volume(number)[0])


def test_a_datalist_with_and_without_labels(write, folder):
    content = {"training": [{"image": "a.nii.gz", "label": 1}], "test": ["b.nii.gz", {"image": "c.nii.gz"}]}
    assert [scan.name for scan in open_cases(write(content, "list.json")).scans] == [f"{n}.nii.gz" for n in "abc"]


def test_wrong_rows_refuse_their_cases(write, folder):
    (folder / "empty").mkdir()
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    (folder / "notes.md").write_text("words")
    rows = [
        "a.nii.gz,b.nii.gz",
        "e.nii.gz,b.nii.gz",
        "a.nii.gz,bad.nii.gz",
        "empty,b.nii.gz",
        "notes.md,a.nii.gz",
    ]
    cases = open_cases(write("\n".join(["T1,T2", *rows])), 2, image="T1,T2")
    assert [scan.name for scan in cases.scans] == ["a.nii.gz"]
    reasons = [scan.refused for scan in cases.refused]
    assert reasons[0] == "no such file or folder: e.nii.gz"
    assert reasons[1].startswith("channel T2: expected a NIfTI file (.nii, .nii.gz), got a text file")
    assert reasons[2] == "an empty folder: empty"
    assert reasons[3].startswith("channel T1: no NIfTI or DICOM scans at")
    assert all(scan.refused_kind for scan in cases.refused)


def test_words_that_only_a_training_needs_are_not_read(write):
    cases = open_cases(write("image,label,split,fold\na.nii.gz,,elsewhere,first\n"))
    assert len(cases.scans) == 1 and not cases.refused


def test_masks_and_points(write, folder):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 1:3, 1:3] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), folder / "m.nii.gz")
    path = write("image,mask,centre_x,centre_y,centre_z\na.nii.gz,m.nii.gz,1.5,2.5,2.5\nb.nii.gz,,90,1,1\n")
    image = voxels(folder / "a.nii.gz")
    by_mask, by_point = (open_cases(path, crop=crop, shape=(2, 2, 2)) for crop in ("mask", "centre"))
    assert torch.equal(by_mask.read(0).image, image[:, 2:4, 1:3, 1:3])
    assert torch.equal(by_point.read(0).image, image[:, 1:3, 2:4, 2:4])
    assert "the case has no mask to crop around" in by_mask.read(1).refused
    assert "the point (90, 1, 1) mm is not in the scan" in by_point.read(1).refused
    # An interrupted run is resumed with the rows whose digests are equal.
    digests = {scan_digest(scan) for scan in by_mask.scans}
    write_scan(folder / "m.nii.gz", 5)
    moved = write(
        "image,mask,centre_x,centre_y,centre_z\na.nii.gz,m.nii.gz,1.5,2.5,2.5\nb.nii.gz,,80,1,1\n", "moved.csv"
    )
    assert not digests & {scan_digest(scan) for scan in open_cases(moved, crop="mask", shape=(2, 2, 2)).scans}
    (folder / "m.nii.gz").write_bytes(b"no mask")
    refused = open_cases(moved, crop="mask", shape=(2, 2, 2)).refused[0]
    assert refused.refused.startswith("mask: expected a NIfTI file") and refused.refused_kind


@pytest.mark.parametrize("content", ["image,label\nscan,x\n", "image\nscan\n"])
def test_a_dicom_series(write, folder, content):
    volume = random_volume()
    write_series(folder / "scan", volume)
    cases = open_cases(write(content), shape=volume.shape)
    assert [scan.name for scan in cases.scans] == ["scan"] and cases.scans[0].format == "DICOM"
    found = cases.read(0)
    assert not found.refused and torch.equal(found.image, torch.tensor(volume, dtype=torch.float32)[None])


def test_one_of_two_series_in_a_folder(write, folder):
    volumes = [random_volume(seed=seed) for seed in range(2)]
    for number, volume in enumerate(volumes):
        write_series(folder / "two", volume, series=f"series{number}")
    scans = find_scans(folder / "two")[0]
    rows = ["two", *(f"two::{scan.series_uid}" for scan in scans), "two::1.2.3"]
    cases = open_cases(write("\n".join(["image", *rows])), shape=volumes[0].shape)
    assert [scan.name for scan in cases.scans] == rows[1:3]
    found = [cases.read(number).image[0] for number in range(2)]
    assert {float(image.sum()) for image in found} == {float(volume.sum()) for volume in volumes}
    both = ", ".join(scan.series_uid for scan in scans)
    assert [scan.refused.partition(" at ")[2].partition(", got ")[2] for scan in cases.refused] == [
        f"2 ({both}): name one as PATH::SeriesInstanceUID", "0 (none): name one as PATH::SeriesInstanceUID",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content, channels, image, sentence",
    [
        (
            "T1,FLAIR\na.nii.gz,b.nii.gz\n",
            3,
            "T1,FLAIR",
            r"have 2 channels \(T1, FLAIR\), and the network takes 3: name",
        ),
        ("T1,T2\na.nii.gz,b.nii.gz\n", 2, "T1,FLAIR", "has no column 'FLAIR', it has T1, T2: rename a column, or give"),
        (
            "image,label\na.nii.gz,x\n",
            2,
            "image",
            r"have 1 channels \(image\), and the network takes 2: name the column",
        ),
        ("T1,T2\n", 2, "T1,T2", "has column names and no cases: add a row for each case"),
    ],
)
def test_a_list_of_other_channels(write, content, channels, image, sentence):
    with pytest.raises(ValueError, match=sentence):
        open_cases(write(content), channels, image=image)


def test_several_channels_need_a_list(folder):
    with pytest.raises(ValueError, match="the network takes 2 channels, so a folder does not say which scans belong"):
        open_cases(folder, 2, image="T1,T2")


def test_other_inputs_of_one_channel_are_searched(folder, write):
    expected = {f"{name}.nii.gz" for name in "abcd"} | {"sub dir/Müller #1.nii.gz"}
    assert {scan.name for scan in open_cases(folder).scans} == expected
    assert len(open_cases(write("a.nii.gz\nb.nii.gz\n")).scans) == 2  # without a title
    assert len(open_cases(write(["a.nii.gz"], "list.json")).scans) == 1
    assert len(open_cases(write("a.nii.gz\n", "list.txt")).scans) == 1


def test_hidden_names_stay_hidden(write, folder):
    write_scan(folder / "Doe.nii.gz", 7)
    path = write("T1,T2,case\nDoe.nii.gz,b.nii.gz,Jane Doe\nDoe-gone.nii.gz,b.nii.gz,John Doe\nDoe/Jim Doe.nii,,Jim\n")
    cases = open_cases(path, 2, image="T1,T2", salt="pepper")
    for scan in (*cases.scans, *cases.refused):
        shown = f"{scan.name} {scan.refused} {scan.warnings}"
        assert "Doe" not in shown and "nii" not in shown
    assert (len(cases.scans), len(cases.refused)) == (1, 2) and not cases.read(0).refused
