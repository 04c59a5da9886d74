# SPDX-License-Identifier: Apache-2.0
"""The process that starts a distributed run: it finds the scans, hands out batches, and keeps the journal."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.data import Scan
from monai_llmboost.inference.distributed.cluster import ActorSize, RayOptions, open_cluster, size_actors
from monai_llmboost.inference.distributed.pool import ActorPool
from monai_llmboost.inference.distributed.units import Unit, make_units
from monai_llmboost.inference.distributed.worker import Setup
from monai_llmboost.inference.handler import Predictions
from monai_llmboost.inference.rows import Row

KILLED = (
    "each process that predicted this case ended without an answer: the scan needs more memory than there is, or a "
    "library that reads it crashes; look at the scan, or give more memory"
)
MARKER = "seen-by-ray-"


def predict_on_ray(job: BundleJob, arguments: Mapping[str, Any], options: RayOptions) -> None:
    """Predict the scans of a job on a Ray cluster whose machines share the folders of the run.

    The files are those of a run in one process. A case that ends its actors again and again is refused.

    Args:
        job: the open job.
        arguments: arguments of the job, for the actors.
        options: how the run is shared.

    Raises:
        ValueError: no machine is large enough, or an actor has other folders, weights or versions.
        RuntimeError: actors end before their first batch.
        OSError: files cannot be written.
    """
    predictions: Predictions = job.predictions
    predictions.start()
    if len(predictions.batches):
        with open_cluster(options.address) as ray, _marker(predictions) as marker:
            workers = int(job.parser.get(Option.NUM_WORKERS) or 0)
            on_cpu = Option.DEVICE in arguments
            size = size_actors(options, ray.nodes(), workers, on_cpu)
            units = make_units(predictions.batches.batches, size.actors, workers)
            setup = _setup(job, arguments, marker, size)
            pool = ActorPool(ray, size, setup, partial(_content, predictions.cases.scans))
            try:
                _predict(predictions, units, pool)
            finally:
                pool.end()
            predictions.provenance["device"] = "; ".join(sorted(pool.devices))
    predictions.finish()


def _predict(predictions: Predictions, units: list[Unit], pool: ActorPool) -> None:
    """Hand out units until each of their cases has a row in the journal."""
    pool.add(units)
    number = sum(len(unit.cases) for unit in units)
    # Like Ignite's bar: hidden if the output is not a terminal.
    with tqdm(total=number, desc="predict", unit="case", disable=None, leave=False) as bar:
        for unit, rows in pool.run():
            if rows is None:
                again = unit.after_death()
                pool.add(again)
                rows = [] if again else [_refused(predictions, case) for case in unit.cases]
            if rows:
                predictions.journal.append(rows)
            bar.set_postfix(actors=pool.num_ready, refresh=False)
            bar.update(len(rows))


def _content(scans: Sequence[Scan], unit: Unit) -> tuple[list[Scan], list[list[int]], int | None]:
    """Return what an actor gets of a unit: the scans, and indices of these."""
    cases = [case for batch in unit.batches for case in batch]
    place = {case: number for number, case in enumerate(cases)}
    batches = [[place[case] for case in batch] for batch in unit.batches]
    return [scans[case] for case in cases], batches, None if unit.only is None else place[unit.only]


def _refused(predictions: Predictions, case: int) -> Row:
    row = Row.of_scan(predictions.cases.scans[case], predictions.answers.refused())
    row.refused, row.refused_kind, row.may_pass = KILLED, "crashed", True
    return row


def _setup(job: BundleJob, arguments: Mapping[str, Any], marker: Path, size: ActorSize) -> Setup:
    """Return what the actors need to know; they compute in the dtype of this process, which the key contains."""
    predictions: Predictions = job.predictions
    own = dict(arguments)
    if Option.PRECISION in job and Option.COMPUTE_DTYPE in job:
        own[Option.PRECISION] = str(job.item(Option.COMPUTE_DTYPE, "predict")).removeprefix("torch.")
    if not size.gpus:
        own[Option.DEVICE] = "$torch.device('cpu')"
    first = predictions.cases.scans[predictions.batches.batches[0][0]]
    key = predictions.provenance["key"]
    return Setup(own, Path.cwd(), marker.absolute(), first.files[:1], key, max(1, size.cpus))


@contextmanager
def _marker(predictions: Predictions) -> Iterator[Path]:
    """Write a file by which actors see whether their output folder is the same, and remove it at the end."""
    folder = predictions.journal.folder
    for left in folder.glob(f"{MARKER}*"):  # of a run that was killed
        left.unlink()
    path = folder / f"{MARKER}{uuid.uuid4().hex}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
