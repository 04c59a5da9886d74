# SPDX-License-Identifier: Apache-2.0
import re

import numpy as np
import pytest
from scan_lists import ct, make_list, mr, save, write_list

from monai_llmboost.data.labelled import Division, LabelledCase, read_cases
from monai_llmboost.inspection import check_cases, survey_cases
from monai_llmboost.inspection.shortcuts import find_shortcuts, header_numbers


def check(path):
    cases = read_cases(path)
    survey = survey_cases(cases, progress=False)
    refused = {record.name for record in survey if record.refused}
    usable = [case for case in cases.cases if case.name not in refused]
    try:
        divided = Division().divide(usable)[0]
    except ValueError:
        divided = []
    return check_cases(cases, survey, divided)


def said(sentences, pattern):
    return [text for text in sentences if re.search(pattern, text)]


def split(number):
    return "train" if number < 6 else "test" if number < 8 else "val"


def test_a_sound_list_has_no_errors(tmp_path):
    found = check(make_list(tmp_path, count=24))
    assert found.errors == ()
    assert found.warnings == ()
    assert found.notes == ()


def test_missing_files_are_errors(tmp_path):
    path = make_list(tmp_path, count=24)
    (tmp_path / "s3.nii.gz").unlink()
    found = check(path)
    assert said(found.errors, "no such file or folder: s3.nii.gz")
    assert said(found.warnings, "1 of 24 cases cannot be used and are left out \\(1 unread\\)")


def test_the_same_image_in_two_splits(tmp_path):
    path = make_list(tmp_path, count=10, split=split)
    save(tmp_path / "s6.nii.gz", mr(0))  # test, of the class of s0, which is train
    found = check(path)
    (text,) = said(found.errors, "the same image")
    assert "s0.nii.gz (a, train), s6.nii.gz (a, test)" in text
    assert "different splits" in text


def test_the_same_image_saved_again_in_another_type(tmp_path):
    path = make_list(tmp_path, make=ct, count=10, split=split)
    save(tmp_path / "s6.nii.gz", ct(0).astype(np.float64))
    assert said(check(path).errors, "the same image.*different splits")


def test_the_same_image_with_two_labels(tmp_path):
    path = make_list(tmp_path, count=10, split=split)
    save(tmp_path / "s1.nii.gz", mr(0))
    assert said(check(path).errors, "the same image: s0.nii.gz .*different labels: correct or remove")


def test_the_same_image_within_a_split_is_a_warning(tmp_path):
    path = make_list(tmp_path, count=10, split=split)
    save(tmp_path / "s2.nii.gz", mr(0))
    found = check(path)
    assert not said(found.errors, "the same image")
    assert said(found.warnings, "the same image: s0.nii.gz .*counts more than others")


@pytest.mark.parametrize("groups", [False, True])
def test_the_same_image_in_a_list_that_is_divided_here(tmp_path, groups):
    more = {"group": lambda number: f"p{0 if number == 2 else number}"} if groups else {}
    path = make_list(tmp_path, count=24, **more)
    save(tmp_path / "s2.nii.gz", mr(0))
    found = check(path)
    assert bool(said(found.errors, "training and validation may each get one")) is not groups
    assert bool(said(found.warnings, "the same image")) is groups


def test_several_findings_of_one_scan_are_no_duplicates_with_two_labels(tmp_path):
    save(tmp_path / "one.nii", mr(0))
    rows = [
        {"image": "one.nii", "label": "ab"[n % 2], "split": "train", "centre_x": 4 + n, "centre_y": 5, "centre_z": 5}
        for n in range(4)
    ]
    found = check(write_list(tmp_path, rows))
    assert not said(found.errors, "the same image")


def test_one_group_in_two_splits(tmp_path):
    path = make_list(tmp_path, count=10, split=split, group=lambda number: f"p{number // 3}")
    found = check(path)
    assert said(found.errors, "the group p2 is in test and val: keep all its cases in one")
    assert not said(found.errors, "the group p1")


