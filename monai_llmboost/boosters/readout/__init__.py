# SPDX-License-Identifier: Apache-2.0
"""Read-out: the exact output of a booster at the first few tokens, at a fraction of the cost of all tokens."""
