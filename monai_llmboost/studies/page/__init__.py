# SPDX-License-Identifier: Apache-2.0
"""The page of a study: its verdicts, its pictures and its tables, drawn from its results alone."""

from monai_llmboost.studies.page.report import write_study_report

__all__ = ["write_study_report"]
