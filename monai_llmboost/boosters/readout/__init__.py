# SPDX-License-Identifier: Apache-2.0
"""The exact output of a booster at the first few tokens, at a fraction of the cost of all of them."""
