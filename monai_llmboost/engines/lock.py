# SPDX-License-Identifier: Apache-2.0
"""One training at a time in a folder of checkpoints."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from monai_llmboost.engines.event_handlers import call_first_on_failure

# Seconds until a process that was just killed has released its folder.
PATIENCE = 1


class TrainingLock:
    """Keeps a folder for the run of an engine, from :meth:`take` until it has completed, failed or been terminated.

    Args:
        folder: of the checkpoints; its file ``lock`` stays there.

    Example:
        >>> import tempfile
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock = TrainingLock(Path(folder))
        ...     lock.take(trainer)
        ...     lock.release()
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: FileLock | None = None
        self._attached = False

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
                f"another training writes into {self.folder}: wait for its end, or give another --ckpt_dir"
            ) from error
        self._lock = lock
        if not self._attached:
            engine.add_event_handler(Events.COMPLETED, self.release)
            engine.add_event_handler(Events.TERMINATE, self.release)  # which may be the only event
            call_first_on_failure(engine, self.release)
            self._attached = True

    def release(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
