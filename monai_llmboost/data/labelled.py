# SPDX-License-Identifier: Apache-2.0
"""Labelled volumes by the name of their set: one MONAI dataset for MedMNIST3D and the phantoms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from monai.data import Dataset

from monai_llmboost.data.medmnist3d import (
    SPLITS,
    medmnist3d_arrays,
    medmnist3d_classes,
    medmnist3d_file,
    medmnist3d_names,
)
from monai_llmboost.data.phantoms import PHANTOM_CLASSES, phantom_arrays

PHANTOM = "phantom"


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


class LabelledVolumes(Dataset):
    """One split of a set: items ``{"image": (1, S, S, S) uint8, "label": int, "case": "test-0007"}``, then transforms.

    The items are views of the whole: ``images`` (cases, S, S, S) uint8, ``labels`` (cases,) int64, ``cases`` (names).

    Args:
        dataset: ``"phantom"`` (made by code, no files) or one of the six MedMNIST3D sets.
        split: ``"train"``, ``"val"`` or ``"test"``, the official ones.
        size: voxels along each axis; 28 or 64 for MedMNIST3D.
        root: folder that holds the MedMNIST3D files; unused for phantoms.
        download: fetch a missing MedMNIST3D file by medmnist's own download.
        transform: MONAI transform on the item.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: see :func:`medmnist3d_file`; an unknown set or split.
    """

    def __init__(
        self,
        dataset: str,
        split: str,
        size: int = 28,
        root: str | Path = "~/.medmnist",
        download: bool = False,
        transform: Callable | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split!r}")
        if not isinstance(download, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected download to be True or False, got {download!r}")
        self.class_names = class_names(dataset)
        if dataset == PHANTOM:
            self.images, self.labels = phantom_arrays(split, size)
        else:
            self.images, self.labels = medmnist3d_arrays(medmnist3d_file(dataset, size, root, download), dataset, split)
        self.cases = [f"{split}-{index:04d}" for index in range(len(self.labels))]
        items = [
            {"image": image[None], "label": int(label), "case": case}
            for image, label, case in zip(self.images, self.labels, self.cases)
        ]
        super().__init__(items, transform)
