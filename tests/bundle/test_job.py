# SPDX-License-Identifier: Apache-2.0
"""The items of a bundle that our code reads; a bundle without one is refused by the name of the key."""

import json
import sys

import pytest
import torch
from conftest import BUNDLE, SMALL

from monai_llmboost.bundle import BundleJob, bundle_path, copy_bundle, job_configs, monai_arguments

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
]


def own_bundle(folder, config, image=None):
    """A bundle of somebody's own with a config of training, and the least of metadata."""
    (folder / "mine" / "configs").mkdir(parents=True)
    meta = {"network_data_format": {"inputs": {"image": image or {}}}}
    for name, content in {"metadata": meta, "train": config, "inference": config}.items():
        (folder / "mine" / "configs" / f"{name}.json").write_text(json.dumps(content))
    return folder / "mine"


def read(bundle, job="train", **options):
    return BundleJob.read(job_configs(bundle, job), options)


def test_the_items_of_our_bundle():
    job = read(bundle_path(BUNDLE), **SMALL, size=8, patch_size=4)
    assert job.image_shape == (1, 8, 8, 8)
    assert job.class_names == ["shell", "ring"]
    assert job.batch_size == SMALL["batch_size"]
    assert job.device.type in ("cpu", "cuda")
    assert (job.amp_dtype is None) == (job.device.type == "cpu"), "tests on a CPU are in float32"
    assert job.network_definition.booster is job.booster
    assert next(job.network.parameters()).device.type == job.device.type
    assert job.intended_use.startswith("Research only")
    assert "validate#evaluator" in job
    assert "nothing" not in job
    assert read(bundle_path(BUNDLE), precision="bfloat16").amp_dtype == torch.bfloat16
    assert read(bundle_path(BUNDLE), precision="float32").amp_dtype is None


@pytest.mark.parametrize(
    ("accessor", "key", "reader"),
    [
        ("cases", "cases", "predict"), ("predictions", "predictions", "predict"), ("network", "network", "study"),
        ("evaluator", "validate#evaluator", "study"), ("class_names", "class_names", "study"),
        ("training_data", "train#dataset", "study"), ("validation_data", "validate#dataset", "study"),
        ("validation_batches", "validate#dataloader", "study"), ("network_definition", "network_def", "cost"),
        ("device", "device", "cost"), ("batch_size", "batch_size", "cost"),
    ],
)  # fmt: skip
def test_a_missing_key_is_named_with_who_reads_it(tmp_path, accessor, key, reader):
    job = read(own_bundle(tmp_path, {"epochs": 1}))
    with pytest.raises(ValueError, match=rf"the bundle mine has no key '{key}', which {reader} reads: add it to the"):
        getattr(job, accessor)
    assert job.booster is None
    assert job.amp_dtype is None
    assert job.intended_use == ""


@pytest.mark.parametrize(
    ("config", "image", "shape"),
    [
        ({"image_shape": "$[2] + [3] * 3", "size": 9}, None, (2, 3, 3, 3)),
        ({"size": 9, "network_def": {"in_channels": 4}}, None, (4, 9, 9, 9)),
        ({}, {"num_channels": 3, "spatial_shape": [5, 6]}, (3, 5, 6)),
    ],
)
def test_the_shape_of_an_image_in_any_bundle(tmp_path, config, image, shape):
    assert read(own_bundle(tmp_path, config, image)).image_shape == shape


def test_a_shape_that_the_metadata_leave_open(tmp_path):
    job = read(own_bundle(tmp_path, {}, {"num_channels": 1, "spatial_shape": ["*", "2**p"]}))
    with pytest.raises(ValueError, match=r"no key 'image_shape', which cost reads, and its metadata leaves the shape"):
        _ = job.image_shape


def test_what_an_item_refuses_is_said_without_monais_words(tmp_path):
    job = read(bundle_path(BUNDLE), residual="outside")
    with pytest.raises(ValueError, match=r"^unknown residual 'outside'"):
        _ = job.network_definition


def test_a_job_finds_the_scripts_of_its_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    copy_bundle(BUNDLE, tmp_path / "mine")
    (tmp_path / "mine" / "scripts_of_mine").mkdir()
    (tmp_path / "mine" / "scripts_of_mine" / "words.py").write_text("def names():\n    return ['a', 'b']\n")
    (tmp_path / "mine" / "configs" / "more.json").write_text(
        json.dumps({"class_names": {"_target_": "scripts_of_mine.words.names"}})
    )
    arguments = monai_arguments(tmp_path / "mine", "train", "none", False, ["more.json"], **SMALL)
    assert BundleJob.open(arguments).class_names == ["a", "b"]
