# SPDX-License-Identifier: Apache-2.0
"""Work in processes of its own, several at once, on this machine or on a Ray cluster; one that fails costs itself only.

The processes of this machine are forked from one that has imported everything, so that they begin at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

LOG = "run.log"
# Characters of a reason that are told; the log has all.
REASON = 1000
# Seconds between two looks at what the processes have done.
INTERVAL = 1.0
# Seconds in which a Ray cluster must answer.
ANSWER = 10
# The port of ``ray://`` addresses that name none.
RAY_PORT = 10001
PRELOADED = ["monai_llmboost.studies.one_run", "monai.bundle", "monai.engines", "monai.handlers"]


@dataclass(frozen=True)
class Job:
    """A call that leaves its result in files.

    Args:
        name: for whoever watches.
        folder: where its log and its files are; made if need be.
        action: a function of a module, called with ``arguments``.
        arguments: that can be pickled.
        where: the working directory, by default that of whoever makes the job: relative paths mean the same in both.
    """

    name: str
    folder: Path
    action: Callable[..., None]
    arguments: tuple[Any, ...]
    where: Path = field(default_factory=Path.cwd)


def do(job: Job, threads: int, gpu: str | None = None) -> str:
    """Do a job in this process, its output into its log; why it failed in one sentence, or nothing."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    from monai_llmboost.bundle import root_cause

    torch.set_num_threads(threads)
    try:
        os.chdir(job.where)
        job.folder.mkdir(parents=True, exist_ok=True)
        _write_into(job.folder / LOG)
        job.action(*job.arguments)
    except Exception as error:  # whatever a run may fail by is told beside the others' results
        with suppress(OSError):  # a full disk takes no log
            traceback.print_exc()
        cause = root_cause(error)
        plain = isinstance(cause, TELLING) and str(cause).strip()
        return (plain or repr(cause))[:REASON]
    return ""


# Errors whose words are sentences; the words of others, such as a KeyError's, are not.
TELLING = (ValueError, TypeError, OSError, RuntimeError, ImportError)


def _write_into(path: Path) -> None:
    """Let all output of this process, also of code below Python, go to the end of a file."""
    with path.open("a") as log:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            stream.flush()
            os.dup2(log.fileno(), number)


def _process(job: Job, threads: int, gpu: str | None, answer: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    # Progress bars make a lock between processes, which would stay behind in the system when this one is ended.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reason = do(job, threads, gpu)
    answer.send(reason)
    sys.exit(1 if reason else 0)


def _end_with_parent() -> None:
    """End this process when whoever started it was killed: a study that goes on must be alone in its folders."""
    parent: Any = multiprocessing.parent_process()
    parent.join()
    os._exit(1)


def on_this_machine(jobs: Sequence[Job], at_once: int = 1) -> Iterator[dict[str, str] | None]:
    """Do jobs in processes of this machine, each on a GPU of its own as far as there are some.

    Yields:
        ``None`` about once a second, and whenever jobs end, why each of them failed: name -> reason, empty for success.
    """
    import torch

    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        _start_server()
    threads = max(1, torch.get_num_threads() // at_once)  # which heeds OMP_NUM_THREADS and a container's limits
    gpus = _gpus(torch.cuda.device_count())
    rest = list(jobs)
    running: dict[Any, tuple[Job, Any, Any, int]] = {}
    free = list(range(at_once))
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
    """Start the process that the others are forked from, deaf to ctrl-C: that is for this one, which ends them all."""
    from multiprocessing import forkserver, resource_tracker  # which Windows lacks

    forkserver.set_forkserver_preload(PRELOADED)
    resource_tracker.ensure_running()  # first, for it lifts what is blocked
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def _gpus(count: int) -> list[str]:
    """Names of the GPUs as ``CUDA_VISIBLE_DEVICES`` takes them: of those that this process may use, if it says so."""
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


def on_ray(jobs: Sequence[Job], at_once: int, address: str | None = None) -> Iterator[dict[str, str] | None]:
    """Do jobs on a Ray cluster whose machines see the same folders; see :func:`on_this_machine`.

    Args:
        jobs: to be done.
        at_once: how many share one machine: each asks for that part of the processors of the smallest machine, and for
            a GPU if the cluster has some.
        address: of the cluster, such as ``"auto"`` or ``"ray://head:10001"``; ``None`` starts one on this machine.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: nobody answers at the address, or it is no cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "expected Ray for --engine ray, it is not installed: pip install 'monai-llmboost[ray]'"
        ) from error
    if not ray.is_initialized():
        _check_answer(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(min(filter(None, processors), default=1)) // at_once)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # One call a process: what a job leaves in memory, and where its output goes, is no other's.
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1, max_retries=0)(do)
    running = {remote.remote(job, threads): job for job in jobs}
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=INTERVAL)
            ended = {}
            for one in done:
                job = running.pop(one)
                try:
                    ended[job.name] = ray.get(one)
                except ray.exceptions.RayError as error:
                    ended[job.name] = (
                        f"its process or machine was lost ({type(error).__name__}): see {job.folder / LOG}"
                    )
            yield ended or None
    finally:
        for one in running:
            ray.cancel(one, force=True)


def _check_answer(address: str) -> None:
    """See that somebody listens at an address with a port: Ray itself would wait for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        port = place.port or (RAY_PORT if place.scheme == "ray" else None)
        if port is not None:
            socket.create_connection((place.hostname, port), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"expected a Ray cluster at {address}, got no answer ({error}): start it there, or give another --address"
        ) from error
