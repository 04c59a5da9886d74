# SPDX-License-Identifier: Apache-2.0
"""The checks of a plan: its parts, the configs of its runs, and options or blocks without effect."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import TYPE_CHECKING

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.bundle import (
    MONAI_OPTIONS,
    Option,
    bundle_path,
    check_options,
    option_without_effect,
    split_network,
    uses_key,
)
from monai_llmboost.bundle.contract import CONFIGS, PRESET_NETWORK, PRESET_TRAINING, STUDIES
from monai_llmboost.bundle.study_settings import CLASS_FLOORS
from monai_llmboost.studies.arms import base_of, stem_of
from monai_llmboost.studies.floors.names import SHAPE_FLOORS
from monai_llmboost.studies.label_fractions import WHOLE, check_fractions

if TYPE_CHECKING:
    from monai_llmboost.studies.plan import Plan

# Default reference arms; the ones that are not in the study are ignored.
REFERENCES = ("none", "mlp", "random")
# With more, the first halving would be before an eighth of the epochs, when the rates still rise to their full size.
MOST_HALVED = 8
# Jobs of a run, in order.
JOBS = ("train", "evaluate")
# Where the runs are run.
ENGINES = ("local", "ray")
# Values of ``--block`` that are no files.
BLOCKS_WITHOUT_FILE = ("embedded", "random")
# Keys of a bundle that the study sets for each run.
OWN = (
    Option.DATASET, Option.SEED, Option.BLOCK_SEED, Option.FOLDS, Option.FOLD, Option.LEARNING_RATE, Option.RESUME,
    Option.SPLIT, Option.WEIGHTS, Option.CKPT_DIR, Option.OUTPUT_DIR, Option.BUNDLE_ROOT, Option.LABEL_FRACTION,
)  # fmt: skip
# Advice for some of these keys.
INSTEAD = {
    Option.LEARNING_RATE: "give --lr-grid", Option.SEED: "give --seeds", Option.FOLD: "give --folds",
    Option.LABEL_FRACTION: "give --label-fraction",
}  # fmt: skip


def check_plan(plan: Plan) -> None:
    """Check all parts of a plan, and the configs of every job with the options of its runs.

    Raises:
        ValueError: an invalid plan; the message says what to give instead.
    """
    _check_different("arms", plan.arms, least=2)
    _check_different("data sets", plan.datasets)
    check_fractions(plan.label_fractions)
    _check_blocks(plan)
    _check_network(plan)
    for floor in plan.floors:
        check_choice("floor", floor, (*CLASS_FLOORS, *SHAPE_FLOORS))
    _check_different("arms and floors", (*plan.arms, *plan.floors))
    if plan.preset is not None:
        _check_preset(plan, plan.preset)
    check_whole("seeds", plan.seeds, 1)
    check_whole("lr_seeds", plan.lr_seeds, 1, plan.seeds)
    check_whole("folds", plan.folds, 0)
    if plan.folds == 1:
        raise ValueError("folds must be 0 or from 2, not 1: one part is left out in turn")
    for rate in plan.lr_grid:
        if not (isinstance(rate, float) and 0 < rate < math.inf):
            raise ValueError(f"learning rates must be above 0, not {rate!r}: write 0.001 or 1e-3")
    # Compare the names of their folders, which have a limited number of digits.
    _check_different("learning rates", tuple(f"{rate:g}" for rate in plan.lr_grid), least=0)
    _check_references(plan)
    taken = sorted(set(plan.options) & set(OWN))
    if taken:
        instead = INSTEAD.get(taken[0], "leave it out")
        raise ValueError(f"options are the same for every run, but the study itself sets {taken[0]}: {instead}")
    _check_configs(plan)
    _check_last_is_validated(plan)
    if plan.lr_halving:
        _check_halving(plan)


def _check_blocks(plan: Plan) -> None:
    named = {stem for arm in plan.arms if (stem := stem_of(arm))}
    if named != set(plan.blocks):
        wrong = ", ".join(sorted(named ^ set(plan.blocks)))
        raise ValueError(f"each of the blocks must belong to an arm ARM@STEM, and the other way round, not {wrong}")


def _check_network(plan: Plan) -> None:
    named, _ = split_network(bundle_path(plan.bundle), {Option.NETWORK: plan.network})
    if named != plan.network:
        raise ValueError(f"network must be the name of another network, not {plan.network!r}: give it in options")
    if named is not None and Option.NETWORK in plan.options:
        raise ValueError(
            f"a study has --network {named} or a value of the key {Option.NETWORK!r}, not both: write the value "
            "into the network's overlay in a copy of the bundle"
        )


def _check_preset(plan: Plan, name: str) -> None:
    if not plan.bundle_settings.presets:
        raise ValueError(
            f"the bundle {plan.bundle} declares no presets in its {CONFIGS}/{STUDIES}, so there is no {name!r}: "
            "leave out --preset, or add them as the bundles of this package have them"
        )
    check_choice("preset", name, plan.bundle_settings.presets)
    if plan.network is not None and plan.network not in (fitting := plan.bundle_settings.presets[name].networks):
        other = f" or {', '.join(fitting)}" if fitting else ""
        raise ValueError(
            f"the preset {name} is for the bundle's own network{other}, not for {plan.network}: leave out "
            f"--preset, or add a folder {plan.network} with {PRESET_TRAINING} to it"
        )
    if not plan.chosen_preset.overlays(JOBS[0]):
        raise ValueError(
            f"the preset {name} of the bundle {plan.bundle} has neither {PRESET_NETWORK} nor {PRESET_TRAINING}: "
            f"add one to its folder, or remove the preset from {STUDIES}"
        )


def _check_references(plan: Plan) -> None:
    for arm in plan.references:
        check_choice("reference", arm, dict.fromkeys((*plan.arms, *map(base_of, plan.arms), *REFERENCES)))
    if not plan.compared_with:
        got = ", ".join(plan.references) or "none"
        raise ValueError(f"no reference ({got}) is an arm of the study: give one of {', '.join(plan.arms)}")
    if not any(plan.compares(*pair) for pair in itertools.combinations(plan.arms, 2)):
        raise ValueError(
            f"no reference ({', '.join(plan.compared_with)}) has the block of another arm: give other "
            "--references, or add an arm"
        )


def _check_configs(plan: Plan) -> None:
    """Check the configs of every job with the options of its runs."""
    if len(plan.datasets) > 1 and not plan.has_key(Option.DATASET):
        raise ValueError(
            f"the bundle {plan.bundle} has no key {Option.DATASET!r}, so a study of it has one data set, not "
            f"{', '.join(plan.datasets)}: give one name"
        )
    if plan.label_fractions != WHOLE and not plan.has_key(Option.LABEL_FRACTION):
        raise ValueError(
            f"the bundle {plan.bundle} has no key {Option.LABEL_FRACTION!r}, so it is trained with all "
            "labels: leave out --label-fraction, or add the key as the bundles of this package have it"
        )
    for dataset in plan.sets:
        run, *_ = plan.runs(dataset, {plan.arms[0]: next(iter(plan.lr_grid), None)})
        for job in JOBS:
            check_options(plan.configs(run.arm, job), plan.settings(run, job, Path()))
    for arm in plan.arms[1:]:
        for job in JOBS:
            check_options(plan.configs(arm, job), {**plan.options, **plan.own_options(arm)})


def _check_last_is_validated(plan: Plan) -> None:
    """Refuse to use the last epoch's weights without its validation, which chooses the learning rate."""
    epochs, interval = plan.value(Option.EPOCHS), plan.value(Option.VAL_INTERVAL, 1)
    if plan.weights == "last" and isinstance(epochs, int) and isinstance(interval, int) and epochs % interval:
        raise ValueError(
            f"{Option.VAL_INTERVAL} must divide {Option.EPOCHS}, for the preset {plan.preset} reads the weights of "
            f"the last epoch, not {interval} and {epochs}: give others"
        )


