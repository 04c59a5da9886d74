# SPDX-License-Identifier: Apache-2.0
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import medmnist.info
import numpy as np
import pytest

from monai_llmboost.data import LabelledVolumes, class_names, medmnist3d_file, medmnist3d_names, phantom_arrays

SMALL_SPLITS = {"train": 4, "val": 3, "test": 2}


@pytest.fixture
def official(tmp_path, monkeypatch):
    """A stand-in for the official AdrenalMNIST3D files: real form, few cases, their checksums in medmnist's table."""
    random = np.random.default_rng(0)
    entry = {**medmnist.info.INFO["adrenalmnist3d"], "n_samples": SMALL_SPLITS}
    folder = tmp_path / "official"
    folder.mkdir()
    for size, suffix in ((28, ""), (64, "_64")):
        arrays = {}
        for split, cases in SMALL_SPLITS.items():
            arrays[f"{split}_images"] = random.integers(0, 256, (cases, size, size, size), dtype=np.uint8)
            arrays[f"{split}_labels"] = np.arange(cases, dtype=np.uint8)[:, None] % 2
        path = folder / f"adrenalmnist3d{suffix}.npz"
        np.savez_compressed(path, **arrays)
        entry[f"MD5{suffix}"] = hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(medmnist.info.INFO, "adrenalmnist3d", entry)
    return folder


def test_phantoms_have_the_form_of_medmnist():
    volumes = LabelledVolumes("phantom", "val")
    assert len(volumes) == 120
    assert volumes[7]["image"].shape == (1, 28, 28, 28)
    assert volumes[7]["image"].dtype == np.uint8
    assert (volumes[7]["label"], volumes[7]["case"]) == (1, "val-0007")


def test_phantoms_are_seeded_and_splits_differ():
    images, labels = phantom_arrays("train", cases=6)
    again, _ = phantom_arrays("train", cases=6)
    other, _ = phantom_arrays("test", cases=6)
    assert np.array_equal(images, again)
    assert not np.array_equal(images, other)
    assert labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_brightness_does_not_distinguish_phantom_classes():
    images, labels = phantom_arrays("train")
    brightness = images.mean((1, 2, 3))
    difference = brightness[labels == 0].mean() - brightness[labels == 1].mean()
    assert abs(difference) < 0.3 * brightness.std()


@pytest.mark.parametrize("size", [8, 40])
def test_phantoms_of_other_sizes(size):
    assert phantom_arrays("val", size, cases=2)[0].shape == (2, size, size, size)


@pytest.mark.parametrize("size", [28, 64])
@pytest.mark.parametrize("split", SMALL_SPLITS)
def test_official_splits(official, size, split):
    volumes = LabelledVolumes("adrenalmnist3d", split, size=size, root=official)
    assert len(volumes) == SMALL_SPLITS[split]
    assert volumes[1]["image"].shape == (1, size, size, size)
    assert [item["label"] for item in volumes.data] == [index % 2 for index in range(SMALL_SPLITS[split])]
    assert volumes.class_names == ["normal", "hyperplasia"]


def test_the_six_sets_and_their_classes():
    assert len(medmnist3d_names()) == 6
    assert len(class_names("organmnist3d")) == 11
    assert class_names("phantom") == ["shell", "ring"]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adrenalmnist3d\.npz is not in .*add `--download True` to fetch it"):
        medmnist3d_file("adrenalmnist3d", 28, tmp_path)


