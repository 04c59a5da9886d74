# SPDX-License-Identifier: Apache-2.0
"""The data set of labelled scans: caches that are never stale, and epochs that any number of workers repeat."""

import os
import pickle
import shutil
import threading
import time

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd, RandGaussianNoised, ScaleIntensityRanged
from torch.utils.data import WeightedRandomSampler

from monai_llmboost.data import CheckVolumed, LoadScansd, RandAffineBatchd, ScanReader
from monai_llmboost.data.labelled import LabelledScanDataset, ScanLoader, dataset
from monai_llmboost.data.transforms import ResampleScand, ScaleScand
from monai_llmboost.engines import SeededEpochs

AFFINE = np.diag([2.0, 2.0, 3.0, 1.0])
CACHES = ("memory", "disk", "none")


def write_scan(path, seed):
    voxels = np.random.default_rng(seed).normal(size=(8, 8, 6)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, AFFINE), path)


@pytest.fixture
def items(tmp_path):
    """Five scans as items."""
    for number in range(5):
        write_scan(tmp_path / f"{number}.nii", number)
    return [{"image": str(tmp_path / f"{n}.nii"), "label": n % 2, "case": f"{n}.nii"} for n in range(5)]


def steps(low=0.5, **options):
    return Compose(
        [
            LoadScansd("image", ScanReader(**options)),
            CheckVolumed("image", intensity_range=None),
            ResampleScand("image", [4.0, 4.0, 3.0]),
            ScaleScand("image", "percentiles", [low, 99.5]),
        ]
    )


@pytest.fixture
def make(items, tmp_path):
    def run(cache="none", transform=None, data=None):
        return LabelledScanDataset(data or items, transform or steps(), "train", "", cache, tmp_path / "cache", False)

    return run


@pytest.fixture
def loads(monkeypatch):
    """The paths that were read."""
    found, load = [], LoadScansd._read
    monkeypatch.setattr(LoadScansd, "_read", lambda self, source: found.append(source) or load(self, source))
    return found


def images(data):
    return torch.stack([item["image"].as_tensor() for item in data])


@pytest.mark.parametrize("cache", CACHES)
def test_each_cache_gives_the_same_items(make, cache):
    data = make(cache)
    for _ in range(2):
        assert torch.equal(images(data), images(make("none")))
    assert [item["case"] for item in data] == data.cases == [f"{n}.nii" for n in range(5)]
    assert [item["label"] for item in data] == [0, 1, 0, 1, 0]
    for item in data:
        assert isinstance(item["image"], MetaTensor) and item["image"].dtype == torch.float32
        assert torch.allclose(item["image"].affine.diag(), torch.tensor([4.0, 4.0, 3.0, 1.0], dtype=torch.float64))
        assert not item["image"].meta.get("filename_or_obj")
    assert torch.equal(data[-1]["image"], data[4]["image"]) and len(data[1:3]) == 2


def test_kept_scans_are_read_once(make, loads, tmp_path):
    for cache in ("memory", "disk"):
        loads.clear()
        data = make(cache)
        images(data), images(data)
        assert len(set(loads)) == 5 and len(loads) <= 8  # of three the size is measured
    loads.clear()
    images(make("disk"))
    assert loads == []
    shared = make("shared")  # of another process: from disk, and then from memory
    expected = images(shared)
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(images(shared), expected) and loads == []


@pytest.mark.parametrize("fits", [0, 1, 3])
def test_a_part_in_memory_gives_the_same_items(make, loads, monkeypatch, caplog, fits):
    expected = images(make())
    size = expected[0].numel() * 4
    monkeypatch.setattr(dataset, "available_memory", lambda: int((fits + 0.5) * size / dataset.PART_OF_MEMORY))
    data = make("memory")
    data.prepare()
    loads.clear()
    assert torch.equal(images(data), expected) and len(loads) == 5 - fits
    assert f"{fits} of 5 prepared train scans fit into memory, the others are prepared in each epoch" in caplog.text