def _check_halving(plan: Plan) -> None:
    """Refuse a halving of the learning rates without effect, or before the rates can be compared."""
    rates, epochs = len(plan.lr_grid), plan.value(Option.EPOCHS)
    if rates < 2:
        raise ValueError(
            "--lr-halving has no effect: there are no learning rates to choose from; give several with --lr-grid, or "
            "leave it out"
        )
    if rates > MOST_HALVED:
        raise ValueError(
            f"--lr-halving is for at most {MOST_HALVED} learning rates, not {rates}: give fewer in --lr-grid"
        )
    interval, warmup = plan.value(Option.VAL_INTERVAL, 1), plan.value(Option.WARMUP_EPOCHS, 0)
    if not (isinstance(epochs, int) and isinstance(interval, int)):
        raise ValueError(
            f"--lr-halving needs {Option.EPOCHS} and {Option.VAL_INTERVAL} as whole numbers, not {epochs!r} and "
            f"{interval!r}: give them as options"
        )
    first = max(0, warmup if isinstance(warmup, int) else 0)
    if len(set(plan.halvings)) < len(plan.halvings) or plan.halvings[0] <= first:
        raise ValueError(
            f"{epochs} epochs with {Option.VAL_INTERVAL} {interval} and {first} epochs of warmup are too few for "
            f"--lr-halving with {rates} learning rates, which would compare them after epochs "
            f"{', '.join(map(str, plan.halvings))}: give more --epochs, or leave it out"
        )


