# SPDX-License-Identifier: Apache-2.0
"""Federated training of the bundle by MONAI's own client: more rounds than epochs, rates and names as they must be."""

import csv
import json

import pytest
import torch
from conftest import BUNDLE, SMALL
from monai.fl.client import MonaiAlgo, MonaiAlgoStats
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from monai_llmboost.bundle import copy_bundle
from monai_llmboost.data import LabelledVolumes
from monai_llmboost.engines.curves import read_curves
from monai_llmboost.networks.class_names import class_names_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:monai"),
    pytest.mark.filterwarnings("ignore:(parsing|executing).*config:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:monai"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:monai"),
]


@pytest.fixture
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 24, "val": 12, "test": 12})


def client(folder, number, diff, **options):
    copy_bundle(BUNDLE, folder / f"client{number}")
    options = {**SMALL, "size": 8, "batch_size": 12, "seed": number, "dataset": "phantom", **options}
    algo = MonaiAlgo(
        str(folder / f"client{number}"), send_weight_diff=diff, train_kwargs=dict(options), eval_kwargs=dict(options)
    )
    algo.initialize({ExtraItems.CLIENT_NAME: f"client{number}"})
    return algo


def averaged(weights, answers, diff, parts=(0.3, 0.7)):
    """What a server makes of the clients' answers."""
    new = {}
    for name, value in weights.items():
        mean = sum(part * answer.weights[name].float().cpu() for part, answer in zip(parts, answers))
        new[name] = value.cpu() + mean if diff else mean
    return new


@pytest.mark.usefixtures("few_phantoms")
@pytest.mark.parametrize(("epochs", "diff"), [(1, True), (2, False), (30, True)])
def test_four_rounds_of_two_clients(tmp_path, diff, epochs):
    clients = [client(tmp_path, number, diff, epochs=epochs) for number in range(2)]
    weights = {name: value.clone() for name, value in clients[0].trainer.network.state_dict().items()}
    for _ in range(4):
        answers = []
        for each in clients:
            each.train(ExchangeObject(weights={name: value.clone() for name, value in weights.items()}))
            answers.append(each.get_weights())
            kind = WeightType.WEIGHT_DIFF if diff else WeightType.WEIGHTS
            assert answers[-1].weight_type == kind
            head = answers[-1].weights["head.weight"].cpu()
            assert diff or not torch.equal(head, weights["head.weight"].cpu()), "it was trained"
            assert not diff or head.abs().max() > 0, "it was trained"
        weights = averaged(weights, answers, diff)
    for number, each in enumerate(clients):
        rows = read_curves(tmp_path / f"client{number}" / "eval" / "learning_curves.csv")
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert all(row["learning_rate"] >= 1e-4 for row in rows), rows
        models = tmp_path / f"client{number}" / "models"
        files = {"model.pt", "model.json", "last.pt", "lock"}
        assert {file.name for file in models.iterdir()} == files, "one run, nothing set aside"
        answer = each.evaluate(ExchangeObject(weights=weights))
        assert 0 <= answer.metrics["val_auc"] <= 1
        network = each.evaluator.network
        head = network.head.weight.cpu()
        assert torch.equal(head, weights["head.weight"]), "the server's weights, not the client's best"
        assert class_names_of(network) == ["shell", "ring"]
        assert network.preprocessing.text == "ScaleIntensityRange b_max 1, b_min 0"
        with (tmp_path / f"client{number}" / "eval" / "predictions.csv").open(newline="") as file:
            assert {"p_shell", "p_ring"} <= set(csv.DictReader(file).fieldnames)
        metrics = json.loads((tmp_path / f"client{number}" / "eval" / "metrics.json").read_text())
        assert metrics["cases"] == 12


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 4 worker|'pin_memory' argument:UserWarning"
)  # of MONAI's analyzer
@pytest.mark.usefixtures("few_phantoms")
def test_statistics_of_a_site(tmp_path):
    """Of the intensities of the cases of each class: the analyzer wants maps of labels, and class 0 is label 1."""
    copy_bundle(BUNDLE, tmp_path / "site")
    configs = ["configs/train.json", "configs/statistics.json"]
    algo = MonaiAlgoStats("site", config_train_filename=configs, data_stats_transform_list=[])
    algo.initialize({ExtraItems.CLIENT_NAME: "site", ExtraItems.APP_ROOT: str(tmp_path)})
    extra = {FlStatistics.HIST_BINS: [4], FlStatistics.HIST_RANGE: [[0, 256]]}
    statistics = algo.get_data_stats(extra).statistics
    for part, cases, split in (("train", 24, "train"), ("eval", 12, "val")):
        found = statistics[part]
        assert (found[FlStatistics.DATA_COUNT], found[FlStatistics.FAIL_COUNT]) == (cases, 0)
        stats = found[FlStatistics.DATA_STATS]
        mean = LabelledVolumes("phantom", split).images.mean()
        assert stats["image_stats"]["intensity"]["mean"] == pytest.approx(mean, rel=1e-4)
        assert stats["label_stats"]["labels"] == [1, 2]


@pytest.mark.usefixtures("few_phantoms")
def test_rounds_before_the_first_validation(tmp_path):
    algo = client(tmp_path, 0, False, epochs=4, val_interval=2)
    weights = algo.trainer.network.state_dict()
    algo.train(ExchangeObject(weights=weights))
    assert not (tmp_path / "client0" / "models" / "model.pt").exists()
    algo.train(ExchangeObject(weights=weights))
    assert torch.load(tmp_path / "client0" / "models" / "last.pt", weights_only=True)["best"]["epoch"] == 2


@pytest.mark.usefixtures("few_phantoms")
def test_a_schedule_that_ends_is_refused(tmp_path):
    """MONAI's own, as bundles of earlier versions have it: 0 behind its end, where nothing would be trained."""
    own = {"lr_scheduler#_target_": "monai.optimizers.WarmupCosineSchedule"}
    algo = client(tmp_path, 0, False, epochs=2, **own)
    weights = algo.trainer.network.state_dict()
    for _ in range(2):
        algo.train(ExchangeObject(weights=weights))
    with pytest.raises(ValueError, match="the learning rate of epoch 3 is 0, since its schedule is over"):
        algo.train(ExchangeObject(weights=weights))
