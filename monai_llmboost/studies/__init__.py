# SPDX-License-Identifier: Apache-2.0
"""Bundle x arm -> what it costs."""

from monai_llmboost.studies.cost import cost_of_arms, cost_table
from monai_llmboost.studies.measure import costs, device_name

__all__ = ["cost_of_arms", "cost_table", "costs", "device_name"]
