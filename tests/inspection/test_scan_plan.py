# SPDX-License-Identifier: Apache-2.0
import json

import dicom_files
import numpy as np
import pytest
from conftest import ROOT
from monai.bundle import ConfigParser
from scan_lists import ct, make_list, mask, mr, save, write_list

from monai_llmboost.data.labelled import Columns, read_cases
from monai_llmboost.inspection import derive_plan, survey_cases, write_plan
from monai_llmboost.inspection.plans.extent import GPU_VOXELS, fit_spacing
from monai_llmboost.networks import ResNet3D


def plan_of(path, training=None, **options):
    cases = read_cases(path)
    survey = survey_cases(cases, progress=False)
    return derive_plan(cases, survey, cases.cases if training is None else cases.cases[training], **options)


def test_ct_has_a_window_and_is_cropped_to_the_body(tmp_path):
    plan = plan_of(make_list(tmp_path, make=lambda n: ct(n, (24 + n % 3, 20, 10)), spacing=(2, 2, 5)))
    values = plan.values
    assert (values["intensity"], values["intensity_range"]) == ("window", [-150.0, 200.0])
    assert (values["crop"], values["foreground_above"], values["margin_mm"]) == ("foreground", -500, 5)
    assert values["spacing_mm"] == [2, 2, 5]
    assert values["image_shape"] == [1, 20, 16, 12]
    assert plan.reasons["intensity"].startswith("CT")


def test_mr_is_scaled_by_percentiles(tmp_path):
    path = make_list(tmp_path, make=lambda n: mr(n, (14 + n % 2, 16, 12), scale=10.0**n))
    values = plan_of(path).values
    assert (values["intensity"], values["intensity_range"]) == ("percentiles", [0.5, 99.5])
    assert values["crop"] == "none"
    assert plan_of(path).reasons["crop"].startswith(("the scans have different units", "the foreground fills"))


def test_masks_keep_their_shape_and_range(tmp_path):
    values = plan_of(make_list(tmp_path, make=lambda n: mask(n, (28, 28, 28)))).values
    assert values["image_shape"] == [1, 28, 28, 28]
    assert (values["crop"], values["intensity"], values["intensity_range"]) == ("none", "window", [0, 1])
    assert values["stem_stride"] == 3


def test_scaled_scans_stay_as_they_are(tmp_path):
    values = plan_of(make_list(tmp_path, make=lambda n: np.clip(mr(n) / 500, 0, 1))).values
    assert values["intensity"] == "unchanged"


def test_eight_bits(tmp_path):
    path = make_list(tmp_path, make=lambda n: np.clip(mr(n) / 2, 0, 255).astype(np.uint8))
    assert plan_of(path).values["intensity_range"] == [0, 255]


def test_large_scans_are_made_coarser_until_they_fit(tmp_path):
    path = make_list(tmp_path, make=lambda n: mr(n, (60, 64, 20 + n % 2)), count=4, spacing=(0.5, 0.5, 3))
    values = plan_of(path, most_voxels=24**3).values
    assert np.prod(values["image_shape"]) <= 24**3
    x, y, z = values["spacing_mm"]
    assert x == y
    assert 0.5 < x < z == 3
    assert plan_of(path, most_voxels=GPU_VOXELS).values["spacing_mm"] == [0.5, 0.5, 3]


def test_the_finest_axes_are_made_coarser_first():
    sizes = np.array([[256.0, 256.0, 150.0]])
    assert fit_spacing([0.5, 0.5, 5.0], sizes, 64**3) == [2.95, 2.95, 5.0]
    assert len(set(fit_spacing([1.0, 1.0, 1.0], sizes, 64**3))) == 1


def test_a_mask_or_a_point_is_what_is_cropped_to(tmp_path):
    path = make_list(tmp_path, count=4, mask="box.nii")
    box = np.zeros((14, 16, 12), np.uint8)
    box[4:8, 5:9, 3:7] = 1
    save(tmp_path / "box.nii", box)
    values = plan_of(path).values
    assert (values["crop"], values["margin_mm"]) == ("mask", 5)
    assert values["image_shape"] == [1, 16, 16, 12]
    values = plan_of(make_list(tmp_path, count=4, centre_x=5, centre_y=5, centre_z=5)).values
    assert values["crop"] == "centre"


def test_several_channels_share_the_voxels(tmp_path):
    rows = []
    for number in range(4):
        for name in ("t1", "flair"):
            save(tmp_path / f"{name}{number}.nii", mr(number if name == "t1" else 40 + number, (40, 40, 40)))
        rows.append({"image_t1": f"t1{number}.nii", "image_flair": f"flair{number}.nii", "label": "ab"[number % 2]})
    values = plan_of(write_list(tmp_path, rows), most_voxels=32**3).values
    assert values["image_shape"][0] == 2
    assert np.prod(values["image_shape"]) <= 32**3


def test_a_dicom_series(tmp_path):
    rows = []
    for number in range(4):
        volume = dicom_files.random_volume((16, 18, 12), seed=number)
        dicom_files.write_series(tmp_path / f"d{number}", volume, affine=dicom_files.AXIAL, series=f"series{number}")
        rows.append({"image": f"d{number}", "label": "ab"[number % 2]})
    values = plan_of(write_list(tmp_path, rows)).values
    assert values["intensity"] == "window"
    assert values["spacing_mm"] == [0.7, 0.9, 2.0]
    assert values["image_shape"] == [1, 16, 18, 12]
    assert values["seen"]["spacing_mm"][2] == pytest.approx([2, 2])


