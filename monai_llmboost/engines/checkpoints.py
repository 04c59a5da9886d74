# SPDX-License-Identifier: Apache-2.0
"""Keep the best network, stop in time, go on exactly: what training leaves on disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver
from torch import nn

from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.engines.files import set_aside
from monai_llmboost.networks.class_names import unwrap

logger = logging.getLogger("monai_llmboost")
# Files of training by whose weights they hold.
WEIGHTS = {"best": "model.pt", "last": "last.pt"}


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
        options: by which the run was begun, such as epochs and batch size; a run is resumed with the same ones only.

    Raises:
        ValueError: a patience below 0, or a resume that is neither True nor False.
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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(resume, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected resume to be True or False, got {resume!r}")
        if not isinstance(patience, int) or patience < 0:
            raise ValueError(f"expected patience to be a whole number from 0, got {patience!r}")
        self.ckpt_dir = Path(ckpt_dir)
        self.save_dict = dict(save_dict)
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.resume = resume
        self.options = dict(options or {})
        self.best: dict[str, float] = {"value": -math.inf, "epoch": 0}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)

    def start(self, engine: Engine) -> None:
        """Restore an interrupted run, or make room for a new one."""
        if not isinstance(engine.state.max_epochs, int):
            raise ValueError(f"expected a whole number of epochs, got {engine.state.max_epochs!r}")
        if self.resume:
            self._restore(engine)
        elif idist.get_rank() == 0:
            self.ckpt_dir.mkdir(parents=True, exist_ok=True)
            for name in WEIGHTS.values():
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

    def completed(self, engine: Engine) -> None:
        """Say which network was kept, or that there is none to keep."""
        if not self.best["epoch"]:
            raise ValueError("nothing was validated, so there is no model.pt: lower --val_interval (last.pt is there)")
        best = f"best {self.metric} {self.best['value']:.4f} in epoch {self.best['epoch']}"
        logger.info(f"{best}: {self.ckpt_dir / 'model.pt'}")

    def _waited_enough(self, engine: Engine) -> bool:
        return 0 < self.patience <= engine.state.epoch - self.best["epoch"]

    def _state(self, engine: Engine) -> dict[str, Any]:
        state = {name: keeper.state_dict() for name, keeper in self._keepers(engine).items()}
        progress = {"epoch": engine.state.epoch, "epoch_length": engine.state.epoch_length}
        return {**state, "progress": progress, "best": self.best, "options": self.options}

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
        state = load_weights(path, "Copy it again, or start without --resume")
        if not isinstance(state, Mapping) or not {"options", "progress", "best"} <= state.keys():
            raise ValueError(f"{path} is not what a training left to resume it: give the --ckpt_dir of the run")
        begun, asked = state["options"], self.options
        for name in sorted(set(begun) | set(asked)):
            if begun.get(name) != asked.get(name):
                raise ValueError(
                    f"the run in {path} was begun with {name} {begun.get(name)!r}, this one has {asked.get(name)!r}: "
                    "resume it with its own options, or begin anew with another --ckpt_dir"
                )
        epoch, epoch_length = state["progress"]["epoch"], state["progress"]["epoch_length"]
        if epoch_length != engine.state.epoch_length:
            raise ValueError(
                f"the run in {path} has {epoch_length} steps an epoch, this one {engine.state.epoch_length}: "
                "resume it with its own batch size and number of processes"
            )
        if epoch > engine.state.max_epochs:
            raise ValueError(f"the run in {path} already has {epoch} epochs, {engine.state.max_epochs} are asked for")
        for name, keeper in self._keepers(engine).items():
            if name not in state:
                raise ValueError(
                    f"expected {name!r} in {path}, found none: it is of another kind of run (AMP on or off?)"
                )
            keeper.load_state_dict(state[name])
        engine.state.epoch, engine.state.iteration = epoch, epoch * epoch_length
        self.best = state["best"]
        logger.info(f"resumed after epoch {epoch}")
        if self._waited_enough(engine):
            engine.terminate()


class TrainedWeights:
    """Loads trained weights strictly when an evaluator starts, and says in one sentence why it cannot.

    Args:
        ckpt_dir: the folder that training wrote its checkpoints into.
        network: the network to load into.
        weights: ``"best"``, those of the epoch that validation chose (``model.pt``), or ``"last"``, those of the last
            epoch (in ``last.pt``).

    Raises:
        ValueError: other weights; from the run, if the file is damaged or was trained with other options, another arm
            or another block.
        FileNotFoundError: from the run, if there is no such file.
    """

    def __init__(self, ckpt_dir: str | Path, network: nn.Module, weights: str = "best") -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"expected weights of {', '.join(WEIGHTS)}, got {weights!r}")
        self.path = Path(ckpt_dir) / WEIGHTS[weights]
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self.load)

    def load(self) -> None:
        """Load the weights."""
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no {self.path}: train first, or give the --ckpt_dir of the training")
        state = load_weights(self.path, "Copy it again, or train again")
        if self.path.name == WEIGHTS["last"] and isinstance(state, Mapping):
            state = state.get("model")
        if not isinstance(state, Mapping):
            raise ValueError(f"{self.path} holds no trained weights: give the --ckpt_dir of a training")
        network = unwrap(self.network)
        try:
            network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            told = [line.strip() for line in str(error).splitlines() if "made with the" in line]
            reason = told[0] if told else _unlike(network.state_dict(), state)
            raise ValueError(
                f"{self.path} was trained with other options: {reason}; "
                "give the --dataset, --size, arm, --block and network options of the training"
            ) from error


def _unlike(own: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Which weights of a network and of a file have no counterpart in the other, in words."""
    kinds = {
        "only the file has": sorted(state.keys() - own.keys()),
        "only this network has": sorted(own.keys() - state.keys()),
        "of another size are": sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape),
    }
    return ", ".join(
        f"{words} {len(names)} weights ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for words, names in kinds.items()
        if names
    )
