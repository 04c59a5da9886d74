# SPDX-License-Identifier: Apache-2.0
"""Networks -> their cost: weights, operations, memory, time."""
