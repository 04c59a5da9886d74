# SPDX-License-Identifier: Apache-2.0
"""Parallel jobs in separate processes; a failed or killed job does not affect the others.

The processes are forked from a server process that has imported everything, so that they start fast. An executor of
``concurrent.futures`` does not fit: if one of its processes is killed, for example when memory runs out, all jobs end;
when interrupted, it waits for running jobs; and only from Python 3.11 on can each job have a new process.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_llmboost.studies.run_folder import LOG

# Reported characters of a reason; the log contains all of it.
REASON = 1000
# Seconds between progress reports.
INTERVAL = 1.0
PRELOADED = ["monai_llmboost.studies.preloaded", "monai.bundle", "monai.engines", "monai.handlers"]


@dataclass(frozen=True)
class Job:
    """A function call that writes its result to files.

    Args:
        name: name for reports.
        folder: folder of its log and its files; created if necessary.
        action: a module-level function, called with ``arguments``.
        arguments: picklable arguments.
        directory: working directory, by default the current one, so that relative paths are valid in both processes.

    Example:
        >>> Job("one", Path("runs/one"), print, ("hello",)).action is print
        True
    """

    name: str
    folder: Path
    action: Callable[..., None]
    arguments: tuple[Any, ...]
    directory: Path = field(default_factory=Path.cwd)


def run_job(job: Job, threads: int, gpu: str | None = None) -> str:
    """Run a job in this process and write its output to its log; return the reason of a failure, else ``""``."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    from monai_llmboost.bundle import root_cause

    torch.set_num_threads(threads)
    try:
        os.chdir(job.directory)
        job.folder.mkdir(parents=True, exist_ok=True)
        _redirect_output(job.folder / LOG)
        job.action(*job.arguments)
    except Exception as error:  # any failure of a run is reported together with the results of the others
        with suppress(OSError):  # the disk may be full
            traceback.print_exc()
        cause = root_cause(error)
        sentence = isinstance(cause, WITH_SENTENCE) and str(cause).strip()
        return (sentence or repr(cause))[:REASON]
    return ""


# Errors whose messages are sentences, unlike the messages of other errors such as KeyError.
WITH_SENTENCE = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def _redirect_output(path: Path) -> None:
    """Append all output of this process, including output of native code, to a file."""
    with path.open("a") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), number)


def _process(job: Job, threads: int, gpu: str | None, answer: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends it
    # tqdm would create a lock between processes, which would leak when this process is terminated.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reason = run_job(job, threads, gpu)
    answer.send(reason)
    sys.exit(1 if reason else 0)


def _end_with_parent() -> None:
    """End this process if its parent is killed, so that it does not write into the folders of a resumed study."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def run_locally(jobs: Sequence[Job], parallel: int = 1) -> Iterator[dict[str, str] | None]:
    """Run jobs in processes on this machine, distributed over its GPUs if there are several.

    Closing the iterator ends the running jobs.

    Args:
        jobs: jobs to run, in this order.
        parallel: number of jobs that run at the same time.

    Yields:
        ``None`` about once a second, and whenever jobs end, the reason of each failure by name, empty for success.
    """
    import torch

    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        _start_server()
    threads = max(1, torch.get_num_threads() // parallel)  # torch respects OMP_NUM_THREADS and a container's limits
    gpus = _gpus(torch.cuda.device_count())
    rest = list(jobs)
    running: dict[Any, tuple[Job, Any, Any, int]] = {}
    free = list(range(parallel))
    try:
        while rest or running:
            while rest and free:
                place, job = free.pop(0), rest.pop(0)
                gpu = gpus[place % len(gpus)] if len(gpus) > 1 else None
                answer, sender = context.Pipe(duplex=False)
                process = context.Process(target=_process, args=(job, threads, gpu, sender), name=job.name)
                process.start()
                sender.close()
                running[process.sentinel] = (job, process, answer, place)
            ended = {}
            for sentinel in wait(list(running), timeout=INTERVAL):
                job, process, answer, place = running.pop(sentinel)
                process.join()
                free.append(place)
                ended[job.name] = _reason(job, process.exitcode, answer)
            yield ended or None
    finally:
        for _, process, _, _ in running.values():
            process.terminate()
        for _, process, _, _ in running.values():
            process.join()


def _start_server() -> None:
    """Start the fork server with ctrl-C blocked: only this process receives it, and then ends all the others."""
    from multiprocessing import forkserver, resource_tracker  # not available on Windows

    forkserver.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first, because it unblocks the signal
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _gpus(count: int) -> list[str]:
    """Return the GPU names for ``CUDA_VISIBLE_DEVICES``; if it is set for this process, only GPUs from its list."""
    allowed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return allowed[:count] if allowed else [str(number) for number in range(count)]


def _reason(job: Job, status: int, answer: Any) -> str:
    with answer, suppress(EOFError):  # the process may have ended without an answer
        if answer.poll():
            return answer.recv()
    if status < 0:
        memory = " (the system does so when memory is short: give fewer --jobs)" if status == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{memory}"
    return f"its process ended with status {status}: see {job.folder / LOG}"
