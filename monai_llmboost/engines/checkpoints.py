# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: the best network, early stopping and exact resuming."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.engines import default_metric_cmp_fn
from torch import nn

from monai_llmboost.arguments import check_switch, check_whole
from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import set_aside
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.bundle import FREE_IN_TRAINING, counting_config, running_config
from monai_llmboost.bundle.contract import MODEL_RECORD, Option
from monai_llmboost.data.labels import check_labels
from monai_llmboost.engines.checkpoint_files import BEST, LAST, NEXT, WEIGHTS, check_best, place_next, write_state
from monai_llmboost.engines.loading import load_trained
from monai_llmboost.engines.lock import TrainingLock
from monai_llmboost.engines.preprocessing import training_steps
from monai_llmboost.engines.progress import TrainingProgress
from monai_llmboost.engines.resume import RunDescription, check_progress, check_validates
from monai_llmboost.engines.tracking import MlflowRuns
from monai_llmboost.engines.trained_record import TrainedRecord
from monai_llmboost.engines.training_cases import division_of
from monai_llmboost.networks.class_names import class_names_of, keep_text
from monai_llmboost.networks.wrappers import average_of, saved_state, unwrap

logger = logging.getLogger("monai_llmboost")


class TrainingCheckpoints:
    """Saves the best network by validation, stops when validation no longer improves, and resumes a run exactly.

    ``model.pt`` contains the weights of the best validated epoch; ``last.pt`` contains the full state after the last
    finished epoch: network, optimizer, schedule, gradient scaler, epoch, best value so far and the digest of
    ``model.pt``. Both files contain only tensors, numbers and text (``weights_only`` loading works). ``model.json``
    describes the trained network, for evaluation and inference. Files are written atomically. Attach this handler after
    MONAI's ``ValidationHandler``, because it reads that epoch's validation, and before :class:`SeededEpochs`.

    Before the first step it refuses invalid labels, a run without any validation, and a validation with different
    preprocessing. MLflow handlers attached after it get a separate run.

    Args:
        ckpt_dir: folder of one training at a time; files of an earlier run in it are renamed, not overwritten.
        save_dict: objects to save, including ``"model"``, each with ``state_dict`` and ``load_state_dict``.
        evaluator: the engine that validates; its ``metric_cmp_fn`` compares values, by default larger is better.
        metric: the evaluator's metric that chooses the best epoch.
        patience: validations without a better value before training stops; 0 never stops early.
        resume: continue after the epoch of ``last.pt`` in ``ckpt_dir``.
        options: options of the run, such as epochs and batch size; resuming requires the same options and the same
            config of the bundle, except for device, paths, logging and the like.
        preprocessing: the training's transforms. Their deterministic steps are saved in the networks'
            ``preprocessing``, for :class:`TrainedWeights`, and resuming requires the same steps; ``None`` saves and
            compares none.

    Raises:
        ValueError: a patience below 0, or a resume that is neither True nor False.
        FileNotFoundError: in the run, if there is nothing to resume or its ``model.pt`` is missing.

    Example:
        >>> from ignite.engine import Engine
        >>> network = torch.nn.Linear(1, 2)
        >>> evaluator = Engine(lambda engine, batch: None)
        >>> keeper = TrainingCheckpoints("models", {"model": network}, evaluator, "val_auc", patience=10)
        >>> keeper.attach(Engine(lambda engine, batch: None))
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
        check_switch("resume", resume)
        check_whole("patience", patience, 0)
        self.ckpt_dir = Path(ckpt_dir)
        self.save_dict = {name: unwrap(keeper) for name, keeper in save_dict.items()}
        averages = {name: average_of(keeper) for name, keeper in save_dict.items()}
        self.averages = {name: average for name, average in averages.items() if average is not None}
        self.evaluator = evaluator
        self.metric = metric
        self.is_better = getattr(evaluator, "metric_cmp_fn", default_metric_cmp_fn)
        self.patience = patience
        self.resume = resume
        known = dict(options or {})
        running = running_config()
        config = counting_config(running, {*FREE_IN_TRAINING, *known})
        self.description = RunDescription(known, config=config)
        self.record = TrainedRecord(self.ckpt_dir, running)
        self.preprocessing = preprocessing
        self.progress = TrainingProgress()
        self.begun = False
        self.validations = 0  # in this epoch; an evaluator that does not run as an engine is not counted
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
        """Check the run, then restore an interrupted run or prepare the folder for a new one.

        Federated training restarts an engine for each round: after its first epoch, this is still the same run.
        """
        if not self.begun or engine.state.epoch == 0:
            self._begin(engine)
        self.begun = True
        if idist.get_rank() == 0:
            self.lock.take(engine)
        self.tracked.start(engine, self.evaluator)

    def _begin(self, engine: Engine) -> None:
        check_whole("epochs", engine.state.max_epochs, 1)
        training, validation = _loader_of(engine), _loader_of(self.evaluator)
        class_names = class_names_of(self.save_dict["model"])
        check_labels(training, class_names, "training")
        check_labels(validation, class_names, "validation")
        self.progress = TrainingProgress()
        self.tracked.records = []
        scaler = getattr(engine, "scaler", None)
        self.keepers = self.save_dict if scaler is None else {**self.save_dict, "scaler": scaler}
        self.description.kinds = {name: type(keeper).__name__ for name, keeper in self.keepers.items()}
        if self.preprocessing is not None:
            self.description.steps = training_steps(self.preprocessing, training, validation)
        if self.resume:
            self._restore(engine)
        if not self.progress.best_epoch:
            check_validates(engine, self.description.options)
        if not self.resume and idist.get_rank() == 0:
            self.ckpt_dir.mkdir(parents=True, exist_ok=True)
            self.lock.take(engine)
            set_aside(*(self.ckpt_dir / name for name in (*WEIGHTS.values(), MODEL_RECORD)))
            (self.ckpt_dir / NEXT).unlink(missing_ok=True)
        networks = (*self.save_dict.values(), unwrap(getattr(engine, "network", None)))
        keep_text(networks, "preprocessing", self.description.steps.get("preprocessing"))
        keep_text(networks, "training_cases", division_of(training))
        if self.resume and idist.get_rank() == 0:  # one of an earlier version, or killed before it was written
            self.record.write(self.save_dict["model"], self.progress.digest)
        idist.barrier()

    def _epoch_started(self, engine: Engine) -> None:
        self.validations = 0

    def _validated(self, engine: Engine) -> None:
        self.validations += 1
        self.counts_validations = True

    def epoch_completed(self, engine: Engine) -> None:
        """Save the state after the epoch, and the network if it is the best so far."""
        writes = idist.get_rank() == 0
        self.progress.epoch, self.progress.epoch_length = engine.state.epoch, engine.state.epoch_length or 0
        metrics = self.evaluator.state.metrics  # from the last validation, or empty
        validated = self.validations > 0 or (not self.counts_validations and self.metric in metrics)
        value = float(metrics.get(self.metric, math.nan))
        if validated and self.progress.improves(value, engine.state.epoch, self.is_better) and writes:
            write_state(self.ckpt_dir / NEXT, saved_state(self.save_dict["model"]))
            self.progress.digest = file_digest(self.ckpt_dir / NEXT)
        if writes:
            write_state(self.ckpt_dir / LAST, self._state())
            place_next(self.ckpt_dir)
            self.record.write(self.save_dict["model"], self.progress.digest)
        if self._waited_enough():
            best = self.progress
            logger.info(
                f"no better {self.metric} in {best.waited} validations: stopping after epoch {engine.state.epoch}; "
                f"best {best.best_value:.4f} in epoch {best.best_epoch}"
            )
            engine.terminate()

    def completed(self, engine: Engine) -> None:
        """Report the best network, or raise an error if no epoch was validated."""
        if not self.progress.best_epoch:
            reason = f"nothing was validated, so there is no {BEST}: lower --val_interval ({LAST} is there)"
            if self.progress.waited:
                reason = (
                    f"{self.metric} was no number in any validation, so there is no {BEST}: see whether the validation "
                    f"cases have what it measures, and divide the cases differently ({LAST} is there)"
                )
            if (engine.state.max_epochs or 0) < self.description.options.get(
                Option.EPOCHS, 0
            ):  # a round of federated training
                logger.warning(reason)
                return
            raise ValueError(reason)
        best = f"best {self.metric} {self.progress.best_value:.4f} in epoch {self.progress.best_epoch}"
        path = self.ckpt_dir / BEST
        if idist.get_rank() == 0 and not path.is_file():
            raise FileNotFoundError(f"{best}, but {path} is gone: put it back, or use --weights last")
        logger.info(f"{best}: {path}")

    def _waited_enough(self) -> bool:
        return 0 < self.patience <= self.progress.waited

    def _state(self) -> dict[str, Any]:
        state = {
            name: saved_state(keeper) if isinstance(keeper, nn.Module) else keeper.state_dict()
            for name, keeper in self.keepers.items()
        }
        averaged = {name: int(average.n_averaged) for name, average in self.averages.items()}
        return {**state, **self.progress.state(), **self.description.state(), "averaged": averaged}

    def _restore(self, engine: Engine) -> None:
        path = self.ckpt_dir / LAST
        if not path.is_file():
            raise FileNotFoundError(
                f"nothing to resume: {path} is not there; give the --ckpt_dir of the run, or drop --resume"
            )
        if idist.get_rank() == 0:
            self.lock.take(engine)
        state = load_weights(path, "Copy it again, or start without --resume")
        progress = TrainingProgress.of(state, path, self.description.options.get(Option.VAL_INTERVAL, 1))
        self.description.check(state, path)
        check_progress(path, progress, engine)
        if idist.get_rank() == 0:
            check_best(self.ckpt_dir, progress.digest)
        for name, keeper in self.keepers.items():
            if name not in state:
                raise ValueError(f"{path} has no {name!r}: it is of another kind of run (AMP on or off?)")
            if isinstance(keeper, nn.Module):
                load_trained(keeper, state[name], path)
            else:
                keeper.load_state_dict(state[name])
        for name, average in self.averages.items():
            average.n_averaged.fill_(state["averaged"][name])
        engine.state.epoch, engine.state.iteration = progress.epoch, progress.epoch * progress.epoch_length
        self.progress = progress
        logger.info(f"resumed after epoch {progress.epoch}")
        if self._waited_enough():
            engine.terminate()


def _loader_of(engine: Engine) -> Any:
    loader = getattr(engine, "data_loader", None)
    return engine.state.dataloader if loader is None else loader
