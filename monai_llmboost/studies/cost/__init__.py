# SPDX-License-Identifier: Apache-2.0
"""Measurement of the cost of networks: weights, operations, memory and time."""
