# SPDX-License-Identifier: Apache-2.0
"""Boosters, which map tokens to tokens by a frozen block; their controls and their check."""

from monai_llmboost.boosters.checks import check_booster
from monai_llmboost.boosters.controls import IdentityControl, MLPControl, mlp_booster
from monai_llmboost.boosters.residual import RESIDUALS, ResidualBooster

__all__ = ["RESIDUALS", "IdentityControl", "MLPControl", "ResidualBooster", "check_booster", "mlp_booster"]
