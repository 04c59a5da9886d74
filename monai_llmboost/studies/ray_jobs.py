# SPDX-License-Identifier: Apache-2.0
"""Jobs on a Ray cluster, each in a separate process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence

from monai_llmboost.ray_address import check_answer, check_installed
from monai_llmboost.studies.jobs import INTERVAL, Job, run_job
from monai_llmboost.studies.run_folder import LOG


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
    check_installed()
    import ray

    if not ray.is_initialized():
        check_answer(address or os.environ.get("RAY_ADDRESS", ""))
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
