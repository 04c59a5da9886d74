# SPDX-License-Identifier: Apache-2.0
"""Labelled volumes by the name of their set: one MONAI dataset for MedMNIST3D and the phantoms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from medmnist.info import INFO
from monai.data import Dataset

from monai_llmboost.arguments import check_choice, check_switch
from monai_llmboost.data.datasets.folds import Folds
from monai_llmboost.data.datasets.labelled import check_fraction, select_labelled
from monai_llmboost.data.datasets.lidc import LIDC_CLASSES, LIDC_NAMES, load_lidc
from monai_llmboost.data.datasets.medmnist import SPLITS, load_medmnist3d, medmnist3d_names
from monai_llmboost.data.datasets.phantoms import PHANTOM_CLASSES, phantom_arrays

# Folder of the files unless another one is given.
ROOT = "~/.medmnist"


@dataclass(frozen=True)
class NamedSet:
    """A set of labelled volumes with official splits.

    Args:
        class_names: meaning of the labels 0, 1, ...
        load: function of the split, the size in voxels, the folder and whether to download, to volumes (cases, S, S, S)
            uint8, labels (cases,) int64, and, if several cases may be of one patient, their patients (cases,).
        reads_files: whether volumes are read from files; False for synthetic volumes.
        downloads: whether the files can be downloaded.
    """

    class_names: list[str]
    load: Callable[[str, int, str | Path, bool], tuple[np.ndarray, ...]]
    reads_files: bool = True
    downloads: bool = True


def _load_lidc(name: str, split: str, size: int, root: str | Path, _: bool) -> tuple[np.ndarray, ...]:
    nodules = load_lidc(name, split, size, root)
    return nodules.images, nodules.labels, nodules.patients


SETS = {"phantom": NamedSet(PHANTOM_CLASSES, lambda split, size, *_: phantom_arrays(split, size), reads_files=False)}
SETS |= {
    name: NamedSet(list(INFO[name]["label"].values()), partial(load_medmnist3d, name)) for name in medmnist3d_names()
}
SETS |= {name: NamedSet(LIDC_CLASSES, partial(_load_lidc, name), downloads=False) for name in LIDC_NAMES}


def class_names(dataset: str) -> list[str]:
    """Return the meaning of the labels 0, 1, ... of a set.

    Raises:
        ValueError: no such set; the message lists them.

    Example:
        >>> class_names("adrenalmnist3d")
        ['normal', 'hyperplasia']
    """
    check_choice("dataset", dataset, SETS)
    return list(SETS[dataset].class_names)


def reads_files(dataset: str) -> bool:
    """Return whether a set is read from files instead of being synthetic; sets of other packages count as files."""
    return dataset not in SETS or SETS[dataset].reads_files


def check_source(dataset: str, root: str | Path, download: bool) -> None:
    """Refuse a folder or a download for a set without files, because most likely another set was meant.

    Raises:
        ValueError: a folder or a download is given for a set without files, or a download that there is none of.
    """
    if download and dataset in SETS and not SETS[dataset].downloads and reads_files(dataset):
        raise ValueError(
            f"the data set {dataset} cannot be downloaded: leave out --download, and put its file in place"
        )
    if reads_files(dataset):
        return
    for option, value in (("--dataset_dir", root if str(root) != ROOT else ""), ("--download", download)):
        if value:
            raise ValueError(
                f"{option} has no effect: the data set {dataset!r} is made by code and read from no files, got "
                f"{str(value)!r}; give --dataset NAME too, or leave {option} out"
            )


class LabelledVolumes(Dataset):
    """One split of a set: items ``{"image": (1, S, S, S) uint8, "label": int, "case": "test-0007"}``, then transforms.

    Where several cases may be of one patient, items also have ``"patient"``, their name.

    The items are views of ``images`` (cases, S, S, S) uint8, ``labels`` (cases,) int64 and ``cases`` (names).
    ``division`` describes the division into training and validation, such as "phantom, fold 0 of 4 by seed 0", and
    ``num_cases`` is the number of different cases.

    Args:
        dataset: ``"phantom"`` (synthetic, no files), one of the six MedMNIST3D sets, ``"lidcshapes"`` or
            ``"lidcshapes_sizefree"`` (:mod:`monai_llmboost.data.datasets.lidc`).
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: voxels along each axis; 28 or 64 for MedMNIST3D.
        root: folder of the MedMNIST3D files; phantoms have none, and accept only the default.
        download: whether to download a missing MedMNIST3D file with the medmnist package.
        transform: MONAI transform of an item.
        label_fraction: fraction of the training cases of each class, chosen by ``fold_seed`` and repeated to the number
            of all, see :func:`~monai_llmboost.data.datasets.labelled.select_labelled`; other splits stay complete.
        folds: ``folds``, ``fold`` and ``fold_seed`` of :class:`~monai_llmboost.data.datasets.folds.Folds`, which divide
            training and validation cases again, without dividing a patient; by default, the official splits are used.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`medmnist3d_file`; an unknown set or split, or
            impossible folds.

    Example:
        >>> volumes = LabelledVolumes("phantom", "val", size=8, folds=2, fold=1)
        >>> volumes[0]["image"].shape, volumes.class_names, volumes.division
        ((1, 8, 8, 8), ['shell', 'ring'], 'phantom, fold 1 of 2 by seed 0')
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        size: int = 28,
        root: str | Path = ROOT,
        download: bool = False,
        transform: Callable | None = None,
        label_fraction: float = 1.0,
        **folds: int,
    ) -> None:
        check_choice("split", split, SPLITS)
        check_switch("download", download)
        self.class_names = class_names(dataset)
        check_source(dataset, root, download)
        check_fraction(label_fraction)
        division = Folds(**folds)
        divided = division.applies_to(split)
        official = ["train", "val"] if divided else [split]
        arrays = [SETS[dataset].load(name, size, root, download) for name in official]
        images, labels, *groups = (np.concatenate(each) if divided else each[0] for each in zip(*arrays))
        cases = [f"{name}-{index:04d}" for name, (_, own, *_) in zip(official, arrays) for index in range(len(own))]
        selected = division.select(labels, split, *groups) if divided else np.arange(len(labels))
        if split == "train" and label_fraction < 1:
            selected = selected[select_labelled(labels[selected], label_fraction, division.fold_seed)]
        if divided or label_fraction < 1:
            images, labels, cases = images[selected], labels[selected], [cases[index] for index in selected]
        self.num_cases = len(set(cases))
        self.images, self.labels, self.cases = images, labels, cases
        self.split = split
        self.division = f"{dataset}, {division.describe()}"
        items: list[dict[str, Any]] = [
            {"image": image[None], "label": int(label), "case": case}
            for image, label, case in zip(images, labels, cases)
        ]
        for patients in groups:
            for item, index in zip(items, selected):
                item["patient"] = str(patients[index])
        super().__init__(items, transform)
