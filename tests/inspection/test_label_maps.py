# SPDX-License-Identifier: Apache-2.0
"""Inspection of scans with label maps: what is refused, what is reported, and the plan."""

import json
import re

import nibabel
import numpy as np
import pytest
from scan_lists import RAS, ct, make_label_list, make_list, mr, save, segmented

from monai_llmboost.command_line.scan_plan import plan_scans
from monai_llmboost.data import SegmentedScans, read_cases
from monai_llmboost.inspection import check_cases, inspect_list, plan_is_current, survey_cases
from monai_llmboost.inspection.plans.derive import derive_plan
from monai_llmboost.inspection.plans.extent import CPU_VOXELS, GPU_VOXELS
from monai_llmboost.inspection.plans.segmentation import fit_patch
from monai_llmboost.inspection.structures import measure_structures, name_structures, refuse_unknown
from monai_llmboost.networks import planned_unet

MIRRORED = np.diag([-1.0, 1.0, 1.0, 1.0])


def inspect(path, **options):
    return inspect_list(path, path.parent / "out", given={"test_fraction": 0, "folds": 2} | options, progress=False)


def findings_of(path, split=lambda number: "train"):
    """Return the findings without a division, so that any list can be checked."""
    cases = read_cases(path)
    names, _ = name_structures(cases, survey := survey_cases(cases, progress=False), None)
    survey = refuse_unknown(survey, names)
    divided = [case.__class__(**{**vars(case), "split": split(number)}) for number, case in enumerate(cases.cases)]
    return check_cases(cases, survey, divided, measure_structures(names, survey))


def plan_of(path, given=None, most=CPU_VOXELS):
    cases = read_cases(path)
    return derive_plan(cases, survey_cases(cases, progress=False), cases.cases, given, most)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """The inspection of a sound list, in a copy of the bundle."""
    folder = tmp_path_factory.mktemp("sound")
    path = make_label_list(folder, count=12, group=lambda number: f"patient {number // 2}")
    return inspect_list(path, bundle=folder / "mine", given={"folds": 3, "test_fraction": 0}, progress=False)


def test_a_sound_list(sound):
    assert sound.findings.errors == ()
    assert sound.refused == []
    assert sound.count() == {"train": {"head": 8, "tail": 8}, "val": {"head": 4, "tail": 4}}
    groups = [{case.group for case in sound.divided if case.split == split} for split in ("train", "val")]
    assert not groups[0] & groups[1]
    assert [(one.value, one.name, len(one.volumes_mm3)) for one in sound.structures] == [
        (1, "head", 12), (2, "tail", 12)
    ]  # fmt: skip
    assert sound.structures[0].volumes_mm3["images/s1.nii.gz"] == 80


def test_its_plan_is_one_of_the_bundle(sound):
    assert json.loads((sound.plan_file.parent / "metadata.json").read_text())["task"].lower().count("segmentation")
    config = json.loads((sound.plan_file.parent / "train.json").read_text())
    plan = json.loads(sound.plan_file.read_text())
    assert {*plan} - {"_plan_"} <= {*config}
    assert plan["structures"] == {"1": "head", "2": "tail"}
    assert plan["image_shape"] == [1, 16, 16, 16]
    assert plan["_plan_"]["reasons"]["structures"] == "the names of the list"
    assert plan_is_current(sound.plan_file, sound.cases.path, {"structures": {"1": "head", "2": "tail"}})
    assert not plan_is_current(sound.plan_file, sound.cases.path, {"structures": {"1": "liver"}})


@pytest.mark.parametrize("outside", [False, True])
def test_no_crop_cuts_structures(tmp_path, outside):
    """A structure in air, such as a tube near the body, is not in the foreground of a CT."""

    def make(number):
        volume, labels = ct(number, (40, 42, 38 + number % 2)), np.zeros((40, 42, 38 + number % 2), np.uint8)
        labels[14:18, 14:18, 14:18], labels[20:24, 14:18, 14:18] = 1, 2
        if outside and number == 3:
            labels[20:24, 14:18, 1:4] = 2
        return volume, labels

    plan = plan_of(make_label_list(tmp_path, make=make))
    assert plan.values["crop"] == ("none" if outside else "foreground")
    why = "structures of 1 training cases, such as images/s3.nii.gz, reach out of the foreground"
    assert (plan.reasons["crop"] == why) is outside


