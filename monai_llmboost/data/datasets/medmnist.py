# SPDX-License-Identifier: Apache-2.0
"""MedMNIST3D sets with their official splits and checksums, from a local folder or downloaded by medmnist."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from medmnist.info import INFO

SIZES = (28, 64)
SPLITS = ("train", "val", "test")


def medmnist3d_names() -> list[str]:
    """Return the names of the six sets."""
    return sorted(name for name in INFO if name.endswith("3d"))


def load_medmnist3d(
    name: str, split: str, size: int, root: str | Path, download: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return volumes and labels of a split; see :func:`medmnist3d_file` and :func:`medmnist3d_arrays`."""
    return medmnist3d_arrays(medmnist3d_file(name, size, root, download), name, split)


def medmnist3d_file(name: str, size: int, root: str | Path, download: bool = False) -> Path:
    """Return the official file of a set, verified by its checksum.

    Args:
        name: one of :func:`medmnist3d_names`.
        size: 28 or 64 voxels along each axis.
        root: folder of the file, also for the download.
        download: whether to download a missing file with medmnist.

    Raises:
        FileNotFoundError: the file is missing, and ``download`` is False.
        ConnectionError: the download failed.
        ValueError: an unknown size, or a file that is not the official one.
    """
    if size not in SIZES:
        raise ValueError(f"size must be {' or '.join(map(str, SIZES))} for MedMNIST3D, not {size!r}")
    info, suffix = INFO[name], "" if size == 28 else f"_{size}"
    root = Path(root).expanduser()
    path = root / f"{name}{suffix}.npz"
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"{path.name} is not in {root}: put the official file there, or add `--download True` to fetch it"
            )
        _download(info["python_class"], size, root, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest() if hasattr(hashlib, "file_digest") else _md5(file)
    if digest != info[f"MD5{suffix}"]:
        raise ValueError(
            f"{path} is not the official {name} file (MD5 {digest}, expected {info[f'MD5{suffix}']}): "
            "it is damaged or altered; remove it, then add `--download True` to fetch it again"
        )
    return path


def _md5(file: Any) -> str:
    digest = hashlib.md5()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _download(python_class: str, size: int, root: Path, path: Path) -> None:
    import medmnist

    root.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # medmnist warns about its own dependencies
            getattr(medmnist, python_class)(split="train", root=str(root), size=size, download=True)
    except Exception as error:  # medmnist turns any error, of the network for instance, into a bare RuntimeError
        path.unlink(missing_ok=True)  # an incomplete download
        raise ConnectionError(
            f"cannot download {path.name}: check the network, or put the official file into {root} by hand "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
        ) from error


def medmnist3d_arrays(path: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return volumes (cases, S, S, S) uint8 and labels (cases,) int64 of one official split.

    Raises:
        ValueError: the file does not have that split with the official number of cases.
    """
    expected = INFO[name]["n_samples"][split]
    try:
        with np.load(path, allow_pickle=False) as content:
            images, labels = content[f"{split}_images"], content[f"{split}_labels"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"cannot read the {split} split of {path} ({error}): download the official file again"
        ) from error
    if len(images) != expected or images.ndim != 4:
        raise ValueError(
            f"expected {expected} volumes in the {split} split of {path}, got shape {images.shape}: download the "
            "official file again"
        )
    return images, labels.reshape(-1).astype(np.int64)
