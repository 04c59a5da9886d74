# SPDX-License-Identifier: Apache-2.0
"""The plan of a study: its arms, data sets and seeds, and the runs that follow from them."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_llmboost.arguments import check_choice, check_whole
from monai_llmboost.bundle import (
    MONAI_OPTIONS,
    Option,
    bundle_path,
    check_options,
    job_configs,
    merged,
    monai_arguments,
    option_without_effect,
    split_network,
    uses_key,
)
from monai_llmboost.bundle.contract import CONFIGS, PRESET_NETWORK, PRESET_TRAINING, STUDIES
from monai_llmboost.bundle.study_settings import WEIGHTS, Preset, StudySettings
from monai_llmboost.studies.arms import are_compared, base_of, stem_of
from monai_llmboost.studies.floors.predictors import FLOORS
from monai_llmboost.studies.label_fractions import WHOLE, check_fractions, sets_of

# Default reference arms; the ones that are not in the study are ignored.
REFERENCES = ("none", "mlp", "random")
# Jobs of a run, in order.
JOBS = ("train", "evaluate")
TEST_SPLIT = "test"
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


@dataclass(frozen=True)
class Run:
    """One training of an arm on a data set.

    Args:
        dataset: name of the data set, or of a set with few labels, see :attr:`Plan.sets`.
        arm: name of the arm.
        seed: seed of the initial weights and the order of cases.
        learning_rate: ``None`` is the bundle's own learning rate.
        fold: the fold used for validation; ``None`` without folds.

    Example:
        >>> Run("phantom", "mlp", 0, 0.001).name
        'phantom/mlp/lr0.001/seed0'
    """

    dataset: str
    arm: str
    seed: int
    learning_rate: float | None = None
    fold: int | None = None

    @property
    def name(self) -> str:
        """The path of the run's folder relative to the study's ``runs``."""
        rate = "" if self.learning_rate is None else f"/lr{self.learning_rate:g}"
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.dataset}/{self.arm}{rate}/seed{self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """A study: every arm trained on every data set with every seed, and compared with the references.

    Args:
        bundle: a bundle's folder, or the name of a bundle in this package.
        arms: overlays in its ``configs/arms``; in a pair, the earlier arm is the reference. ``ARM@STEM`` is an arm with
            one of ``blocks``.
        datasets: values of the bundle's key ``dataset``. For a bundle without this key, one name for the results.
        seeds: number of seeds; the seeds are 0, 1, ...
        folds: 0, or the number of folds into which each seed divides the training and validation cases again; each
            fold is used for validation once, which multiplies the number of runs.
        lr_grid: learning rates from which validation chooses one for each arm; a single one is used without a search,
            and an empty grid means the bundle's own learning rate.
        lr_seeds: number of seeds used for this choice.
        preset: a preset of the bundle, or ``None`` for no preset.
        network: another network of the bundle, an overlay in its ``configs/networks``; ``None`` for its own network.
        references: arms that the others are compared with; arms outside the study are ignored. If the study has none
            of the default references, its first arm is the reference. Blocks of references and arms are matched, see
            :func:`monai_llmboost.studies.arms.are_compared`.
        options: further keys of the bundle and their values, the same for every run.
        floors: simple predictors that stand next to the arms; see :mod:`monai_llmboost.studies.floors`.
        label_fractions: fractions of the training labels; each data set with each of them is a set of its own.
        blocks: by stem, the block of the arms ``ARM@STEM``; see :func:`monai_llmboost.studies.arms.split_arms`.

    Raises:
        ValueError: an invalid plan.
        FileNotFoundError: no such bundle.

    Example:
        >>> plan = Plan("medmnist3d_rllm_classification", ("none", "random"), ("phantom",), seeds=1)
        >>> [run.name for run in plan.runs("phantom", {"none": None, "random": None})]
        ['phantom/none/seed0', 'phantom/random/seed0']
    """

    bundle: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: int = 5
    folds: int = 0
    lr_grid: tuple[float, ...] = ()
    lr_seeds: int = 1
    preset: str | None = None
    network: str | None = None
    references: tuple[str, ...] = REFERENCES
    options: Mapping[str, Any] = field(default_factory=dict)
    floors: tuple[str, ...] = tuple(FLOORS)
    label_fractions: tuple[float, ...] = WHOLE
    blocks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_different("arms", self.arms, least=2)
        _check_different("data sets", self.datasets)
        check_fractions(self.label_fractions)
        self._check_blocks()
        self._check_network()
        for floor in self.floors:
            check_choice("floor", floor, FLOORS)
        _check_different("arms and floors", (*self.arms, *self.floors))
        if self.preset is not None:
            self._check_preset(self.preset)
        check_whole("seeds", self.seeds, 1)
        check_whole("lr_seeds", self.lr_seeds, 1, self.seeds)
        check_whole("folds", self.folds, 0)
        if self.folds == 1:
            raise ValueError("folds must be 0 or from 2, not 1: one part is left out in turn")
        for rate in self.lr_grid:
            if not (isinstance(rate, float) and 0 < rate < math.inf):
                raise ValueError(f"learning rates must be above 0, not {rate!r}: write 0.001 or 1e-3")
        # Compare the names of their folders, which have a limited number of digits.
        _check_different("learning rates", tuple(f"{rate:g}" for rate in self.lr_grid), least=0)
        self._check_references()
        taken = sorted(set(self.options) & set(OWN))
        if taken:
            instead = INSTEAD.get(taken[0], "leave it out")
            raise ValueError(f"options are the same for every run, but the study itself sets {taken[0]}: {instead}")
        self._check_configs()
        self._check_last_is_validated()

    def _check_blocks(self) -> None:
        named = {stem for arm in self.arms if (stem := stem_of(arm))}
        if named != set(self.blocks):
            wrong = ", ".join(sorted(named ^ set(self.blocks)))
            raise ValueError(f"each of the blocks must belong to an arm ARM@STEM, and the other way round, not {wrong}")

    def _check_network(self) -> None:
        named, _ = split_network(bundle_path(self.bundle), {Option.NETWORK: self.network})
        if named != self.network:
            raise ValueError(f"network must be the name of another network, not {self.network!r}: give it in options")
        if named is not None and Option.NETWORK in self.options:
            raise ValueError(
                f"a study has --network {named} or a value of the key {Option.NETWORK!r}, not both: write the value "
                "into the network's overlay in a copy of the bundle"
            )

    def _check_preset(self, name: str) -> None:
        if not self._settings.presets:
            raise ValueError(
                f"the bundle {self.bundle} declares no presets in its {CONFIGS}/{STUDIES}, so there is no {name!r}: "
                "leave out --preset, or add them as the bundles of this package have them"
            )
        check_choice("preset", name, self._settings.presets)
        if self.network is not None and self.network not in (fitting := self._settings.presets[name].networks):
            other = f" or {', '.join(fitting)}" if fitting else ""
            raise ValueError(
                f"the preset {name} is for the bundle's own network{other}, not for {self.network}: leave out "
                f"--preset, or add a folder {self.network} with {PRESET_TRAINING} to it"
            )
        if not self._preset.overlays(JOBS[0]):
            raise ValueError(
                f"the preset {name} of the bundle {self.bundle} has neither {PRESET_NETWORK} nor {PRESET_TRAINING}: "
                f"add one to its folder, or remove the preset from {STUDIES}"
            )

    def _check_references(self) -> None:
        for arm in self.references:
            check_choice("reference", arm, dict.fromkeys((*self.arms, *map(base_of, self.arms), *REFERENCES)))
        if not self.compared_with:
            got = ", ".join(self.references) or "none"
            raise ValueError(f"no reference ({got}) is an arm of the study: give one of {', '.join(self.arms)}")
        if not any(self.compares(*pair) for pair in itertools.combinations(self.arms, 2)):
            raise ValueError(
                f"no reference ({', '.join(self.compared_with)}) has the block of another arm: give other "
                "--references, or add an arm"
            )

    def _check_configs(self) -> None:
        """Check the configs of every job with the options of its runs."""
        if len(self.datasets) > 1 and not self._has(Option.DATASET):
            raise ValueError(
                f"the bundle {self.bundle} has no key {Option.DATASET!r}, so a study of it has one data set, not "
                f"{', '.join(self.datasets)}: give one name"
            )
        if self.label_fractions != WHOLE and not self._has(Option.LABEL_FRACTION):
            raise ValueError(
                f"the bundle {self.bundle} has no key {Option.LABEL_FRACTION!r}, so it is trained with all "
                "labels: leave out --label-fraction, or add the key as the bundles of this package have it"
            )
        for dataset in self.sets:
            run = Run(dataset, self.arms[0], 0, next(iter(self.lr_grid), None), 0 if self.folds else None)
            for job in JOBS:
                check_options(self.configs(run.arm, job), self.settings(run, job, Path()))
        for arm in self.arms[1:]:
            for job in JOBS:
                check_options(self.configs(arm, job), {**self.options, **self.own_options(arm)})

    def _check_last_is_validated(self) -> None:
        """Refuse to use the last epoch's weights without its validation, which chooses the learning rate."""
        epochs, interval = self.value(Option.EPOCHS), self.value(Option.VAL_INTERVAL, 1)
        if self.weights == "last" and isinstance(epochs, int) and isinstance(interval, int) and epochs % interval:
            raise ValueError(
                f"{Option.VAL_INTERVAL} must divide {Option.EPOCHS}, for the preset {self.preset} reads the weights of "
                f"the last epoch, not {interval} and {epochs}: give others"
            )

    def check_effect(self) -> None:
        """Refuse options that no run uses, and arms whose block is missing or not used.

        Raises:
            ValueError: an option or block without effect.
            FileNotFoundError: a missing block.
        """
        if self.lr_seeds > 1 and len(self.lr_grid) < 2:
            raise ValueError(
                f"--lr-seeds {self.lr_seeds} has no effect: there are no learning rates to choose from; give several "
                "with --lr-grid, or leave it out"
            )
        self._settings.check_used(self.options, self.datasets)
        every = [self.configs(arm, job) for arm in self.arms for job in JOBS]
        unused = option_without_effect(every, self.options, MONAI_OPTIONS)
        if unused is not None:
            raise ValueError(
                f"--{unused} has no effect: none of the arms {', '.join(self.arms)} uses it; leave it out, or add an "
                "arm that does"
            )
        for arm in self.arms:
            if stem_of(arm):
                self._check_own_block(arm, self.blocks[stem_of(arm)])

    def _check_own_block(self, arm: str, block: str) -> None:
        if not uses_key(self.configs(arm), Option.BLOCK):
            raise ValueError(f"the arm {base_of(arm)} uses no block, so {arm} has no effect: give {base_of(arm)}")
        if block not in BLOCKS_WITHOUT_FILE and not Path(block).is_file():
            raise FileNotFoundError(
                f"there is no block file {block} for the arm {arm}: give its path, or make it with "
                "`monai-llmboost extract`"
            )

    @property
    def compared_with(self) -> tuple[str, ...]:
        """The references that are arms of the study."""
        known = [arm for name in self.references for arm in self.arms if name in (arm, base_of(arm))]
        return tuple(dict.fromkeys(known)) or (self.arms[:1] if self.references == REFERENCES else ())

    def compares(self, one: str, other: str) -> bool:
        """Return whether two arms are compared."""
        by_name = {name for name in self.references for arm in self.arms if name in (arm, base_of(arm))}
        return are_compared(one, other, by_name or self.compared_with, self.arms)

    @cached_property
    def sets(self) -> dict[str, tuple[str, float]]:
        """Data set and label fraction of each set that is analysed on its own, by its name in results and folders."""
        return sets_of(self.datasets, self.label_fractions)

    @property
    def weights(self) -> str:
        """The weights that are evaluated: ``"best"``, from the epoch that validation chose, or ``"last"``."""
        return self._preset.weights

    @property
    def other_weights(self) -> str:
        """The other weights, which are also evaluated and shown next to the results."""
        return next(weights for weights in WEIGHTS if weights != self.weights)

    @cached_property
    def _settings(self) -> StudySettings:
        return StudySettings.of(bundle_path(self.bundle))

    @property
    def _preset(self) -> Preset:
        if self.preset is None:
            return Preset()
        preset = self._settings.presets[self.preset]
        return preset if self.network is None else preset.with_network(self.network)

    @cached_property
    def contents(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The merged configs of each arm and job, without the options."""
        return {(arm, job): merged(self.configs(arm, job)) | self.own_options(arm) for arm in self.arms for job in JOBS}

    def value(self, key: str, default: Any = None) -> Any:
        """Return an option's value in training, by default the value in the configs of the first arm."""
        return self.options.get(key, self.contents[self.arms[0], JOBS[0]].get(key, default))

    def _has(self, key: str) -> bool:
        return key in self.contents[self.arms[0], JOBS[0]]

    def configs(self, arm: str, job: str = "train") -> list[Path]:
        """Return the config files of an arm's job."""
        folder = bundle_path(self.bundle)
        own = job_configs(folder, job, base_of(arm), self.network)
        return [*own, *(folder / CONFIGS / name for name in self._preset.overlays(job))]

    def own_options(self, arm: str) -> dict[str, Any]:
        """Return the options of one arm only: its own block."""
        return {Option.BLOCK: self.blocks[stem_of(arm)]} if stem_of(arm) else {}

    def searched(self, dataset: str) -> list[Run]:
        """Return the runs of the learning-rate search; empty without a search."""
        if len(self.lr_grid) < 2:
            return []
        return [run for rate in self.lr_grid for run in self._runs(dataset, dict.fromkeys(self.arms, rate))
                if run.seed < self.lr_seeds]  # fmt: skip

    def runs(self, dataset: str, chosen: Mapping[str, float | None]) -> list[Run]:
        """Return the compared runs of the arms that have a learning rate; runs with the same seed are consecutive."""
        return list(self._runs(dataset, chosen))

    def floor_runs(self, dataset: str) -> list[Run]:
        """Return the runs of the floors; runs with the same seed are consecutive."""
        return list(self._runs(dataset, dict.fromkeys(self.floors)))

    def _runs(self, dataset: str, rates: Mapping[str, float | None]) -> Iterator[Run]:
        for seed in range(self.seeds):
            for fold in range(self.folds) if self.folds else (None,):
                for arm in (*self.arms, *self.floors):
                    if arm in rates:
                        yield Run(dataset, arm, seed, rates[arm], fold)

    def options_for(self, dataset: str) -> dict[str, Any]:
        """Return the options of the runs on one of :attr:`sets`, without the options that it does not use."""
        dataset, fraction = self.sets[dataset]
        unused = self._settings.unused.get(dataset, ())
        own: dict[str, Any] = {Option.DATASET: dataset} if self._has(Option.DATASET) else {}
        if self._has(Option.LABEL_FRACTION):
            own[Option.LABEL_FRACTION] = fraction
        return {**{name: value for name, value in self.options.items() if name not in unused}, **own}

    def settings(self, run: Run, job: str, folder: Path) -> dict[str, Any]:
        """Return the options of a job of a run in a folder."""
        own: dict[str, Any] = {Option.SEED: run.seed}
        if self._has(Option.BLOCK_SEED):
            own[Option.BLOCK_SEED] = run.seed
        if run.learning_rate is not None:
            own[Option.LEARNING_RATE] = run.learning_rate
        if run.fold is not None:
            own |= {Option.FOLDS: self.folds, Option.FOLD: run.fold}
        own |= {Option.CKPT_DIR: str(folder), Option.OUTPUT_DIR: str(folder)}
        own |= {Option.RESUME: False} if job == JOBS[0] else {Option.WEIGHTS: self.weights, Option.SPLIT: TEST_SPLIT}
        return {**self.options_for(run.dataset), **self.own_options(run.arm), **own}

    def arguments(self, run: Run, job: str, folder: Path, **more: Any) -> dict[str, Any]:
        """Return the arguments of ``monai.bundle`` for a job of a run whose checkpoints are in ``folder``."""
        options = {**self.settings(run, job, folder), **more}
        if self.network is not None:
            options[Option.NETWORK] = self.network
        return monai_arguments(self.bundle, job, base_of(run.arm), False, self._preset.overlays(job), **options)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object; two studies are the same if these objects are equal."""
        return json.loads(json.dumps(asdict(self), default=str))


def _check_different(what: str, values: tuple, least: int = 1) -> None:
    if len(values) < least or len(set(values)) != len(values):
        number = f"{least} or more " if least else ""
        raise ValueError(f"a study needs {number}different {what}, not {', '.join(values) or 'none'}: name each once")
