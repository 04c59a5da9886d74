# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all, and never in the place of an earlier one."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("monai_llmboost")


def set_aside(path: Path) -> None:
    """Rename a file that is there to the next free ``name.1.suffix``, ``name.2.suffix`` ...: nothing is overwritten."""
    if not path.exists():
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    logger.info(f"{path} of an earlier run is now {kept.name}")


@contextmanager
def written_whole(path: Path, aside: bool = True) -> Iterator[Any]:
    """A text file that appears under its name when all of it is written, or not at all.

    An earlier one is set aside, or, with ``aside=False``, replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    umask = os.umask(0)
    os.umask(umask)
    # A file name that is no UTF-8 is written with its odd bytes spelt out, rather than costing the whole table.
    with tempfile.NamedTemporaryFile(
        "w", newline="", dir=path.parent, delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o666 & ~umask)
    if aside:
        set_aside(path)
    Path(file.name).replace(path)
