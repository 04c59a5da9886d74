# SPDX-License-Identifier: Apache-2.0
"""Check that the labels of a data set match the classes of a network, before training starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import MapTransform
from monai.utils import CommonKeys

from monai_llmboost.data.steps import NEUTRAL_STEPS, flatten_transforms

LABEL = CommonKeys.LABEL
CASE = "case"
PATIENT = "patient"


def check_labels(loader: Any, class_names: Sequence[str], what: str) -> None:
    """Check that labels are class numbers, and that every class has a case.

    Labels are checked if the data set has them without reading volumes: as ``labels``, or in the items of MONAI's data
    sets. Labels that are vectors or masks are not checked.

    Args:
        loader: loader of the cases.
        class_names: the classes 0, 1, ...
        what: kind of the cases for messages, such as "training".

    Raises:
        ValueError: a label that is not the number of a class; a class without a case.
    """
    dataset = getattr(loader, "dataset", None)
    labels = [_to_number(label) for label in labels_of(dataset)]
    if not class_names or not labels or any(label is None for label in labels):
        return
    transforms = flatten_transforms(getattr(dataset, "transform", None))
    if transforms:  # the first item shows what the transforms do with a label
        first: Any = dataset
        item = first[0]
        label = _to_number(item.get(LABEL)) if isinstance(item, Mapping) else None
        if label is None:
            return
        _check_numbers([label], class_names, what)
        if any(map(_changes_labels, transforms)):
            return
    _check_numbers(labels, class_names, what)
    absent = [name for number, name in enumerate(class_names) if number not in set(labels)]
    if absent:
        raise ValueError(
            f"no {what} case has the class {' or '.join(absent)}: add some, or train a network for the other classes "
            "only"
        )


def _check_numbers(labels: Sequence[Any], class_names: Sequence[str], what: str) -> None:
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < len(class_names):
            names = f"{', '.join(class_names[:4])}{' ...' if len(class_names) > 4 else ''}"
            raise ValueError(
                f"labels of the {what} cases must be whole numbers from 0 to {len(class_names) - 1} ({names}), not "
                f"{label!r}: number the classes in this order"
            )


def labels_of(dataset: Any) -> list[Any]:
    """Return the labels that a data set has without reading volumes; an empty list if it has none."""
    labels = getattr(dataset, "labels", None)
    if isinstance(labels, (np.ndarray, torch.Tensor)):
        return list(labels)
    items = getattr(dataset, "data", None)
    items = items if isinstance(items, Sequence) else ()
    return [item[LABEL] for item in items if isinstance(item, Mapping) and LABEL in item]


def patients_of(dataset: Any) -> dict[str, str]:
    """Return the patient of each case by its name, from the items of a data set; empty if it does not know any.

    Items of one patient have the same ``"patient"``, and each item its own ``"case"``; an item without a patient is of
    another patient.
    """
    named = _named_items(dataset)
    if not any(PATIENT in item for item in named):
        return {}
    return {str(item[CASE]): str(item.get(PATIENT, f"case {item[CASE]}")) for item in named}


def cases_of(dataset: Any) -> set[str]:
    """Return the names of a data set's cases without reading volumes; an empty set if its items have none."""
    return {str(item[CASE]) for item in _named_items(dataset)}


def _named_items(dataset: Any) -> list[Mapping[str, Any]]:
    items = getattr(dataset, "data", None)
    items = items if isinstance(items, Sequence) else ()
    return [item for item in items if isinstance(item, Mapping) and CASE in item]


def _to_number(label: Any) -> Any:
    """Return a label as a plain value, numbers as ``int`` or ``float``; ``None`` for labels of several values."""
    if isinstance(label, (np.ndarray, np.generic, torch.Tensor)):
        if math.prod(label.shape) > 1:  # such as a label map, which would be a very long list
            return None
        label = label.tolist()
    while isinstance(label, (list, tuple)) and len(label) == 1:
        label = label[0]
    if isinstance(label, (list, tuple)):
        return None
    return int(label) if isinstance(label, bool) else label


def _changes_labels(transform: Any) -> bool:
    """Return whether a transform may change labels; one that is not a dictionary transform may."""
    if not isinstance(transform, MapTransform):
        return True
    return LABEL in transform.keys and type(transform).__name__.removesuffix("d") not in NEUTRAL_STEPS
