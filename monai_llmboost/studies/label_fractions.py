# SPDX-License-Identifier: Apache-2.0
"""Sets of a study: each data set with each fraction of its labels, analysed like a data set of its own."""

from __future__ import annotations

from collections.abc import Sequence

from monai_llmboost.arguments import is_positive

WHOLE = (1.0,)


def set_name(dataset: str, fraction: float) -> str:
    """Return the name of a set in results and folders.

    Example:
        >>> set_name("phantom", 1.0), set_name("phantom", 0.1)
        ('phantom', 'phantom, 10 % of labels')
    """
    return dataset if fraction == 1 else f"{dataset}, {100 * fraction:g} % of labels"


def sets_of(datasets: Sequence[str], fractions: Sequence[float]) -> dict[str, tuple[str, float]]:
    """Return data set and label fraction by the name of each set."""
    return {set_name(dataset, fraction): (dataset, fraction) for dataset in datasets for fraction in fractions}


def check_fractions(fractions: Sequence[float]) -> None:
    """Check label fractions.

    Raises:
        ValueError: none, a fraction that is not above 0 and at most 1, or one given twice.
    """
    for fraction in fractions:
        if not is_positive(fraction) or fraction > 1:
            raise ValueError(f"label fractions must be above 0 and at most 1, not {fraction!r}: write 0.1 for 10 %")
    # Compare their names, which have a limited number of digits.
    if not fractions or len({set_name("", fraction) for fraction in fractions}) < len(fractions):
        given = ", ".join(f"{fraction:g}" for fraction in fractions) or "none"
        raise ValueError(f"a study needs 1 or more different label fractions, not {given}: name each once")