def test_its_page(sound):
    page = sound.page.read_text()
    text = " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)).split())
    assert "12 cases, 2 structures, 0 cases that cannot be used" in text
    assert "train 8 8 8 val 4 4 4" in text
    assert "head 1 12 median 72, from 64 to 80 72" in text
    assert "Scans with contours" in text
    assert page.count('<img src="data:image/webp;base64,') == 12
    assert "Volumes in mm3: head median 72; tail median 72" in page


def broken(value):
    """Return a label map with one voxel of another value, as float."""
    labels = segmented(0)[1].astype(np.float32)
    labels[1, 1, 1] = value
    return labels


BAD = [
    ((segmented(0)[1][:-1], RAS), "label map: it has 13 x 16 x 12 voxels, and its image 14 x 16 x 12: is it the label"),
    ((segmented(0)[1], MIRRORED), "label map: its header puts it up to 26 mm away .*axes LAS, and the image's RAS."),
    ((segmented(0)[1], np.diag([2.0, 1, 1, 1])), "label map: its header puts it up to 13 mm away from its image: copy"),
    ((broken(1.5), RAS), "label map: it holds fractions such as 1.5, so it was interpolated, or it is an image"),
    ((broken(-1), RAS), "label map: its values are from -1 to 2, and labels from 0 to 65535: is it the label"),
    ((broken(70000), RAS), "label map: its values are from 0 to 70000"),
    ((broken(7), RAS), r"label map: it has the value 7 \(1 voxels\), and the structures are 1, 2: correct it, or give"),
    ((np.stack([segmented(0)[1]] * 2, 3), RAS), r"label map: expected one volume, got 2 \(shape"),
    ((np.arange(14 * 16 * 12, dtype=np.int16).reshape(14, 16, 12), RAS), "label map: it has 2688 different values"),
    (None, "label map: "),
]  # fmt: skip


@pytest.mark.parametrize("content, reason", BAD)
def test_a_bad_label_map_is_refused_and_the_others_go_on(tmp_path, content, reason):
    path = make_label_list(tmp_path, count=6)
    file = tmp_path / "labels" / "s0.nii.gz"
    if content is None:
        file.write_bytes(b"damaged")
    else:
        save(file, content[0], affine=content[1])
    found = inspect(path)
    (record,) = found.refused
    assert record.name == "images/s0.nii.gz"
    assert re.match(reason, record.refused)
    assert found.findings.errors == ()
    assert any(text.startswith("1 of 6 cases cannot be used and are left out (1 ") for text in found.findings.warnings)
    assert found.plan.values["leave_out"] == ["images/s0.nii.gz"]
    scans = SegmentedScans(path, None, None, ["images/s0.nii.gz"], found.plan.values["structures"])
    assert "images/s0.nii.gz" not in {case.name for case in scans.cases}
    assert record.refused.partition("(")[0].strip() in found.page.read_text().replace("&#39;", "'")


def test_a_4d_image_and_one_without_a_label_map(tmp_path):
    path = make_label_list(tmp_path, count=6)
    save(tmp_path / "images" / "s1.nii.gz", np.stack([mr(1)] * 3, 3))
    assert re.match("expected one volume, got 3", inspect(path).refused[0].refused)
    (tmp_path / "labels" / "s2.nii.gz").unlink()
    found = inspect(path)
    assert "training case 3: no such file or folder: labels/s2.nii.gz" in found.findings.errors
    assert found.plan is None


def replaced(number, make):
    """Return the usual image and label map, another for a number."""
    return lambda one: make(one) if one == number else segmented(one)


def with_labels(change):
    def make(number):
        image, labels = segmented(number)
        return image, change(labels)

    return make


SAID = [
    (replaced(3, with_labels(np.zeros_like)), "1 of 10 label maps are empty, have no structure: images/s3.nii.gz"),
    (replaced(3, with_labels(np.ones_like)), "label maps with one structure in every voxel, .*: images/s3.nii.gz"),
    (replaced(3, lambda n: (mr(99), segmented(1)[1])), "the same label map for different images: images/s0"),
    (replaced(3, lambda n: segmented(n, side=6)), None),
    (lambda n: segmented(n, side=2), r"structures of very few voxels, in the median: head \(10\), tail \(10\): Dice"),
]  # fmt: skip


@pytest.mark.parametrize("make, sentence", SAID)
def test_strange_label_maps_are_warned_about(tmp_path, make, sentence):
    found = findings_of(make_label_list(tmp_path, count=10, make=make))
    assert found.errors == ()
    if sentence is None:
        assert not [text for text in found.warnings if "differ strongly" in text]
    else:
        assert [text for text in found.warnings if re.match(sentence, text)]


