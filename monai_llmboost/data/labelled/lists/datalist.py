# SPDX-License-Identifier: Apache-2.0
"""Labelled lists in JSON, as MONAI and Auto3DSeg read them (Decathlon datalists)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.data.labelled.lists.label_folders import has_label_folders, names_channels, read_label_folders
from monai_llmboost.data.labelled.lists.rows import CENTRE, SPLIT_WORDS, Columns, Row, Table


def read_datalist(path: Path, columns: Columns, labelled: bool) -> Table:
    """Return the rows of a datalist; see :func:`monai_llmboost.data.labelled.lists.tables.read_table`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}): write it again") from None
    parts: dict[str, Any] = {"": content} if isinstance(content, list) else {}
    labels: Any = None
    if isinstance(content, Mapping):
        parts = {key: value for key, value in content.items() if key.lower() in SPLIT_WORDS}
        labels = content.get("labels")
        if has_label_folders(path.parent) and (not parts or _names_channels(parts, path.parent)):
            return read_label_folders(path.parent, content)  # as nnU-Net, which finds the cases in the folders
    if not parts or not all(isinstance(entries, list) for entries in parts.values()):
        raise ValueError(
            f"{path} is not a datalist: write an object with lists of cases under training, validation and test, each "
            'case as {"image": PATH, "label": CLASS}'
        )
    rows = [
        _entry_to_row(entry, f"{key} case {number}".strip(), SPLIT_WORDS.get(key.lower(), ""), columns, path)
        for key, entries in parts.items()
        for number, entry in enumerate(entries, 1)
    ]
    warnings = []
    if labelled:
        # The test cases of a challenge have no labels.
        kept = [row for row in rows if "label" in row.values or row.values["split"] != "test"]
        if not any("label" in row.values for row in kept):
            raise ValueError(
                f"{path} has no case with {columns.label!r}: write each as {{'image': PATH, 'label': CLASS}}, or give "
                "--label-column with its name"
            )
        if len(kept) < len(rows):
            warnings.append(f"{len(rows) - len(kept)} test cases without a label are left out")
        rows = kept
    if not rows:
        raise ValueError(f"the list {path} has no cases: write each as {{'image': PATH, 'label': CLASS}}")
    width = len(rows[0].images)
    if other := next((row for row in rows if len(row.images) != width), None):
        raise ValueError(
            f"{other.place} of {path} has {len(other.images)} images, and others {width}: give all of each"
        )
    if {row.values["split"] for row in rows} == {"train"}:  # a datalist with one list of cases says nothing of a split
        rows = [Row(row.place, row.images, {**row.values, "split": ""}) for row in rows]
    channels = columns.images or ("image",)
    if len(channels) != width:
        channels = tuple(f"image {number + 1}" for number in range(width))
    return Table(channels, rows, labels, tuple(warnings))


def _names_channels(parts: Mapping[str, Any], folder: Path) -> bool:
    """Return whether the images of a list are those of nnU-Net's first version, without the number of a channel."""
    entries = [entry for part in parts.values() if isinstance(part, list) for entry in part]
    images = [entry["image"] for entry in entries if isinstance(entry, Mapping) and isinstance(entry.get("image"), str)]
    return any(names_channels(folder / image) for image in images)


def _entry_to_row(entry: Any, place: str, split: str, columns: Columns, path: Path) -> Row:
    wanted = columns.images or ("image",)
    if isinstance(entry, str):  # as the test cases of the Decathlon
        entry = {wanted[0]: entry}
    known = {str(key).lower(): value for key, value in entry.items()} if isinstance(entry, Mapping) else {}
    if not any(name.lower() in known for name in wanted):
        keys = ", ".join(map(str, entry)) if isinstance(entry, Mapping) else repr(entry)
        raise ValueError(f"{place} of {path} has no {wanted[0]!r}, it has {keys}: give --image-column with its name")
    images = [one for name in wanted for one in _as_list(known.get(name.lower()))]
    values = {key: getattr(columns, key).lower() for key in ("label", "split", "fold", "group", "mask", "case")}
    found = {key: known[name] for key, name in values.items() if known.get(name) is not None}
    found |= {name: known[name] for name in CENTRE if name in known}
    label = found.get("label")
    if isinstance(label, list) and len(label) == 1:
        label = found["label"] = label[0]
    if isinstance(label, (list, Mapping)):
        raise ValueError(
            f"the label of {place} of {path} is {label!r}: give one class, a word or a number, or for a segmentation "
            "one label map, in which each structure has a value of its own"
        )
    texts = {key: "" if value is None else str(value) for key, value in found.items()}
    return Row(place, tuple("" if one is None else str(one).strip() for one in images), {"split": split, **texts})


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
