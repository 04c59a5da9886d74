# SPDX-License-Identifier: Apache-2.0
"""What a run leaves on disk: checkpoints, a table of predictions, metrics; whole files only, earlier ones kept."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from torch import distributed, nn

from monai_llmboost.engines.metrics import bootstrap_interval, medmnist_acc, medmnist_auc

logger = logging.getLogger("monai_llmboost")


def set_aside(path: Path) -> None:
    """Rename a file that is there to the next free ``name.1.suffix``, ``name.2.suffix`` ...: nothing is overwritten."""
    if not path.exists():
        return
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    logger.info(f"{path} of an earlier run is now {kept.name}")


@contextmanager
def written_whole(path: Path) -> Iterator[Any]:
    """A text file that appears under its name when all of it is written, or not at all; an earlier one is set aside."""
    path.parent.mkdir(parents=True, exist_ok=True)
    umask = os.umask(0)
    os.umask(umask)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", newline="", dir=path.parent, delete=False) as file:
        try:
            yield file
        except BaseException:
            Path(file.name).unlink()
            raise
    Path(file.name).chmod(0o666 & ~umask)
    set_aside(path)
    Path(file.name).replace(path)


class TrainingCheckpoints:
    """Keeps the best network by validation, stops when validation gets no better, and lets a run go on exactly.

    ``model.pt`` holds the weights of the best validated epoch; ``last.pt`` all that training needs to go on after the
    last finished epoch: network, optimizer, schedule, gradient scaler, epoch, best value so far. Both hold tensors and
    numbers only (``weights_only`` loading works) and are written atomically. Attach it behind MONAI's
    ``ValidationHandler``, for it reads that epoch's validation, and before :class:`SeededEpochs`.

    Args:
        ckpt_dir: the folder; files of an earlier run in it are renamed, not overwritten.
        save_dict: what to keep, ``"model"`` among them, each with ``state_dict`` and ``load_state_dict``.
        evaluator: the engine that validates.
        metric: name of the evaluator's metric that chooses; larger is better.
        patience: epochs without a better value before training stops; 0 never stops early.
        resume: go on from ``last.pt`` in ``ckpt_dir``.

    Raises:
        FileNotFoundError: from the run, if there is nothing to resume.
    """

    def __init__(
        self,
        ckpt_dir: str | Path,
        save_dict: Mapping[str, Any],
        evaluator: Engine,
        metric: str,
        patience: int = 0,
        resume: bool = False,
    ) -> None:
        self.ckpt_dir = Path(ckpt_dir)
        self.save_dict = dict(save_dict)
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.resume = resume
        self.best: dict[str, float] = {"value": -math.inf, "epoch": 0}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)

    def start(self, engine: Engine) -> None:
        """Restore an interrupted run, or make room for a new one."""
        if self.resume:
            self._restore(engine)
        elif idist.get_rank() == 0:
            self.ckpt_dir.mkdir(parents=True, exist_ok=True)
            for name in ("model.pt", "last.pt"):
                set_aside(self.ckpt_dir / name)
        idist.barrier()
        # Chmod'ed and renamed into place by rank 0 alone.
        self.save = DiskSaver(str(self.ckpt_dir), atomic=True, create_dir=True, require_empty=False)

    def epoch_completed(self, engine: Engine) -> None:
        """Keep the epoch, and the network if it is the best so far."""
        value = float(self.evaluator.state.metrics.get(self.metric, -math.inf))  # none before the first validation
        if value > self.best["value"]:
            self.best = {"value": value, "epoch": engine.state.epoch}
            self.save(unwrap(self.save_dict["model"]).state_dict(), "model.pt")
        self.save(self._state(engine), "last.pt")
        if self._waited_enough(engine):
            logger.info(
                f"no better {self.metric} for {self.patience} epochs: stopping after epoch {engine.state.epoch}; "
                f"best {self.best['value']:.4f} in epoch {self.best['epoch']}"
            )
            engine.terminate()

    def _waited_enough(self, engine: Engine) -> bool:
        return 0 < self.patience <= engine.state.epoch - self.best["epoch"]

    def _state(self, engine: Engine) -> dict[str, Any]:
        state = {name: keeper.state_dict() for name, keeper in self._keepers(engine).items()}
        progress = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        return {**state, "progress": progress, "best": self.best}

    def _keepers(self, engine: Engine) -> dict[str, Any]:
        keepers = {**self.save_dict, "model": unwrap(self.save_dict["model"])}
        scaler = getattr(engine, "scaler", None)
        return keepers if scaler is None else {**keepers, "scaler": scaler}

    def _restore(self, engine: Engine) -> None:
        path = self.ckpt_dir / "last.pt"
        if not path.is_file():
            raise FileNotFoundError(
                f"nothing to resume: {path} is not there; give the --ckpt_dir of the run, or drop --resume"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        progress, max_epochs = state["progress"], engine.state.max_epochs
        if progress["epoch"] > max_epochs:
            raise ValueError(
                f"the run in {path} already has {progress['epoch']} epochs, --epochs asks for {max_epochs}"
            )
        for name, keeper in self._keepers(engine).items():
            if name not in state:
                raise ValueError(
                    f"expected {name!r} in {path}, found none: it is of another kind of run (AMP on or off?)"
                )
            names = class_names_of(keeper)
            keeper.load_state_dict(state[name])
            if class_names_of(keeper) != names:
                raise ValueError(
                    f"the run in {path} is for the classes {class_names_of(keeper)}, this one for {names}: "
                    "give the --dataset of that run"
                )
        engine.state.epoch, engine.state.iteration = progress["epoch"], progress["iteration"]
        self.best = state["best"]
        logger.info(f"resumed after epoch {progress['epoch']}")
        if self._waited_enough(engine):
            engine.terminate()


class PredictionTable:
    """Writes ``predictions.csv`` when an evaluator is done: one row per case, on rank 0, for all ranks.

    Columns: case; one probability per class, ``p_<class name>``; ``predicted``, the class of the largest; ``label``
    where cases have one; ``refused``, the reason why a case has no prediction, where cases may be refused. A case whose
    probabilities are not finite is refused.

    Args:
        output_dir: the folder; an earlier ``predictions.csv`` in it is renamed, not overwritten.
        network: gives the names of its classes, those of the checkpoint it loaded.
        class_names: the names that the cases' labels have, if they have labels.

    Raises:
        ValueError: from the run, if the network was trained for other classes than ``class_names``.
    """

    def __init__(self, output_dir: str | Path, network: nn.Module, class_names: Sequence[str] | None = None) -> None:
        self.path = Path(output_dir) / "predictions.csv"
        self.network = network
        self.class_names = class_names
        self.names: list[str] = []
        self.rows: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that decollates and whose items hold "pred" (probabilities) and "case"."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.collect)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def start(self, engine: Engine) -> None:
        """Learn the names of the classes, once the checkpoint is loaded."""
        self.rows = []
        self.names = class_names_of(self.network)
        if not self.names:
            raise ValueError(f"expected a network with class_names, got {type(unwrap(self.network)).__name__}")
        if self.class_names is not None and list(self.class_names) != self.names:
            raise ValueError(
                f"expected a network trained for the classes {list(self.class_names)}, the checkpoint's are "
                f"{self.names}: give the --dataset that it was trained on"
            )

    def collect(self, engine: Engine) -> None:
        """Take the rows of one batch."""
        state: Any = engine.state
        for item, output in zip(state.batch, state.output):
            self.rows.append(self._row({**item, **output}))

    def _row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        probabilities = [float(p) for p in item["pred"]]
        refused = item.get("refused", "")
        if not refused and not all(map(math.isfinite, probabilities)):
            refused = "the network's output is not finite"
        row: dict[str, Any] = {"case": item["case"]}
        for name, p in zip(self.names, probabilities):
            row[f"p_{name}"] = "" if refused else f"{p:.6f}"
        row["predicted"] = "" if refused else self.names[probabilities.index(max(probabilities))]
        if item.get("label") is not None:
            row["label"] = self.names[int(item["label"])]
        if "refused" in item or refused:
            row["refused"] = refused
        return row

    def write(self, engine: Engine) -> None:
        """Write the table of all ranks."""
        rows = [row for part in gathered(self.rows) for row in part]
        if idist.get_rank() == 0 and rows:
            with written_whole(self.path) as file:
                writer = csv.DictWriter(file, max(map(list, rows), key=len), restval="", lineterminator="\n")
                writer.writeheader()
                writer.writerows(sorted(rows, key=lambda row: row["case"]))
            refused = sum(bool(row.get("refused")) for row in rows)
            logger.info(f"{len(rows)} cases, {refused} refused: {self.path}")


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if idist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * idist.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def class_names_of(network: Any) -> list[str]:
    """The names of the classes that a network keeps; none for what keeps none."""
    kept = getattr(unwrap(network), "class_names", None)
    return [] if kept is None else kept.names()


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


class MetricsFile:
    """Writes ``metrics.json`` when an evaluator is done: AUC and ACC with 95 % intervals over the cases, on rank 0.

    Args:
        output_dir: the folder; an earlier ``metrics.json`` in it is renamed, not overwritten.
        auc: name of the evaluator's :class:`MedMNISTAUC`, whose gathered cases are used.
        about: what the numbers are of, such as dataset and split; written beside them.
    """

    def __init__(self, output_dir: str | Path, auc: str, about: Mapping[str, Any]) -> None:
        self.path = Path(output_dir) / "metrics.json"
        self.auc = auc
        self.about = dict(about)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.COMPLETED, self.write)

    def write(self, engine: Engine) -> None:
        """Write the file."""
        if idist.get_rank() != 0:
            return
        state: Any = engine.state
        probabilities, labels = (x.cpu().numpy() for x in state.metric_details[self.auc])
        probabilities, labels = probabilities.astype("float64"), labels.reshape(-1)
        numbers: dict[str, Any] = {}
        for name, metric in (("auc", medmnist_auc), ("acc", medmnist_acc)):
            numbers[name] = metric(probabilities, labels)
            numbers[f"{name}_interval_95"] = list(bootstrap_interval(metric, probabilities, labels))
        with written_whole(self.path) as file:
            json.dump({**self.about, "cases": len(labels), **numbers}, file, indent=2)
            file.write("\n")
        logger.info(f"AUC {numbers['auc']:.4f} ACC {numbers['acc']:.4f} on {len(labels)} cases: {self.path}")
