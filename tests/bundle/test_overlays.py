# SPDX-License-Identifier: Apache-2.0
"""Overlays change what they name, whatever was inserted into the bundle; places in lists are refused."""

import json
import shutil

import pytest
from conftest import BUNDLE, EARLIER
from monai.bundle import ConfigParser

from monai_llmboost.bundle import bundle_path, check_options, copy_bundle, job_configs, merged, monai_arguments
from monai_llmboost.bundle.content import value_at

CONFIGS = bundle_path(BUNDLE) / "configs"
OVERLAYS = sorted(
    str(file.relative_to(CONFIGS)) for file in CONFIGS.rglob("*.json")
    if file.name not in ("train.json", "evaluate.json", "inference.json", "metadata.json", "options.json")
)  # fmt: skip
INSERTED = {
    "train_transforms": {"_target_": "ScaleIntensityd", "keys": "image"},
    "inference_transforms": {"_target_": "ScaleIntensityd", "keys": "image"},
    "train_handlers": {"_target_": "GarbageCollector"},
    "validate_handlers": {"_target_": "GarbageCollector"},
    "inference_handlers": {"_target_": "GarbageCollector"},
}


def job_of(overlay):
    return "inference" if "inference" in overlay else "evaluate" if "evaluate" in overlay else "train"


@pytest.fixture(params=["first", "last"])
def bundle_with_more(tmp_path, request):
    """A copy with one more transform and handler in each group, before or after the others."""
    copy_bundle(BUNDLE, tmp_path / "mine")
    for name in ("train", "inference"):
        file = tmp_path / "mine" / "configs" / f"{name}.json"
        config = json.loads(file.read_text())
        for group in INSERTED.keys() & config.keys():
            more = {"more": INSERTED[group]}
            config[group] = {**more, **config[group]} if request.param == "first" else {**config[group], **more}
        file.write_text(json.dumps(config))
    return tmp_path / "mine"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_does_what_it_says_with_whatever_was_inserted(bundle_with_more, overlay):
    configs = [*job_configs(bundle_with_more, job_of(overlay)), bundle_with_more / "configs" / overlay]
    before, after = merged(configs[:-1]), merged(configs)
    changes = json.loads((CONFIGS / overlay).read_text())
    for key, value in changes.items():
        assert value_at(after, key) == value
    for group in INSERTED.keys() & before.keys():
        changed = {key.split("#")[1] for key in changes if key.startswith(f"{group}#")}
        assert after[group]["more"] == INSERTED[group]
        for name, entry in before[group].items():
            assert after[group][name] == entry or name in changed
    theirs = ConfigParser()
    theirs.read_config([str(file) for file in configs])
    theirs.config.pop("_meta_")
    assert after == theirs.config, "as MONAI merges them"


def test_the_presets_reach_the_trainer(bundle_with_more):
    def parser(*overlays):
        parser = ConfigParser()
        parser.read_config([str(bundle_with_more / "configs" / name) for name in ("train.json", *overlays)])
        return parser

    made = parser("arms/none.json", "strong/training.json").get_parsed_content("train#preprocessing").transforms
    assert [type(one).__name__ for one in made if "Rand" in type(one).__name__] == ["RandAffineBatchd"]
    assert [one.prob for one in made if "Rand" in type(one).__name__] == [0.9]
    assert sum(type(one).__name__.startswith("ScaleIntensity") for one in made) == 2, "scaled all the same"
    made = parser("arms/none.json", "published/training.json").get_parsed_content("train#preprocessing").transforms
    assert not [one for one in made if "Rand" in type(one).__name__]
    assert sum(type(one).__name__.startswith("ScaleIntensity") for one in made) == 2
    handlers = parser("arms/none.json", "strong/training.json").get_parsed_content("train#handlers")[0].handlers
    assert {"trained", "model"} <= set(handlers["checkpoints"].save_dict)
    assert type(handlers["average"]).__name__ == "EMAHandler"


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("train#preprocessing#transforms#2#prob", "name it train_transforms#augment#prob"),
        ("train::preprocessing::transforms::2::_disabled_", "name it train_transforms#augment#_disabled_"),
        ("train#handlers#4#patience", "name it train_handlers#checkpoints#patience"),
        ("train#handlers#2", "name it train_handlers#validation"),
        ("train#handlers#99", "give train#handlers as a whole"),
        ("initialize#0", "give initialize as a whole"),
        ("validate#postprocessing#transforms#1#dim", "name it output_transforms#softmax#dim"),
    ],
)
def test_positions_in_lists_are_refused_with_the_name(tmp_path, key, named):
    with pytest.raises(ValueError, match=f"is an entry of a list by its position, .*: {named}$"):
        check_options(job_configs(bundle_path(BUNDLE), "train"), {key: 1})
    with pytest.raises(ValueError, match=f"--.* changes nothing in train.json: .*: {named}"):
        monai_arguments(BUNDLE, "train", **{key: 1})
    copy_bundle(BUNDLE, tmp_path / "mine")
    (tmp_path / "mine" / "configs" / "mine.json").write_text(json.dumps({key: 1}))
    message = (
        f"mine.json cannot change the bundle as it says, for .*{named}; of a bundle that was copied earlier, make a new"
    )
    with pytest.raises(ValueError, match=message):
        monai_arguments(tmp_path / "mine", "train", overlays=["mine.json"])


def test_an_overlay_of_something_that_was_renamed_is_refused(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    file = tmp_path / "mine" / "configs" / "train.json"
    file.write_text(file.read_text().replace('"augment"', '"flip"'))
    for preset in ("strong", "published"):
        message = rf"{preset}/training\.json cannot .*, for train_transforms#augment must be an object .*, not missing"
        with pytest.raises(ValueError, match=message):
            monai_arguments(tmp_path / "mine", "train", overlays=[f"{preset}/training.json"])


@pytest.fixture
def earlier_copy(tmp_path):
    copy_bundle(BUNDLE, tmp_path / "mine")
    shutil.copytree(EARLIER, tmp_path / "mine" / "configs", dirs_exist_ok=True)
    return tmp_path / "mine"


@pytest.mark.parametrize("preset", ["strong", "published"])
def test_presets_of_an_earlier_copy_are_refused_with_what_to_do(earlier_copy, preset):
    monai_arguments(earlier_copy, "train", "none")
    monai_arguments(earlier_copy, "train", "none", overlays=[f"{preset}/network.json"])
    message = (
        r"training\.json cannot .*, for train#preprocessing#transforms#2.* make a new copy with `monai-llmboost bundle"
    )
    with pytest.raises(ValueError, match=message):
        monai_arguments(earlier_copy, "train", "none", overlays=[f"{preset}/training.json"])


def test_a_number_may_be_a_name():
    content = {"channel_def": {"0": "shell"}}
    from monai_llmboost.bundle.content import check_place

    check_place(content, "channel_def#0")
    with pytest.raises(ValueError, match="channel_def#1 is an entry of a list by its position"):
        check_place(content, "channel_def#1")