def test_one_group_in_two_folds(tmp_path):
    path = make_list(tmp_path, count=12, fold=lambda number: number // 2 % 3, group=lambda number: f"p{number // 3}")
    assert said(check(path).errors, "the group p0 is in fold 0 and fold 1")


def test_a_class_missing_in_a_split(tmp_path):
    path = make_list(tmp_path, count=10, split=lambda number: "val" if number in (0, 2) else "train")
    assert said(check(path).errors, "the class b has no val case that can be used")


def test_a_class_that_is_missing_because_its_scans_are_refused(tmp_path):
    path = make_list(tmp_path, count=10, split=split)
    (tmp_path / "s9.nii.gz").write_bytes(b"damaged")
    found = check(path)
    assert said(found.errors, "the class b has no val case")
    assert said(found.warnings, "1 of 10 cases cannot be used")


def test_channels_of_different_places(tmp_path):
    rows = []
    for number in range(4):
        save(tmp_path / f"a{number}.nii", mr(number))
        save(
            tmp_path / f"b{number}.nii",
            mr(number + 9),
            affine=np.array([*np.eye(4)[:3], [0, 0, 0, 1]]) + np.eye(4, k=3) * 300,
        )
        rows.append({"image_a": f"a{number}.nii", "image_b": f"b{number}.nii", "label": "ab"[number % 2]})
    found = check(write_list(tmp_path, rows))
    assert said(found.errors, "a0.nii: channel image_b covers 0 % .*not of one place")


def test_imbalance_and_few_cases(tmp_path):
    rows = []
    for number in range(26):
        save(tmp_path / f"{number}.nii", mr(number))
        rows.append({"image": f"{number}.nii", "label": "b" if number < 5 else "a"})
    found = check(write_list(tmp_path, rows))
    assert said(found.warnings, "81 % of the cases are of the class a")
    assert said(found.warnings, r"few cases to train and validate on: b \(5\)")


def test_refused_scans_of_one_class(tmp_path):
    path = make_list(tmp_path, count=40)
    for number in range(0, 20, 2):
        (tmp_path / f"s{number}.nii.gz").write_bytes(b"damaged")
    assert said(check(path).warnings, "all refused cases are of the class a")


def test_modalities_orientations_and_spacings(tmp_path):
    rows = []
    for number in range(24):
        affine = np.diag([-2.0 if number < 3 else 1.0, 1, 1, 1])
        save(tmp_path / f"{number}.nii", ct(number) if number < 12 else mr(number), affine=affine)
        rows.append({"image": f"{number}.nii", "label": "ab"[number % 2]})
    found = check(write_list(tmp_path, rows))
    assert said(found.warnings, "several modalities: 12 CT, 12 unknown")
    assert said(found.notes, "orientations of the files: 21 RAS, 3 LAS")
    assert said(found.notes, "spacing of 1 to 2 x 1 to 1 x 1 to 1 mm")


def cases_of(labels, groups=None):
    return [
        LabelledCase(str(n), (str(n),), label, group="" if groups is None else str(groups[n]))
        for n, label in enumerate(labels)
    ]


def test_sizes_that_follow_the_class_are_a_shortcut(tmp_path):
    path = make_list(tmp_path, make=lambda n: mr(n, shape=(12 + 3 * (n % 2), 12, 12 + n % 3)), count=40)
    found = check(path)
    (text,) = said(found.warnings, "shortcut: a number of the header alone")
    assert "voxels along x, AUC 1.00" in text
    assert "along z" not in text


def test_text_and_numbers_of_headers():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 80)
    fields = {
        "maker": ["Good" if label != (n % 8 == 0) else "Other" for n, label in enumerate(labels)],
        "slope": [float(label + random.normal(0, 0.3)) for label in labels],
        "noise": random.normal(size=80).tolist(),
        "constant": [1.0] * 80,
        "some missing": [float("nan") if n % 3 else 2.0 for n in range(80)],
    }
    found = find_shortcuts(cases_of([f"c{label}" for label in labels]), fields)
    assert {one.name for one in found} == {"maker", "slope"}
    assert all(one.auc > 0.8 for one in found)


def test_chance_is_no_shortcut():
    """With ten cases a number often has a high AUC by chance; what is needed is higher."""
    random = np.random.default_rng(1)
    cases = cases_of(["a", "b"] * 6)
    found = [find_shortcuts(cases, {f"n{k}": random.normal(size=12).tolist() for k in range(10)}) for _ in range(5)]
    assert found == [[]] * 5


def test_patients_count_once():
    """Ten scans each of four patients are no forty independent cases."""
    groups = [n // 10 for n in range(40)]
    labels = ["ab"[group % 2] for group in groups]
    values = [float(group % 2) for group in groups]
    assert find_shortcuts(cases_of(labels), {"n": values})
    assert not find_shortcuts(cases_of(labels, groups), {"n": values})


def test_of_several_classes_the_best_is_named():
    labels = ["a", "b", "c"] * 20
    found = find_shortcuts(cases_of(labels), {"n": [1.0 if label == "c" else 0.0 for label in labels]})
    assert [(one.name, one.class_name) for one in found] == [("n", "c")]


def test_the_crops_of_the_hippocampus_show_its_volume(real_data, tmp_path):
    """Their README: crops follow the organ, and their size alone predicts small from large with AUC 0.712."""
    import nibabel

    folder = real_data / "msd_hippocampus"
    files = sorted((folder / "imagesTr").glob("*.nii.gz"))[::2]
    volumes = [int((np.asarray(nibabel.load(folder / "labelsTr" / file.name).dataobj) > 0).sum()) for file in files]
    middle = np.median(volumes)
    rows = [{"image": file, "label": "small" if n < middle else "large"} for file, n in zip(files, volumes)]
    cases = read_cases(write_list(tmp_path, rows))
    fields = header_numbers(survey_cases(cases, progress=False), cases.channels)
    found = find_shortcuts(cases.cases, fields)
    assert found[0].name == "voxels along all axes together"
    assert found[0].auc > 0.7
