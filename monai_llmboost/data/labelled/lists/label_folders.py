# SPDX-License-Identifier: Apache-2.0
"""Images and label maps in the folders of the Decathlon and nnU-Net, imagesTr and labelsTr."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.data.labelled.lists.rows import Row, Table

# Folders of images and label maps by split.
FOLDERS = {"": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}
# The file in them that names structures and channels, and in the Decathlon also the cases.
DESCRIPTION = "dataset.json"
ENDINGS = (".nii.gz", ".nii")
# nnU-Net ends the name of an image with the number of its channel.
CHANNEL = re.compile(r"(.+)_(\d{4})")


def has_label_folders(path: Path) -> bool:
    """Return whether a folder has images and label maps in this layout."""
    return all((path / name).is_dir() for name in FOLDERS[""])


def read_label_folders(path: Path, description: Mapping[str, Any]) -> Table:
    """Return the rows of a folder, whose paths are relative to it.

    An image is named as its label map, or in nnU-Net with the number of its channel, ``a_0000.nii.gz``. Images for a
    test count if there are label maps of them.

    Args:
        path: the folder.
        description: ``labels`` and ``channel_names`` as in nnU-Net's ``dataset.json``, as far as they are known.
    """
    rows = []
    names = description.get("channel_names", description.get("modality"))
    numbered = isinstance(names, Mapping)
    found = {split: _find_images(path / images, path / labels) for split, (images, labels) in FOLDERS.items()}
    width = max((len(channels) for cases in found.values() for channels in cases.values()), default=1)
    channels = tuple(str(name) for name in names.values()) if isinstance(names, Mapping) else ()
    if not numbered or len(channels) != width or width == 1:
        channels = ("image",) if width == 1 else tuple(f"image {number + 1}" for number in range(width))
    for split, (_, folder) in FOLDERS.items():
        labels = {name: file for file, name in _files_in(path / folder)}
        if split and not labels:
            continue
        for case in sorted({*found[split], *labels}):
            files = found[split].get(case, {})
            images = tuple(_relative(files.get(number), path) for number in range(width))
            values = {"split": split, "case": case, "label": _relative(labels.get(case), path)}
            rows.append(Row(f"case {case}", images, values))
    if not rows:
        raise ValueError(f"{path} has no NIfTI files in {' and '.join(FOLDERS[''])}: put images and label maps there")
    if any(row.values["split"] for row in rows):
        rows = [Row(row.place, row.images, {**row.values, "split": row.values["split"] or "train"}) for row in rows]
    return Table(channels, rows, description.get("labels"))


def names_channels(image: Path) -> bool:
    """Return whether a file that is not there is, in nnU-Net, one for each channel: its list says ``a.nii.gz``."""
    ending = next((one for one in ENDINGS if image.name.endswith(one)), "")
    first = image.with_name(f"{image.name.removesuffix(ending)}_0000{ending}")
    return bool(ending) and not image.exists() and first.is_file()


def _find_images(folder: Path, labels: Path) -> dict[str, dict[int, Path]]:
    """Return the file of each channel by case; a number that label maps have too is no channel's."""
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    files, cases = list(_files_in(folder)), {name for _, name in _files_in(labels)}
    numbered = all(CHANNEL.fullmatch(name) and name not in cases for _, name in files)
    for file, name in files:
        match = CHANNEL.fullmatch(name) if numbered else None
        case, number = (match[1], int(match[2])) if match else (name, 0)
        found[case][number] = file
    return found


def _files_in(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the NIfTI files of a folder with their names without ending; none if it is not there."""
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        ending = next((one for one in ENDINGS if file.name.lower().endswith(one)), None)
        if ending and not file.name.startswith("."):
            yield file, file.name[: -len(ending)]


def _relative(file: Path | None, folder: Path) -> str:
    return "" if file is None else file.relative_to(folder).as_posix()
