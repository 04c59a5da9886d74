# SPDX-License-Identifier: Apache-2.0
"""The data sets of a study, as its bundle opens them."""

from __future__ import annotations

from collections import Counter

from monai.bundle import ConfigParser

from monai_llmboost.bundle import config_values, merged, root_cause
from monai_llmboost.studies.plan import Plan

# Of one case alone nobody knows how much others of its class would differ, so that no interval could be told.
FEWEST_CASES = 2


def parser_of(plan: Plan, dataset: str, job: str = "train", **more: str) -> ConfigParser:
    """The bundle's configs of a job on a data set, by its first arm; ``more`` are further keys and their values."""
    parser = ConfigParser()
    configs = plan.configs(plan.arms[0], job)
    parser.read_config([str(file) for file in configs])
    options = {**plan.options_for(dataset), "dataset": dataset, "folds": plan.folds, **more}
    parser.update(config_values(merged(configs), options))
    return parser


def check_datasets(plan: Plan) -> None:
    """Open every data set before anything is trained: that it is there, and that its test split can be judged.

    A download that the plan asks for is done here once, rather than by several runs at the same time. Of the test
    cases only their labels are counted.

    Raises:
        ValueError: fewer than two test cases of a class.
        Whatever the bundle raises where it cannot open a data set.
    """
    for dataset in plan.datasets:
        parser = parser_of(plan, dataset, "evaluate", split="test")
        try:
            cases, names = (parser.get_parsed_content(key) for key in ("validate#dataset", "class_names"))
        except RuntimeError as error:
            raise root_cause(error) from error
        # Another bundle's data set may keep its labels elsewhere: then they are counted at the end.
        counts = Counter(names[int(item["label"])] for item in getattr(cases, "data", ()) if "label" in item)
        rare = [f"{counts[name]} of {name}" for name in names if counts[name] < FEWEST_CASES]
        if counts and rare:
            raise ValueError(
                f"expected {FEWEST_CASES} test cases or more of each class of {dataset}, got {', '.join(rare)}: give "
                "more test cases, or another data set"
            )
