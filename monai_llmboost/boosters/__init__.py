# SPDX-License-Identifier: Apache-2.0
"""Frozen block -> booster: tokens -> tokens."""

from monai_llmboost.boosters.checks import check_booster
from monai_llmboost.boosters.controls import IdentityControl, MLPControl, mlp_booster
from monai_llmboost.boosters.residual import RESIDUALS, ResidualBooster

__all__ = ["RESIDUALS", "IdentityControl", "MLPControl", "ResidualBooster", "check_booster", "mlp_booster"]