def test_test_cases_have_no_part_in_it(tmp_path):
    path = make_list(tmp_path, make=lambda n: mr(n, (14, 16, 12 if n < 6 else 40)), spacing=(1, 1, 1))
    assert plan_of(path, slice(0, 6)).values["image_shape"] == [1, 14, 16, 12]
    assert plan_of(path).values["image_shape"][3] > 12


@pytest.mark.parametrize(
    ("count", "batch", "augmentation", "hidden"),
    [(8, 2, "strong", 64), (120, 8, "medium", 64), (1200, 32, "light", 128)],
)
def test_the_number_of_cases_decides_on_training(tmp_path, count, batch, augmentation, hidden):
    path = make_list(tmp_path, make=lambda n: mr(n, (9, 9, 9)), count=4)
    cases = read_cases(path)
    survey = survey_cases(cases, progress=False)
    many = [cases.cases[n % 4] for n in range(count)]
    values = derive_plan(cases, survey, many).values
    assert (values["batch_size"], values["augmentation"], values["hidden_size"]) == (batch, augmentation, hidden)


def test_every_line_can_be_given(tmp_path):
    given = {"spacing_mm": [2, 2, 2], "batch_size": 7, "label_column": "label", "intensity": "percentiles"}
    plan = plan_of(make_list(tmp_path, make=ct), given=given)
    assert {key: plan.values[key] for key in given} == given
    assert {plan.reasons[key] for key in given} == {"given"}
    assert plan.values["intensity_range"] == [0.5, 99.5]
    assert plan.values["image_shape"] == [1, 12, 12, 12]
    assert set(plan.reasons) == set(plan.values)


def test_refused_scans_are_left_out(tmp_path):
    path = make_list(tmp_path)
    (tmp_path / "s2.nii.gz").write_bytes(b"damaged")
    plan = plan_of(path)
    assert plan.values["leave_out"] == ["s2.nii.gz"]
    assert plan.description["cases"] == 7
    assert plan.description["memory_mb"] == 1
    for file in tmp_path.glob("*.gz"):
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="no training scan can be read: correct the scans"):
        plan_of(path)


def test_a_test_is_set_aside_if_each_class_has_enough(tmp_path):
    assert plan_of(make_list(tmp_path / "many", count=20)).values["test_fraction"] == 0.2
    few = plan_of(make_list(tmp_path / "few", count=18))
    assert (few.values["test_fraction"], "a class has 9 cases" in few.reasons["test_fraction"]) == (0, True)
    own = make_list(tmp_path / "own", count=30, split=lambda n: ("train", "val", "test")[n % 3])
    assert plan_of(own).values["test_fraction"] == 0


@pytest.mark.parametrize("side", [9, 12, 28, 40, 64])
def test_the_network_of_the_plan_can_be_built(tmp_path, side):
    values = plan_of(make_list(tmp_path, make=lambda n: mr(n, (side, side, max(9, side // 3))), count=2)).values
    channels, *shape = values["image_shape"]
    size = {key: values[key] for key in ("hidden_size", "num_blocks", "stem_stride")}
    network = ResNet3D(channels, 2, img_size=shape, **size)
    last = network.features(network.features.conv1.weight.new_zeros(1, channels, *shape)).shape[2:]
    assert min(last) >= 2


def test_awkward_paths_and_names_survive_the_config(tmp_path):
    folder = tmp_path / "Größe 5 # $x @y %z"
    path = make_list(folder, count=20, **{"Nr #": lambda n: f"@{n} #1"})
    (folder / "s2.nii.gz").write_bytes(b"damaged")
    file = tmp_path / "plan.json"
    cases = read_cases(path, Columns(case="Nr #"))
    survey = survey_cases(cases, progress=False)
    plan = derive_plan(cases, survey, cases.cases, given={"case_column": "Nr #"})
    write_plan(plan, file)
    config = ROOT / "bundles" / "scans_classification" / "configs" / "train.json"
    parser = ConfigParser()
    parser.read_config([str(config), str(file)])
    assert parser.get_parsed_content("data") == str(path)
    assert parser.get_parsed_content("leave_out") == ["@2 #1"]
    assert parser.get_parsed_content("labelled").case_list.digest == plan.description["list"]
    assert "@3 #1" in [
        item["case"] for split in ("train", "val") for item in parser.get_parsed_content("labelled").items(split)
    ]
    assert parser.get_parsed_content("scan_preprocessing") is not None
    known = set(json.loads(config.read_text())) | {"_plan_"}
    assert set(json.loads(file.read_text())) <= known


def test_prepared_scans_have_the_shape_of_the_plan(tmp_path):
    path = make_list(tmp_path, make=lambda n: ct(n, (24 + n % 3, 20, 10)), count=20, spacing=(2, 2, 5))
    file = tmp_path / "plan.json"
    write_plan(plan_of(path), file)
    parser = ConfigParser()
    parser.read_config([str(ROOT / "bundles" / "scans_classification" / "configs" / "train.json"), str(file)])
    prepare, items = (
        parser.get_parsed_content("scan_preprocessing"),
        parser.get_parsed_content("labelled").items("train"),
    )
    image = prepare(dict(items[0]))["image"]
    assert tuple(image.shape) == (1, 20, 16, 12)
    assert 0 <= image.min() < image.max() <= 1


def test_an_earlier_plan_is_kept_if_it_differs(tmp_path):
    plan = plan_of(make_list(tmp_path))
    file = tmp_path / "plan.json"
    write_plan(plan, file)
    write_plan(plan, file)
    assert sorted(one.name for one in tmp_path.glob("plan*")) == ["plan.json"]
    file.write_text("{}")
    write_plan(plan, file)
    assert (tmp_path / "plan.1.json").read_text() == "{}"
