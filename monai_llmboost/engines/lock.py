# SPDX-License-Identifier: Apache-2.0
"""A lock that allows one training at a time in a folder of checkpoints."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout
from ignite.engine import Engine, Events

from monai_llmboost.engines.event_handlers import call_first_on_failure

# Seconds to wait for the lock, so that a process that was just killed can release it.
PATIENCE = 1


class TrainingLock:
    """Locks a folder for the run of an engine, from :meth:`take` until the run completes, fails or is terminated.

    Args:
        folder: folder of the checkpoints; its file ``lock`` is not removed.

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
        """Lock the folder, unless this engine already has the lock.

        Raises:
            ValueError: another training writes into the folder.
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
            engine.add_event_handler(Events.TERMINATE, self.release)  # a terminated run may not fire COMPLETED
            call_first_on_failure(engine, self.release)
            self._attached = True

    def release(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
