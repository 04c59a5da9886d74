# SPDX-License-Identifier: Apache-2.0
"""Records of the rows of a labelled list, and the names of its columns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# Words for splits that people write; the keys are in lower case.
SPLIT_WORDS = {
    "train": "train", "training": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "ts": "test", "holdout": "test", "hold-out": "test",
}  # fmt: skip
# Endings of a label that is the path of a label map, not the name of a class.
LABEL_MAPS = (".nii", ".nii.gz", ".hdr", ".img", ".dcm", ".nrrd", ".mha", ".mhd")
# Columns that a prediction needs too, besides the images, if they are named.
INPUTS = ("mask", "case")
# The columns of the centre of a crop, in RAS+ mm.
CENTRE = ("centre_x", "centre_y", "centre_z")


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

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Columns:
        """Return the columns that options such as ``image_column`` name; other options are ignored.

        Example:
            >>> Columns.of({"label_column": "grade", "folds": 5}).label
            'grade'
        """
        names = {field.name: f"{field.name}_column" for field in fields(cls)}
        return cls(**{name: options[key] for name, key in names.items() if key in options})

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
        labels: names of the labels, if the list gives them, as it has them.
        warnings: oddities of the file.
    """

    channels: tuple[str, ...]
    rows: list[Row]
    labels: Any = None
    warnings: tuple[str, ...] = ()

    @property
    def class_names(self) -> dict[str, str]:
        """The names of classes by their labels."""
        given = self.labels if isinstance(self.labels, Mapping) else {}
        return {str(key): str(name) for key, name in given.items()}

    @property
    def is_segmentation(self) -> bool:
        """Whether the labels are paths of label maps."""
        return any(is_label_map(row.values.get("label", "")) for row in self.rows)


def is_label_map(label: str) -> bool:
    """Return whether a label is the path of a label map.

    Example:
        >>> is_label_map("labelsTr/a.nii.gz"), is_label_map("benign")
        (True, False)
    """
    return label.strip().lower().endswith(LABEL_MAPS)


def no_column_message(name: str, option: str, path: Path, titles: Sequence[str], likely: Sequence[str] = ()) -> str:
    """Return an error message on a column that is not there, with the option that names another one."""
    shown = [title for title in titles if title]
    near = difflib.get_close_matches(name.lower(), [title.lower() for title in shown], n=1, cutoff=0.5)
    example = next(iter(likely), None) or next((title for title in shown if title.lower() in near), "NAME")
    return (
        f"the list {path} has no column {name!r}, it has {', '.join(shown)}: rename a column, or give --{option} "
        f"{example}"
    )