def test_a_volume_far_from_the_others_is_named(tmp_path):
    path = make_label_list(tmp_path, count=10, make=replaced(4, lambda n: segmented(n, (30, 30, 30), side=12)))
    (text,) = [text for text in findings_of(path).warnings if "volumes of head" in text]
    assert text == "volumes of head that differ strongly from the median of 80 mm3: images/s4.nii.gz (1728)"


def test_structures_that_a_split_lacks(tmp_path):
    path = make_label_list(tmp_path, make=replaced(7, with_labels(lambda labels: np.minimum(labels, 1))))
    found = findings_of(path, lambda number: "val" if number == 7 else "train")
    assert "no val case that can be used has tail, so nothing is measured of it there" in found.warnings
    found = findings_of(path, lambda number: "train" if number == 7 else "val")
    assert found.errors == (
        "no training case that can be used has tail: add some, divide differently, or give --structures without it",
    )
    empty = make_label_list(tmp_path, make=replaced(7, with_labels(np.zeros_like)))
    found = findings_of(empty, lambda number: "val" if number == 7 else "train")
    assert found.errors == ("no validation case that can be used has a structure, so no epoch can be chosen: add some",)
    path = make_label_list(tmp_path, make=with_labels(np.zeros_like), labels={})
    assert "no label map has a structure: every voxel is 0" in findings_of(path).errors


def test_one_image_with_two_label_maps(tmp_path):
    path = make_label_list(tmp_path, make=replaced(3, lambda n: (segmented(1)[0], segmented(2)[1])))
    found = findings_of(path)
    (error,) = found.errors
    assert re.match(r"the same image: images/s1.nii.gz \(label map \w{6}\), images/s3.nii.gz", error)
    assert found.duplicates[0].is_error


def test_a_survey_reads_a_changed_label_map_again(tmp_path):
    path, file = make_label_list(tmp_path, count=3), tmp_path / "survey.json"
    first = survey_cases(read_cases(path), file, progress=False)
    assert survey_cases(read_cases(path), file, progress=False) == first
    save(tmp_path / "labels" / "s1.nii.gz", segmented(1, side=3)[1])
    again = survey_cases(read_cases(path), file, progress=False)
    assert again[0] == first[0]
    assert again[1].label_map.voxels == (36, 36)


def test_values_without_names_and_given_names(tmp_path):
    path = make_label_list(tmp_path, labels={})
    for number in range(8):
        save(tmp_path / "labels" / f"s{number}.nii.gz", segmented(number, values=(4, 9))[1].astype(np.int16) * 100)
    found = inspect(path)
    assert found.plan.values["structures"] == {"400": "structure 400", "900": "structure 900"}
    assert found.plan.reasons["structures"] == "the values in the label maps, which the list does not name"
    assert "names no structures" not in " ".join(found.findings.errors)
    found = inspect(path, structures={"900": "tail $x #2 @y", "400": "head"})
    assert found.plan.values["structures"] == {"900": "tail $x #2 @y", "400": "head"}
    assert json.loads(found.plan_file.read_text())["structures"]["900"].startswith("$'tail")
    assert plan_is_current(found.plan_file, path, {"structures": {"900": "tail $x #2 @y", "400": "head"}})
    found = inspect(path, structures={"400": "head"})
    assert len(found.refused) == 8
    with pytest.raises(ValueError, match="structures must name the values of the label maps, not 'head'"):
        inspect(path, structures="head")


def test_options_of_the_other_kind_of_list_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"mask_column has no effect, because the labels of .* are label maps"):
        inspect(make_label_list(tmp_path, count=2), mask_column="mask")
    with pytest.raises(ValueError, match=r"structures has no effect, because the labels of .* are classes"):
        inspect(make_list(tmp_path, count=2), structures={"1": "liver"})


def test_train_makes_a_copy_of_the_right_bundle(tmp_path, capsys):
    path = make_label_list(tmp_path, count=12, labels={})
    words = ["--structures", '{"1": "head", "2": "tail"}', "--test_fraction", "0", "--filters", "8"]
    plan_scans(str(path), str(tmp_path / "mine"), words)
    assert "structure" in capsys.readouterr().out
    plan = json.loads((tmp_path / "mine" / "configs" / "plan.json").read_text())
    assert (plan["structures"], plan["filters"]) == ({"1": "head", "2": "tail"}, 8)
    assert plan["_plan_"]["reasons"]["structures"] == "given"
    plan_scans(str(path), str(tmp_path / "mine"), words)
    assert capsys.readouterr().out.startswith("plan: ")
    plan_scans(str(make_list(tmp_path / "classes", count=12)), str(tmp_path / "other"), ["--test_fraction", "0"])
    assert "labelled" in json.loads((tmp_path / "other" / "configs" / "train.json").read_text())
    with pytest.raises(
        ValueError, match=r"other is a bundle for scans with classes, and the labels of .* are label maps"
    ):
        plan_scans(str(path), str(tmp_path / "other"), [])


