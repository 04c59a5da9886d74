# SPDX-License-Identifier: Apache-2.0
"""Checks that validation, evaluation and inference use the preprocessing of the training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.signature import DIGEST_BYTES
from monai_llmboost.data.steps import find_difference, list_transforms, list_voxel_steps, steps_to_text
from monai_llmboost.networks.class_names import Preprocessing

logger = logging.getLogger("monai_llmboost")
ROOM = Preprocessing.size - DIGEST_BYTES


def training_steps(given: Any, loader: Any, validation: Any) -> dict[str, str]:
    """Return the steps of a training as text: ``preprocessing``, the deterministic steps, and ``augmentation``.

    Args:
        given: the training's transforms.
        loader: loader of the training cases; if its transforms are known, they are used instead of ``given``.
        validation: loader of the validation cases.

    Raises:
        ValueError: the validation uses different preprocessing.
    """
    applied = list_transforms(loader)
    transforms = given if applied is None else applied
    kept = steps_to_text(list_voxel_steps(transforms), ROOM)
    validated = list_transforms(validation)
    if validated is not None and (found := find_difference(kept, list_voxel_steps(validated))) is not None:
        reason = (
            f"training and validation prepare volumes differently, {found[0]} in training and {found[1]} in "
            "validation: give both the same deterministic steps"
        )
        if any(each is given for each in transforms):
            raise ValueError(reason)
        logger.warning(reason)  # a user's own loader, which does not use the bundle's preprocessing
    return {"preprocessing": kept, "augmentation": steps_to_text(list_voxel_steps(transforms, random=True), ROOM)}


def check_preprocessing(trained: str, given: Any, loader: Any, path: Path) -> None:
    """Compare the preprocessing steps in a checkpoint with the steps of this run.

    Args:
        trained: steps in the checkpoint.
        given: the transforms of this run.
        loader: loader of its cases, or ``None``; if its transforms are known, they are used instead of ``given``.
        path: path of the checkpoint, for the message.

    Raises:
        ValueError: the steps differ.
    """
    applied = list_transforms(loader)
    found = find_difference(trained, list_voxel_steps(given if applied is None else applied))
    if found is not None:
        raise ValueError(
            f"{path} was trained with another preprocessing, {found[0]} in training and {found[1]} in this run: give "
            "evaluation and inference the deterministic steps of the training"
        )
