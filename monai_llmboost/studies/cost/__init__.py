# SPDX-License-Identifier: Apache-2.0
"""Networks -> what they cost: weights, operations, memory, time."""