def test_wrong_checksum(official):
    path = official / "adrenalmnist3d.npz"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=r"is not the official adrenalmnist3d file \(MD5 .* it is damaged or altered"):
        LabelledVolumes("adrenalmnist3d", "train", root=official)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("liver", "train"), "unknown dataset 'liver'; choose from phantom, adrenalmnist3d, "),
        (("phantom", "all"), "unknown split 'all'; choose from train, val, test"),
        (("adrenalmnist3d", "train", 32), "size must be 28 or 64 for MedMNIST3D, not 32"),
        (("phantom", "train", 4), "at least 8 voxels"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LabelledVolumes(*arguments)


class Zenodo(BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.content
        self.send_response(200 if content else 503)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def zenodo(official, monkeypatch):
    """A stand-in on loopback that serves the official file to medmnist's own download."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Zenodo)
    server.content = (official / "adrenalmnist3d.npz").read_bytes()
    monkeypatch.setitem(
        medmnist.info.INFO["adrenalmnist3d"], "url", f"http://127.0.0.1:{server.server_port}/adrenalmnist3d.npz"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_download(zenodo, tmp_path):
    volumes = LabelledVolumes("adrenalmnist3d", "test", root=tmp_path / "new" / "folder", download=True)
    assert len(volumes) == 2
    assert (tmp_path / "new" / "folder" / "adrenalmnist3d.npz").is_file()


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_failed_download(zenodo, tmp_path, content):
    zenodo.content = content
    with pytest.raises(ConnectionError, match=r"cannot download adrenalmnist3d\.npz: check the network, or put"):
        LabelledVolumes("adrenalmnist3d", "test", root=tmp_path, download=True)
    assert not list(tmp_path.glob("*.npz"))


def test_no_network(official, tmp_path, monkeypatch):
    monkeypatch.setitem(medmnist.info.INFO["adrenalmnist3d"], "url", "http://127.0.0.1:1/adrenalmnist3d.npz")
    with pytest.raises(ConnectionError, match="check the network"):
        LabelledVolumes("adrenalmnist3d", "test", root=tmp_path, download=True)


def test_real_files(real_data):
    expected = {"adrenalmnist3d": (1188, 98, 298), "vesselmnist3d": (1335, 191, 382)}
    for name, counts in expected.items():
        for split, count in zip(("train", "val", "test"), counts):
            assert len(LabelledVolumes(name, split, root=real_data / "medmnist")) == count
    assert len(LabelledVolumes("adrenalmnist3d", "val", size=64, root=real_data / "medmnist")) == 98


def test_folds_divide_train_and_val():
    whole = {case for split in ("train", "val") for case in LabelledVolumes("phantom", split).cases}
    left = set(whole)
    for fold in range(3):
        parts = {
            split: LabelledVolumes("phantom", split, folds=3, fold=fold, fold_seed=1) for split in ("train", "val")
        }
        train, val = (set(part.cases) for part in parts.values())
        assert train | val == whole
        assert not train & val
        assert val <= left
        left -= val
        for part in parts.values():  # each class is spread evenly
            assert np.ptp(np.bincount(part.labels)) <= 1
            original = LabelledVolumes("phantom", part.cases[0].split("-")[0])
            assert np.array_equal(part.images[0], original.images[int(part.cases[0].split("-")[1])])
            assert part.data[0]["case"] == part.cases[0]
    assert not left
    again = LabelledVolumes("phantom", "val", folds=3, fold=2, fold_seed=1)
    assert again.cases == parts["val"].cases
    assert LabelledVolumes("phantom", "val", folds=3, fold=2, fold_seed=2).cases != again.cases
    assert LabelledVolumes("phantom", "test", folds=3, fold=2).cases == LabelledVolumes("phantom", "test").cases


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1}, "folds must be 0"),
        ({"folds": "5"}, "folds must be 0"),
        ({"folds": 3, "fold": 3}, "fold must be a whole number from 0 to 2, not 3"),
        ({"fold": 1}, "fold must be a whole number from 0 to 0, not 1"),
        ({"fold_seed": -1}, "fold_seed must be a whole number from 0 to 4294967295, not -1"),
        ({"folds": 100_000}, "100000 folds are more than the "),
    ],
)
def test_impossible_folds(options, message):
    with pytest.raises(ValueError, match=message):
        LabelledVolumes("phantom", "val", **options)


@pytest.mark.parametrize(
    ("options", "words"), [({"root": "images"}, "--dataset_dir"), ({"download": True}, "--download")]
)
def test_phantoms_refuse_a_folder_and_a_download(options, words):
    """Users who give a folder mean the set in it."""
    with pytest.raises(ValueError, match=rf"{words} has no effect: the data set 'phantom' .*give --dataset NAME too"):
        LabelledVolumes("phantom", "val", **options)
    LabelledVolumes("phantom", "val", root="~/.medmnist", download=False, folds=2)
