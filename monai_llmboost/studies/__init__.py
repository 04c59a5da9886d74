# SPDX-License-Identifier: Apache-2.0
"""Studies that compare the arms of a bundle over several seeds: their costs, benefits and uncertainty."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from monai_llmboost.bundle import bundle_path
from monai_llmboost.bundle.study_settings import StudySettings
from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.studies.cost.arms import cost_of_arms, cost_table
    from monai_llmboost.studies.cost.measure import costs, device_name
    from monai_llmboost.studies.outcome import NOTHING_DONE, redraw
    from monai_llmboost.studies.plan import Plan, Run
    from monai_llmboost.studies.results import StudyResults
    from monai_llmboost.studies.statistics.compare import arm_summary, compare_arms
    from monai_llmboost.studies.statistics.records import Comparison, Summary
    from monai_llmboost.studies.study import run_study
else:
    _get, __dir__ = lazy_names(__name__)

    def __getattr__(name: str) -> Any:
        if name != "PRESETS":
            return _get(name)
        message = f"{__name__}.PRESETS is deprecated: use monai_llmboost.bundle.study_settings.StudySettings.of(bundle)"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return dict(StudySettings.of(bundle_path("medmnist3d_rllm_classification")).presets)


__all__ = [
    "NOTHING_DONE",
    "Comparison",
    "Plan",
    "Run",
    "StudyResults",
    "Summary",
    "arm_summary",
    "compare_arms",
    "cost_of_arms",
    "cost_table",
    "costs",
    "device_name",
    "redraw",
    "run_study",
]
