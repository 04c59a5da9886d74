# SPDX-License-Identifier: Apache-2.0
"""The division of a list: what the list says is kept, groups stay together, and impossible wishes are refused."""

from collections import Counter
from dataclasses import replace

import pytest

from monai_llmboost.data.labelled import Division, LabelledCase, LabelledScans


def make_cases(count=20, groups=None, **more):
    return [
        LabelledCase(f"{n}", (f"{n}.nii",), "ab"[n % 2], group="" if groups is None else f"{groups(n)}", **more)
        for n in range(count)
    ]


def count(cases):
    return Counter(case.split for case in cases)


def test_without_a_split_a_fifth_validates():
    divided, text = Division(seed=3).divide(make_cases(20))
    assert count(divided) == {"train": 16, "val": 4} and text == "fold 0 of 5 by seed 3"
    assert Counter(case.label for case in divided if case.split == "val") == {"a": 2, "b": 2}
    assert divided == Division(seed=3).divide(make_cases(20))[0] != Division(seed=4).divide(make_cases(20))[0]


def test_the_folds_are_a_partition():
    chosen = [
        {case.name for case in Division(folds=4, fold=fold).divide(make_cases(20))[0] if case.split == "val"}
        for fold in range(4)
    ]
    assert sum(map(len, chosen)) == 20 and len(set.union(*chosen)) == 20


