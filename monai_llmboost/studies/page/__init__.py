# SPDX-License-Identifier: Apache-2.0
"""The page of a study: verdicts, pictures and tables, drawn only from its results."""

from monai_llmboost.studies.page.report import write_study_report

__all__ = ["write_study_report"]
