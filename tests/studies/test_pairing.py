# SPDX-License-Identifier: Apache-2.0
"""Runs of one seed differ in their arm and in nothing else: initial weights, order of cases, augmentation."""

import pytest
import torch
from conftest import BUNDLE, SMALL
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_llmboost.bundle import monai_arguments

ARMS = ["none", "mlp", "random", "pretrained", "lora", "pretrained-trained"]
pytestmark = pytest.mark.filterwarnings("ignore")


def begun(arm, folder, **options):
    arguments = monai_arguments(
        BUNDLE, "train", arm, False, ckpt_dir=str(folder), output_dir=str(folder), **{**SMALL, **options}
    )
    workflow = ConfigWorkflow(**arguments)
    workflow.initialize()
    return workflow.parser.get_parsed_content("train#trainer")


def batches_seen(trainer):
    """The cases of each batch that a trainer is given, and their images as augmented."""
    seen = []

    @trainer.on(Events.ITERATION_STARTED)
    def _look(engine):
        seen.append((engine.state.batch["case"], engine.state.batch["image"].clone()))

    trainer.run()
    return seen


@pytest.fixture
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 40, "val": 20, "test": 20})


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize("seed", [0, 3])
def test_arms_of_one_seed_begin_alike(tmp_path, seed):
    trainers = {arm: begun(arm, tmp_path / arm, seed=seed) for arm in ARMS}
    weights = {arm: dict(trainer.network.named_parameters()) for arm, trainer in trainers.items()}
    maps = {"booster.encode.weight", "booster.decode.weight"}
    encoder = set(weights["none"])
    for arm in ARMS[1:]:
        shared = encoder | maps
        assert shared <= set(weights[arm])
        assert all(torch.equal(weights[arm][name], weights["mlp"][name]) for name in shared)
        assert arm in ("lora", "pretrained-trained") or set(weights[arm]) == shared
    assert all(torch.equal(weights["none"][name], weights["mlp"][name]) for name in encoder)


@pytest.mark.usefixtures("few_phantoms")
def test_arms_of_one_seed_see_the_same_volumes_in_the_same_order(tmp_path):
    options = {"seed": 3, "epochs": 2, "batch_size": 10, "network_def#dropout_rate": 0.2}
    first, *others = (batches_seen(begun(arm, tmp_path / arm, **options)) for arm in ARMS)
    assert len(first) == 8
    assert [case for cases, _ in first[:4] for case in cases] != [case for cases, _ in first[4:] for case in cases]
    for seen in others:
        assert [cases for cases, _ in seen] == [cases for cases, _ in first]
        assert all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in zip(seen, first))


@pytest.mark.usefixtures("few_phantoms")
def test_seeds_begin_and_see_differently(tmp_path):
    first, second = (begun("mlp", tmp_path / str(seed), seed=seed) for seed in (0, 1))
    one, other = (dict(trainer.network.named_parameters()) for trainer in (first, second))
    drawn = [name for name, weight in one.items() if weight.std() > 0 and weight.ndim > 1]
    assert len(drawn) > 5
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    flat = [weight.detach().flatten()[:64].sort().values for name, weight in one.items() if name in drawn]
    scaled = [values / values.abs().max() for values in flat]
    assert not any(torch.allclose(a, b) for i, a in enumerate(scaled) for b in scaled[:i] if a.shape == b.shape), (
        "no two weights are the same numbers"
    )