def test_a_folder_of_the_other_kind_of_list(tmp_path, sound):
    mine = sound.plan_file.parents[1]
    with pytest.raises(
        ValueError, match=r"is a bundle for scans with label maps, and the labels of .* are classes: give"
    ):
        inspect_list(make_list(tmp_path, count=2), bundle=mine, progress=False)


def test_the_window_of_ct_is_that_of_the_structures(tmp_path):
    def make(number):
        image, labels = ct(number).astype(np.int16), np.zeros((20, 20, 10), np.uint8)
        labels[8:12, 8:12, 4:7] = 1
        image[labels > 0] = 130
        return image, labels

    values = plan_of(make_label_list(tmp_path, make=make, labels={"liver": 1})).values
    assert (values["intensity"], values["intensity_range"]) == ("window", [100, 150])


def test_a_coarse_axis_gets_its_finer_spacings(tmp_path):
    path = make_label_list(tmp_path, count=10)
    for number in range(10):
        step = 4.0 if number == 0 else 6.0
        for folder in ("images", "labels"):
            file = tmp_path / folder / f"s{number}.nii.gz"
            save(file, np.asarray(nibabel.load(file).dataobj), (1, 1, step))
    plan = plan_of(path)
    assert plan.values["spacing_mm"] == [1, 1, 5.8]
    assert plan.reasons["spacing_mm"].endswith("along z, where it is coarse, the 10th percentile")
    assert plan.values["image_shape"] == [1, 16, 16, 16]
    assert plan_of(path, {"spacing_mm": [1.0, 1.0, 3.0]}).values["spacing_mm"] == [1, 1, 3]


@pytest.mark.parametrize(
    "median, spacing, patch",
    [
        ([35, 50, 36], [1, 1, 1], [40, 56, 40]),
        ([512, 512, 100], [0.8, 0.8, 5], [112, 112, 16]),
        ([3, 7, 9], [1, 1, 1], [16, 16, 16]),
        ([60, 60, 10], [1, 1, 6], [64, 64, 12]),
        ([256, 256, 256], [1, 1, 1], [64, 64, 64]),
    ],
)
def test_patches_fit_the_scans_and_the_network(median, spacing, patch):
    assert fit_patch(median, spacing, CPU_VOXELS) == patch
    assert np.prod(fit_patch(median, spacing, GPU_VOXELS)) <= GPU_VOXELS
    assert planned_unet(1, 2, patch, spacing, filters=1) is not None


def test_the_size_of_the_training(tmp_path):
    path = make_label_list(tmp_path, count=20)
    on_cpu, on_gpu = plan_of(path).values, plan_of(path, most=GPU_VOXELS).values
    assert [on_cpu[key] for key in ("batch_size", "epochs", "augmentation", "filters")] == [2, 200, "strong", 16]
    assert on_gpu["filters"] == 32
    assert on_cpu["test_fraction"] == 0.2
    assert plan_of(make_label_list(tmp_path, count=9)).values["test_fraction"] == 0


def test_given_cases_are_left_out_together_with_those_that_cannot_be_used(tmp_path):
    path = make_label_list(tmp_path, count=8)
    (tmp_path / "labels" / "s0.nii.gz").write_bytes(b"damaged")
    found = inspect_list(path, bundle=tmp_path / "mine", given={"leave_out": ["images/s5.nii.gz"]}, progress=False)
    plan = json.loads(found.plan_file.read_text())
    assert plan["leave_out"] == ["images/s5.nii.gz", "images/s0.nii.gz"]
    assert plan_is_current(found.plan_file, path, {"leave_out": ["images/s5.nii.gz"]})
    assert not plan_is_current(found.plan_file, path, {"leave_out": ["images/s6.nii.gz"]})


def test_a_refused_case_names_no_structure(tmp_path):
    def make(number):
        return (np.ones((14, 16, 12), np.float32), segmented(0, values=(1, 7))[1]) if number == 0 else segmented(number)

    cases = read_cases(make_label_list(tmp_path, count=4, make=make, labels={}))
    survey = survey_cases(cases, progress=False)
    assert survey[0].refused and survey[0].label_map
    assert [*name_structures(cases, survey, None)[0]] == [1, 2]
