# SPDX-License-Identifier: Apache-2.0
"""Numbers to be read: short, but never so short that a sign is lost."""

from __future__ import annotations

# Less is what computing in floats leaves of nothing.
MOST_DIGITS = 12


def rounded(x: float) -> str:
    """To three places, such as 0.812 or -0.011, or to as many as it takes to see what is not zero, such as 0.0004."""
    texts = (f"{x:.{places}f}" for places in range(3, MOST_DIGITS + 1))
    return next((text for text in texts if float(text)), "0.000")
