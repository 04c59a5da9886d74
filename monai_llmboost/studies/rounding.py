# SPDX-License-Identifier: Apache-2.0
"""Rounding of numbers for display, which keeps the sign of small numbers."""

from __future__ import annotations

# Smaller numbers are rounding errors.
MOST_DIGITS = 12


def rounded(x: float) -> str:
    """Return a number with three decimals, such as 0.812, or more if it would be shown as 0, such as 0.0004."""
    texts = (f"{x:.{places}f}" for places in range(3, MOST_DIGITS + 1))
    return next((text for text in texts if float(text)), "0.000")
