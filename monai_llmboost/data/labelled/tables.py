# SPDX-License-Identifier: Apache-2.0
"""Rows of a labelled list: CSV files as spreadsheets write them, and Decathlon datalists in JSON."""

from __future__ import annotations

import codecs
import contextlib
import csv
import difflib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DELIMITERS = (",", ";", "\t", "|")
TABLES = (".csv", ".tsv", ".json")
# Words for splits that people write; the keys are in lower case.
SPLIT_WORDS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "ts": "test", "holdout": "test", "hold-out": "test",
}  # fmt: skip
# Columns that a prediction needs too, besides the images, if they are named.
INPUTS = ("mask", "case")
# The columns of the centre of a crop, in RAS+ mm.
CENTRE = ("centre_x", "centre_y", "centre_z")
# Suffixes of a label that is a segmentation.
IMAGES = (".nii", ".nii.gz", ".nrrd", ".mha", ".dcm", ".seg.nrrd")
# An unused column of patients has at most so many rows with one value, on average.
MOST_REPEATED = 5
LOOKS_LIKE_PATH = re.compile(r"[/\\]|\.(?:nii|gz|dcm|hdr|img)$", re.IGNORECASE)
SEVERAL_IMAGES = re.compile(r"image[ _-]?.+")
# A first line in which Excel finds the delimiter.
SEPARATOR_LINE = re.compile(r"\s*\"?sep=(.)\"?\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Columns:
    """The names of the columns of a list; upper and lower case count as equal.

    Args:
        image: the column of paths, or several, one for each channel; ``None``: ``image``, or all that begin with it.
        label: the class.
        split: ``train``, ``val`` or ``test``.
        fold: number of the fold.
        group: what must not be divided, such as the patient.
        mask: a mask to crop around.
        case: name of the case; without this column, cases are named by their paths.

    Example:
        >>> Columns(image="T1,FLAIR").images
        ('T1', 'FLAIR')
    """

    image: str | Sequence[str] | None = None
    label: str = "label"
    split: str = "split"
    fold: str = "fold"
    group: str = "group"
    mask: str = "mask"
    case: str = "case"

    @property
    def images(self) -> tuple[str, ...] | None:
        """The columns of paths; ``None`` if they are to be found."""
        if self.image is None:
            return None
        names = self.image.split(",") if isinstance(self.image, str) else self.image
        return tuple(name.strip() for name in names if name.strip())


def channel_names(image_column: str | Sequence[str] | None, count: int) -> list[str]:
    """Return names for the channels of a network: the columns of their scans, or numbers if these are not named.

    Example:
        >>> channel_names("T1,FLAIR", 2), channel_names(None, 2)
        (['T1', 'FLAIR'], ['1', '2'])
    """
    names = Columns(image=image_column).images or ()
    return list(names) if len(names) == count else [str(number + 1) for number in range(count)]


@dataclass(frozen=True)
class Row:
    """One row of a list, with what it says as text.

    Args:
        place: where it is, such as ``"row 7"``.
        images: the path of each channel; empty if the row leaves it out.
        values: label, split, fold, group, mask, case and centre, as far as the row gives them.
    """

    place: str
    images: tuple[str, ...]
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The rows of a list.

    Args:
        channels: names of the channels.
        rows: the rows.
        class_names: the names of the classes by label, if the list gives them.
        warnings: oddities of the file.
    """

    channels: tuple[str, ...]
    rows: list[Row]
    class_names: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_table(path: Path, columns: Columns, labelled: bool = True) -> Table:
    """Return the rows of a CSV or JSON list.

    Args:
        path: the file.
        columns: names of its columns.
        labelled: whether a list without labels is wrong; a prediction needs only the images.

    Raises:
        ValueError: the file is not such a list, or lacks a column that was named.
    """
    read = _read_datalist if path.suffix.lower() == ".json" else _read_csv
    return read(path, columns, labelled)


def _read_csv(path: Path, columns: Columns, labelled: bool) -> Table:
    text, warnings = _decode(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    said = SEPARATOR_LINE.fullmatch(first)
    delimiter = said[1] if said else max(DELIMITERS, key=lambda mark: _count_fields(first, mark))
    try:
        # Without translated line ends, so that those of any system count.
        records = list(csv.reader(io.StringIO(text, ""), delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path} is not a table ({error}): save it as CSV again") from None
    numbered = [(number, cells) for number, cells in enumerate(records, 1) if any(cell.strip() for cell in cells)]
    if said:
        del numbered[0]
    if not numbered:
        raise ValueError(f"the list {path} is empty: write a line of column names, then a row for each case")
    titles = [title.strip() for title in numbered[0][1]]
    examples = numbered[1][1] if len(numbered) > 1 else []
    places = _find_columns(path, titles, columns, labelled, examples)
    rows = []
    for number, cells in numbered[1:]:
        if len(cells) > len(titles) and any(cell.strip() for cell in cells[len(titles) :]):
            raise ValueError(
                f"row {number} of {path} has {len(cells)} fields, and the first line {len(titles)}: put a path that "
                f"contains {delimiter!r} in quotation marks"
            )
        padded = [cell.strip() for cell in cells] + [""] * (len(titles) - len(cells))
        values = {key: padded[place] for key, place in places.items() if isinstance(place, int)}
        rows.append(Row(f"row {number}", tuple(padded[place] for place in places["images"]), values))
    if not rows:
        raise ValueError(f"the list {path} has column names and no cases: add a row for each case")
    used = {*places["images"], *(place for place in places.values() if isinstance(place, int))}
    if labelled and "group" not in places:
        warnings += _find_groups(titles, [cells for _, cells in numbered[1:]], used)
    return Table(tuple(titles[place] for place in places["images"]), rows, warnings=tuple(warnings))


def _find_groups(titles: Sequence[str], rows: Sequence[Sequence[str]], used: set[int]) -> list[str]:
    """Return a warning for each unused column whose values repeat as those of patients do."""
    found = []
    for place, title in enumerate(titles):
        values = {cells[place].strip() for cells in rows if len(cells) > place}
        if title and place not in used and len(rows) / MOST_REPEATED <= len(values) < len(rows):
            found.append(
                f"the column {title!r} is not used, and its values repeat: if it names patients, give --group-column "
                f"{title!r}, so that no patient is divided"
            )
    return found


def _decode(path: Path) -> tuple[str, list[str]]:
    """Return the text of a file in one of the encodings of spreadsheets."""
    raw = path.read_bytes()
    encoding = "utf-16" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode(encoding)
        if "\0" not in text:
            return text, []
    if b"\0" in raw:
        raise ValueError(f"{path} is not a text file: save the table as CSV (UTF-8)")
    warning = f"{path.name} is not UTF-8, and was read as Windows-1252: save it as CSV UTF-8 if names look wrong"
    return raw.decode("cp1252", errors="replace"), [warning]


def _count_fields(line: str, delimiter: str) -> int:
    return len(next(csv.reader([line], delimiter=delimiter)))


def _find_columns(
    path: Path, titles: Sequence[str], columns: Columns, labelled: bool, examples: Sequence[str]
) -> dict[str, Any]:
    """Return the position of each column; those of the images as a list."""
    known = {}
    for number, title in enumerate(titles):
        if title.lower() in known and title:
            raise ValueError(f"the list {path} has two columns called {title!r}: rename one")
        known[title.lower()] = number
    images = columns.images
    if images is None:
        images = ("image",) if "image" in known else tuple(t for t in known if SEVERAL_IMAGES.fullmatch(t))
    if not images:
        paths = [title for title, cell in zip(titles, examples) if LOOKS_LIKE_PATH.search(cell)]
        raise ValueError(_no_column("image", "image-column", path, titles, paths))
    for name in images:
        if name.lower() not in known:
            raise ValueError(_no_column(name, "image-column", path, titles))
    if len({name.lower() for name in images}) < len(images):
        raise ValueError(f"the image columns {', '.join(images)} are not all different: name each channel once")
    places: dict[str, Any] = {"images": [known[name.lower()] for name in images]}
    for key in ("label", "split", "fold", "group", "mask", "case"):
        name = getattr(columns, key)
        if name.lower() in known:
            places[key] = known[name.lower()]
        elif (labelled or key in INPUTS) and (key == "label" or name != getattr(Columns, key)):  # named by the user
            raise ValueError(_no_column(name, f"{key}-column", path, titles))
    places |= {name: known[name] for name in CENTRE if name in known}
    return places


def _no_column(name: str, option: str, path: Path, titles: Sequence[str], likely: Sequence[str] = ()) -> str:
    shown = [title for title in titles if title]
    near = difflib.get_close_matches(name.lower(), [title.lower() for title in shown], n=1, cutoff=0.5)
    example = next(iter(likely), None) or next((title for title in shown if title.lower() in near), "NAME")
    return (
        f"the list {path} has no column {name!r}, it has {', '.join(shown)}: rename a column, or give --{option} "
        f"{example}"
    )


def _read_datalist(path: Path, columns: Columns, labelled: bool) -> Table:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON in UTF-8 ({error}): write it again") from None
    parts: dict[str, Any] = {"": content} if isinstance(content, list) else {}
    names: Mapping[str, str] = {}
    if isinstance(content, Mapping):
        parts = {key: value for key, value in content.items() if key.lower() in SPLIT_WORDS}
        given = content.get("labels", {})
        names = {str(key): str(name) for key, name in given.items()} if isinstance(given, Mapping) else {}
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
    return Table(channels, rows, names, tuple(warnings))


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
    if isinstance(label, (list, Mapping)) or (isinstance(label, str) and label.lower().endswith(IMAGES)):
        raise ValueError(
            f"the label of {place} of {path} is {label!r}, not a class: this is a list for segmentation; give each "
            "case one class, a word or a number"
        )
    texts = {key: "" if value is None else str(value) for key, value in found.items()}
    return Row(place, tuple("" if one is None else str(one).strip() for one in images), {"split": split, **texts})


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
