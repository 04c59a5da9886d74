# SPDX-License-Identifier: Apache-2.0
"""Boosters, which map tokens to tokens by a frozen block; their controls, their check and their learning rates."""

from monai_llmboost.boosters.checks import check_booster
from monai_llmboost.boosters.controls import IdentityControl, MLPControl, mlp_booster
from monai_llmboost.boosters.learning_rates import parameter_groups
from monai_llmboost.boosters.residual import RESIDUALS, STARTS, ResidualBooster

__all__ = [
    "RESIDUALS",
    "STARTS",
    "IdentityControl",
    "MLPControl",
    "ResidualBooster",
    "check_booster",
    "mlp_booster",
    "parameter_groups",
]
