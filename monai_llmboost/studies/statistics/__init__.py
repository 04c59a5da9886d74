# SPDX-License-Identifier: Apache-2.0
"""Predictions of runs -> differences between arms, with their intervals."""
