# SPDX-License-Identifier: Apache-2.0
"""LIDC-IDRI nodules as shapes: the masks that radiologists drew, with their opinion of malignancy as label.

The outlines and ratings are of LIDC-IDRI (Armato et al. 2011, doi:10.1118/1.3528204; CC BY 3.0). Grey values are not
included. The label is the readers' opinion (median malignancy above 3), not pathology. Size alone predicts it well, so
``lidcshapes_sizefree`` has every nodule scaled to one volume.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_llmboost.artifacts.digests import file_digest

LIDC_CLASSES = ["looks benign", "looks malignant"]
# Name of the file and its SHA-256 digest, by set and size in voxels.
FILES = {
    ("lidcshapes", 28): (
        "lidcshape3d_28.npz",
        "8ca7deb4d73e6a037ca2b9d4c52ab8654b03f55f6eebaae7d61f8c7205a62ec5",
    ),
    ("lidcshapes", 64): (
        "lidcshape3d_64.npz",
        "eae03a6f9d434a1b2d83cd7489fcfe4fcff75962dcdce94eba86eda29e83e5f8",
    ),
    ("lidcshapes_sizefree", 28): (
        "lidcshape3d_sizefree_28.npz",
        "15a5eeae5091adc34b2e7b8faf278d9eed5fb42c7afac9feac2fb1eb2060bf9b",
    ),
}
LIDC_NAMES = sorted({name for name, _ in FILES})


@dataclass(frozen=True)
class Nodules:
    """The nodules of a split.

    Args:
        images: share of the readers whose mask has a voxel, times 255; (cases, S, S, S) uint8.
        labels: (cases,) int64.
        patients: name of the patient of each nodule, (cases,).
    """

    images: np.ndarray
    labels: np.ndarray
    patients: np.ndarray


def load_lidc(name: str, split: str, size: int, root: str | Path) -> Nodules:
    """Return the nodules of a split; the splits of the file have no patient in common.

    Args:
        name: ``"lidcshapes"`` or ``"lidcshapes_sizefree"``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        size: 28 or 64 voxels along each axis, of 1.5 and 0.75 mm; 28 for the size-free set.
        root: folder of the file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a size that the set does not have, or a file that is not the known one.
    """
    sizes = {size: file for (own, size), file in FILES.items() if own == name}
    if size not in sizes:
        raise ValueError(f"size must be {' or '.join(map(str, sizes))} for {name}, not {size!r}")
    file, digest = sizes[size]
    path = Path(root).expanduser() / file
    if not path.is_file():
        raise FileNotFoundError(
            f"{file} is not in {path.parent}: put it there; it cannot be downloaded, and the documentation of file "
            "formats says what it contains"
        )
    if (found := file_digest(path)) != digest:
        raise ValueError(
            f"{path} is not the known file of {name} (SHA-256 {found[:12]}..., expected {digest[:12]}...): it is "
            "damaged or altered; put the known one there"
        )
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels, patients = (content[f"{split}_{part}"] for part in ("images", "labels", "patient"))
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot read the {split} split of {path} ({error}): put the known file there") from error
    return Nodules(images, labels.reshape(-1).astype(np.int64), patients)
