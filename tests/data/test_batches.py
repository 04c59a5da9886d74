# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import DataLoader, DistributedSampler, MetaTensor
from monai.transforms import Compose, EnsureTyped, Lambdad, RandScaleIntensityd, ScaleIntensityRanged

from monai_llmboost.data import BatchedVolumes, LabelledVolumes


@pytest.fixture
def volumes(monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 7, "val": 7, "test": 7})
    return LabelledVolumes("phantom", "val", size=8)


def names(loader):
    return [case for batch in loader for case in batch["case"]]


def test_batches_equal_those_of_a_dataloader(volumes):
    ours = list(BatchedVolumes(volumes, 3, "cpu"))
    theirs = list(DataLoader(volumes, batch_size=3))
    assert [len(batch["case"]) for batch in ours] == [3, 3, 1]
    for a, b in zip(ours, theirs):
        assert a["image"].dtype == torch.uint8 and torch.equal(a["image"], b["image"])
        assert a["label"].dtype == torch.int64 and torch.equal(a["label"], b["label"])
        assert a["case"] == b["case"]
        assert type(a["case"][0]) is str


def test_arrays_are_not_copied(volumes):
    loader = BatchedVolumes(volumes, 3, "cpu")
    assert np.shares_memory(volumes.images, volumes.data[3]["image"])
    assert loader.images.data_ptr() == volumes.images.ctypes.data
    before = volumes.images.copy()
    for batch in loader:
        batch["image"].zero_()
    assert np.array_equal(volumes.images, before), "a batch is the user's own"


@pytest.mark.parametrize(("drop_last", "lengths"), [(False, [2, 2, 2, 1]), (True, [2, 2, 2])])
def test_last_batch(volumes, drop_last, lengths):
    loader = BatchedVolumes(volumes, 2, "cpu", drop_last=drop_last)
    assert len(loader) == len(lengths)
    assert [len(batch["image"]) for batch in loader] == lengths
    assert len(BatchedVolumes(volumes, 7, "cpu", drop_last=drop_last)) == 1


def test_shuffling_follows_the_seed_of_torch(volumes):
    loader = BatchedVolumes(volumes, 3, "cpu", shuffle=True)
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(names(loader))
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == volumes.cases
    assert orders[2] != names(loader), "a new order each epoch"


def test_order_is_drawn_when_the_iterator_is_made(volumes):
    loader = BatchedVolumes(volumes, 7, "cpu", shuffle=True)
    torch.manual_seed(1)
    expected = names(loader)
    torch.manual_seed(1)
    batches = iter(loader)
    torch.manual_seed(2)
    assert next(batches)["case"] == expected


def test_labels_and_names_follow_their_volumes(volumes):
    for batch in BatchedVolumes(volumes, 3, "cpu", shuffle=True):
        for image, label, case in zip(*batch.values()):
            item = volumes[volumes.cases.index(case)]
            assert np.array_equal(image, item["image"])
            assert label == item["label"]


def test_sampler_gives_the_order(volumes):
    parts = []
    for rank in range(2):
        sampler = DistributedSampler(volumes, even_divisible=False, num_replicas=2, rank=rank, shuffle=True)
        loader = BatchedVolumes(volumes, 2, "cpu", sampler=sampler)
        assert (len(loader), loader.sampler, loader.batch_size, loader.dataset) == (2, sampler, 2, volumes)
        first = names(loader)
        assert first == [volumes.cases[index] for index in sampler]
        parts += first
        sampler.set_epoch(1)
        assert names(loader) != first
    assert sorted(parts) == volumes.cases


def test_transform_gets_whole_batches_and_images_are_plain_tensors(volumes):
    shapes = []
    transform = Compose(
        [
            EnsureTyped("image", dtype=torch.float32),
            Lambdad("image", lambda x: shapes.append(tuple(x.shape)) or x),
            ScaleIntensityRanged("image", 0, 255, 0.0, 1.0),
        ]
    )
    batches = list(BatchedVolumes(volumes, 4, "cpu", transform=transform))
    assert shapes == [(4, 1, 8, 8, 8), (3, 1, 8, 8, 8)]
    assert isinstance(transform({"image": batches[0]["image"]})["image"], MetaTensor), "MONAI made one"
    assert type(batches[0]["image"]) is torch.Tensor
    assert torch.allclose(batches[1]["image"], torch.tensor(volumes.images[4:, None]) / 255)


def test_set_determinism_works_as_with_the_loader_of_monai(volumes):
    def sums(seed):
        torch.manual_seed(seed)
        transform = Compose([EnsureTyped("image", dtype=torch.float32), RandScaleIntensityd("image", 0.9, prob=1.0)])
        return [float(batch["image"].sum()) for batch in BatchedVolumes(volumes, 3, "cpu", transform=transform)]

    assert sums(1) == sums(1) != sums(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number from 1, not 0"),
        ({"batch_size": True}, "batch_size must be a whole number from 1, not True"),
        ({"batch_size": 2.0}, r"batch_size must be a whole number from 1, not 2\.0"),
        ({"shuffle": "false"}, "shuffle must be True or False, not 'false'"),
        ({"drop_last": 1}, "drop_last must be True or False, not 1"),
        ({"shuffle": True, "sampler": [0, 1]}, "shuffle and sampler are both given: leave shuffle out"),
        ({"batch_size": 8, "drop_last": True}, r"7 cases make no batch of 8 \(drop_last is True\): lower"),
        ({"sampler": []}, "0 cases make no batch of 2"),
    ],
)
def test_wrong_arguments(volumes, change, message):
    with pytest.raises(ValueError, match=message):
        BatchedVolumes(**{"dataset": volumes, "batch_size": 2, "device": "cpu", **change})


def test_any_dataset_with_arrays_makes_batches():
    """Such as a list of a user's own volumes."""

    class Arrays:
        images = np.arange(5 * 8, dtype=np.uint8).reshape(5, 2, 2, 2)
        labels = np.arange(5)
        cases = tuple("abcde")

        def __len__(self):
            return len(self.labels)

    first = next(iter(BatchedVolumes(Arrays(), 3, "cpu")))
    assert first["case"] == ["a", "b", "c"]
    assert np.array_equal(first["image"][:, 0], Arrays.images[:3])


def test_wrong_datasets(volumes):
    with pytest.raises(TypeError, match=r"images, labels and cases, which list has not: use monai\.data\.DataLoader"):
        BatchedVolumes(volumes.data, 2, "cpu")
    single = LabelledVolumes("phantom", "val", size=8, transform=EnsureTyped("image"))
    with pytest.raises(ValueError, match="has 1 transforms of single volumes: give BatchedVolumes"):
        BatchedVolumes(single, 2, "cpu")
