# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: finished cases on disk, so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from filelock import FileLock, Timeout

from monai_llmboost.arguments import check_switch
from monai_llmboost.inference.rows import Row

FOLDER = "journal"
# Prefix of the key of a run that no other run can resume; the reason and a semicolon follow.
INCOMPARABLE = "only this run: "


class Journal:
    """Rows of finished cases as lines of JSON, in one file per process, flushed to disk batch by batch.

    A run is identified by its key: rows of another run (other weights, block, transforms or versions) are never mixed
    with its rows. An incomplete last line is ignored.

    Args:
        output_dir: folder of the run; the journal is in its folder ``journal``.
        key: digest that identifies the run.
        overwrite: start again and delete an existing journal.
        rank: rank of this process.

    Raises:
        ValueError: from :meth:`rows`, if the journal belongs to another run; from :meth:`open`, if another process
            writes to it.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> journal = Journal(folder, key="weights and options")
        >>> journal.open()
        >>> journal.append([Row("a.nii")])
        >>> journal.close()
        >>> list(Journal(folder, key="weights and options").rows())
        ['a.nii']
    """

    def __init__(self, output_dir: str | Path, key: str, overwrite: bool = False, rank: int = 0) -> None:
        check_switch("overwrite", overwrite)
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / FOLDER
        self.key = key
        self.overwrite = overwrite
        self.path = self.folder / f"rank-{rank}.jsonl"
        self.first = rank == 0
        self.is_open = False
        self.run = 1
        self._repaired = False
        self._lock: FileLock | None = None

    def rows(self) -> dict[str, Row]:
        """Return the rows so far by case; the last row if a case was predicted twice."""
        if self.overwrite and not self.is_open:
            return {}
        rows: list[Row] = []
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            lines = _lines(path)
            if lines and lines[0].get("key") != self.key:
                raise ValueError(
                    f"{self.output_dir} holds predictions made with {_difference(self.key, lines[0]['key'])}: give "
                    "another folder, or --overwrite"
                )
            rows += map(Row.from_json, lines[1:])
        # The files of ranks have no order, and another run may have distributed the cases differently.
        return {row.case: row for row in sorted(rows, key=lambda row: row.run)}

    def has_files(self, row: Row) -> bool:
        """Return whether all files of a row still exist: masks, maps and DICOM objects."""
        return all((self.output_dir / name).is_file() for name in row.files)

    def names(self) -> set[str]:
        """Return the names of all cases in the journal, of any run."""
        return {row["case"] for path in self.folder.glob("rank-*.jsonl") for row in _lines(path)[1:]}

    def open(self) -> None:
        """Lock the folder for this run, and delete a journal that is overwritten; all ranks wait for this.

        Raises:
            ValueError: another process is writing there.
        """
        if self.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.folder / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise ValueError(
                    f"another run is writing into {self.output_dir}: wait for it, or give another folder"
                ) from error
            if self.overwrite:
                for path in self.folder.glob("rank-*.jsonl"):
                    path.unlink()
        if not self.overwrite:
            self.run = 1 + max((row.run for row in self.rows().values()), default=0)
        idist.barrier()
        self.is_open = True

    def append(self, rows: Sequence[Row]) -> None:
        """Add the rows of a batch, and flush them to disk.

        Raises:
            OSError: the file cannot be written, for example on a full disk; earlier rows stay valid.
        """
        try:
            if not self._repaired:
                self._repair()
            with self.path.open("a", encoding="ascii") as file:
                file.write("".join(json.dumps(replace(row, run=self.run).to_json()) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"cannot write predictions into {self.folder} ({error.strerror}): make room, or correct the folder"
            raise OSError(error.errno, reason) from error

    def _repair(self) -> None:
        """Remove an incomplete last line, and write the key as the first line if it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        with self.path.open("ab") as file:
            file.truncate(whole)
            if not whole:
                file.write(json.dumps({"key": self.key}).encode() + b"\n")
        self._repaired = True

    def close(self) -> None:
        """Release the lock of the folder."""
        if self._lock is not None:
            self._lock.release()


def _difference(*keys: str) -> str:
    for key in keys:
        if key.startswith(INCOMPARABLE):
            return f"what cannot be compared ({key.removeprefix(INCOMPARABLE).rpartition(';')[0]})"
    return "other weights, block, options or versions"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file of a journal; an incomplete last line is left out.

    Raises:
        ValueError: a line is not a row.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            row["key" if number == 1 else "case"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is no row of a journal: the file is damaged; give another folder, or "
                "--overwrite"
            ) from error
        rows.append(row)
    return rows
