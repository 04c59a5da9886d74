# SPDX-License-Identifier: Apache-2.0
"""The batches of a run that are not predicted yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch.utils.data import Sampler

from monai_llmboost.arguments import check_whole
from monai_llmboost.data import Scan
from monai_llmboost.inference.cases import ScanCases, scan_digest
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.rows import Row


class PendingBatches(Sampler):
    """Batches of a run that are not yet in its journal, as lists of indices, for ``DataLoader(batch_sampler=...)``.

    The composition of batches depends only on the cases, and a batch with any missing case is predicted completely. So
    a resumed run, and a run of several processes, gives exactly the numbers of an uninterrupted run.

    Args:
        cases: the cases.
        journal: journal of finished cases; a case is done if it was predicted from the same bytes, and its maps and
            DICOM objects still exist.
        batch_size: cases in a batch.
        rank: rank of this process, which takes every ``world_size``-th batch.
        world_size: number of processes.

    Raises:
        ValueError: an invalid batch size; a name instead of cases.

    Example:
        >>> batches = PendingBatches(cases, Journal("out", key), batch_size=8)  # doctest: +SKIP
        >>> loader = DataLoader(cases, batch_sampler=batches)  # doctest: +SKIP
    """

    def __init__(self, cases: ScanCases, journal: Journal, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        check_whole("batch_size", batch_size, 1, advice="give --batch_size")
        if isinstance(cases, str):  # --dataset of earlier versions, which named the set as training does
            raise ValueError(
                f"dataset holds the scans, not the name {cases!r}: give the data set of the training as --trained_on"
            )
        super().__init__()
        self.batch_size = batch_size
        done = journal.rows()
        missing = [not _is_done(scan, done, journal) for scan in cases.scans]
        batches = [range(start, min(start + batch_size, len(missing))) for start in range(0, len(missing), batch_size)]
        self.batches = [list(batch) for batch in batches[rank::world_size] if any(missing[i] for i in batch)]
        self.num_done = len(missing) - sum(missing)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def _is_done(scan: Scan, done: Mapping[str, Row], journal: Journal) -> bool:
    row = done.get(scan.name)
    if row is None or row.may_pass:
        return False
    try:
        return row.input_sha256 == scan_digest(scan) and journal.has_files(row)
    except OSError:
        return False  # reading it will refuse it with the reason
