# SPDX-License-Identifier: Apache-2.0
"""One training at a time in a folder of checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

# Seconds in which a process that was just killed gives its folder back.
PATIENCE = 1


class TrainingLock:
    """Keeps a folder for the run of an engine, from :meth:`take` until it has completed, failed or been terminated.

    Args:
        folder: of the checkpoints; its file ``lock`` stays there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None
        self._listener: Any = None

    def take(self, engine: Engine) -> None:
        """Take the folder, unless it is taken for this engine already.

        Raises:
            ValueError: another training writes there.
        """
        if self._lock is not None:
            return
        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout as error:
            raise ValueError(
                f"expected {self.folder} to be free, but another training writes there: give another --ckpt_dir"
            ) from error
        self._lock = lock
        if self._listener is None:
            engine.add_event_handler(Events.COMPLETED, self.release)
            engine.add_event_handler(Events.TERMINATE, self.release)  # which may be all that is fired
            engine.add_event_handler(Events.EXCEPTION_RAISED, self._failed)
            listeners = engine._event_handlers[Events.EXCEPTION_RAISED]
            self._listener = listeners.pop()
            listeners.insert(0, self._listener)  # others raise the error, which ends the row

    def release(self) -> None:
        """Give the folder back."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _failed(self, engine: Engine, error: BaseException) -> None:
        self.release()
        if engine._event_handlers[Events.EXCEPTION_RAISED][-1] is self._listener:  # nobody else would raise it
            raise error