def check_start(plan: Plan, engine: str, jobs: int) -> None:
    """Check what a study is run with, before slow imports.

    Raises:
        ValueError: a wrong engine or number of jobs, an option without effect.
        FileNotFoundError: a missing block.
    """
    check_choice("engine", engine, ENGINES)
    check_whole("jobs", jobs, 1)
    check_effect(plan)


def check_effect(plan: Plan) -> None:
    """Refuse options that no run uses, and arms whose block is missing or not used.

    Raises:
        ValueError: an option or block without effect.
        FileNotFoundError: a missing block.
    """
    if plan.lr_seeds > 1 and len(plan.lr_grid) < 2:
        raise ValueError(
            f"--lr-seeds {plan.lr_seeds} has no effect: there are no learning rates to choose from; give several "
            "with --lr-grid, or leave it out"
        )
    plan.bundle_settings.check_used(plan.options, plan.datasets)
    every = [plan.configs(arm, job) for arm in plan.arms for job in JOBS]
    unused = option_without_effect(every, plan.options, MONAI_OPTIONS)
    if unused is not None:
        raise ValueError(
            f"--{unused} has no effect: none of the arms {', '.join(plan.arms)} uses it; leave it out, or add an "
            "arm that does"
        )
    for arm in plan.arms:
        if stem_of(arm):
            _check_own_block(plan, arm, plan.blocks[stem_of(arm)])


def _check_own_block(plan: Plan, arm: str, block: str) -> None:
    if not uses_key(plan.configs(arm), Option.BLOCK):
        raise ValueError(f"the arm {base_of(arm)} uses no block, so {arm} has no effect: give {base_of(arm)}")
    if block not in BLOCKS_WITHOUT_FILE and not Path(block).is_file():
        raise FileNotFoundError(
            f"there is no block file {block} for the arm {arm}: give its path, or make it with `monai-llmboost extract`"
        )


def _check_different(what: str, values: tuple, least: int = 1) -> None:
    if len(values) < least or len(set(values)) != len(values):
        number = f"{least} or more " if least else ""
        raise ValueError(f"a study needs {number}different {what}, not {', '.join(values) or 'none'}: name each once")