def test_groups_stay_together():
    for fold in range(3):
        divided, _ = Division(folds=3, fold=fold, test_fraction=0.25).divide(make_cases(48, lambda n: n // 3))
        splits = {case.group: set() for case in divided}
        for case in divided:
            splits[case.group].add(case.split)
        assert all(len(found) == 1 for found in splits.values())
        assert set(count(divided)) == {"train", "val", "test"}


def test_the_split_of_the_list_is_kept():
    cases = [replace(case, split=("train", "val", "test")[n % 3]) for n, case in enumerate(make_cases())]
    divided, text = Division().divide(cases)
    assert divided == cases and text == "the list's split"
    divided, text = Division(folds=2, fold=1).divide(cases)
    assert [case.split == "test" for case in divided] == [case.split == "test" for case in cases]
    assert text == "fold 1 of 2 by seed 0" and divided != cases
    with pytest.raises(ValueError, match="fold 1 has no effect: the list has a validation split; give folds too"):
        Division(fold=1).divide(cases)
    with pytest.raises(ValueError, match="test_fraction has no effect: the list has a test split; leave it out"):
        Division(test_fraction=0.2).divide(cases)


def test_a_list_of_test_cases_only():
    divided, text = Division().divide(make_cases(4, split="test"))
    assert count(divided) == {"test": 4} and text == "all test cases"


def test_the_folds_of_the_list_are_kept():
    cases = [replace(case, fold=n % 5 // 2) for n, case in enumerate(make_cases())]
    divided, text = Division(fold=2).divide(cases)
    assert text == "fold 2 of the list" and all((case.split == "val") == (case.fold == 2) for case in divided)
    with pytest.raises(ValueError, match="the list has the folds 0, 1, 2, and not 3: correct fold"):
        Division(fold=3).divide(cases)
    with pytest.raises(ValueError, match="the list has the single fold 0, so nothing is left to train on: give two"):
        Division().divide([replace(case, fold=0) for case in cases])


@pytest.mark.parametrize(
    "fraction, expected", [(0, 0), (0.05, 4), (0.1, 8), (0.15, 11), (0.3, 24), (0.4, 32), (0.5, 40)]
)
def test_a_fraction_is_set_aside_as_test(fraction, expected):
    divided, text = Division(test_fraction=fraction).divide(make_cases(80))
    assert abs(count(divided)["test"] - expected) <= 1
    assert ("set aside as test" in text) == bool(fraction)
    tested = {case.name for case in divided if case.split == "test"}
    again = Division(test_fraction=fraction, fold=3).divide(make_cases(80))[0]
    assert tested == {case.name for case in again if case.split == "test"}  # in each fold the same


@pytest.mark.parametrize("fraction", [-0.1, 0.6, 1, True, "0.2", None, float("nan")])
def test_no_fraction(fraction):
    with pytest.raises(ValueError, match=r"test_fraction must be a number from 0 to 0.5, not"):
        Division(test_fraction=fraction)


@pytest.mark.parametrize(
    "division, cases, sentence",
    [
        (Division(folds=11), make_cases(), "11 folds are more than the 10 cases of the rarest class: ask for fewer"),
        (Division(), make_cases(6), "5 folds are more than the 3 cases of the rarest class: ask for fewer"),
        (Division(folds=1), make_cases(), "folds must be 0 .* or a whole number from 2, not 1"),
        (Division(folds=0), make_cases(), "folds 0 is no number of folds: leave out folds, or give 5, for example"),
        (Division(folds=3, fold=3), make_cases(), "fold must be a whole number from 0 to 2, not 3"),
        (Division(test_fraction=0.05), make_cases(), "test_fraction 0.05 needs 20 cases of each class, and one has 10"),
        (Division(test_fraction=1e-9), make_cases(), "test_fraction 1e-09 needs 1000000000 cases of each class"),
        (Division(folds=2), make_cases(20, lambda n: 0), r"2 parts cannot be made of 1 group\(s\), which stay "
         "together: change folds, or add cases"),
        (Division(folds=2), make_cases(20, lambda n: n % 2), "the class 'a' cannot be in both parts of the division, "
         r"because its cases are in 1 group\(s\), which stay together: change folds, or the split_seed, or add cases"),
        (Division(test_fraction=0.5), make_cases(20, lambda n: n % 2), "stay together: change test_fraction"),
    ],
)  # fmt: skip
def test_impossible_divisions(division, cases, sentence):
    with pytest.raises(ValueError, match=sentence):
        division.divide(cases)


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_no_seed(seed):
    with pytest.raises(ValueError, match="split_seed must be a whole number from 0 to 4294967295, not"):
        Division(seed=seed)


# -- the division of files -------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """Write a list of empty files: write(rows) -> path."""

    def run(rows, head="image,label,split"):
        for row in rows:
            (tmp_path / row.split(",")[0]).touch()
        path = tmp_path / "list.csv"
        path.write_text("\n".join([head, *rows]))
        return path

    return run


def test_a_class_that_a_split_lacks(write):
    path = write(["a.nii,x,train", "b.nii,y,train", "c.nii,x,val", "d.nii,x,test"])
    scans = LabelledScans(path)
    assert len(scans.items("train")) == 2 and len(scans.items("test")) == 1
    with pytest.raises(ValueError, match=r"the val cases of .* are all of x, and none of y: correct the splits, or"):
        scans.items("val")
    with pytest.raises(ValueError, match=r"the train cases of .* are all of x, and none of y: correct the splits"):
        LabelledScans(path, leave_out="b.nii").items("train")


def test_a_split_that_is_empty(write):
    scans = LabelledScans(write(["a.nii,x,val", "b.nii,y,val"]))
    with pytest.raises(ValueError, match=r"list.csv has no train cases, it has 2 val: choose another split, or add"):
        scans.items("train")
    with pytest.raises(ValueError, match="no test cases, it has 2 val"):
        scans.items("test")
    assert scans.best_split == "val"


def test_weights_follow_the_training_cases(write):
    rows = [f"{n}.nii,{'x' if n < 6 else 'y'},{'train' if n % 2 else 'val'}" for n in range(8)]
    scans = LabelledScans(write(rows))
    x, y = scans.class_weights()
    assert (x + y) / 2 == pytest.approx(1) and y / x == pytest.approx(3)  # 3 cases and 1
    assert scans.case_weights() == pytest.approx([x, x, x, y])
    assert [item["label"] for item in scans.items("train")] == [0, 0, 0, 1]


def test_the_digest_is_of_what_is_trained_on(write):
    rows = ["a.nii,x,train", "b.nii,y,train", "c.nii,x,val", "d.nii,y,val", "e.nii,x,test"]
    known = LabelledScans(write(rows)).digest
    assert LabelledScans(write(rows[::-1])).digest == known
    assert LabelledScans(write([*rows, "f.nii,x,test"])).digest == known
    assert LabelledScans(write([*rows[:4], "e.nii,x,train"])).digest != known
    assert LabelledScans(write(["a.nii,y,train", *rows[1:]])).digest != known


def test_cases_without_a_patient_are_their_own(write):
    path = write(["a.nii,x,train,1", "b.nii,y,train,", "c.nii,x,val,2", "d.nii,y,val,2"], "image,label,split,group")
    assert [item["patient"] for item in LabelledScans(path).items("train")] == ["1", "case b.nii"]
    assert "patient" not in LabelledScans(write(["a.nii,x,train", "b.nii,y,train", "c.nii,y,val"])).items("train")[0]
