# SPDX-License-Identifier: Apache-2.0
"""The journal of a run: finished cases, safe on disk, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from filelock import FileLock, Timeout

FOLDER = "journal"
# Fields of a row that name files in the output folder.
WITH_FILES = ("saliency", "dicom")


class Journal:
    """Rows of finished cases, one line of JSON each, in a file of each process, flushed to disk batch by batch.

    A run is known by its key: rows that another run wrote (other weights, block, transforms or versions) are never
    mixed with its own. Whatever a kill leaves behind is read rightly: a line that is cut short is no row.

    Args:
        output_dir: folder of the run; the journal lies in its folder ``journal``.
        key: what the run is, see :func:`monai_llmboost.inference.run_key`.
        overwrite: begin anew, whatever lies there.
        rank: which of several processes this is.

    Raises:
        ValueError: from :meth:`rows`, if the journal is another run's; from :meth:`open`, if another process writes it.
    """

    def __init__(self, output_dir: str | Path, key: str, overwrite: bool = False, rank: int = 0) -> None:
        if not isinstance(overwrite, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected overwrite to be True or False, got {overwrite!r}")
        self.output_dir = Path(output_dir)
        self.folder = self.output_dir / FOLDER
        self.key = key
        self.overwrite = overwrite
        self.path = self.folder / f"rank-{rank}.jsonl"
        self.first = rank == 0
        self.is_open = False
        self.run = 1
        self._mended = False
        self._lock: FileLock | None = None

    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows so far, by case; of a case that was predicted twice the last."""
        if self.overwrite and not self.is_open:
            return {}
        rows: list[dict[str, Any]] = []
        for path in sorted(self.folder.glob("rank-*.jsonl")):
            whole = _lines(path)
            if whole and whole[0].get("key") != self.key:
                raise ValueError(
                    f"expected an empty folder or one of this very run, but {self.output_dir} holds predictions made "
                    "with other weights, block, options or versions: give another folder, or --overwrite"
                )
            rows += whole[1:]
        # The files of ranks know no order among themselves, and another run may have dealt the cases otherwise.
        return {row["case"]: row for row in sorted(rows, key=lambda row: row.get("run", 0))}

    def has_files(self, row: Mapping[str, Any]) -> bool:
        """Whether all maps and DICOM objects that were written with a row are still there."""
        names = (name for kind in WITH_FILES for name in row.get(kind, {}).values())
        return all((self.output_dir / name).is_file() for name in names)

    def names(self) -> set[str]:
        """Return the names of all cases in the journal, whichever run's they are."""
        return {row["case"] for path in self.folder.glob("rank-*.jsonl") for row in _lines(path)[1:]}

    def open(self) -> None:
        """Take the folder for this run, and make room where it is to be overwritten; all ranks wait for that.

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
                    f"expected {self.output_dir} to be free, but another run is writing there: wait for it, or give "
                    "another folder"
                ) from error
            if self.overwrite:
                for path in self.folder.glob("rank-*.jsonl"):
                    path.unlink()
        if not self.overwrite:
            self.run = 1 + max((row.get("run", 0) for row in self.rows().values()), default=0)
        idist.barrier()
        self.is_open = True

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add the rows of a batch; they are on the disk when this returns.

        Raises:
            OSError: the disk is full, or the like; what was written before stays good.
        """
        try:
            if not self._mended:
                self._mend()
            with self.path.open("a", encoding="ascii") as file:
                file.write("".join(json.dumps({**row, "run": self.run}) + "\n" for row in rows))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"expected to write predictions into {self.folder}, got: {error.strerror}: make room, or see to it"
            raise OSError(error.errno, reason) from error

    def _mend(self) -> None:
        """Cut off what a kill left of a line, and see that the first line is the key."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content.rfind(b"\n") + 1
        with self.path.open("ab") as file:
            file.truncate(whole)
            if not whole:
                file.write(json.dumps({"key": self.key}).encode() + b"\n")
        self._mended = True

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.release()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the whole lines of a file of a journal; a last one that a kill cut short is left out.

    Raises:
        ValueError: a line that is no row.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line)
            row["key" if number == 1 else "case"]
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(
                f"expected a row of a journal in line {number} of {path}, got something else: it is damaged; give "
                "another folder, or --overwrite"
            ) from error
        rows.append(row)
    return rows
