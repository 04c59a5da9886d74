# SPDX-License-Identifier: Apache-2.0
"""Checks whether a run can be resumed or started with the given options."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from monai_llmboost.bundle import RunConfig
from monai_llmboost.bundle.contract import Option
from monai_llmboost.engines.progress import TrainingProgress

# Keys in last.pt of the part of the run's config that counts, by option, and of its Python objects. Version 0.1.0 saved
# the config by list positions, under another key.
CONFIG, OBJECTS, EARLIER_CONFIG = "run_config", "run_objects", "config"
# A group that configs have had since then, and the keys whose structure has changed.
NAMED_SINCE, CHANGED_SINCE = "train_handlers#", ("train", "validate", "initialize")
# Values of version 0.1.0 that are now written in another way.
SAME_SINCE = ((1, "$@image_shape[0]"), ("monai_llmboost.llm.lora_block", "monai_llmboost.adapters.lora_block"))


@dataclass
class RunDescription:
    """The description of a run in its checkpoint; resuming requires an equal description.

    Args:
        options: options of the run, such as its epochs.
        steps: preprocessing steps, see :func:`monai_llmboost.engines.preprocessing.training_steps`.
        kinds: class of each saved object, because an optimizer silently loads the state of a different optimizer.
        config: the part of the bundle's config that counts; empty, and not compared, for code without a config.

    Example:
        >>> run = RunDescription({"epochs": 3})
        >>> run.check({"options": {"epochs": 5}}, Path("models/last.pt"))
        Traceback (most recent call last):
        ValueError: the run in models/last.pt was begun with epochs 5, this one has 3: resume it with its own options, \
or start again with another --ckpt_dir
    """

    options: dict[str, Any]
    steps: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    config: RunConfig = field(default_factory=RunConfig)

    def state(self) -> dict[str, Any]:
        """Return the entries of ``last.pt``."""
        return {**self._compared(), CONFIG: self.config.values, OBJECTS: self.config.objects}

    def check(self, state: Mapping[str, Any], path: Path) -> None:
        """Compare this run with the run of a checkpoint.

        Args:
            state: the checkpoint; entries that an earlier version did not save are not compared.
            path: path of the checkpoint, for the message.

        Raises:
            ValueError: the runs differ, or either config contains a Python object, which cannot be compared.
        """
        for part, mine in self._compared().items():
            begun = state.get(part) or {}
            if part == "options" or (begun and mine):
                _compare(path, begun, mine, begun.keys() | mine.keys())
        self._check_config(state, path)

    def _compared(self) -> dict[str, dict[str, Any]]:
        return {"options": self.options, "steps": self.steps, "kinds": self.kinds}

    def _check_config(self, state: Mapping[str, Any], path: Path) -> None:
        begun, mine = state.get(CONFIG), self.config.values
        if begun and mine:
            objects = {**state.get(OBJECTS, {}), **self.config.objects}
            if objects:
                name, kind = next(iter(objects.items()))
                raise ValueError(
                    f"the run in {path} cannot be resumed, for {name} is an object of Python ({kind}), which cannot be "
                    "compared: write it into the config as text, and start again with another --ckpt_dir"
                )
            _compare(path, begun, mine, begun.keys() | mine.keys())
            if list(begun) != list(mine):
                name = next(one for one, other in zip(begun, mine) if one != other)
                raise ValueError(
                    f"the run in {path} was begun with the entries of {name.partition('#')[0]} in another order: "
                    "resume it with its own config, or start again with another --ckpt_dir"
                )
        elif mine and (earlier := state.get(EARLIER_CONFIG)):
            _compare(path, earlier, mine, _comparable(earlier, mine))


def _comparable(earlier: Mapping[str, Any], mine: Mapping[str, Any]) -> set[str]:
    """Return the names that mean the same in a config of version 0.1.0 and in this one.

    They are the names below the top-level keys of both, without the keys whose structure has changed. Version 0.1.0
    saved no empty lists and objects.
    """
    tops = {name.partition("#")[0] for name in earlier} & {name.partition("#")[0] for name in mine}
    if any(name.startswith(NAMED_SINCE) for name in mine):
        tops -= set(CHANGED_SINCE)
    names = {name for name in earlier.keys() | mine.keys() if name.partition("#")[0] in tops}
    names = {name for name in names if name in earlier or mine[name] not in ([], {})}
    return {name for name in names if (earlier.get(name), mine.get(name)) not in SAME_SINCE}


def _compare(path: Path, begun: Mapping[str, Any], mine: Mapping[str, Any], names: Collection[str]) -> None:
    for name in sorted(names):
        if begun.get(name) != mine.get(name):
            raise ValueError(
                f"the run in {path} was begun with {name} {begun.get(name)!r}, this one has {mine.get(name)!r}: "
                "resume it with its own options, or start again with another --ckpt_dir"
            )


def check_progress(path: Path, progress: TrainingProgress, engine: Engine) -> None:
    """Compare the progress of a checkpoint with the epochs of this run.

    Raises:
        ValueError: this run has another number of steps per epoch, or fewer epochs.
    """
    if progress.epoch_length != engine.state.epoch_length:
        raise ValueError(
            f"the run in {path} has {progress.epoch_length} steps an epoch, this one {engine.state.epoch_length}: "
            "resume it with its own batch size and number of processes"
        )
    if progress.epoch > (engine.state.max_epochs or 0):
        raise ValueError(
            f"the run in {path} already has {progress.epoch} epochs, {engine.state.max_epochs} are asked for: "
            "give more --epochs"
        )


def check_validates(engine: Engine, options: Mapping[str, Any]) -> None:
    """Refuse a run whose options validate no epoch.

    Raises:
        ValueError: the run would end without a best network.
    """
    interval = options.get(Option.VAL_INTERVAL, 1)
    # A federated client runs only a few epochs of its schedule in each round.
    last = max(engine.state.max_epochs or 0, options.get(Option.EPOCHS, 0))
    if last // interval == engine.state.epoch // interval:
        raise ValueError(
            f"no epoch of {last} would be validated with val_interval {interval} after epoch {engine.state.epoch}: "
            "lower --val_interval, or give more --epochs"
        )
