# SPDX-License-Identifier: Apache-2.0
"""Inspection of labelled scans before a training: what is there, what is wrong, and the plan that follows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.inspection.checks import Findings, check_cases
    from monai_llmboost.inspection.inspect import Inspection, inspect_list
    from monai_llmboost.inspection.plans.current import LINES, plan_is_current
    from monai_llmboost.inspection.plans.derive import derive_plan
    from monai_llmboost.inspection.plans.lines import ScanPlan, write_plan
    from monai_llmboost.inspection.survey import CaseSurvey, survey_cases
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "LINES",
    "CaseSurvey",
    "Findings",
    "Inspection",
    "ScanPlan",
    "check_cases",
    "derive_plan",
    "inspect_list",
    "plan_is_current",
    "survey_cases",
    "write_plan",
]
