# SPDX-License-Identifier: Apache-2.0
"""Nodules as shapes: the known files only, and no patient in two parts."""

import numpy as np
import pytest
from monai.data import Dataset

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.data import LabelledVolumes, class_names
from monai_llmboost.data.datasets import lidc
from monai_llmboost.data.labels import patients_of

SPLITS = {"train": 24, "val": 8, "test": 6}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small file of the same form, known by its digest."""
    random, arrays = np.random.default_rng(0), {}
    for number, (split, cases) in enumerate(SPLITS.items()):
        arrays[f"{split}_images"] = random.integers(0, 256, (cases, 28, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(cases, dtype=np.uint8)[:, None] // 2 % 2
        arrays[f"{split}_patient"] = np.array([f"{number}-{case // 4}" for case in range(cases)])
    path = tmp_path / "lidcshape3d_28.npz"
    np.savez_compressed(path, **arrays)
    monkeypatch.setitem(lidc.FILES, ("lidcshapes", 28), (path.name, file_digest(path)))
    return tmp_path


def test_it_has_the_form_of_every_set(folder):
    volumes = LabelledVolumes("lidcshapes", "train", root=folder)
    assert (len(volumes), volumes[3]["image"].shape, volumes[3]["label"]) == (24, (1, 28, 28, 28), 1)
    assert volumes.class_names == class_names("lidcshapes") == ["looks benign", "looks malignant"]


def test_the_patient_of_each_case_is_known(folder):
    for options in ({}, {"label_fraction": 0.5}, {"folds": 4, "fold": 1}):
        volumes = LabelledVolumes("lidcshapes", "train", root=folder, **options)
        known = patients_of(volumes)
        assert set(known) == set(volumes.cases)
        for case, patient in known.items():
            split, number = case.split("-")
            assert patient == f"{list(SPLITS).index(split)}-{int(number) // 4}"
    assert patients_of(LabelledVolumes("phantom", "test", size=8)) == {}
    some = Dataset([{"case": "a", "patient": "b"}, {"case": "b"}])
    assert patients_of(some) == {"a": "b", "b": "case b"}, "an item without one is of another patient"


def test_no_fold_divides_a_patient(folder):
    patients = {
        f"{split}-{case:04d}": f"{split}-{case // 4}" for split, cases in SPLITS.items() for case in range(cases)
    }
    validated = []
    for fold in range(4):
        train, val = (
            LabelledVolumes("lidcshapes", split, root=folder, folds=4, fold=fold).cases for split in ("train", "val")
        )
        assert not {patients[case] for case in train} & {patients[case] for case in val}
        validated += val
    assert sorted(validated) == sorted(case for case in patients if not case.startswith("test"))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("lidcshapes", 32, "size must be 28 or 64 for lidcshapes, not 32"),
        ("lidcshapes_sizefree", 64, "size must be 28 for lidcshapes_sizefree, not 64"),
    ],
)
def test_a_size_that_there_is_not(folder, name, size, message):
    with pytest.raises(ValueError, match=message):
        LabelledVolumes(name, "train", size=size, root=folder)


def test_files_that_are_not_there_or_not_the_known_ones(folder):
    with pytest.raises(
        FileNotFoundError, match=r"lidcshape3d_64.npz is not in .*: put it there; it cannot be downloaded"
    ):
        LabelledVolumes("lidcshapes", "train", size=64, root=folder)
    (folder / "lidcshape3d_28.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"is not the known file of lidcshapes \(SHA-256 .*: it is damaged or altered"):
        LabelledVolumes("lidcshapes", "train", root=folder)
    with pytest.raises(ValueError, match="lidcshapes cannot be downloaded: leave out --download"):
        LabelledVolumes("lidcshapes", "train", root=folder, download=True)


@pytest.mark.parametrize(("name", "size"), list(lidc.FILES))
def test_the_real_files(real_data, name, size):
    root, patients = real_data / "lidc_shapes", {}
    for split, cases, positive in (("train", 596, 308), ("val", 71, 36), ("test", 198, 73)):
        found = lidc.load_lidc(name, split, size, root)
        assert (len(found.images), int(found.labels.sum()), found.images.shape[1:]) == (cases, positive, (size,) * 3)
        patients[split] = set(found.patients)
    assert not patients["train"] & patients["val"] and not (patients["train"] | patients["val"]) & patients["test"]
