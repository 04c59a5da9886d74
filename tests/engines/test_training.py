# SPDX-License-Identifier: Apache-2.0
"""What a trainer needs that takes its batches whole: the loss where handlers look for it, epochs that repeat."""

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.handlers import from_engine
from monai.transforms import Compose, EnsureTyped, RandScaleIntensityd
from torch import nn

from monai_llmboost.data import BatchedVolumes, LabelledVolumes
from monai_llmboost.engines import MedMNISTACC, SeededEpochs, WholeBatches

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:monai")


@pytest.fixture(autouse=True)
def few_phantoms(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 6, "val": 6, "test": 6})


def transform():
    return Compose([EnsureTyped("image", dtype=torch.float32), RandScaleIntensityd("image", 0.9, prob=1.0)])


def loader_of(kind):
    if kind == "of batches":
        return BatchedVolumes(
            LabelledVolumes("phantom", "train", size=8), 4, "cpu", shuffle=True, transform=transform()
        )
    volumes = LabelledVolumes("phantom", "train", size=8, transform=transform())
    return DataLoader(volumes, batch_size=4, shuffle=True)


def trainer(loader, handlers, epochs=1, **options):
    network = nn.Sequential(nn.Flatten(), nn.Linear(512, 2))
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), 1e-4),
        loss_function=nn.CrossEntropyLoss(),
        train_handlers=handlers,
        decollate=False,
        **options,
    )


def test_handlers_find_the_loss_of_a_whole_batch():
    accuracy = MedMNISTACC(from_engine(["pred", "label"]))
    engine = trainer(loader_of("of batches"), [WholeBatches()], key_train_metric={"acc": accuracy})
    read, losses = from_engine(["loss"], first=True), []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: losses.append(read(engine.state.output)))
    engine.run()
    assert [loss.shape for loss in losses] == [(), ()]
    assert 0 <= engine.state.metrics["acc"] <= 1
    assert len(engine.state.metric_details["acc"][0]) == 6, "the engine's own metric sees every case"


@pytest.mark.parametrize("kind", ["of batches", "of items"])
def test_an_epoch_follows_from_the_seed_and_its_number(kind):
    def sums(seed, epochs, first=0):
        torch.manual_seed(first + 10 * seed)  # whatever was drawn before must not matter
        engine = trainer(loader_of(kind), [SeededEpochs(seed)], epochs)
        engine.state.epoch, engine.state.iteration = first, first * 2
        seen = []
        engine.add_event_handler(
            Events.ITERATION_COMPLETED, lambda engine: seen.append(float(engine.state.batch["image"].sum()))
        )
        engine.run()
        return seen

    whole = sums(1, epochs=3)
    assert len(whole) == len(set(whole)) == 6
    assert sums(1, epochs=3, first=1) == whole[2:]
    assert not set(sums(2, epochs=3)) & set(whole)


def test_a_distributed_samplers_epoch_is_set():
    """MONAI's trainer sets it for torch's DataLoader alone."""
    volumes = LabelledVolumes("phantom", "train", size=8)
    sampler = DistributedSampler(volumes, num_replicas=2, rank=0, shuffle=True)
    trainer(BatchedVolumes(volumes, 2, "cpu", sampler=sampler, transform=transform()), [SeededEpochs(0)], 3).run()
    assert sampler.epoch == 3
