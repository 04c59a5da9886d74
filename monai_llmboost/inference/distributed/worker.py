# SPDX-License-Identifier: Apache-2.0
"""The work of one actor: it opens the bundle and loads the network once, and predicts batches of given scans."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_llmboost.bundle import BundleJob, Option
from monai_llmboost.data import Scan
from monai_llmboost.inference.journal import INCOMPARABLE
from monai_llmboost.inference.rows import Row

# A case that keeps its place in a batch and is not read.
NOT_READ = "left out of this batch"
READER = "predict --engine ray"


@dataclass(frozen=True)
class Setup:
    """What an actor needs to know.

    Args:
        arguments: arguments of the job, see :func:`monai_llmboost.bundle.monai_arguments`.
        directory: working directory, from which relative paths start.
        output: a file in the output folder, by which an actor sees whether it is the same folder.
        inputs: some of the files to predict.
        key: key of the run, see :func:`monai_llmboost.inference.run_provenance`.
        threads: threads of an actor.
    """

    arguments: dict[str, Any]
    directory: Path
    output: Path
    inputs: Sequence[Path]
    key: str
    threads: int


@dataclass
class _Collected:
    """Takes the place of the journal in an actor: rows go to the process that started the run."""

    rows: list[Row] = field(default_factory=list)

    def append(self, rows: Sequence[Row]) -> None:
        self.rows += rows


class BatchWorker:
    """Predicts batches of scans that another process found, and writes the files of their cases.

    Args:
        setup: what it needs to know.

    Raises:
        ValueError: this machine does not have the folders of the run, or other weights or versions.
        OSError: a file cannot be read.
    """

    def __init__(self, setup: Setup) -> None:
        import torch

        logging.disable(logging.ERROR)  # as in the process that started the run; messages may contain names of patients
        warnings.simplefilter("ignore")
        _check_places(setup)
        torch.set_num_threads(setup.threads)
        # As if nothing were done before: the journal is not read, and only the other process writes it.
        places = {Option.DATASET_DIR: "$None", Option.ONLY: "$None", Option.VIEW: [], Option.OVERWRITE: True}
        self.job = BundleJob.open({**setup.arguments, **places, "is_not_rank0": True})
        self.predictions = self.job.predictions
        if self.predictions.provenance["key"] != setup.key and not setup.key.startswith(INCOMPARABLE):
            raise ValueError(
                "its weights, block, bundle or versions (monai-llmboost, MONAI, torch) are not those of the process "
                "that started the run: install the same everywhere, and share the bundle's folder"
            )
        self.collected = _Collected()
        self.predictions.journal = self.collected
        self.predictions.load()
        self.evaluator = self.job.item("evaluator", READER)

    @property
    def device(self) -> str:
        """The device, with its name."""
        return self.predictions.provenance["device"]

    def predict(self, scans: Sequence[Scan], batches: Sequence[Sequence[int]], only: int | None) -> list[Row]:
        """Predict batches, write the files of their cases, and return a row for each.

        Args:
            scans: the scans of the batches.
            batches: indices of scans.
            only: index of the only scan that is read; ``None`` for all.
        """
        if only is not None:
            scans = [scan if i == only else replace(scan, refused=NOT_READ) for i, scan in enumerate(scans)]
        self.predictions.cases.take(scans)
        self.predictions.batches.batches = [list(batch) for batch in batches]
        self.collected.rows = []
        self.evaluator.state.epoch_length = len(batches)
        self.evaluator.run()
        return [row for row in self.collected.rows if only is None or row.case == scans[only].name]


def _check_places(setup: Setup) -> None:
    """Go to the working directory, and check that this machine sees the folders of the run."""
    host = socket.gethostname()
    try:
        os.chdir(setup.directory)
    except OSError as error:
        raise ValueError(
            f"the working directory {setup.directory} is not on {host}: start the run in a folder that all machines "
            "share"
        ) from error
    if not setup.output.is_file():
        raise ValueError(
            f"{host} does not see the output folder {setup.output.parents[1]}: give a folder that all machines share"
        )
    missing = [file for file in map(Path, setup.arguments["config_file"]) if not file.is_file()]
    if missing:
        raise ValueError(f"{host} does not see {missing[0]}: give a bundle in a folder that all machines share")
    if not all(file.exists() for file in setup.inputs):
        raise ValueError(f"{host} does not see the scans: give an input folder that all machines share")


def is_portable(error: Exception) -> bool:
    """Return whether an error can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # an error class of another package may do anything here
        return False
    return True
