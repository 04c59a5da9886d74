# SPDX-License-Identifier: Apache-2.0
"""The exit status of a run, and accepted refusals, which do not change it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from monai_llmboost.arguments import check_choice

# Every scan was predicted, or its refusal is accepted; some were refused; none was predicted.
ALL_GOOD, SOME_FAILED, NOTHING_DONE = 0, 1, 2


class Refusal(NamedTuple):
    """A refused case, with the reason and its kind."""

    case: str
    reason: str
    kind: str


@dataclass(frozen=True)
class AcceptedRefusals:
    """Refusals that are normal in an archive, so that an exit status of 1 means new refusals.

    Args:
        kinds: kinds of refusals, as in the column ``refused_kind``.
        known: an earlier ``predictions.csv``, whose refused cases may be refused again for the same reason.

    Example:
        >>> accepted = AcceptedRefusals(kinds=("single-slice",))
        >>> refusal = Refusal("localizer", "got one slice", "single-slice")
        >>> status_of(predicted=3, refusals=[refusal], accepted=accepted)
        0

    Raises:
        ValueError: from :meth:`split`, an unknown kind or a file that is not such a table.
        OSError: from :meth:`split`, the file cannot be read.
    """

    kinds: tuple[str, ...] = ()
    known: Path | None = None

    def check(self) -> None:
        """Check the kinds and read the file, before slow steps and before the run replaces the file."""
        if self.kinds:
            from monai_llmboost.data.scans.scan import REFUSED_KINDS

            for kind in self.kinds:
                check_choice("kind of refusal", kind, REFUSED_KINDS)
        _ = self._known_refusals

    def split(self, refusals: Sequence[Refusal]) -> tuple[list[Refusal], list[Refusal]]:
        """Return the accepted refusals, and the others."""
        known = self._known_refusals
        accepted = [one for one in refusals if one.kind in self.kinds or (one.case, one.reason) in known]
        return accepted, [one for one in refusals if one not in accepted]

    @cached_property
    def _known_refusals(self) -> set[tuple[str, str]]:
        """Cases and reasons in the table, read once, because a run may replace the table."""
        if self.known is None:
            return set()
        with self.known.open(newline="", encoding="utf-8") as file:
            try:
                return {(row["case"], row["refused"]) for row in csv.DictReader(file) if row["refused"]}
            except (KeyError, UnicodeDecodeError, csv.Error) as error:
                raise ValueError(
                    f"{self.known} is no predictions.csv with the columns case and refused: give that of an earlier run"
                ) from error


def status_of(predicted: int, refusals: Sequence[Refusal], accepted: AcceptedRefusals) -> int:
    """Return the exit status of a run."""
    normal, others = accepted.split(refusals)
    if not predicted and (others or not normal):
        return NOTHING_DONE
    return SOME_FAILED if others else ALL_GOOD
