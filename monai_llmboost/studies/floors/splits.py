# SPDX-License-Identifier: Apache-2.0
"""The splits of a data set as the floors of a study read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.bundle.content import merged, value_at
from monai_llmboost.bundle.contract import EMBED, IMAGE
from monai_llmboost.studies.plan import Plan, Run

TRAINING_SPLIT, VALIDATION_SPLIT = "train", "val"


def open_split(plan: Plan, run: Run, split: str, embedded: bool = True) -> BundleJob:
    """Return the evaluation of a split as the networks of a run see it: preprocessed, and not augmented.

    Without ``embedded``, volumes are not replaced by frozen features.
    """
    options = {**plan.settings(run, "evaluate", Path()), Option.SPLIT: split}
    if not embedded and has_embedding(plan):
        options[EMBED] = {"_target_": "monai.transforms.Identityd", "keys": IMAGE}
    return BundleJob.read(plan.configs(plan.arms[0], "evaluate"), options)


def has_embedding(plan: Plan) -> bool:
    """Return whether the networks of a plan see frozen features instead of volumes."""
    return value_at(merged(plan.configs(plan.arms[0], "evaluate")), EMBED) is not None


def training_data(plan: Plan, run: Run) -> Any:
    """Return the data set that the networks of a run are trained on, which decides the training cases of floors."""
    return BundleJob.read(plan.configs(plan.arms[0]), plan.settings(run, "train", Path())).training_data
