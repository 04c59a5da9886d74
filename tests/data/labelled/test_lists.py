# SPDX-License-Identifier: Apache-2.0
"""Labelled lists as people write them: each mistake has its sentence, and each oddity that is none is understood."""

import json
import re
import unicodedata

import nibabel
import numpy as np
import pytest
from dicom_files import write_series

from monai_llmboost.data.labelled import Columns, LabelledScans, read_cases
from monai_llmboost.data.labelled.lists.tables import read_table


def write_scan(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5) + value
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)


@pytest.fixture
def folder(tmp_path):
    """Four scans, a.nii.gz to d.nii.gz."""
    for number, name in enumerate("abcd"):
        write_scan(tmp_path / f"{name}.nii.gz", number)
    return tmp_path


@pytest.fixture
def write(folder):
    """Write a list next to the scans: write(text or bytes or object, name) -> path."""

    def run(content, name="list.csv"):
        path = folder / name
        if isinstance(content, (dict, list)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return run


HEAD = "image,label\n"
GOOD = HEAD + "a.nii.gz,no\nb.nii.gz,yes\nc.nii.gz,no\nd.nii.gz,yes\n"


def labels(cases):
    return [case.label for case in cases.cases]


# -- what is refused as a whole --------------------------------------------------------------------------------------

WHOLE = [
    ("", "list.csv", "is empty: write a line of column names, then a row for each case"),
    ("\n , \n", "list.csv", "is empty: write a line of column names"),
    ("sep=;\n", "list.csv", "is empty: write a line of column names"),
    (HEAD, "list.csv", "has column names and no cases: add a row for each case"),
    ("img,label\na.nii.gz,1\n", "list.csv", "has no column 'image', it has img, label: rename a column, or give "
     "--image-column img"),
    ("path,label\na.nii.gz,1\n", "list.csv", "has no column 'image', it has path, label: rename a column, or give "
     "--image-column path"),
    ("image,labels\na.nii.gz,1\n", "list.csv", "has no column 'label', it has image, labels: rename a column, or give "
     "--label-column labels"),
    ("image,class\na.nii.gz,1\n", "list.csv", "has no column 'label', it has image, class: rename"),
    ("a.nii.gz,1\nb.nii.gz,0\n", "list.csv", "has no column 'image', it has a.nii.gz, 1: rename a column"),
    ("image,label,Label\na.nii.gz,1,2\n", "list.csv", "has two columns called 'Label': rename one"),
    (HEAD + "a, b.nii.gz,1\n", "list.csv", "row 2 of .* has 3 fields, and the first line 2: put a path that contains "
     "',' in quotation marks"),
    (HEAD + '"a.nii.gz,1\nb.nii.gz,0\n', "list.csv", "is not a table .unexpected end of data.: save it as CSV again"),
    (HEAD + '"a"x.nii.gz,1\n', "list.csv", "is not a table .*: save it as CSV again"),
    (bytes(range(256)) * 4, "list.csv", "is not a text file: save the table as CSV .UTF-8."),
    (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0\xff\xfe", "list.csv", "is not a text file"),
    (b"\0" * 400, "list.csv", "is not a text file"),
    (GOOD.encode("utf-16-le"), "list.csv", "is not a text file"),
    (b"\xff\xfei\0m\0a", "list.csv", "is not a text file"),
    (GOOD, "list.xlsx", "is neither a CSV file nor a JSON datalist .*: save the table as CSV, or give the folder"),
    ("{", "list.json", "is not JSON in UTF-8 .*: write it again"),
    ("", "list.json", "is not JSON in UTF-8 .*: write it again"),
    (json.dumps({"training": []}).encode("utf-16"), "list.json", "is not JSON in UTF-8"),
    ({"cases": []}, "list.json", "is not a datalist: write an object with lists of cases under training"),
    ({"training": {"image": "a.nii.gz"}}, "list.json", "is not a datalist"),
    ("7", "list.json", "is not a datalist"),
    ({"training": []}, "list.json", "has no case with 'label'"),
    ([{"image": "a.nii.gz", "class": 1}], "list.json", "has no case with 'label': write each as .*, or give "
     "--label-column with its name"),
    (["a.nii.gz", "b.nii.gz"], "list.json", "has no case with 'label'"),
    ([{"img": "a.nii.gz", "label": 1}], "list.json", "case 1 of .* has no 'image', it has img, label: give "
     "--image-column with its name"),
    ([{"image": "a.nii.gz", "label": 1}, 5], "list.json", "case 2 of .* has no 'image', it has 5"),
    ({"training": [{"image": "a.nii.gz", "label": ["x.nii.gz", "y.nii.gz"]}]}, "list.json", "the label of training "
     "case 1 of .* is .*: give one class, a word or a number, or for a segmentation one label map"),
    ([{"image": ["a.nii.gz", "b.nii.gz"], "label": 1}, {"image": "c.nii.gz", "label": 0}], "list.json",
     "case 2 of .* has 1 images, and others 2: give all of each"),
]  # fmt: skip


@pytest.mark.parametrize("content, name, sentence", WHOLE)
def test_a_file_that_is_no_labelled_list(write, content, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_cases(write(content, name))


def test_no_list(folder):
    with pytest.raises(FileNotFoundError, match=r"no list at .*: give a CSV file, a JSON datalist or a folder"):
        read_cases(folder / "missing.csv")
    with pytest.raises(ValueError, match="no labelled scans were named: give --data with a CSV list"):
        LabelledScans(None).items("train")


def test_the_options_of_columns(write, folder):
    path = write("Path,Class,Patient\na.nii.gz,x,1\nb.nii.gz,y,2\n")
    cases = read_cases(path, Columns(image="path", label="class", group="patient"))
    assert [case.group for case in cases.cases] == ["1", "2"] and cases.class_names == ("x", "y")
    assert not cases.errors
    with pytest.raises(
        ValueError, match=r"has no column 'Patients', .*: rename a column, or give --group-column Patie"
    ):
        read_cases(path, Columns(image="path", label="class", group="Patients"))
    with pytest.raises(ValueError, match="has no column 'flair', it has Path"):
        read_cases(path, Columns(image="path,flair", label="class"))
    with pytest.raises(ValueError, match="the image columns path, PATH are not all different: name each channel once"):
        read_cases(path, Columns(image="path,PATH", label="class"))
    with pytest.raises(ValueError, match="is a folder, which has no columns: leave out the options of columns"):
        read_cases(folder, Columns(label="class"))


# -- mistakes in single rows -----------------------------------------------------------------------------------------

ROWS = [
    (GOOD + "e.nii.gz,no\n", "row 6: no such file or folder: e.nii.gz"),
    (GOOD + "a.nii.gz ,\n", "row 6: no label in 'label'"),
    (GOOD + "a.nii.gz\n", "row 6: no label in 'label'"),
    (GOOD + ",no\n", "row 6: no image"),
    (GOOD + "empty,no\n", "row 6: an empty folder: empty"),
    (GOOD + "loop.nii.gz,no\n", "row 6: a link that leads nowhere: loop.nii.gz"),
    (GOOD + "gone.nii.gz,no\n", "row 6: a link that leads nowhere: gone.nii.gz"),
    (GOOD + "C:\\scans\\a.nii.gz,no\n", "row 6: no such file or folder: C:\\scans\\a.nii.gz"),
    (GOOD + "x" * 300 + ",no\n", "row 6: no such file or folder: " + "x" * 300),
    (GOOD + "~/nowhere/a.nii.gz,no\n", "row 6: no such file or folder: ~/nowhere/a.nii.gz"),
    (GOOD + "a.nii.gz,nan\n", "row 6: the label 'nan' is not a class"),
    (GOOD + "a.nii.gz,inf\n", "row 6: the label 'inf' is not a class"),
    (GOOD + "a.nii.gz,yes\n", "row 6: another label, split or fold for the image of: row 2"),
    (GOOD.replace("yes", "no"), "only the class 'no' in the whole list: a classification needs two or more"),
    (GOOD.replace("d.nii.gz,yes", "d.nii.gz,Yes"), "the labels 'Yes', 'yes' differ in upper and lower case only: "
     "write one of them"),
    (HEAD + "a.nii.gz,1.2\nb.nii.gz,2.5\nc.nii.gz,3.1\nd.nii.gz,0.7\n", "4 different labels in 4 cases (0.7, 1.2, "
     "2.5 ...): give classes, not measurements or names; is it the right label column?"),
    ("image,label,split\na.nii.gz,no,train\nb.nii.gz,yes,validate\n", "row 3: the split 'validate' is none of train, "
     "val and test"),
    ("image,label,split\na.nii.gz,no,train\nb.nii.gz,yes,\n", "1 cases have no split, such as row 3, and others have "
     "one: give all or none"),
    ("image,label,fold\na.nii.gz,no,0\nb.nii.gz,yes,\n", "1 cases have no fold, such as row 3, and others have one: "
     "give all or none"),
    ("image,label,fold\na.nii.gz,no,first\nb.nii.gz,yes,1\n", "row 2: the fold 'first' is no whole number from 0"),
    ("image,label,fold\na.nii.gz,no,-1\nb.nii.gz,yes,1.5\n", "row 3: the fold '1.5' is no whole number from 0"),
    ("image,label,mask\na.nii.gz,no,m.nii.gz\nb.nii.gz,yes,\n", "row 2: no such file or folder: m.nii.gz"),
    ("image,label,centre_x,centre_y,centre_z\na.nii.gz,no,1,2,\nb.nii.gz,yes,,,\n", "row 2: the centre 1, 2,  is not "
     "three numbers, in mm"),
]  # fmt: skip


@pytest.mark.parametrize("content, sentence", ROWS)
def test_a_mistake_is_one_sentence_with_its_row(write, folder, content, sentence):
    (folder / "empty").mkdir()
    (folder / "loop.nii.gz").symlink_to("loop.nii.gz")
    (folder / "gone.nii.gz").symlink_to("elsewhere.nii.gz")
    path = write(content)
    assert sentence in read_cases(path).errors
    with pytest.raises(ValueError, match=r"list.csv has mistakes: .*: correct them"):
        LabelledScans(path).items("train")


def test_many_equal_mistakes_are_counted(write):
    errors = read_cases(write(GOOD + "".join(f"{n}.nii.gz,no\n" for n in range(15)))).errors
    assert len(errors) == 11 and errors[-1] == "and 5 more: no such file or folder"
    warnings = read_cases(write(GOOD + 15 * "a.nii.gz,no\n")).warnings
    assert len(warnings) == 11 and warnings[-1] == "and 5 more: left out, because it repeats"
    with pytest.raises(ValueError, match=r"mistakes: row 6: no such .*, and 10 more; `monai-llmboost inspect` lists"):
        LabelledScans(write(GOOD + "".join(f"{n}.nii.gz,no\n" for n in range(15)))).items("train")


# -- what is no mistake ----------------------------------------------------------------------------------------------

SAME = [
    GOOD.replace(",", ";"),
    GOOD.replace(",", "\t"),
    GOOD.replace(",", "|"),
    GOOD.replace(",", ", "),
    GOOD.replace("\n", "\r\n"),
    GOOD.replace("\n", "\r"),
    GOOD.replace("\n", "\n\n"),
    "\n" + GOOD,
    "sep=;\n" + GOOD.replace(",", ";"),
    '"sep=,"\r\n' + GOOD,
    GOOD.replace("image,label", "Image , LABEL"),
    GOOD.replace("a.nii.gz", '"a.nii.gz"'),
    GOOD.replace("a.nii.gz", "./a.nii.gz"),
    "\n".join(f"{number},{line}" for number, line in zip(["", 0, 1, 2, 3], GOOD.splitlines())),
    "\n".join(f"{line},,," for line in GOOD.splitlines()),
    GOOD.encode("utf-8-sig"),
    GOOD.encode("utf-16"),
    b"\xfe\xff" + GOOD.encode("utf-16-be"),
]


@pytest.mark.parametrize("content", SAME)
def test_spreadsheets_write_one_list_in_many_ways(write, folder, content):
    cases = read_cases(write(content))
    assert not cases.errors + cases.warnings
    assert [case.name for case in cases.cases] == [f"{name}.nii.gz" for name in "abcd"]
    assert [case.images for case in cases.cases] == [(str(folder / f"{name}.nii.gz"),) for name in "abcd"]
    assert labels(cases) == ["no", "yes", "no", "yes"]


@pytest.mark.parametrize(
    "written, names",
    [
        (("0", "1", "1", "0"), ("0", "1")),
        (("1.0", "0.0", "1", "0"), ("0", "1")),
        (("10", "9", "10", "9"), ("9", "10")),
        (("-1", "01", "1", "-1.0"), ("-1", "1")),
        ((" x", "x ", "Ä", "Ä"), ("x", "Ä")),
        (("True", "False", "True", "False"), ("False", "True")),
        (("0.5", "1.5", "0.5", "1.5"), ("0.5", "1.5")),
    ],
)
def test_labels_are_words_or_numbers(write, written, names):
    cases = read_cases(write(HEAD + "".join(f"{name}.nii.gz,{label}\n" for name, label in zip("abcd", written))))
    assert cases.class_names == names and not cases.errors


@pytest.mark.parametrize(
    "name",
    ["my scan.nii.gz", "Müller.nii.gz", "a#1.nii.gz", "$HOME.nii.gz", "100%.nii.gz", "x [1].nii.gz", "a;b.nii.gz",
     "a,b.nii.gz", "b's.nii.gz", "a&b=c.nii.gz", "ж 漢.nii.gz", "%20.nii.gz", "a::b.nii.gz"],
)  # fmt: skip
def test_names_of_files_are_taken_as_they_are(write, folder, name):
    write_scan(folder / "sub dir" / name)
    cases = read_cases(write(HEAD + f'"sub dir/{name}",no\na.nii.gz,yes\n'))
    assert not cases.errors
    assert cases.cases[0].images == (str(folder / "sub dir" / name),) and cases.cases[0].name == f"sub dir/{name}"


@pytest.mark.parametrize("there, written", [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_umlaut_of_macos_is_that_of_other_systems(write, folder, there, written):
    name = "Müller.nii.gz"
    write_scan(folder / unicodedata.normalize(there, name))
    cases = read_cases(write(HEAD + unicodedata.normalize(written, name) + ",no\na.nii.gz,yes\n"))
    assert cases.cases[0].images == (str(folder / unicodedata.normalize(there, name)),) and not cases.errors


def test_a_quotation_mark_in_a_name_is_doubled(write, folder):
    write_scan(folder / 'a"b.nii.gz')
    assert not read_cases(write(HEAD + '"a""b.nii.gz",no\na.nii.gz,yes\n')).errors


def test_windows_1252_is_read_with_a_warning(write, folder):
    write_scan(folder / "Müller.nii.gz")
    cases = read_cases(write((HEAD + "Müller.nii.gz,gutartig\na.nii.gz,bösartig\n").encode("cp1252")))
    assert cases.warnings == (
        "list.csv is not UTF-8, and was read as Windows-1252: save it as CSV UTF-8 if names look wrong",
    )
    assert not cases.errors and cases.class_names == ("bösartig", "gutartig")


def test_paths_of_windows_home_and_elsewhere(write, folder, monkeypatch, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    write_scan(home / "h.nii.gz")
    write_scan(folder / "sub" / "e.nii.gz")
    cases = read_cases(write(HEAD + f"sub\\e.nii.gz,no\n~/h.nii.gz,yes\n{folder}/sub/../a.nii.gz,no\n"))
    assert not cases.errors
    assert [case.images[0] for case in cases.cases] == [
        str(folder / "sub" / "e.nii.gz"), str(home / "h.nii.gz"), str(folder / "a.nii.gz")
    ]  # fmt: skip
    assert all("\\" not in case.name for case in cases.cases)


def test_one_file_by_a_relative_and_an_absolute_path_is_one_case(write, folder):
    cases = read_cases(write(GOOD + f"{folder}/a.nii.gz,no\n"))
    assert cases.warnings == ("row 6: left out, because it repeats: row 2",)
    assert [case.name for case in cases.cases] == [f"{name}.nii.gz" for name in "abcd"]
    assert read_cases(write(GOOD + f"{folder}/a.nii.gz,yes\n")).errors == (
        "row 6: another label, split or fold for the image of: row 2",
    )


@pytest.mark.parametrize(
    "words", [("Training", "VAL", "test"), ("tr", "dev", "ts"), ("TRAIN", "validation", "testing")]
)
def test_words_for_splits(write, words):
    rows = "".join(f"{name}.nii.gz,{label},{word}\n" for name, label, word in zip("abc", "xyx", words))
    assert [case.split for case in read_cases(write("image,label,split\n" + rows)).cases] == ["train", "val", "test"]


def test_a_fold_of_a_spreadsheet_is_a_whole_number(write):
    cases = read_cases(write("image,label,fold\na.nii.gz,no,0.0\nb.nii.gz,yes,1\n"))
    assert [case.fold for case in cases.cases] == [0, 1] and not cases.errors


def test_cases_of_one_name_are_numbered_with_a_warning(write):
    rows = "a.nii.gz,no,P1\nb.nii.gz,yes,P1\nc.nii.gz,no,P1 (2)\nd.nii.gz,yes,P2\n"
    cases = read_cases(write("image,label,case\n" + rows))
    assert [case.name for case in cases.cases] == ["P1", "P1 (3)", "P1 (2)", "P2"]
    assert cases.warnings == (
        "the name P1: 2 cases have it, and are numbered; if they are of one patient, give --group-column",
    )
    assert not cases.errors
    assert not read_cases(write("image,label,case\n" + rows), Columns(group="case")).warnings


def test_one_scan_may_be_several_cases_around_different_points(write):
    head = "image,label,centre_x,centre_y,centre_z\n"
    cases = read_cases(write(head + "a.nii.gz,no,1,2,3\na.nii.gz,yes,2,2,3\n"))
    assert not cases.errors and [case.centre_mm for case in cases.cases] == [(1, 2, 3), (2, 2, 3)]
    assert len({case.name for case in cases.cases}) == 2


# -- several channels ------------------------------------------------------------------------------------------------


def test_columns_that_begin_with_image_are_channels(write, folder):
    cases = read_cases(write("image_t1,image_t2,label\na.nii.gz,b.nii.gz,no\nc.nii.gz,,yes\n,,no\n"))
    assert cases.channels == ("image_t1", "image_t2")
    assert cases.cases[1].images == (str(folder / "c.nii.gz"), None)
    assert cases.errors == ("row 4: no image",)


def test_named_channels_keep_their_order(write):
    path = write("T1,FLAIR,label\na.nii.gz,b.nii.gz,no\nc.nii.gz,d.nii.gz,yes\n")
    cases = read_cases(path, Columns(image="FLAIR, T1"))
    assert cases.channels == ("FLAIR", "T1") and cases.cases[0].images[0].endswith("b.nii.gz")


def test_channels_of_a_datalist(write):
    entries = [
        {"image": ["a.nii.gz", None], "label": 0},
        {"image": ["b.nii.gz", "c.nii.gz"], "label": 1},
    ]
    cases = read_cases(write(entries, "list.json"))
    assert cases.channels == ("image 1", "image 2") and cases.cases[0].images[1] is None and not cases.errors
    entries = [{"t1": "a.nii.gz", "t2": "b.nii.gz", "label": 0}, {"t2": "c.nii.gz", "label": 1}]
    cases = read_cases(write(entries, "list.json"), Columns(image="t1,t2"))
    assert cases.channels == ("t1", "t2") and cases.cases[1].images[0] is None and not cases.errors


# -- datalists -------------------------------------------------------------------------------------------------------


def entry(name, label, **more):
    return {"image": f"{name}.nii.gz", "label": label, **more}


def test_a_decathlon_datalist(write, folder):
    content = {
        "name": "x", "numTraining": 2, "labels": {"0": "benign", "1": "malignant"},
        "training": [entry("a", 0), entry("b", 1.0)],
        "validation": [entry("c", 1)],
        "test": ["d.nii.gz"],
    }  # fmt: skip
    path = write(content, "list.json")
    cases = read_cases(path)
    assert labels(cases) == ["benign", "malignant", "malignant"] and not cases.errors
    assert [case.split for case in cases.cases] == ["train", "train", "val"]
    assert cases.warnings == ("1 test cases without a label are left out",)
    from monai.data import load_decathlon_datalist

    content["labels"] = {}
    ours = {case.images[0] for case in read_cases(write(content, "list.json")).cases if case.split == "train"}
    assert ours == {item["image"] for item in load_decathlon_datalist(path, is_segmentation=False)}


def test_a_datalist_of_auto3dseg_with_folds(write):
    content = {
        "training": [entry("a", 0, fold=0), entry("b", 1, fold=0), entry("c", 0, fold=1), entry("d", 1, fold=1)],
        "testing": [{"image": "a.nii.gz"}],
    }
    path = write(content, "list.json")
    cases = read_cases(path)
    assert [case.fold for case in cases.cases] == [0, 0, 1, 1] and not cases.errors
    assert {case.split for case in cases.cases} == {""}
    scans = LabelledScans(path)
    assert [item["case"] for item in scans.items("val")] == ["a.nii.gz", "b.nii.gz"]
    assert "fold 0 of the list" in scans.division


def test_an_entry_without_a_label_is_a_mistake_of_a_training_case(write):
    content = {"training": [entry("a", 0), entry("b", 1), {"image": "c.nii.gz"}, entry("d", None)]}
    assert read_cases(write(content, "list.json")).errors == (
        "training case 3: no 'label'", "training case 4: no 'label'",
    )  # fmt: skip


def test_a_prediction_needs_no_labels(write):
    content = {"training": [entry("a", 0)], "test": ["b.nii.gz", {"image": "c.nii.gz"}]}
    table = read_table(write(content, "list.json"), Columns(), labelled=False)
    assert [row.images for row in table.rows] == [("a.nii.gz",), ("b.nii.gz",), ("c.nii.gz",)]
    assert len(read_table(write("image,x\na.nii.gz,1\n"), Columns(label="grade", group="p"), labelled=False).rows) == 1


# -- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def classes(tmp_path):
    root = tmp_path / "classes"
    for place in (
        "benign/a.nii.gz",
        "benign/p2/b.nii.gz",
        "malignant/c.nii.gz",
        ".hidden/d.nii.gz",
        "__MACOSX/e.nii.gz",
    ):
        write_scan(root / place, len(place))
    return root


def test_a_folder_of_classes(classes):
    (classes / "loop").symlink_to(classes)
    (classes / "benign" / "loop").symlink_to("..")
    cases = read_cases(classes)
    assert cases.class_names == ("benign", "malignant") and not cases.errors
    assert [case.name for case in cases.cases] == ["benign/a.nii.gz", "benign/p2/b.nii.gz", "malignant/c.nii.gz"]


def test_a_folder_of_splits_and_classes(classes):
    for number, split in enumerate(("train", "Val", "testing")):
        for name in ("x", "y"):
            write_scan(classes.parent / "splits" / split / name / "s.nii.gz", number)
    cases = read_cases(classes.parent / "splits")
    assert cases.class_names == ("x", "y")
    assert {(case.name, case.split) for case in cases.cases if case.label == "x"} == {
        ("train/x/s.nii.gz", "train"), ("Val/x/s.nii.gz", "val"), ("testing/x/s.nii.gz", "test")
    }  # fmt: skip


def test_a_class_without_scans_is_a_mistake(classes):
    (classes / "normal").mkdir()
    (classes / "normal" / "notes.txt").write_text("none yet")
    assert "the folder normal has no scans: remove it, or add some" in read_cases(classes).errors


def test_a_folder_of_one_class(classes):
    (classes / "malignant" / "c.nii.gz").unlink()
    (classes / "malignant").rmdir()
    assert "only the class 'benign' in the whole list: a classification needs two or more" in read_cases(classes).errors


def test_a_folder_without_classes(classes):
    with pytest.raises(ValueError, match="has no folders of classes: put the scans of each class into a subfolder"):
        read_cases(classes / "malignant")


def test_a_split_next_to_another_folder(classes):
    write_scan(classes / "train" / "x" / "s.nii.gz")
    with pytest.raises(ValueError, match="has the folder 'train' of a split next to 'benign', which is none: put all"):
        read_cases(classes)


# -- DICOM -----------------------------------------------------------------------------------------------------------


def test_series_by_folder_and_by_their_uid(write, folder):
    voxels = np.arange(4 * 4 * 4, dtype=np.int16).reshape(4, 4, 4)
    write_series(folder / "dicom" / "one", voxels)
    cases = read_cases(write(HEAD + "dicom/one,no\ndicom/one::1.2.3,yes\na.nii.gz,yes\n"))
    assert not cases.errors
    assert cases.cases[1].images == (f"{folder}/dicom/one::1.2.3",) and cases.cases[1].name == "dicom/one::1.2.3"
    assert read_cases(write(HEAD + "dicom/none::1.2.3,no\na.nii.gz,yes\n")).errors[0] == (
        "row 2: no such file or folder: dicom/none::1.2.3"
    )


def test_leave_out(write):
    path = write(GOOD)
    with pytest.raises(
        ValueError, match=re.escape("leave_out has 'e.nii.gz', which is no case of") + ".*inspect again"
    ):
        LabelledScans(path, leave_out=["e.nii.gz"]).items("train")


def test_an_unused_column_that_repeats_like_patients_is_reported(tmp_path):
    rows = "".join(f"{n}.nii;{'ab'[n % 2]};P{n // 2}\n" for n in range(8))
    (tmp_path / "list.csv").write_text("image;label;Patient\n" + rows)
    found = read_cases(tmp_path / "list.csv")
    assert any("the column 'Patient' is not used, and its values repeat" in text for text in found.warnings)
    assert not read_cases(tmp_path / "list.csv", Columns(group="Patient")).warnings


def test_the_column_of_paths_is_proposed(tmp_path):
    (tmp_path / "list.csv").write_text("Klasse;Bilddatei\ngut;a/b.nii.gz\n")
    with pytest.raises(ValueError, match="give --image-column Bilddatei"):
        read_cases(tmp_path / "list.csv")


def test_a_relative_folder_of_classes_with_an_empty_one(tmp_path, monkeypatch):
    write_nifti = nibabel.Nifti1Image(np.random.default_rng(0).random((4, 4, 4), np.float32), np.eye(4))
    for name in ("a", "b", "c"):
        (tmp_path / "classes" / name).mkdir(parents=True)
    for name in ("a", "b"):
        nibabel.save(write_nifti, tmp_path / "classes" / name / "x.nii.gz")
    monkeypatch.chdir(tmp_path)
    found = read_cases("classes")
    assert found.class_names == ("a", "b")
    assert any("the folder c has no scans" in text for text in found.errors)


def test_points_with_decimal_commas(tmp_path):
    (tmp_path / "a.nii").touch()
    (tmp_path / "list.csv").write_text("image;label;centre_x;centre_y;centre_z\na.nii;a;0,0;3,25;-4,5\n")
    assert read_cases(tmp_path / "list.csv").cases[0].centre_mm == (0.0, 3.25, -4.5)
