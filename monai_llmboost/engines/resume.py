# SPDX-License-Identifier: Apache-2.0
"""Whether a run can go on, or begin, with the options it is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine

from monai_llmboost.bundle import RunConfig

# In last.pt: what counts of the config of the run, by option, and its objects of Python. Version 0.1.0 kept a config by
# places in lists, under another name.
CONFIG, OBJECTS, EARLIER_CONFIG = "run_config", "run_objects", "config"


def kinds_of(keepers: Mapping[str, Any]) -> dict[str, str]:
    """Return what a checkpoint keeps, by class: one optimizer takes the state of another without a word."""
    return {name: type(keeper).__name__ for name, keeper in keepers.items()}


def check_same_run(path: Path, state: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare what a checkpoint says of its run with the run that is to go on.

    Args:
        path: of the checkpoint, for the message.
        state: the checkpoint; what an earlier version did not keep is not compared.
        asked: of this run, under the names that the checkpoint has: options, steps of preprocessing, kinds of keepers.

    Raises:
        ValueError: they differ.
    """
    for part, mine in asked.items():
        begun = state.get(part) or {}
        if part != "options" and not (begun and mine):
            continue
        _compare(path, begun, mine, begun.keys() | mine.keys())


def check_same_config(path: Path, state: Mapping[str, Any], config: RunConfig) -> None:
    """Compare the config of a checkpoint's run with the config of the run that is to go on.

    Args:
        path: of the checkpoint, for the message.
        state: the checkpoint. Of one of version 0.1.0 the options are compared that this version still has.
        config: what counts of this run's; empty for code without a config, which is not compared.

    Raises:
        ValueError: they differ; either holds an object of Python, of which nobody can tell whether it does the same.
    """
    begun, mine = state.get(CONFIG), config.values
    if begun and mine:
        objects = {**state.get(OBJECTS, {}), **config.objects}
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
                f"the run in {path} was begun with the entries of {name.partition('#')[0]} in another order: resume it "
                "with its own config, or start again with another --ckpt_dir"
            )
    elif mine and (earlier := state.get(EARLIER_CONFIG)):
        _compare(path, earlier, mine, {name for name in earlier.keys() & mine.keys() if "#" not in name})


def _compare(path: Path, begun: Mapping[str, Any], mine: Mapping[str, Any], names: Collection[str]) -> None:
    for name in sorted(names):
        if begun.get(name) != mine.get(name):
            raise ValueError(
                f"the run in {path} was begun with {name} {begun.get(name)!r}, this one has {mine.get(name)!r}: "
                "resume it with its own options, or start again with another --ckpt_dir"
            )


def check_progress(path: Path, state: Mapping[str, Any], engine: Engine) -> tuple[int, int]:
    """Return the epoch that a checkpoint was written after, and the steps of an epoch.

    Raises:
        ValueError: this run has other steps in an epoch, or fewer epochs.
    """
    epoch, epoch_length = state["progress"]["epoch"], state["progress"]["epoch_length"]
    if epoch_length != engine.state.epoch_length:
        raise ValueError(
            f"the run in {path} has {epoch_length} steps an epoch, this one {engine.state.epoch_length}: "
            "resume it with its own batch size and number of processes"
        )
    if epoch > (engine.state.max_epochs or 0):
        raise ValueError(f"the run in {path} already has {epoch} epochs, {engine.state.max_epochs} are asked for")
    return epoch, epoch_length


def check_validates(engine: Engine, options: Mapping[str, Any]) -> None:
    """Refuse a run none of whose epochs is validated, as far as its options tell.

    Raises:
        ValueError: it would end without a network to keep.
    """
    interval = options.get("val_interval", 1)
    # A federated client does only a few of the epochs of its schedule in each round.
    last = max(engine.state.max_epochs or 0, options.get("epochs", 0))
    if last // interval == engine.state.epoch // interval:
        raise ValueError(
            f"expected a validation within {last} epochs, got val_interval {interval} after epoch "
            f"{engine.state.epoch}: lower --val_interval, or give more --epochs"
        )
