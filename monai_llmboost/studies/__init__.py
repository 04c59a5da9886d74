# SPDX-License-Identifier: Apache-2.0
"""Bundle x arm x seed -> what each arm costs, what it brings, and how sure that is."""

from monai_llmboost.studies.cost.arms import cost_of_arms, cost_table
from monai_llmboost.studies.cost.measure import costs, device_name
from monai_llmboost.studies.plan import PRESETS, Plan, Run
from monai_llmboost.studies.statistics.compare import arm_summary, compare_arms
from monai_llmboost.studies.study import NOTHING_DONE, redraw, run_study

__all__ = [
    "NOTHING_DONE",
    "PRESETS",
    "Plan",
    "Run",
    "arm_summary",
    "compare_arms",
    "cost_of_arms",
    "cost_table",
    "costs",
    "device_name",
    "redraw",
    "run_study",
]
