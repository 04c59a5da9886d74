# SPDX-License-Identifier: Apache-2.0
"""Statistics of predictions: differences between arms and their confidence intervals."""
