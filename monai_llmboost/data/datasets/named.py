# SPDX-License-Identifier: Apache-2.0
"""Labelled volumes by the name of their set: one MONAI dataset for MedMNIST3D and the phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from monai.data import Dataset
from sklearn.model_selection import StratifiedKFold

from monai_llmboost.arguments import is_whole
from monai_llmboost.data.datasets.medmnist import (
    SPLITS,
    medmnist3d_arrays,
    medmnist3d_classes,
    medmnist3d_file,
    medmnist3d_names,
)
from monai_llmboost.data.datasets.phantoms import PHANTOM_CLASSES, phantom_arrays

PHANTOM = "phantom"
# Where files are looked for unless another folder is given.
ROOT = "~/.medmnist"


def class_names(dataset: str) -> list[str]:
    """What the labels 0, 1, ... of a set mean.

    Raises:
        ValueError: no such set; the message lists them.
    """
    if dataset == PHANTOM:
        return list(PHANTOM_CLASSES)
    if dataset not in medmnist3d_names():
        raise ValueError(f"expected dataset to be one of {', '.join([PHANTOM, *medmnist3d_names()])}, got {dataset!r}")
    return medmnist3d_classes(dataset)


def reads_files(dataset: str) -> bool:
    """Return whether a set is read from files, rather than made by code."""
    return dataset != PHANTOM


def check_source(dataset: str, root: str | Path, download: bool) -> None:
    """Refuse a folder or a download for a set that has no files: most likely another set was meant.

    Raises:
        ValueError: such a folder or download.
    """
    if reads_files(dataset):
        return
    for words, given in (("--dataset_dir", root if str(root) != ROOT else ""), ("--download", download)):
        if given:
            raise ValueError(
                f"{words} has no effect: the data set {dataset!r} is made by code and read from no files, got "
                f"{str(given)!r}; give --dataset NAME too, or leave {words} out"
            )


# The division of a set without folds.
OFFICIAL = "official splits"


class LabelledVolumes(Dataset):
    """One split of a set: items ``{"image": (1, S, S, S) uint8, "label": int, "case": "test-0007"}``, then transforms.

    The items are views of the whole: ``images`` (cases, S, S, S) uint8, ``labels`` (cases,) int64, ``cases`` (names).
    ``division`` says in words how cases are divided into training and validation, such as "phantom, fold 0 of 4 by
    seed 0".

    Args:
        dataset: ``"phantom"`` (made by code, no files) or one of the six MedMNIST3D sets.
        split: ``"train"``, ``"val"`` or ``"test"``, the official ones.
        size: voxels along each axis; 28 or 64 for MedMNIST3D.
        root: folder that holds the MedMNIST3D files; phantoms have none, and take no folder but the default.
        download: fetch a missing MedMNIST3D file by medmnist's own download.
        transform: MONAI transform on the item.
        folds: 0 for the official splits, or into how many parts the cases of ``"train"`` and ``"val"`` together are
            dealt, with each class spread evenly; one of them is then ``"val"`` and the others are ``"train"``.
        fold: which one, from 0.
        fold_seed: of the dealing, a whole number from 0.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`medmnist3d_file`; an unknown set or split; folds
            that there are not, or more of them than a class has cases.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        size: int = 28,
        root: str | Path = ROOT,
        download: bool = False,
        transform: Callable | None = None,
        folds: int = 0,
        fold: int = 0,
        fold_seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
        if not isinstance(download, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected download to be True or False, got {download!r}")
        if not is_whole(fold_seed) or not 0 <= fold_seed < 2**32:
            raise ValueError(
                f"expected fold_seed to be a whole number from 0 to 2**32 - 1, got {fold_seed!r}: give --seed 0, say"
            )
        self.class_names = class_names(dataset)
        check_source(dataset, root, download)
        dealt = check_folds(folds, fold) and split != "test"
        parts = ["train", "val"] if dealt else [split]
        if dataset == PHANTOM:
            arrays = [phantom_arrays(part, size) for part in parts]
        else:
            file = medmnist3d_file(dataset, size, root, download)
            arrays = [medmnist3d_arrays(file, dataset, part) for part in parts]
        images, labels = (np.concatenate(each) if dealt else each[0] for each in zip(*arrays))
        cases = [f"{part}-{index:04d}" for part, (_, own) in zip(parts, arrays) for index in range(len(own))]
        if dealt:
            chosen = _dealt(labels, split, folds, fold, fold_seed)
            images, labels, cases = images[chosen], labels[chosen], [cases[index] for index in chosen]
        self.images, self.labels, self.cases = images, labels, cases
        self.split = split
        self.division = f"{dataset}, " + (f"fold {fold} of {folds} by seed {fold_seed}" if folds else OFFICIAL)
        items = [
            {"image": image[None], "label": int(label), "case": case}
            for image, label, case in zip(images, labels, cases)
        ]
        super().__init__(items, transform)


def check_folds(folds: int, fold: int) -> bool:
    """Whether there are folds.

    Raises:
        ValueError: a number of folds or a fold that cannot be.
    """
    if not isinstance(folds, int) or isinstance(folds, bool) or folds < 0 or folds == 1:
        raise ValueError(f"expected folds to be 0 (the official splits) or a whole number from 2, got {folds!r}")
    if not isinstance(fold, int) or isinstance(fold, bool) or not 0 <= fold < max(folds, 1):
        raise ValueError(f"expected fold to be a whole number from 0 to {max(folds, 1) - 1}, got {fold!r}")
    return folds > 0


def _dealt(labels: np.ndarray, split: str, folds: int, fold: int, seed: int) -> np.ndarray:
    """Numbers of the cases of a split, in order."""
    fewest = np.bincount(labels)[np.unique(labels)].min()
    if folds > fewest:
        raise ValueError(f"expected no more folds than a class has cases, got {folds} for {fewest}: ask for fewer")
    dealing = StratifiedKFold(folds, shuffle=True, random_state=seed)
    train, val = list(dealing.split(labels, labels))[fold]
    return val if split == "val" else train
