# SPDX-License-Identifier: Apache-2.0
"""Jobs in processes of their own, several at once; a failed one, even a killed one, does not affect the others.

The processes are forked from one that has imported everything, so that they start at once. An executor of
``concurrent.futures`` does not fit: when one of its processes is killed, as the system does when memory is short, it
ends all jobs; when interrupted, it waits for running ones; and only from Python 3.11 each job has a new process.
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

# Characters of a reason that are reported; the log has all.
REASON = 1000
# Seconds between two reports of progress.
INTERVAL = 1.0
PRELOADED = ["monai_llmboost.studies.one_run", "monai.bundle", "monai.engines", "monai.handlers"]


@dataclass(frozen=True)
class Job:
    """A call that leaves its result in files.

    Args:
        name: for reports.
        folder: of its log and its files; made if need be.
        action: a function of a module, called with ``arguments``.
        arguments: that can be pickled.
        directory: the working directory, by default the current one: relative paths mean the same in both processes.

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
    """Run a job in this process, with its output in its log; return why it failed in one sentence, or nothing."""
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
    except Exception as error:  # any failure of a run is reported next to the others' results
        with suppress(OSError):  # a full disk takes no log
            traceback.print_exc()
        cause = root_cause(error)
        sentence = isinstance(cause, WITH_SENTENCE) and str(cause).strip()
        return (sentence or repr(cause))[:REASON]
    return ""


# Errors whose messages are sentences; those of others, such as a KeyError, are not.
WITH_SENTENCE = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def _redirect_output(path: Path) -> None:
    """Append all output of this process, also of code below Python, to a file."""
    with path.open("a") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), number)


def _process(job: Job, threads: int, gpu: str | None, answer: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its parent ends it
    # Progress bars make a lock between processes, which would stay in the system when this one is ended.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reason = run_job(job, threads, gpu)
    answer.send(reason)
    sys.exit(1 if reason else 0)


def _end_with_parent() -> None:
    """End this process when its parent was killed: a resumed study must be alone in its folders."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def run_locally(jobs: Sequence[Job], parallel: int = 1) -> Iterator[dict[str, str] | None]:
    """Run jobs in processes of this machine, each on a GPU of its own as far as there are some.

    Closing the iterator ends the running ones.

    Args:
        jobs: to be run, in this order.
        parallel: how many run at once.

    Yields:
        ``None`` about once a second, and whenever jobs end, why each of them failed: name -> reason, empty for success.
    """
    import torch

    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        _start_server()
    threads = max(1, torch.get_num_threads() // parallel)  # which follows OMP_NUM_THREADS and a container's limits
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
    """Start the process that the others are forked from, without ctrl-C: only this one gets it, and ends them all."""
    from multiprocessing import forkserver, resource_tracker  # which Windows lacks

    forkserver.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first, for it unblocks the signal
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _gpus(count: int) -> list[str]:
    """Return names of the GPUs for ``CUDA_VISIBLE_DEVICES``: of those that this process may use, if it is set here."""
    allowed = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return allowed[:count] if allowed else [str(number) for number in range(count)]


def _reason(job: Job, status: int, answer: Any) -> str:
    with answer, suppress(EOFError):  # of a process that ended without an answer
        if answer.poll():
            return answer.recv()
    if status < 0:
        memory = " (the system does so when memory is short: give fewer --jobs)" if status == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{memory}"
    return f"its process ended with status {status}: see {job.folder / LOG}"
