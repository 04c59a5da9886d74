# SPDX-License-Identifier: Apache-2.0
"""The identity of a run follows every value of its config, but for those that are listed as free with a reason."""

import copy
import functools
import json
import pathlib

import numpy as np
import pytest
import torch
from conftest import BUNDLE, ROOT
from monai.bundle import ConfigParser

from monai_llmboost.artifacts.digests import text_digest
from monai_llmboost.bundle import (
    FREE,
    FREE_IN_PREDICTION,
    FREE_IN_TRAINING,
    as_plain,
    bundle_path,
    code_digests,
    counting_config,
    job_configs,
    reads_outside,
    running_config,
)
from monai_llmboost.bundle.content import merged, read_config
from monai_llmboost.bundle.identity import FREE_ARGUMENTS, FREE_COMPONENTS

JOBS = {
    "train": FREE_IN_TRAINING,
    "evaluate": FREE_IN_TRAINING,
    "inference": FREE_IN_PREDICTION,
}


@functools.cache
def config_of(job):
    return merged(job_configs(bundle_path(BUNDLE), job))


def leaves(value, place=()):
    """Every place of a config that has no parts, and every list and dictionary."""
    yield place
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(part, (*place, key))


def changed(config, place, change):
    config = copy.deepcopy(config)
    *above, last = place
    parent = functools.reduce(lambda value, key: value[key], above, config)
    parent[last] = change(parent[last])
    return config


