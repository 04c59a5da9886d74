# SPDX-License-Identifier: Apache-2.0
"""Lists for segmentation: those of MONAI, the Decathlon and nnU-Net, tables, and the mistakes in them."""

import json
import shutil

import nibabel
import numpy as np
import pytest

from monai_llmboost.data import Columns, Division, LabelledScans, SegmentedScans, read_cases
from monai_llmboost.data.labelled.dataset import LabelledScanDataset
from monai_llmboost.data.labelled.lists.structures import read_structures


def write_scan(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5) + value
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


@pytest.fixture
def folder(tmp_path):
    """Six images a to f in imagesTr, and their label maps in labelsTr."""
    for number, name in enumerate("abcdef"):
        write_scan(tmp_path / "imagesTr" / f"{name}.nii.gz", number)
        write_scan(tmp_path / "labelsTr" / f"{name}.nii.gz", number)
    return tmp_path


def case(name, label="", **more):
    return {"image": f"imagesTr/{name}.nii.gz", "label": label or f"./labelsTr/{name}.nii.gz", **more}


def datalist(folder, training=None, **more):
    path = folder / "list.json"
    path.write_text(json.dumps({"training": training or [case(name) for name in "abcdef"], **more}))
    return path


def table(folder, *rows, head="image,label,split"):
    path = folder / "list.csv"
    path.write_text("\n".join([head, *rows]))
    return path


def row(name, split="train", label=""):
    return f"imagesTr/{name}.nii.gz,{label or f'labelsTr/{name}.nii.gz'},{split}"


def names_of(cases):
    return [(one.name, one.label_map) for one in cases.cases]


MSD = {"0": "background", "2": "tumour", "1": "liver"}
NNUNET = {"background": 0, "tumour": 2, "liver": 1}


@pytest.mark.parametrize("labels", [MSD, NNUNET, {"1": "liver", "2": "tumour"}])
def test_a_datalist(folder, labels):
    tests = ["./imagesTs/g.nii.gz"]
    found = read_cases(datalist(folder, labels=labels, test=tests))
    assert found.errors == ()
    assert found.warnings == ("1 test cases without a label are left out",)
    assert found.is_segmentation
    assert (found.structures, found.class_names) == ({1: "liver", 2: "tumour"}, ())
    assert [one.label for one in found.cases] == [""] * 6
    assert names_of(found)[0] == ("imagesTr/a.nii.gz", str(folder / "labelsTr" / "a.nii.gz"))


def test_a_datalist_of_auto3dseg_with_folds_and_channels(folder):
    entries = [{**case(name, [f"labelsTr/{name}.nii.gz"]), "fold": n % 3} for n, name in enumerate("abcdef")]
    for one in entries:
        one["image"] = [one["image"], f"imagesTr/{'b' if 'a' in one['image'][8:] else 'a'}.nii.gz"]
    scans = SegmentedScans(datalist(folder, entries), division=Division(fold=1), structures={"1": "liver"})
    assert [item["case"] for item in scans.items("val")] == ["imagesTr/b.nii.gz", "imagesTr/e.nii.gz"]
    assert len(scans.items("train")[0]["image"]) == 2


def test_a_table(folder):
    path = table(folder, row("a"), row("b"), row("c", "val"), row("d", "test"), "imagesTr/e.nii.gz,,test")
    found = read_cases(path)
    assert (found.errors, found.warnings) == ((), ("1 test cases without a label are left out",))
    assert found.structures == {}
    scans = SegmentedScans(path, structures={"5": "liver", "2": "tumour"})
    assert scans.structures == {5: "liver", 2: "tumour"}  # in the given order, which is that of the network's output
    assert scans.class_names == ["background", "liver", "tumour"]
    assert (scans.has_test, scans.best_split, scans.is_there) == (True, "test", True)
    assert scans.items("val") == [
        {
            "image": str(folder / "imagesTr" / "c.nii.gz"),
            "label": str(folder / "labelsTr" / "c.nii.gz"),
            "case": "imagesTr/c.nii.gz",
        }
    ]


def test_the_column_of_masks_may_be_the_label(folder):
    path = table(folder, row("a"), row("b"), row("c", "val"), head="image,mask,split")
    (found, *_) = read_cases(path, Columns(label="mask")).cases
    assert (found.label_map, found.mask) == (str(folder / "labelsTr" / "a.nii.gz"), None)


def test_folders_of_the_decathlon_with_and_without_a_description(folder):
    for name in (".a.nii.gz", "._b.nii.gz"):  # as macOS writes
        (folder / "imagesTr" / name).write_bytes(b"x")
    found = read_cases(folder)
    assert (found.errors, found.structures, found.is_segmentation) == ((), {}, True)
    assert [one.name for one in found.cases] == [*"abcdef"]
    datalist(folder, [case("a"), case("b")], labels=MSD).rename(folder / "dataset.json")
    found = read_cases(folder)
    assert [one.name for one in found.cases] == ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"]
    assert found.path == folder


