# SPDX-License-Identifier: Apache-2.0
"""Functions to find, copy and run bundles, and to pass options to their configs."""

from monai_llmboost.bundle.code import code_digests
from monai_llmboost.bundle.content import merged, value_at
from monai_llmboost.bundle.contract import Option
from monai_llmboost.bundle.effect import option_without_effect, uses_key
from monai_llmboost.bundle.errors import root_cause
from monai_llmboost.bundle.find import bundle_path, copy_bundle, job_configs, split_network
from monai_llmboost.bundle.identity import (
    FREE,
    FREE_IN_PREDICTION,
    FREE_IN_TRAINING,
    RunConfig,
    as_plain,
    counting_config,
    reads_outside,
    running_config,
)
from monai_llmboost.bundle.job import BundleJob
from monai_llmboost.bundle.options import MONAI_OPTIONS, Rules, check_given, check_options
from monai_llmboost.bundle.run import check_job_effect, monai_arguments, run_bundle
from monai_llmboost.bundle.trained_options import JobFiles, job_files
from monai_llmboost.bundle.words import config_values, parsed, typed_values

__all__ = [
    "FREE",
    "FREE_IN_PREDICTION",
    "FREE_IN_TRAINING",
    "MONAI_OPTIONS",
    "BundleJob",
    "JobFiles",
    "Option",
    "Rules",
    "RunConfig",
    "as_plain",
    "bundle_path",
    "check_given",
    "check_job_effect",
    "check_options",
    "code_digests",
    "config_values",
    "copy_bundle",
    "counting_config",
    "job_configs",
    "job_files",
    "merged",
    "monai_arguments",
    "option_without_effect",
    "parsed",
    "reads_outside",
    "root_cause",
    "run_bundle",
    "running_config",
    "split_network",
    "typed_values",
    "uses_key",
    "value_at",
]
