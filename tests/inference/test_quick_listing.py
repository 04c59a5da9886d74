# SPDX-License-Identifier: Apache-2.0
"""The list of a dry run, without MONAI: the same as MONAI's parser leads to, or none."""

import json
import shutil
import warnings

import nibabel
import numpy as np
import pytest
from dicom_files import write_series
from monai import transforms

from monai_llmboost.bundle import copy_bundle
from monai_llmboost.bundle.find import package_bundles
from monai_llmboost.bundle.plain_items import NotPlainError
from monai_llmboost.inference.quick_listing import OTHER_TRANSFORMS, list_cases
from monai_llmboost.inference.run import PredictJob

BUNDLES = [folder.name for folder in package_bundles()]
MEDMNIST, SCANS = "medmnist3d_rllm_classification", "scans_classification"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scans of many kinds, of which some are refused, and some are no scans."""
    folder = tmp_path_factory.mktemp("scans")
    volume = np.random.default_rng(0).integers(0, 255, (9, 8, 7)).astype(np.int16)
    write_series(folder / "series", volume)
    (folder / "out").mkdir()
    for name, voxels in {
        "a.nii": volume, "b.nii.gz": volume, "four.nii": np.stack([volume] * 3, -1), "small.nii": volume[:3],
        "out/c.nii": volume,
    }.items():  # fmt: skip
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / name)
    (folder / "damaged.nii").write_bytes((folder / "a.nii").read_bytes()[:200])
    (folder / "notes.txt").write_text("text")
    (folder / "link.nii").symlink_to("/dev/null")
    (folder / "list.csv").write_text("image,MASK,case\na.nii,b.nii.gz,one\nb.nii.gz,,two\nmissing.nii,,three\n")
    (folder / "two.csv").write_text("T1,T2\na.nii,b.nii.gz\nb.nii.gz,\n")
    return folder


def both(bundle, words):
    """The list without MONAI, and with it."""
    job = PredictJob(bundle, None, only_find=True, **words)
    quick = list_cases(job._arguments, job.options.keys())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's, on each config
        parsed = job._open().cases
    return [(found.scans, found.refused, found.skipped, found.hidden is None) for found in (quick, parsed)]


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"salt": "x"},
        {"only": ["a.nii", "ser*"]},
        {"follow_links": True},
        {"output_dir": "elsewhere", "view": None},
        {"batch_size": 3, "report": False},
    ],
    ids=str,
)
def test_the_list_is_that_of_the_parser(bundle, words, folder):
    quick, parsed = both(bundle, {"dataset_dir": [str(folder)], **words})
    assert quick == parsed
    assert quick[0]
    assert quick[1] or "only" in words


@pytest.mark.parametrize(
    ("bundle", "words"),
    [
        (MEDMNIST, {"dataset_dir": "list.csv"}),
        (SCANS, {"dataset_dir": "list.csv"}),
        (SCANS, {"dataset_dir": ["list.csv"], "mask_column": "MASK"}),
        (SCANS, {"dataset_dir": "list.csv", "case_column": "MASK", "salt": "x"}),
        (SCANS, {"dataset_dir": ["a.nii", "series"]}),
    ],
    ids=str,
)
def test_lists_of_cases(bundle, words, folder, monkeypatch):
    monkeypatch.chdir(folder)
    quick, parsed = both(bundle, words)
    assert quick == parsed


@pytest.mark.parametrize(
    ("bundle", "changes"),
    [
        (MEDMNIST, {"patch_size": "$@size // 7"}),
        (MEDMNIST, {"inference_transforms#check#min_size": [4, 8, "$@size // 4"]}),
        (MEDMNIST, {"inference_transforms#check#min_size": "$@patch_size + 3"}),
        (MEDMNIST, {"inference_transforms#check#_disabled_": "$@size == 28"}),
        (MEDMNIST, {"dataset_dir": "$@bundle_root + '/input'"}),
        (MEDMNIST, {"volume": "$@num_workers"}),
        (MEDMNIST, {"only": "$['a.nii'] + @others", "others": ["b*"]}),
        (MEDMNIST, {"follow_links": "$not @clip_intensities"}),
        (MEDMNIST, {"salt": "$'a' + 'b'"}),
        (MEDMNIST, {"cases#leave_out": "$@bundle_root + '/input/series'"}),
        (MEDMNIST, {"cases#columns": {"_target_": "monai_llmboost.data.Columns"}, "dataset_dir": "input/list.csv"}),
        (SCANS, {"image_shape": "$[2] + [64] * 3", "image_column": "T1,T2", "dataset_dir": "input/two.csv"}),
        (SCANS, {"cases#columns#mask": "$'MA' + 'SK'", "dataset_dir": "input/list.csv"}),
        (SCANS, {"preprocess#orient": {"_target_": "Spacingd", "keys": "image", "pixdim": [2, 2, 2]}}),
    ],
    ids=str,
)
def test_values_of_the_configs_may_be_expressions(bundle, changes, folder, tmp_path, monkeypatch):
    change(bundle, changes, tmp_path / "bundle")
    shutil.copytree(folder, tmp_path / "bundle" / "input", symlinks=True)
    monkeypatch.chdir(tmp_path / "bundle")
    quick, parsed = both(tmp_path / "bundle", {})
    assert quick == parsed


def change(bundle, changes, to):
    """Copy a bundle, with other values in its inference.json."""
    copy_bundle(bundle, to)
    file = to / "configs" / "inference.json"
    content = json.loads(file.read_text())
    for key, value in changes.items():
        *above, last = key.split("#")
        place = content
        for part in above:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"size": 14}),
        ({}, {"intensity_range": [0, 1]}),
        ({}, {"volume": 0}),
        ({}, {"network": "$None", "inference_transforms#check#min_size": 3}),
        ({"min_slices": 3}, {}),
        ({"gantry_tilt": "refuse"}, {}),
        ({"salt": "$os.environ.get('SALT')"}, {}),
        ({"reader": {"_target_": "my.Reader"}}, {}),
        ({"cases#_target_": "my.Cases"}, {}),
        ({"cases#more": 1}, {}),
        ({"cases#transform": "$@preprocessing"}, {}),
        ({"inference_transforms#load#_target_": "my.Load"}, {}),
        ({"imports": ["$import os", "$import my"]}, {}),
        ({"initialize": ["$print()"]}, {}),
        ({"initialize": [{"_target_": "builtins.print"}]}, {}),
        ({"imports": "$import my"}, {}),
        ({"initialize": {"first": "$print()"}}, {}),
        ({"preprocessing#transforms": "$[@inference_transforms.load]"}, {}),
    ],
    ids=str,
)
def test_what_may_change_the_list_is_left_to_the_parser(changes, options, folder, tmp_path):
    change(MEDMNIST, changes, tmp_path / "bundle")
    job = PredictJob(tmp_path / "bundle", None, only_find=True, dataset_dir=[str(folder)], **options)
    with pytest.raises(NotPlainError):
        list_cases(job._arguments, job.options.keys())


def test_other_transforms_have_no_check_of_shapes():
    from monai_llmboost import data

    for name in OTHER_TRANSFORMS:
        module = data if name.startswith("monai_llmboost.data.") else transforms
        assert not hasattr(getattr(module, name.rpartition(".")[2]), "check_shape"), name
