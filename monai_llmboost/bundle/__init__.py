# SPDX-License-Identifier: Apache-2.0
"""Find, copy and run the bundles; options on their way into a bundle's configs."""

from monai_llmboost.bundle.content import merged, value_at
from monai_llmboost.bundle.contract import BundleJob, Option
from monai_llmboost.bundle.effect import option_without_effect
from monai_llmboost.bundle.errors import root_cause
from monai_llmboost.bundle.find import bundle_path, copy_bundle, job_configs
from monai_llmboost.bundle.options import MONAI_OPTIONS, check_dataset, check_given, check_options
from monai_llmboost.bundle.run import check_job_effect, monai_arguments, run_bundle
from monai_llmboost.bundle.words import config_values, parsed, typed_values

__all__ = [
    "MONAI_OPTIONS",
    "BundleJob",
    "Option",
    "bundle_path",
    "check_dataset",
    "check_given",
    "check_job_effect",
    "check_options",
    "config_values",
    "copy_bundle",
    "job_configs",
    "merged",
    "monai_arguments",
    "option_without_effect",
    "parsed",
    "root_cause",
    "run_bundle",
    "typed_values",
    "value_at",
]
