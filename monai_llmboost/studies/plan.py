# SPDX-License-Identifier: Apache-2.0
"""The plan of a study: its arms, data sets and seeds, and the runs that follow from them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from monai_llmboost.bundle import Option, Rules, bundle_path, job_configs, merged, monai_arguments
from monai_llmboost.bundle.contract import CONFIGS
from monai_llmboost.bundle.study_settings import CLASS_FLOORS, WEIGHTS, Preset, StudySettings
from monai_llmboost.studies.arms import are_compared, base_of, stem_of
from monai_llmboost.studies.label_fractions import WHOLE, sets_of
from monai_llmboost.studies.plan_checks import JOBS, REFERENCES, check_effect, check_plan

TEST_SPLIT = "test"
# Value of the option `cache` for scans that several processes share.
SHARED = "shared"


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
        lr_halving: whether the worse half of the learning rates is dropped early, several times; see
            :func:`monai_llmboost.studies.halving.halve`.
        preset: a preset of the bundle, or ``None`` for no preset.
        network: another network of the bundle, an overlay in its ``configs/networks``; ``None`` for its own network.
        references: arms that the others are compared with; arms outside the study are ignored. If the study has none
            of the default references, its first arm is the reference. Blocks of references and arms are matched, see
            :func:`monai_llmboost.studies.arms.are_compared`.
        options: further keys of the bundle and their values, the same for every run.
        floors: simple predictors that stand next to the arms; see :mod:`monai_llmboost.studies.floors`.
        label_fractions: fractions of the training labels; each data set with each of them is a set of its own.
        blocks: by stem, the block of the arms ``ARM@STEM``; see :func:`monai_llmboost.studies.arms.split_arms`.
        overlays: further configs of the bundle, or overlays of this package for any bundle, such as ``"distil"``, whose
            arms take the place of the bundle's.

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
    floors: tuple[str, ...] = CLASS_FLOORS
    label_fractions: tuple[float, ...] = WHOLE
    blocks: Mapping[str, str] = field(default_factory=dict)
    lr_halving: bool = False
    overlays: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_plan(self)

    def check_effect(self) -> None:
        """Refuse options that no run uses, and arms whose block is missing or not used.

        Raises:
            ValueError: an option or block without effect.
            FileNotFoundError: a missing block.
        """
        check_effect(self)

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
        return self.chosen_preset.weights

    @property
    def other_weights(self) -> str:
        """The other weights, which are also evaluated and shown next to the results."""
        return next(weights for weights in WEIGHTS if weights != self.weights)

    @cached_property
    def bundle_settings(self) -> StudySettings:
        """The study settings of the bundle."""
        return StudySettings.of(bundle_path(self.bundle))

    @property
    def chosen_preset(self) -> Preset:
        """The preset, for the network of the study; without a preset, one without overlays."""
        if self.preset is None:
            return Preset()
        preset = self.bundle_settings.presets[self.preset]
        return preset if self.network is None else preset.with_network(self.network)

    @cached_property
    def contents(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The merged configs of each arm and job, without the options."""
        return {(arm, job): merged(self.configs(arm, job)) | self.own_options(arm) for arm in self.arms for job in JOBS}

    def value(self, key: str, default: Any = None) -> Any:
        """Return an option's value in training, by default the value in the configs of the first arm."""
        return self.options.get(key, self.contents[self.arms[0], JOBS[0]].get(key, default))

    def has_key(self, key: str) -> bool:
        """Return whether the bundle has a key in training."""
        return key in self.contents[self.arms[0], JOBS[0]]

    @property
    def halvings(self) -> list[int]:
        """The epochs after which the worse half of the learning rates is dropped; empty without halving.

        One rate is left after the last one, at half of the epochs. Each is an epoch that is validated.
        """
        epochs, interval = self.value(Option.EPOCHS), self.value(Option.VAL_INTERVAL, 1)
        if not self.lr_halving:
            return []
        return [
            epochs // 2**power // interval * interval for power in range((len(self.lr_grid) - 1).bit_length(), 0, -1)
        ]

    def configs(self, arm: str, job: str = "train") -> list[Path]:
        """Return the config files of an arm's job."""
        folder = bundle_path(self.bundle)
        return job_configs(folder, job, base_of(arm), self.network, self._overlays(job))

    def _overlays(self, job: str) -> tuple[str, ...]:
        return (*self.chosen_preset.overlays(job), *self.overlays)

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

    def with_shared_scans(self, folder: Path) -> Plan:
        """Return the plan with scans that are prepared once, in a folder, for all processes that read them.

        A bundle without such a cache, or a study with a ``cache`` of its own, stays as it is.
        """
        known = Rules(bundle_path(self.bundle) / CONFIGS).of(Option.CACHE, None).choices
        if SHARED not in known or Option.CACHE in self.options:
            return self
        return replace(self, options={**self.options, Option.CACHE: SHARED, Option.CACHE_DIR: str(folder)})

    def options_for(self, dataset: str) -> dict[str, Any]:
        """Return the options of the runs on one of :attr:`sets`, without the options that it does not use."""
        dataset, fraction = self.sets[dataset]
        unused = self.bundle_settings.unused.get(dataset, ())
        own: dict[str, Any] = {Option.DATASET: dataset} if self.has_key(Option.DATASET) else {}
        if self.has_key(Option.LABEL_FRACTION):
            own[Option.LABEL_FRACTION] = fraction
        return {**{name: value for name, value in self.options.items() if name not in unused}, **own}

    def settings(self, run: Run, job: str, folder: Path) -> dict[str, Any]:
        """Return the options of a job of a run in a folder."""
        own: dict[str, Any] = {Option.SEED: run.seed}
        if self.has_key(Option.BLOCK_SEED):
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
        return monai_arguments(self.bundle, job, base_of(run.arm), False, self._overlays(job), **options)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a JSON object; two studies are the same if these objects are equal."""
        return json.loads(json.dumps(asdict(self), default=str))
