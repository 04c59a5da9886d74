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

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import set_aside
from monai_llmboost.artifacts.signature import KeptText
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.bundle import FREE_IN_TRAINING, counting_config, running_config
from monai_llmboost.data.labels import check_labels
from monai_llmboost.engines.best_weights import BEST, DIGEST, LAST, NEXT, check_best, place_next
from monai_llmboost.engines.loading import load_trained
from monai_llmboost.engines.lock import TrainingLock
from monai_llmboost.engines.preprocessing import check_preprocessing, training_steps
from monai_llmboost.engines.resume import (
    CONFIG,
    OBJECTS,
    check_progress,
    check_same_config,
    check_same_run,
    check_validates,
    kinds_of,
)
from monai_llmboost.engines.tracking import MlflowRuns
from monai_llmboost.engines.training_cases import check_cases, division_of
from monai_llmboost.networks.class_names import class_names_of, keep_text
from monai_llmboost.networks.wrappers import average_of, saved_state, unwrap

logger = logging.getLogger("monai_llmboost")
# Files of training by whose weights they hold.
WEIGHTS = {"best": BEST, "last": LAST}


class TrainingCheckpoints:
    """Keeps the best network by validation, stops when validation gets no better, and lets a run go on exactly.

    ``model.pt`` holds the weights of the best validated epoch; ``last.pt`` all that training needs to go on after the
    last finished epoch: network, optimizer, schedule, gradient scaler, epoch, best value so far and the digest of its
    ``model.pt``. Both hold tensors, numbers and text only (``weights_only`` loading works) and are written atomically.
    Attach it behind MONAI's
    ``ValidationHandler``, for it reads that epoch's validation, and before :class:`SeededEpochs`.

    Before the first step it refuses labels that are none, a run that validates in no epoch, and a validation that
    prepares its volumes in another way. MLflow handlers behind it get a run of their own.

    Args:
        ckpt_dir: the folder, of one training at a time; files of an earlier run in it are renamed, not overwritten.
        save_dict: what to keep, ``"model"`` among them, each with ``state_dict`` and ``load_state_dict``.
        evaluator: the engine that validates.
        metric: name of the evaluator's metric that chooses; larger is better.
        patience: validations without a better value before training stops; 0 never stops early.
        resume: go on from ``last.pt`` in ``ckpt_dir``.
        options: by which the run was begun, such as epochs and batch size; a run is resumed with the same ones only,
            and with the same config of its bundle but for device, places, logging and the like.
        preprocessing: the training's transforms. Their deterministic steps are kept in the networks' ``preprocessing``,
            for :class:`TrainedWeights`, and a run is resumed with the same ones only; ``None`` keeps and compares none.

    Raises:
        ValueError: a patience below 0, or a resume that is neither True nor False.
        FileNotFoundError: from the run, if there is nothing to resume, or its ``model.pt`` is gone.
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
        preprocessing: Any = None,
    ) -> None:
        if not isinstance(resume, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected resume to be True or False, got {resume!r}")
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 0:
            raise ValueError(f"expected patience to be a whole number from 0, got {patience!r}")
        self.ckpt_dir = Path(ckpt_dir)
        self.save_dict = {name: unwrap(keeper) for name, keeper in save_dict.items()}
        averages = {name: average_of(keeper) for name, keeper in save_dict.items()}
        self.averages = {name: average for name, average in averages.items() if average is not None}
        self.evaluator = evaluator
        self.metric = metric
        self.patience = patience
        self.resume = resume
        self.options = dict(options or {})
        self.config = counting_config(running_config(), {*FREE_IN_TRAINING, *self.options})
        self.preprocessing = preprocessing
        self.steps: dict[str, str] = {}
        self.best: dict[str, float] = {"value": -math.inf, "epoch": 0}
        self.digest: str | None = ""  # of model.pt; None where an earlier version kept none
        self.waited = 0  # validations since the best one
        self.begun = False
        self.validations = 0  # of this epoch; those of an evaluator that others than its engine run are not counted
        self.counts_validations = False
        self.lock = TrainingLock(self.ckpt_dir)
        self.tracked = MlflowRuns(self.ckpt_dir, "train", resume)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._epoch_started)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.epoch_completed)
        engine.add_event_handler(Events.COMPLETED, self.completed)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validated)

    def start(self, engine: Engine) -> None:
        """Check the run, then restore an interrupted one or make room for a new one.

        Federated training starts an engine again for each round: behind its first epoch that is the same run.
        """
        if not self.begun or engine.state.epoch == 0:
            self._begin(engine)
        self.begun = True
        if idist.get_rank() == 0:
            self.lock.take(engine)
        self.tracked.start(engine, self.evaluator)

    def _begin(self, engine: Engine) -> None:
        if not isinstance(engine.state.max_epochs, int):
            raise ValueError(f"expected a whole number of epochs, got {engine.state.max_epochs!r}")
        for what, loader in (("training", _loader_of(engine)), ("validation", _loader_of(self.evaluator))):
            check_labels(loader, class_names_of(self.save_dict["model"]), what)
        self.best, self.waited, self.digest = {"value": -math.inf, "epoch": 0}, 0, ""
        self.tracked.records = []
        if self.preprocessing is not None:
            self.steps = training_steps(self.preprocessing, _loader_of(engine), _loader_of(self.evaluator))
        if self.resume:
            self._restore(engine)
        if not self.best["epoch"]:
            check_validates(engine, self.options)
        if not self.resume and idist.get_rank() == 0:
            self.ckpt_dir.mkdir(parents=True, exist_ok=True)
            self.lock.take(engine)
            set_aside(*(self.ckpt_dir / name for name in WEIGHTS.values()))
            (self.ckpt_dir / NEXT).unlink(missing_ok=True)
        networks = (*self.save_dict.values(), unwrap(getattr(engine, "network", None)))
        keep_text(networks, "preprocessing", self.steps.get("preprocessing"))
        keep_text(networks, "training_cases", division_of(_loader_of(engine)))
        idist.barrier()
        # Chmod'ed and renamed into place by rank 0 alone.
        self.save = DiskSaver(str(self.ckpt_dir), atomic=True, create_dir=True, require_empty=False)

    def _epoch_started(self, engine: Engine) -> None:
        self.validations = 0

    def _validated(self, engine: Engine) -> None:
        self.validations += 1
        self.counts_validations = True

    def epoch_completed(self, engine: Engine) -> None:
        """Keep the epoch, and the network if it is the best so far."""
        metrics = self.evaluator.state.metrics  # of the last validation, or empty
        value = float(metrics.get(self.metric, -math.inf))
        validated = self.validations > 0 or (not self.counts_validations and self.metric in metrics)
        if validated and value > self.best["value"]:
            self.best = {"value": value, "epoch": engine.state.epoch}
            self.waited = 0
            self.save(saved_state(self.save_dict["model"]), NEXT)
            self.digest = file_digest(self.ckpt_dir / NEXT) if idist.get_rank() == 0 else ""
        elif validated:
            self.waited += 1
        self.save(self._state(engine), LAST)
        if idist.get_rank() == 0:
            place_next(self.ckpt_dir)
        if self._waited_enough():
            logger.info(
                f"no better {self.metric} in {self.waited} validations: stopping after epoch {engine.state.epoch}; "
                f"best {self.best['value']:.4f} in epoch {self.best['epoch']}"
            )
            engine.terminate()

    def completed(self, engine: Engine) -> None:
        """Say which network was kept, or that there is none to keep."""
        if not self.best["epoch"]:
            reason = "nothing was validated, so there is no model.pt: lower --val_interval (last.pt is there)"
            if (engine.state.max_epochs or 0) < self.options.get("epochs", 0):  # a round of federated training
                logger.warning(reason)
                return
            raise ValueError(reason)
        best = f"best {self.metric} {self.best['value']:.4f} in epoch {self.best['epoch']}"
        path = self.ckpt_dir / BEST
        if idist.get_rank() == 0 and not path.is_file():
            raise FileNotFoundError(f"{best}, but {path} is gone: put it back, or use --weights last")
        logger.info(f"{best}: {path}")

    def _waited_enough(self) -> bool:
        return 0 < self.patience <= self.waited

    def _state(self, engine: Engine) -> dict[str, Any]:
        keepers = self._keepers(engine)
        state = {name: saved_state(k) if isinstance(k, nn.Module) else k.state_dict() for name, k in keepers.items()}
        progress = {"epoch": engine.state.epoch, "epoch_length": engine.state.epoch_length}
        about = {"progress": progress, "best": self.best, "waited": self.waited, "options": self.options}
        about |= {CONFIG: self.config.values, OBJECTS: self.config.objects, DIGEST: self.digest}
        averaged = {name: int(average.n_averaged) for name, average in self.averages.items()}
        return {**state, **about, "averaged": averaged, "steps": self.steps, "kinds": kinds_of(keepers)}

    def _keepers(self, engine: Engine) -> dict[str, Any]:
        scaler = getattr(engine, "scaler", None)
        return self.save_dict if scaler is None else {**self.save_dict, "scaler": scaler}

    def _restore(self, engine: Engine) -> None:
        path = self.ckpt_dir / LAST
        if not path.is_file():
            raise FileNotFoundError(
                f"nothing to resume: {path} is not there; give the --ckpt_dir of the run, or drop --resume"
            )
        if idist.get_rank() == 0:
            self.lock.take(engine)
        state = load_weights(path, "Copy it again, or start without --resume")
        if not isinstance(state, Mapping) or not {"options", "progress", "best"} <= state.keys():
            raise ValueError(f"{path} is not what a training left to resume it: give the --ckpt_dir of the run")
        keepers = self._keepers(engine)
        asked = {"options": self.options, "steps": self.steps, "kinds": kinds_of(keepers)}
        check_same_run(path, state, asked)
        check_same_config(path, state, self.config)
        epoch, epoch_length = check_progress(path, state, engine)
        if idist.get_rank() == 0:
            check_best(self.ckpt_dir, state)
        for name, keeper in keepers.items():
            if name not in state:
                raise ValueError(
                    f"expected {name!r} in {path}, found none: it is of another kind of run (AMP on or off?)"
                )
            if isinstance(keeper, nn.Module):
                load_trained(keeper, state[name], path)
            else:
                keeper.load_state_dict(state[name])
        for name, average in self.averages.items():
            average.n_averaged.fill_(state["averaged"][name])
        engine.state.epoch, engine.state.iteration = epoch, epoch * epoch_length
        self.best, self.digest = state["best"], state.get(DIGEST)
        # Earlier versions did not count validations.
        since = (epoch - self.best["epoch"]) // self.options.get("val_interval", 1) if self.best["epoch"] else 0
        self.waited = state.get("waited", since)
        logger.info(f"resumed after epoch {epoch}")
        if self._waited_enough():
            engine.terminate()


class TrainedWeights:
    """Loads trained weights strictly when an evaluator starts, and says in one sentence why it cannot.

    MLflow handlers of the evaluator get a run of their own.

    Args:
        ckpt_dir: the folder that training wrote its checkpoints into.
        network: the network to load into.
        weights: ``"best"``, those of the epoch that validation chose (``model.pt``), or ``"last"``, those of the last
            epoch (in ``last.pt``).
        preprocessing: the transforms that prepare volumes here; ``None`` compares none. Every deterministic step that
            the checkpoint names must be there, with its settings. The window of raw values that
            ``ScaleIntensityRange`` maps is free, for it depends on their units; so are further steps that only move
            voxels.

    Raises:
        ValueError: other weights; from the run, if the file is damaged or was trained with other options, another arm,
            another block or another preprocessing, or if it was trained on some of the cases by another division into
            folds.
        FileNotFoundError: from the run, if there is no such file.
    """

    def __init__(
        self, ckpt_dir: str | Path, network: nn.Module, weights: str = "best", preprocessing: Any = None
    ) -> None:
        if weights not in WEIGHTS:
            raise ValueError(f"expected weights of {', '.join(WEIGHTS)}, got {weights!r}")
        self.path = Path(ckpt_dir) / WEIGHTS[weights]
        self.network = network
        self.preprocessing = preprocessing
        self.loader: Any = None
        self.tracked = MlflowRuns(self.path.parent, "evaluate")

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        self.loader = getattr(engine, "data_loader", None)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.STARTED, self.tracked.start)

    def load(self) -> None:
        """Load the weights."""
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no {self.path}: train first, or give the --ckpt_dir of the training")
        state = load_weights(self.path, "Copy it again, or train again")
        if self.path.name == WEIGHTS["last"] and isinstance(state, Mapping):
            state = state.get("model")
        load_trained(self.network, state, self.path)
        kept = getattr(unwrap(self.network), "preprocessing", None)
        if self.preprocessing is not None and isinstance(kept, KeptText) and kept.text:
            check_preprocessing(kept.text, self.preprocessing, self.loader, self.path)
        cases = getattr(unwrap(self.network), "training_cases", None)
        if isinstance(cases, KeptText):
            check_cases(cases.text, self.loader, self.path)


# MonaiAlgo of MONAI's federated learning evaluates the weights it is given, and switches off what is called so.
TrainedCheckpointLoader = TrainedWeights


def _loader_of(engine: Engine) -> Any:
    loader = getattr(engine, "data_loader", None)
    return engine.state.dataloader if loader is None else loader
