# SPDX-License-Identifier: Apache-2.0
"""Whether the block of an arm was in use: a comparison says nothing about a block that changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from monai_llmboost.studies.statistics.records import Comparison, Summary

# Inside trained language models, a layer adds 60 to 140 % to its tokens. One that adds 30 % in a direction of its own
# turns them by 17 degrees only (cosine 0.96).
BLOCK_ADDS = 0.3
# A booster that adds less than this to the tokens that are read is below the noise of any training.
BOOSTER_ADDS = 0.01
MEASURED = (
    ("block_adds", BLOCK_ADDS, "its block adds {} to its tokens (in a language model 60 to 140 %)"),
    ("booster_adds", BOOSTER_ADDS, "its booster adds {} to the tokens that are read"),
)


def unused_because(diagnostics: Mapping[str, Summary] | None) -> str:
    """Return why the block of an arm was practically not in use, as a clause; empty if it was, or if it has none.

    Args:
        diagnostics: of the trained networks of the arm, see :mod:`monai_llmboost.studies.diagnostics`; ``None`` for an
            arm without a booster.
    """
    if not diagnostics or "block_adds" not in diagnostics:
        return ""
    low = [
        clause.format(f"{100 * diagnostics[name].mean:.2g} %")
        for name, bound, clause in MEASURED
        if name in diagnostics and diagnostics[name].mean < bound
    ]
    return " and ".join(low)


def with_treatment(comparison: Comparison, diagnostics: Mapping[str, Mapping[str, Summary] | None]) -> Comparison:
    """Return a comparison whose verdict says so if the block of one of its arms was practically not in use.

    Args:
        comparison: the comparison.
        diagnostics: by arm.
    """
    verdict = comparison.verdict
    for arm in (comparison.arm, comparison.reference):
        if reason := unused_because(diagnostics.get(arm)):
            verdict += (
                f" The block of {arm} was practically not in use: {reason}. So this says nothing about pre-training."
            )
    return replace(comparison, verdict=verdict)