def other(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + " "
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    return {**value, "more": 1} if isinstance(value, dict) else "something"


def is_free(config, place, free):
    """Whether a place is below a key of the list, an argument that only decides on speed, or a component that shows."""
    value, above = config, ""
    for key in place:
        value = value[key]
        target = value.get("_target_", "") if isinstance(value, dict) else ""
        loads = above.endswith(("Dataset", "Loader"))
        above = target
        shows = target.rpartition(".")[2] in FREE_COMPONENTS and place[-1] != "_target_"  # else it shows no more
        if shows or (key in FREE_ARGUMENTS and loads):
            return True
    return place[0] in free


def identity(config, free):
    counting = counting_config(config, free)
    return text_digest([list(counting.values.items()), sorted(counting.objects)])


@functools.cache
def usual_identity(job):
    return identity(config_of(job), JOBS[job])


EVERY = [(job, place) for job in JOBS for place in leaves(config_of(job)) if place]


@pytest.mark.parametrize(("job", "place"), EVERY, ids=["#".join(map(str, (job, *place))) for job, place in EVERY])
def test_every_change_of_a_config_changes_the_identity_but_for_what_is_listed(job, place):
    config, free = config_of(job), {*FREE, *JOBS[job]}
    same = identity(changed(config, place, other), JOBS[job]) == usual_identity(job)
    assert same == is_free(config, place, free)


@pytest.mark.parametrize("job", JOBS)
def test_what_is_free_is_there_with_a_reason(job):
    added = {"tracking", "tracking_uri", "experiment_name", "run_name", "save_execute_config", "finalize"}
    scans = {*read_config(bundle_path("scans_classification") / "configs" / "train.json")}
    distillation = {*read_config(ROOT / "bundles" / "overlays" / "distil.json")}
    known = {key for each in JOBS for key in config_of(each)} | scans | distillation | added
    known |= {"_meta_", "_plan_", "_trained_"}
    assert not {*FREE, *JOBS[job]} - known
    assert all({**FREE, **JOBS[job]}.values())


INSERTED = {"_target_": "monai.transforms.Lambdad", "keys": "image", "func": "$lambda x: x + 1"}
PARTIAL = {"_target_": "functools.partial", "func": "$torch.clamp", "min": 0}


def test_inserted_transforms_partials_and_lambdas_change_the_identity():
    config = config_of("inference")
    found = {identity(config, FREE_IN_PREDICTION)}
    for step in (
        INSERTED,
        {**INSERTED, "func": "$lambda x: x + 2"},
        {**INSERTED, "func": "$functools.partial(torch.clamp, min=0)"},
        {**INSERTED, "func": "$functools.partial(torch.clamp, min=1)"},
        {**INSERTED, "func": PARTIAL},
        {**INSERTED, "func": {**PARTIAL, "min": 1}},
        {**INSERTED, "_disabled_": True},
    ):
        transforms = {**config["inference_transforms"], "more": step}
        found.add(identity({**config, "inference_transforms": transforms}, FREE_IN_PREDICTION))
    assert len(found) == 8
    moved = dict(reversed(config["inference_transforms"].items()))
    assert identity({**config, "inference_transforms": moved}, FREE_IN_PREDICTION) not in found, "order counts"
    sorted_keys = json.loads(json.dumps(config, sort_keys=True))
    same = {**sorted_keys, **{key: config[key] for key in ("inference_transforms", "output_transforms")}}
    same["inference_handlers"] = config["inference_handlers"]
    same["provenance"]["metadata"] = config["provenance"]["metadata"]
    same["provenance"]["options"] = config["provenance"]["options"]
    assert identity(same, FREE_IN_PREDICTION) in found, "that of keys and arguments does not"


def test_logging_comes_and_goes():
    config = config_of("train")
    usual = identity(config, FREE_IN_TRAINING)
    handlers = {**config["train_handlers"], "mlflow": {"_target_": "MLFlowHandler"}}
    del handlers["progress"]
    assert identity({**config, "train_handlers": handlers}, FREE_IN_TRAINING) == usual
    listed = {**config["train"], "handlers": [*config["train"]["handlers"], {"_target_": "MLFlowHandler"}]}
    assert identity({**config, "train": listed}, FREE_IN_TRAINING) == usual


def test_objects_of_python_are_named_and_never_described():
    config = {
        "loss": torch.nn.Linear(1, 1), "f": functools.partial(max, 1), "g": lambda x: x, "device": torch.device("cpu"),
        "kind": torch.float32, "seed": np.int64(3), "place": pathlib.Path("/a"), "size": (1, np.float32(0.5)),
        "set": {1}, "array": np.zeros(2), "tensor": torch.zeros(1),
    }  # fmt: skip
    counting = counting_config(config)
    assert counting.objects == {
        "loss": "Linear", "f": "partial", "g": "function", "set": "set", "array": "ndarray", "tensor": "Tensor",
    }  # fmt: skip
    plain = {"kind": "torch.float32", "seed": 3, "place": "/a", "size#0": 1, "size#1": 0.5}
    assert counting.values == plain
    assert json.loads(json.dumps(counting.values)) == plain
    with pytest.raises(TypeError, match="Linear is no plain value"):
        as_plain({"a": [config["loss"]]})


def test_the_running_config_is_that_of_the_nearest_parser():
    content = {
        "epochs": 3, "rate": 0.1, "_meta_": {"x": 1},
        "net": {"_target_": "A", "_disabled_": True, "b": [1, {"c": None}]},
        "config": "$monai_llmboost.bundle.running_config()",
    }  # fmt: skip
    parser = ConfigParser(content, globals={"monai_llmboost": "monai_llmboost"})
    assert parser.get_parsed_content("config") == parser.config
    values = counting_config(parser.config, {"epochs"}).values
    assert values == {
        "rate": 0.1, "config": content["config"], "net#_target_": "A", "net#_disabled_": True, "net#b#0": 1,
        "net#b#1#c": None,
    }  # fmt: skip
    assert running_config() == {}


@pytest.fixture
def bundle_with_code(tmp_path, monkeypatch):
    """A bundle whose scripts import a module next to them, and a module of the user's own."""
    for name, text in {
        "scripts/net.py": "from .layers import K\nimport helper_of_net", "scripts/layers.py": "",
        "scripts/sub/__init__.py": "", "scripts/sub/table.json": "{}",
        "elsewhere/helper_of_net.py": "import os, torch, monai_llmboost\n__import__('late')", "elsewhere/late.py": "",
        "elsewhere/loose/deep/part.py": "", "elsewhere/mine.py": "",
        "elsewhere/pack/__init__.py": "", "elsewhere/pack/a.py": "from .b import c", "elsewhere/pack/b.py": "",
    }.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    return tmp_path


SCRIPTS = [
    "helper_of_net.py", "late.py", "scripts/layers.py", "scripts/net.py", "scripts/sub/__init__.py",
    "scripts/sub/table.json",
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "files"),
    [
        ({"a": {"_target_": "monai_llmboost.networks.ViT3D"}, "b": "$torch.ones(1)", "c": "model.pt"}, []),
        ({"a": {"_target_": "scripts.net.Net"}}, []),
        ({"a": ["$mine.transform(3)"]}, ["mine.py"]),
        ({"imports": ["$from mine import x"]}, ["mine.py"]),
        ({"imports": ["$import mine as m"]}, ["mine.py"]),
        ({"imports": ["$import json, mine"]}, ["mine.py"]),
        ({"a": "$__import__('mine').scale"}, ["mine.py"]),
        ({"a": "$importlib.import_module('mine')"}, ["mine.py"]),
        ({"reader": "mine.Reader"}, ["mine.py"]),
        ({"a": {"_target_": "loose.deep.part.Thing"}}, ["deep/part.py"]),
        ({"a": {"_target_": "pack.a.Thing"}}, ["pack/__init__.py", "pack/a.py", "pack/b.py"]),
    ],
)
def test_code_outside_installed_packages_counts(bundle_with_code, config, files):
    digests = code_digests(config, bundle_with_code)
    assert sorted(digests) == sorted([*SCRIPTS, *files])
    for name in digests:
        (file,) = (file for file in bundle_with_code.rglob("*") if str(file).endswith(f"/{name}"))
        before = file.read_text()
        file.write_text("# changed\n" + before)
        assert code_digests(config, bundle_with_code)[name] != digests[name]
        file.write_text(before)


