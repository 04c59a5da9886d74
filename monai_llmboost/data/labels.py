# SPDX-License-Identifier: Apache-2.0
"""Whether the labels of a data set are those of a network's classes, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import CommonKeys

from monai_llmboost.data.steps import NEUTRAL, flatten_transforms

LABEL = CommonKeys.LABEL


def check_labels(loader: Any, class_names: Sequence[str], what: str) -> None:
    """Refuse labels that are not the numbers of the classes, and a class without a case.

    Labels are looked at where a data set keeps them without reading volumes: as ``labels``, or in the items of MONAI's
    data sets. Labels that are vectors or masks are left to those who use them.

    Args:
        loader: of the cases.
        class_names: the classes 0, 1, ...
        what: which cases, for the message, such as "training".

    Raises:
        ValueError: words, fractions, numbers of no class; a class without a case.
    """
    dataset = getattr(loader, "dataset", None)
    labels = [_number(label) for label in _labels_of(dataset)]
    if not class_names or not labels or any(label is None for label in labels):
        return
    transforms = flatten_transforms(getattr(dataset, "transform", None))
    if transforms:  # of single items: the first shows what becomes of a label
        first: Any = dataset
        item = first[0]
        made = _number(item.get(LABEL)) if isinstance(item, Mapping) else None
        if made is None:
            return
        _check_whole([made], class_names, what)
        if any(map(_changes_labels, transforms)):
            return
    _check_whole(labels, class_names, what)
    absent = [name for number, name in enumerate(class_names) if number not in set(labels)]
    if absent:
        raise ValueError(
            f"expected {what} cases of every class, got none of {', '.join(absent)}: add some, or train a network for "
            "the other classes alone"
        )


def _check_whole(labels: Sequence[Any], class_names: Sequence[str], what: str) -> None:
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(class_names):
            names = f"{', '.join(class_names[:4])}{' ...' if len(class_names) > 4 else ''}"
            raise ValueError(
                f"expected the labels of the {what} cases to be whole numbers from 0 to {len(class_names) - 1} "
                f"({names}), got {label!r}: number the classes in this order"
            )


def _labels_of(dataset: Any) -> list[Any]:
    labels = getattr(dataset, "labels", None)
    if isinstance(labels, (np.ndarray, torch.Tensor)):
        return list(labels)
    items = getattr(dataset, "data", None)
    items = items if isinstance(items, Sequence) else ()
    return [item[LABEL] for item in items if isinstance(item, Mapping) and LABEL in item]


def _number(label: Any) -> Any:
    """Return a label as a plain value, numbers as ``int`` or ``float``; ``None`` for several values in one."""
    if isinstance(label, (np.ndarray, np.generic, torch.Tensor)):
        label = label.tolist()
    while isinstance(label, (list, tuple)) and len(label) == 1:
        label = label[0]
    if isinstance(label, (list, tuple)):
        return None
    return int(label) if isinstance(label, bool) else label


def _changes_labels(transform: Any) -> bool:
    """Whether a transform may make another label; one that is no dictionary transform may do anything."""
    if not isinstance(transform, MapTransform):
        return True
    return LABEL in transform.keys and type(transform).__name__.removesuffix("d") not in NEUTRAL