def test_plain_tensors_have_a_size_too(monkeypatch, caplog):
    monkeypatch.setattr(dataset, "available_memory", lambda: 100)
    data = LabelledScanDataset([{"image": torch.zeros(1, 9, 9, 9)}] * 3, dict)
    assert len(data[0]["image"]) == 1 and "0 of 3 prepared" in caplog.text


# -- the cache on disk -----------------------------------------------------------------------------------------------


def test_a_changed_file_is_prepared_again(make, items):
    before = images(make("disk"))
    write_scan(items[1]["image"], 77)
    os.utime(items[1]["image"], ns=(0, time.time_ns() + 10**9))
    after = images(make("disk"))
    assert torch.equal(after, images(make())) and not torch.equal(after[1], before[1])


@pytest.mark.parametrize(
    "changed",
    [
        steps(low=5.0),
        steps(volume=0),  # of the reader
        Compose([*steps().transforms, ScaleIntensityRanged("image", 0, 2, 0, 1)]),
        Compose([*steps().transforms, ScaleIntensityRanged("image", 0, 3, 0, 1)]),  # in raw units
    ],
)
def test_a_changed_transform_is_applied(make, loads, changed):
    images(make("disk"))
    images(make("disk", Compose([*steps().transforms, ScaleIntensityRanged("image", 0, 1, 0, 1)])))
    loads.clear()
    assert torch.equal(images(make("disk", changed)), images(make("none", changed)))
    assert len(loads) == 10


def test_the_same_transform_made_again_finds_what_is_kept(make, loads):
    images(make("disk", steps()))
    loads.clear()
    images(make("disk", steps()))
    assert loads == []


def test_a_corrected_label_and_name_are_used(make, items):
    images(make("disk"))
    corrected = [{**item, "label": 1 - item["label"], "case": f"case {n}"} for n, item in enumerate(items)]
    data = make("disk", data=corrected)
    assert [item["label"] for item in data] == [1, 0, 1, 0, 1] and data[0]["case"] == "case 0"


def test_a_kept_file_that_was_cut_short_is_prepared_again(make, tmp_path):
    expected = images(make("disk"))
    for share in (0.0, 0.3, 0.9):
        for file in (tmp_path / "cache").glob("*.pt"):
            content = file.read_bytes()
            file.write_bytes(content[: int(share * len(content))])
        assert torch.equal(images(make("disk")), expected)


def test_a_kept_file_cannot_run_code(make, tmp_path):
    images(make("disk"))

    class Harmful:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    for file in (tmp_path / "cache").glob("*.pt"):
        file.write_bytes(pickle.dumps(Harmful(), protocol=2))
    with pytest.warns(UserWarning, match="Corrupt cache file"):
        images(make("disk"))
    assert not (tmp_path / "harm").exists()


def test_files_of_a_folder_and_of_several_channels_are_watched(tmp_path):
    (tmp_path / "series").mkdir()
    files = [tmp_path / name for name in ("a.nii", "m.nii", "series/1.dcm", "p.hdr", "p.img")]
    for file in files:
        file.write_bytes(b"1")
    image = [str(files[0]), f"{tmp_path}/series::1.2", None, (str(files[2]),), str(files[3])]
    item = {"image": image, "mask": str(files[1]), "centre": [1.0, 2.0, 3.0]}
    known = {dataset._item_digest("", item)}
    for file in files:
        file.write_bytes(b"22")
        known.add(dataset._item_digest("", item))
    (tmp_path / "series" / "2.dcm").write_bytes(b"1")
    known |= {dataset._item_digest("", item), dataset._item_digest("", {**item, "centre": [1.0, 2.0, 4.0]})}
    assert len(known) == len(files) + 3


def test_two_at_once_write_one_cache(make):
    expected, found = images(make()), []
    threads = [threading.Thread(target=lambda: found.append(images(make("disk")))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3 and all(torch.equal(each, expected) for each in found)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_scan_names_its_case(make, items, cache, workers):
    os.truncate(items[3]["image"], 500)
    loader = ScanLoader(make(cache), 5, "cpu", num_workers=workers)
    with pytest.raises(ValueError, match=r"the case 3.nii cannot be used: expected .*; inspect again, which leaves it"):
        list(loader)


def test_a_case_without_contrast_names_its_case(make, items):
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 6), np.float32), AFFINE), items[2]["image"])
    with pytest.raises(ValueError, match=r"the case 2.nii cannot be used: expected an image, every voxel is 1"):
        images(make("memory"))


