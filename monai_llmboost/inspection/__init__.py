# SPDX-License-Identifier: Apache-2.0
"""Inspection of labelled scans before a training: what is there, what is wrong, and the plan that follows."""

from monai_llmboost.inspection.survey import CaseSurvey, survey_cases

__all__ = ["CaseSurvey", "survey_cases"]
