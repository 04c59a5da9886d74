# SPDX-License-Identifier: Apache-2.0
"""MLflow runs with a correct status: each start creates a run, resuming continues it, a failure marks it FAILED."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.engines.event_handlers import call_first_on_failure, owners_of

logger = logging.getLogger("monai_llmboost")
# File next to the checkpoints that lists the MLflow runs of a training.
RECORD = "mlflow.json"
# Tags of an MLflow run: folder of the training, job, and the process that writes the run.
FOLDER, JOB, PROCESS = (f"monai_llmboost.{name}" for name in ("folder", "job", "process"))
RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"


@dataclass(frozen=True)
class TrackedRun:
    """An MLflow run of a training, as saved in ``mlflow.json``.

    Args:
        store: address of the store, or its digest if the address contains a password.
        experiment: name of the experiment.
        name: name of the run; empty for a name made from the time.
        run: id of the run.

    Example:
        >>> asdict(TrackedRun("./mlruns", "phantoms", "", "8f3a"))
        {'store': './mlruns', 'experiment': 'phantoms', 'name': '', 'run': '8f3a'}
    """

    store: str
    experiment: str
    name: str
    run: str


class MlflowRuns:
    """Gives all MLflow handlers of an engine a separate run.

    MONAI's handler continues any run that is not finished, so a start after a crash is written into the crashed run.
    Here, handlers with the same store, experiment and run name share a new run. It ends as FINISHED or FAILED; if its
    process was killed, the next start with the same folder ends it. Without such handlers (only rank 0 has them), this
    class does nothing.

    Args:
        folder: folder of the checkpoints; a training saves ``mlflow.json`` there.
        job: ``"train"`` or ``"evaluate"``.
        resume: continue the run that ``mlflow.json`` names.

    Example:
        >>> runs = MlflowRuns(Path("models"), "train")
        >>> runs.start(Engine(lambda engine, batch: None))  # it has no MLflow handler
    """

    def __init__(self, folder: Path, job: str, resume: bool = False) -> None:
        self.folder = folder
        self.job = job
        self.resume = resume
        self.records: list[TrackedRun] = []
        self.open: list[tuple[Any, str]] = []

    def start(self, engine: Engine, *others: Engine) -> None:
        """Open the runs when ``engine`` starts, before its MLflow handlers start; ``others`` run inside it."""
        handlers = [each for each in owners_of(Events.STARTED, engine, *others) if isinstance(each, MLFlowHandler)]
        if not handlers:
            return
        earlier = self.records or self._read()  # self.records: from the last round of federated training
        known = earlier if self.records or self.resume else []
        self._open_runs(handlers, known)
        opened = [run for _, run in self.open]
        for record in earlier:
            if record.run not in opened and "://" in record.store:
                _end_stale(_client(record.store), record.run)
        if self.job == "train":
            with atomic_text(self.folder / RECORD, aside=False) as file:
                json.dump([asdict(record) for record in self.records], file, indent=1)
        if not engine.has_event_handler(self.completed, Events.COMPLETED):
            engine.add_event_handler(Events.COMPLETED, self.completed)
            call_first_on_failure(engine, self.failed)

    def completed(self) -> None:
        """End the runs as finished."""
        for client, run in self.open:
            client.set_terminated(run, FINISHED)

    def failed(self) -> None:
        """End the runs as failed."""
        for client, run in self.open:
            try:
                client.set_terminated(run, FAILED)
            except Exception as second:  # the store itself may have failed
                logger.warning(f"the MLflow run {run} was not ended ({second}): the next start does it")

    def _open_runs(self, handlers: list[MLFlowHandler], known: list[TrackedRun]) -> None:
        """Give each handler its run; handlers with the same store, experiment and run name share one."""
        self.open, self.records = [], []
        runs: dict[tuple[str, ...], str] = {}
        for handler in handlers:
            handler._set_experiment()
            key = (handler.client.tracking_uri, handler.experiment_name, handler.run_name or "")
            if key not in runs:
                runs[key] = self._continued(handler, known) or self._created(handler)
                self.open.append((handler.client, runs[key]))
                self.records.append(TrackedRun(_store(key[0]), key[1], key[2], runs[key]))
            handler.cur_run = handler.client.get_run(runs[key])

    def _read(self) -> list[TrackedRun]:
        if self.job != "train":
            return []
        try:
            records = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            return [TrackedRun(*(str(record[field.name]) for field in fields(TrackedRun))) for record in records]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def _continued(self, handler: MLFlowHandler, known: list[TrackedRun]) -> str | None:
        """Reopen an earlier run, if there is one and it was not deleted."""
        store = _store(handler.client.tracking_uri)
        fitting = [each for each in known if (each.store, each.experiment) == (store, handler.experiment_name)]
        named = [each for each in fitting if each.name == (handler.run_name or "")] or fitting[:1]
        if not named:
            return None
        run = named[0].run
        try:
            if handler.client.get_run(run).info.lifecycle_stage != "active":
                raise LookupError("it was deleted")
            handler.client.update_run(run, status=RUNNING)
            handler.client.set_tag(run, PROCESS, _process())
        except Exception as error:  # MLflow raises errors of several classes
            logger.warning(f"the MLflow run {run} cannot be continued ({error}): this start gets a new one")
            return None
        return run

    def _created(self, handler: Any) -> str:
        client, experiment, folder = handler.client, handler.experiment.experiment_id, str(self.folder.absolute())
        for run in client.search_runs([experiment], f"attributes.status = '{RUNNING}' and tags.`{JOB}` = '{self.job}'"):
            if run.data.tags.get(FOLDER) == folder:
                _end_stale(client, run.info.run_id)
        name = handler.run_name or f"run_{time.strftime('%Y%m%d_%H%M%S')}"  # as MONAI names it
        tags = {FOLDER: folder, JOB: self.job, PROCESS: _process()}
        return client.create_run(experiment, tags=tags, run_name=name).info.run_id


def _end_stale(client: Any, run: str) -> None:
    """End a run as failed if it is open and its process has ended."""
    try:
        found = client.get_run(run)
        if found.info.status == RUNNING and not _is_alive(found.data.tags):
            client.set_terminated(run, FAILED)
            logger.info(f"the MLflow run {found.info.run_name} was interrupted: it is {FAILED} now")
    except Exception as error:  # the store cannot be reached, or the run was deleted: no reason not to train
        logger.warning(f"the MLflow run {run} was not ended ({error})")


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _store(uri: str) -> str:
    """Return a store's address for the record, or its digest if the address contains a password."""
    return hashlib.sha256(uri.encode()).hexdigest() if "@" in uri else uri


def _process() -> str:
    """Return an identifier of this process, unique among the machines that share the store."""
    return f"{platform.node()} {os.getpid()} {_begun(os.getpid())}"


def _is_alive(tags: Mapping[str, str]) -> bool:
    """Return whether another process on this machine writes a run.

    For processes on other machines, this is unknown and the answer is False: if their run is ended too early, they
    still set it to FINISHED at its real end.
    """
    node, _, rest = tags.get(PROCESS, "").partition(" ")
    pid, _, begun = rest.partition(" ")
    other = node == platform.node() and pid.isdecimal() and pid != str(os.getpid())
    return other and begun != "-" and _begun(int(pid)) == begun


def _begun(pid: int) -> str:
    """Return the start time of a process on this machine (Linux); "-" if it has ended or is unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "-"
    return "-" if fields[0] in "ZX" else fields[19]  # a zombie has ended; field 22 of stat is the start time
