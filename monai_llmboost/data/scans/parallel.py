# SPDX-License-Identifier: Apache-2.0
"""Reading of many small files in several processes, with a progress bar."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tqdm import tqdm

from monai_llmboost.data.scans.dicom import slices

# Seconds before the bar appears.
SHOWN_AFTER = 2
# Files that a process takes at once; fewer files are not worth other processes.
FILES_AT_ONCE = 64

Given = TypeVar("Given")
Found = TypeVar("Found")


def show_progress(files: Iterable[Given], description: str) -> Iterable[Given]:
    """Yield the files, and on a terminal show a bar if this takes long."""
    total = len(files) if isinstance(files, Sized) else None
    return tqdm(files, description, total, unit="file", delay=SHOWN_AFTER, disable=None, leave=False)


def read_files(
    read: Callable[[Given], Found], files: Sequence[Given], num_workers: int, description: str
) -> Iterator[Found]:
    """Yield what a function reads of each file, in their order.

    Args:
        read: function of a module, or a partial of one, which other processes can import.
        files: arguments of the function.
        num_workers: number of processes; 0 reads in this process.
        description: what is done, for the progress bar.

    Raises:
        RuntimeError: a process was ended, for example because memory was short.

    Example:
        >>> list(read_files(len, ["a.nii", "b"], num_workers=0, description="read"))
        [5, 1]
    """
    if not num_workers or len(files) <= FILES_AT_ONCE:
        yield from map(read, show_progress(files, description))
        return
    pool = ProcessPoolExecutor(num_workers, initializer=_start, initargs=(slices.SECRET,))
    try:
        found = pool.map(read, files, chunksize=FILES_AT_ONCE)
        for _, one in zip(show_progress(files, description), found):
            yield one
    except BrokenProcessPool as error:
        raise RuntimeError("a process that read headers was ended: give fewer --workers, or more memory") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(secret: bytes) -> None:
    """Prepare a process: Ctrl-C is for its parent, and digests of names must be comparable with those of others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    slices.SECRET = secret