def test_folders_of_nnunet(folder):
    for name in "abcdef":
        image = folder / "imagesTr" / f"{name}.nii.gz"
        shutil.copy(image, image.with_name(f"{name}_0001.nii.gz"))
        image.rename(image.with_name(f"{name}_0000.nii.gz"))
    write_scan(folder / "imagesTs" / "g_0000.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": NNUNET, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    for path in (folder, folder / "dataset.json"):
        found = read_cases(path)
        assert (found.errors, found.channels, found.structures) == ((), ("T1", "FLAIR"), {1: "liver", 2: "tumour"})
        assert [one.split for one in found.cases] == [""] * 6
    write_scan(folder / "labelsTs" / "g.nii.gz")
    (folder / "imagesTr" / "b_0001.nii.gz").unlink()
    found = read_cases(folder)
    assert [one.split for one in found.cases] == ["train"] * 6 + ["test"]
    assert found.cases[1].images[1] is None
    assert found.cases[6].images[1] is None


def test_folders_of_the_first_nnunet(folder):
    """Its list names the cases without the numbers of channels."""
    for name in "abcdef":
        image = folder / "imagesTr" / f"{name}.nii.gz"
        image.rename(image.with_name(f"{name}_0000.nii.gz"))
    cases = [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in "abcdef"]
    names = {"modality": {"0": "CT"}, "labels": {"0": "background", "1": "liver", "2": "tumour"}}
    (folder / "dataset.json").write_text(json.dumps({**names, "training": cases, "test": ["./imagesTs/g.nii.gz"]}))
    for path in (folder, folder / "dataset.json"):
        found = read_cases(path)
        assert (found.errors, found.structures) == ((), {1: "liver", 2: "tumour"})
        assert [one.name for one in found.cases] == [*"abcdef"]
    (folder / "imagesTr" / "c_0000.nii.gz").unlink()
    assert read_cases(folder).errors == ("case c: no image",)


def test_numbers_that_label_maps_have_too_are_of_cases(folder):
    for kind in ("imagesTr", "labelsTr"):
        for number, name in enumerate("abcdef"):
            file = folder / kind / f"{name}.nii.gz"
            file.rename(file.with_name(f"liver_{number:04d}.nii.gz"))
    found = read_cases(folder)
    assert (found.errors, found.channels) == ((), ("image",))
    assert [one.name for one in found.cases] == [f"liver_{number:04d}" for number in range(6)]


def test_images_without_a_label_map_in_folders_and_the_reverse(folder):
    (folder / "labelsTr" / "b.nii.gz").unlink()
    (folder / "imagesTr" / "c.nii.gz").unlink()
    assert read_cases(folder).errors == ("case b: no label map in 'label'", "case c: no image")
    for file in [*folder.rglob("*.gz")]:
        file.unlink()
    with pytest.raises(ValueError, match="has no NIfTI files in imagesTr and labelsTr: put images and label maps"):
        read_cases(folder)


ROWS = [
    ([row("a", label="labelsTr/z.nii.gz"), row("b")], "row 2: no such file or folder: labelsTr/z.nii.gz"),
    (["imagesTr/a.nii.gz,,train", row("b")], "row 2: no label map in 'label'"),
    ([",labelsTr/a.nii.gz,train", row("b")], "row 2: no image"),
    ([row("a"), row("b", label="liver")], "row 3: the label 'liver' is no path of a label map, and those of others"),
    ([row("a"), row("b", label="1")], "row 3: the label '1' is no path of a label map"),
    ([row("a"), row("b", label="labelsTr/a.nii.gz")], "row 3: the label map of another image: row 2"),
    ([row("a"), row("b", label="imagesTr/b.nii.gz")], "row 3: image and label map are one file: give the label map"),
    ([row("a"), row("a", label="labelsTr/b.nii.gz")], "row 3: another label, split or fold for the image of: row 2"),
    ([row("a"), row("b", "")], "1 cases have no split, such as row 3"),
    ([row("a"), row("b", "trial")], "row 3: the split 'trial' is none of train, val and test"),
]


@pytest.mark.parametrize("rows, sentence", ROWS)
def test_a_mistake_is_one_sentence_with_its_row(folder, rows, sentence):
    path = table(folder, *rows)
    assert [error for error in read_cases(path).errors if error.startswith(sentence)]
    with pytest.raises(ValueError, match=r"list.csv has mistakes: .*: correct them"):
        SegmentedScans(path, structures={1: "liver"}).items("train")


NAMES = [
    ({"0": "background", "1": "liver", "2": "Liver"}, "the structure 'liver' has the values 1, 2: give each"),
    ({"0": "liver", "1": "tumour"}, "the value 0 has the name 'liver', and must be the background: number structures"),
    ({"2": "liver", "1": "background"}, "the value 1 has the name 'background': the background must have the value 0"),
    ({"liver": 0.5}, "the structure 'liver' has the value 0.5: give a whole number from 1 to 65535"),
    ({"-1": "liver"}, "the structure 'liver' has the value '-1': give a whole number from 1 to 65535"),
    ({"1": "liver", "x": "tumour"}, "the structure 'tumour' has the value 'x': give a whole number from 1 to 65535"),
    ({"background": 0, "whole": [1, 2], "core": 2}, "the structure 'whole' is a region of the values .1, 2.: give"),
    ({"background": 0, "liver": 1, "ignore": 2}, "the value 2 is to be ignored, which is not supported"),
    ({"1": " "}, "the value 1 has no name: give one"),
    ({"liver": 1, "tumour": 1}, "the structures 'liver' and 'tumour' have the value 1: give each its own"),
    ({str(n): f"part {n}" for n in range(1, 300)}, "299 structures are more than 254: train on some of them"),
    (["background", "liver"], 'the names of the structures are .*: write them as {"0": "background", "1": "liver"}'),
]  # fmt: skip


@pytest.mark.parametrize("labels, sentence", NAMES)
def test_wrong_names_of_structures(folder, labels, sentence):
    path = datalist(folder, labels=labels)
    with pytest.raises(ValueError, match=f"has mistakes: {sentence}"):
        SegmentedScans(path).items("train")


def test_structures_that_are_named_nowhere(folder):
    scans = SegmentedScans(datalist(folder))
    assert len(scans.items("train")) == 4  # the cases need no names
    with pytest.raises(ValueError, match="names no structures: inspect it, or give --structures"):
        _ = scans.class_names
    assert SegmentedScans(None).class_names == ["background", "structure 1"]
    with pytest.raises(ValueError, match="structures has the value '0'"):
        SegmentedScans(None, structures={"0": "liver"})
    assert read_structures(None) == ({}, [])


def test_the_other_kind_of_list(folder):
    with pytest.raises(ValueError, match="are label maps, not classes: train the bundle scans_segmentation on it"):
        LabelledScans(datalist(folder)).items("train")
    path = table(folder, row("a", label="no"), row("b", label="yes"))
    with pytest.raises(ValueError, match="are classes, not label maps: train the bundle scans_classification on it"):
        SegmentedScans(path).items("train")
    with pytest.raises(
        ValueError, match=r"no labelled scans were named: give .* or a folder with imagesTr and labelsTr"
    ):
        SegmentedScans(None).items("train")


def test_groups_stay_together_and_the_digest_knows_label_maps_and_structures(folder):
    entries = [case(name, patient=f"p{number // 2}") for number, name in enumerate("abcdef")]
    path, columns = datalist(folder, entries, labels=MSD), Columns(group="patient")
    scans = SegmentedScans(path, columns, Division(folds=3))
    patients = [{item["patient"] for item in scans.items(split)} for split in ("train", "val")]
    assert [len(one) for one in patients] == [2, 1]
    assert not patients[0] & patients[1]
    aside = SegmentedScans(path, columns, Division(folds=2, test_fraction=1 / 3))
    assert (len(aside.items("test")), len(scans.items("train", label_fraction=0.5))) == (2, 4)
    assert len({item["case"] for item in scans.items("train", label_fraction=0.5)}) == 2
    known = scans.digest
    assert known[:8] in scans.division
    assert SegmentedScans(path, columns, Division(folds=3), structures={2: "tumour", 1: "liver"}).digest != known
    moved = shutil.copytree(folder, folder.parent / "elsewhere")
    assert SegmentedScans(moved / path.name, columns, Division(folds=3)).digest == known
    before = read_cases(path, columns).digest
    (folder / "labelsTr" / "b.nii.gz").rename(folder / "labelsTr" / "B.nii.gz")
    entries[1]["label"] = "labelsTr/B.nii.gz"
    datalist(folder, entries, labels=MSD)
    assert read_cases(path, columns).digest != before
    assert SegmentedScans(path, columns, Division(folds=3)).digest != known


def test_a_changed_label_map_is_prepared_again(folder):
    items = SegmentedScans(datalist(folder)).items("train")[:1]

    def load(item):
        return {**item, "label": np.asarray(nibabel.load(item["label"]).dataobj)}

    def first():
        data = LabelledScanDataset(items, load, cache="disk", cache_dir=folder / "cache")
        return int(data[0]["label"].min())

    known = first()
    write_scan(folder.__class__(items[0]["label"]), 100)
    assert (first(), known) == (100, known)
    assert known < 10
