# SPDX-License-Identifier: Apache-2.0
"""Jobs on a Ray cluster, each in a separate process."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from monai_llmboost.studies.jobs import INTERVAL, Job, run_job
from monai_llmboost.studies.run_folder import LOG

# Timeout in seconds for the answer of a Ray cluster.
ANSWER = 10
# The default port of ``ray://`` addresses.
RAY_PORT = 10001


def run_on_ray(jobs: Sequence[Job], parallel: int, address: str | None = None) -> Iterator[dict[str, str] | None]:
    """Run jobs on a Ray cluster whose machines share the same folders.

    Args:
        jobs: jobs to run.
        parallel: number of jobs per machine: each requests this fraction of the smallest machine's CPUs, and a GPU if
            the cluster has GPUs.
        address: address of the cluster, such as ``"auto"`` or ``"ray://head:10001"``; ``None`` starts a cluster on
            this machine.

    Yields:
        The same as :func:`monai_llmboost.studies.jobs.run_locally`.

    Raises:
        ImportError: Ray is not installed.
        ConnectionError: no Ray cluster answers at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "--engine ray needs Ray, which is not installed: pip install 'monai-llmboost[ray]'"
        ) from error
    if not ray.is_initialized():
        _check_answer(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    processors = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
    threads = max(1, int(min(filter(None, processors), default=1)) // parallel)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # One call per process, so that a job's memory and redirected output do not affect another job.
    remote = ray.remote(num_cpus=threads, num_gpus=gpus, max_calls=1, max_retries=0)(run_job)
    running = {remote.remote(job, threads): job for job in jobs}
    try:
        while running:
            done, _ = ray.wait(list(running), timeout=INTERVAL)
            ended = {}
            for task in done:
                job = running.pop(task)
                try:
                    ended[job.name] = ray.get(task)
                except ray.exceptions.RayError as error:
                    ended[job.name] = (
                        f"its process or machine was lost ({type(error).__name__}): see {job.folder / LOG}"
                    )
            yield ended or None
    finally:
        for task in running:
            ray.cancel(task, force=True)


def _check_answer(address: str) -> None:
    """Check that an address with a port answers, because Ray itself would wait for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        port = place.port or (RAY_PORT if place.scheme == "ray" else None)
        if port is not None:
            socket.create_connection((place.hostname, port), timeout=ANSWER).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address} ({error}): start it there, or give another --address"
        ) from error
