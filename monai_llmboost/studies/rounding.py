# SPDX-License-Identifier: Apache-2.0
"""Numbers for people: short, but never so short that a sign is lost."""

from __future__ import annotations

# Smaller numbers are rounding errors of floats.
MOST_DIGITS = 12


def rounded(x: float) -> str:
    """Return a number in three places, such as 0.812, or in more if that would show 0, such as 0.0004."""
    texts = (f"{x:.{places}f}" for places in range(3, MOST_DIGITS + 1))
    return next((text for text in texts if float(text)), "0.000")