@pytest.mark.parametrize(
    "text",
    [
        "$lambda x: x * float(os.environ['K'])", "$functools.partial(f, k=float(os.getenv('K')))",
        "$json.load(open('k.json'))", "$np.loadtxt('k')", "$pathlib.Path('k').read_text()", "$torch.rand(1)",
    ],
)  # fmt: skip
def test_an_expression_that_depends_on_more_than_its_text_is_found(text):
    assert reads_outside({"a": {"b": [text]}, "free": text}, {"free"}) == {"a#b#0": text}


@pytest.mark.parametrize("text", ["$@reader.volume", "$[@size] * 3", "$torch.load", "time", "$lambda x: x"])
def test_other_expressions_are_their_text(text):
    found = reads_outside({"a": text})
    assert found == ({"a": text} if text == "$torch.load" else {})


@pytest.mark.parametrize("job", ["train", "evaluate", "inference"])
def test_the_configs_of_the_package_depend_on_their_text_alone(job):
    free = FREE_IN_PREDICTION if job == "inference" else FREE_IN_TRAINING
    assert reads_outside(merged(job_configs(bundle_path(BUNDLE), job)), free) == {}


@pytest.mark.parametrize("name", ["progress", "pin_memory", "MetricLogger", "ProgressBar"])
def test_a_users_component_counts_whatever_its_name(name):
    def values(k):
        return counting_config({"handlers": {name: {"_target_": f"scripts.{name}", "k": k, "progress": k}}}).values

    assert values(1) != values(2)
    assert all(value == 1 for key, value in values(1).items() if not key.endswith("_target_"))
    assert len(values(1)) == 3


def test_broken_code_is_left_to_python(bundle_with_code):
    (bundle_with_code / "elsewhere" / "mine.py").write_text("def (")
    assert list(code_digests({"a": "$mine.x()"})) == ["mine.py"]
