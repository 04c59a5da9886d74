# SPDX-License-Identifier: Apache-2.0
"""Work in processes of its own, several at once, on this machine or on a Ray cluster; one that fails costs itself only.

The processes of this machine are forked from one that has imported everything, so that they begin at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LOG, REASON = "run.log", "failed.txt"
# Seconds between two looks at what the processes have done.
INTERVAL = 1.0
PRELOADED = ["monai_llmboost.studies.one_run", "monai.bundle", "monai.engines", "monai.handlers"]


@dataclass(frozen=True)
class Job:
    """A call that leaves its result in files.

    Args:
        name: for whoever watches.
        folder: where its log and its files are; made if need be.
        action: a function of a module, called with ``arguments``.
        arguments: that can be pickled.
    """

    name: str
    folder: Path
    action: Callable[..., None]
    arguments: tuple[Any, ...]


def do(job: Job, threads: int, gpu: int | None = None) -> str:
    """Do a job in this process, its output into its log; why it failed in one sentence, or nothing."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    import torch

    from monai_llmboost.bundle import root_cause

    torch.set_num_threads(threads)
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / REASON).unlink(missing_ok=True)
    with (job.folder / LOG).open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            job.action(*job.arguments)
        except Exception as error:  # whatever a run may fail by is told beside the others' results
            traceback.print_exc()
            cause = root_cause(error)
            reason = str(cause).strip() or type(cause).__name__
            (job.folder / REASON).write_text(reason)
            return reason
    return ""


def _process(job: Job, threads: int, gpu: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it ends it
    sys.exit(1 if do(job, threads, gpu) else 0)


def on_this_machine(jobs: Sequence[Job], at_once: int = 1) -> Iterator[dict[str, str] | None]:
    """Do jobs in processes of this machine, each on a GPU of its own as far as there are some.

    Yields:
        ``None`` about once a second, and whenever jobs end, why each of them failed: name -> reason, empty for success.
    """
    import torch

    context: Any = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(PRELOADED)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    gpus = torch.cuda.device_count()
    rest = list(jobs)
    running: dict[Any, tuple[Job, Any, int]] = {}
    free = list(range(at_once))
    try:
        while rest or running:
            while rest and free:
                place, job = free.pop(0), rest.pop(0)
                gpu = place % gpus if gpus > 1 else None
                process = context.Process(target=_process, args=(job, threads, gpu), name=job.name)
                process.start()
                running[process.sentinel] = (job, process, place)
            ended = {}
            for sentinel in wait(list(running), timeout=INTERVAL):
                job, process, place = running.pop(sentinel)
                process.join()
                free.append(place)
                ended[job.name] = _reason(job, process.exitcode)
            yield ended or None
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            process.join()


def _reason(job: Job, status: int) -> str:
    if status == 0:
        return ""
    file = job.folder / REASON
    if file.is_file():
        return file.read_text()
    if status < 0:
        memory = " (the system does so when memory is short: give fewer --jobs)" if status == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{memory}"
    return f"its process ended with status {status}: see {job.folder / LOG}"


def on_ray(jobs: Sequence[Job], at_once: int, address: str | None = None) -> Iterator[dict[str, str] | None]:
    """Do jobs on a Ray cluster whose machines see the same folders; see :func:`on_this_machine`.

    Args:
        jobs: to be done.
        at_once: how many share one machine: each asks for so many parts of this machine's processors, and for a GPU if
            the cluster has some.
        address: of the cluster, such as ``"auto"`` or ``"ray://head:10001"``; ``None`` starts one on this machine.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "expected Ray for --engine ray, it is not installed: pip install 'monai-llmboost[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    threads = max(1, (os.cpu_count() or 1) // at_once)
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