def test_no_cache(items):
    with pytest.raises(ValueError, match="unknown cache 'ram'; choose from memory, disk, shared, none"):
        LabelledScanDataset(items, steps(), cache="ram")
    with pytest.raises(ValueError, match="the cache on disk has no folder: give --cache_dir"):
        LabelledScanDataset(items, steps(), cache="disk")


def test_a_random_transform_would_be_kept(items):
    with pytest.raises(ValueError, match="RandFlip is random, and would be kept: give it to the loader"):
        LabelledScanDataset(items, Compose([steps(), RandFlipd("image", prob=0.5)]))


# -- epochs ----------------------------------------------------------------------------------------------------------


def random_steps():
    return Compose(
        [
            RandAffineBatchd("image", 0.9, [0.3] * 3, [2] * 3, [0.1] * 3, flip_prob=0.5),
            RandGaussianNoised("image", prob=1.0, std=0.1),
        ]
    )


def epochs(data, count=3, first=0, seed=0, workers=0, weighted=False):
    """Return the batches of epochs, as a trainer makes them."""
    sampler = WeightedRandomSampler([1.0, 3.0, 1.0, 3.0, 1.0], 5) if weighted else None
    loader = ScanLoader(data, 2, "cpu", not weighted, sampler, random_steps(), num_workers=workers)
    found = []
    engine = Engine(lambda engine, batch: found.append((batch["case"], batch["image"])))
    if first:
        engine.load_state_dict({"epoch": first, "epoch_length": 3, "max_epochs": count})
    SeededEpochs(seed).attach(engine)
    engine.run(loader, max_epochs=count)
    return found


def same(first, second):
    return len(first) == len(second) and all(
        cases == others and torch.equal(image, other) for (cases, image), (others, other) in zip(first, second)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_epochs_are_repeatable(make, weighted):
    data = make("memory")
    whole = epochs(data, weighted=weighted)
    assert len(whole) == 9 and len({str([cases for cases, _ in whole[n : n + 3]]) for n in (0, 3, 6)}) > 1
    torch.rand(7), np.random.rand(3)
    assert same(whole, epochs(data, weighted=weighted))
    assert same(whole[6:], epochs(data, first=2, weighted=weighted))  # resumed
    assert not same(whole, epochs(data, seed=1, weighted=weighted))


@pytest.mark.parametrize("cache", CACHES)
def test_workers_give_the_same_batches(make, cache):
    weighted = cache == "disk"
    assert same(epochs(make(), 2, weighted=weighted), epochs(make(cache), 2, workers=2, weighted=weighted))


def test_random_transforms_leave_the_kept_scans_as_they_are(make):
    data = make("memory")
    before = images(data).clone()
    epochs(data, 1)
    for batch in ScanLoader(data, 1, "cpu"):
        batch["image"].zero_()
    assert torch.equal(images(data), before)


def test_batches_are_plain_tensors_with_the_names_of_cases(make):
    batch = next(iter(ScanLoader(make(), 3, "cpu", transform=random_steps())))
    assert type(batch["image"]) is torch.Tensor and batch["image"].shape == (3, 1, 4, 4, 6)
    assert batch["label"].dtype == torch.int64 and batch["case"] == ["0.nii", "1.nii", "2.nii"]


def test_the_largest_of_some_scans_stands_for_all(monkeypatch, caplog):
    monkeypatch.setattr(dataset, "available_memory", lambda: 16 * 9**3)
    data = LabelledScanDataset([{"image": torch.zeros(1, side, side, side)} for side in (2, 9, 9, 9, 2)], dict)
    assert data.prepare() and "2 of 5 prepared" in caplog.text
