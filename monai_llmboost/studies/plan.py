# SPDX-License-Identifier: Apache-2.0
"""What a study is: which arms are trained on which data, how often, and which run of it is which."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from monai_llmboost.bundle import (
    MONAI_OPTIONS,
    bundle_path,
    check_options,
    job_configs,
    monai_arguments,
    option_without_effect,
)
from monai_llmboost.data import class_names, reads_files


class Preset(NamedTuple):
    """Overlays of a bundle: of every job, and of training alone; and whose weights are read then, "best" or "last"."""

    network: tuple[str, ...]
    training: tuple[str, ...]
    weights: str


AS_IT_IS = Preset((), (), "best")


PRESETS = {
    "rllm": Preset(("published/network.json",), ("published/training.json",), "best"),
    "strong": Preset(("strong/network.json",), ("strong/training.json",), "last"),
}
# What arms are compared with unless told otherwise, as far as they take part.
REFERENCES = ("none", "mlp", "random")
# Keys of a bundle that differ from run to run, or that say where a run lies.
OWN = (
    "dataset", "seed", "block_seed", "folds", "fold", "learning_rate", "resume", "split", "weights", "ckpt_dir",
    "output_dir", "bundle_root",
)  # fmt: skip
# Keys that are for data sets read from files.
OF_FILES = ("dataset_dir", "download")
# What to give in the place of some.
INSTEAD = {"learning_rate": "give --lr-grid", "seed": "give --seeds", "fold": "give --folds"}


@dataclass(frozen=True)
class Run:
    """One training: of an arm, on a data set, with a seed and a learning rate (``None``: the bundle's own)."""

    dataset: str
    arm: str
    seed: int
    learning_rate: float | None = None
    fold: int | None = None

    @property
    def name(self) -> str:
        """Its folder below the study's ``runs``."""
        rate = "" if self.learning_rate is None else f"/lr{self.learning_rate:g}"
        fold = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.dataset}/{self.arm}{rate}/seed{self.seed}{fold}"


@dataclass(frozen=True)
class Plan:
    """A study: every arm trained on every data set with every seed, and compared with the references.

    Args:
        bundle: a bundle's folder, or the name of one in this package.
        arms: overlays of its ``configs/arms``; an earlier one is the reference of a later one.
        datasets: values of its key ``dataset``.
        seeds: how many; they are 0, 1, ...
        folds: 0, or into how many parts training and validation cases are dealt anew for each seed; every part is
            validated on once, so there are that many times as many runs.
        lr_grid: learning rates of which validation chooses one for each arm; one alone is taken as it is, and none
            leaves the bundle's own.
        lr_seeds: how many of the seeds the choice is made with.
        preset: a word of ``PRESETS``, or ``None`` for the bundle as it is.
        references: arms that the others are compared with; those of them that take part.
        options: further keys of the bundle and their values, the same for every run.

    Raises:
        ValueError: something that no study can be made of.
        FileNotFoundError: no such bundle.
    """

    bundle: str
    arms: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: int = 5
    folds: int = 0
    lr_grid: tuple[float, ...] = ()
    lr_seeds: int = 1
    preset: str | None = None
    references: tuple[str, ...] = REFERENCES
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_different("arms", self.arms, least=2)
        _check_different("data sets", self.datasets)
        if self.preset is not None and self.preset not in PRESETS:
            raise ValueError(f"expected a preset of {', '.join(PRESETS)}, got {self.preset!r}: give one, or none")
        _check_whole("seeds", self.seeds, 1)
        _check_whole("lr_seeds", self.lr_seeds, 1, self.seeds)
        _check_whole("folds", self.folds, 0)
        if self.folds == 1:
            raise ValueError("expected folds to be 0 or from 2, got 1: one part is left out in turn")
        for rate in self.lr_grid:
            if not (isinstance(rate, float) and 0 < rate < math.inf):
                raise ValueError(f"expected learning rates above 0, got {rate!r}: write 0.001 or 1e-3")
        # By the names of their folders, in which only so many digits tell them apart.
        _check_different("learning rates", tuple(f"{rate:g}" for rate in self.lr_grid), least=0)
        for name in self.datasets:
            class_names(name)
        strange = [arm for arm in self.references if arm not in (*self.arms, *REFERENCES)]
        if strange:
            raise ValueError(f"expected references among the arms {', '.join(self.arms)}, got {strange[0]}: name such")
        known = [arm for arm in self.references if arm in self.arms]
        if not known:
            got = ", ".join(self.references) or "none"
            raise ValueError(f"expected one of the arms {', '.join(self.arms)} as reference, got {got}: give such")
        taken = sorted(set(self.options) & set(OWN))
        if taken:
            instead = INSTEAD.get(taken[0], "leave it out")
            raise ValueError(
                f"expected options that are the same for every run, but the study itself sets {taken[0]}: {instead}"
            )
        for arm in self.arms:
            configs = self.configs(arm)
            missing = [file for file in configs if not file.is_file()]
            if missing:
                raise ValueError(f"expected {missing[0].name} in the bundle for the preset {self.preset}, found none")
            for job in ("train", "evaluate"):
                check_options(self.configs(arm, job), self.options)
        self._check_last_is_validated()

    def _check_last_is_validated(self) -> None:
        """Refuse to read the weights of a last epoch that nobody validates: the learning rate is chosen by it."""
        configs = [json.loads(file.read_text()) for file in self.configs(self.arms[0])]
        content = {key: value for config in (*configs, self.options) for key, value in config.items()}
        epochs, interval = content.get("epochs"), content.get("val_interval", 1)
        if self.weights == "last" and isinstance(epochs, int) and isinstance(interval, int) and epochs % interval:
            raise ValueError(
                f"expected val_interval to divide epochs, for the preset {self.preset} reads the weights of the last "
                f"epoch, got {interval} and {epochs}: give others"
            )

    def check_effect(self) -> None:
        """Refuse options that no run uses.

        Raises:
            ValueError: an option without effect.
        """
        if self.lr_seeds > 1 and len(self.lr_grid) < 2:
            raise ValueError(
                f"--lr-seeds {self.lr_seeds} has no effect: there are no learning rates to choose from; give several "
                "with --lr-grid, or leave it out"
            )
        given = [name for name in OF_FILES if self.options.get(name)]
        if given and not any(map(reads_files, self.datasets)):
            raise ValueError(
                f"--{given[0]} has no effect: {', '.join(self.datasets)} is made by code and read from no files; give "
                "--dataset NAME too, or leave it out"
            )
        every = [self.configs(arm, job) for arm in self.arms for job in ("train", "evaluate")]
        unused = option_without_effect(every, self.options, MONAI_OPTIONS)
        if unused is not None:
            raise ValueError(
                f"--{unused} has no effect: none of the arms {', '.join(self.arms)} uses it; leave it out, or add an "
                "arm that does"
            )

    def options_for(self, dataset: str) -> dict[str, Any]:
        """Return the options of the runs on a data set: one that is made by code takes none of files."""
        return {name: value for name, value in self.options.items() if name not in OF_FILES or reads_files(dataset)}

    @property
    def weights(self) -> str:
        """Whose weights the results are of: "best", of the epoch that validation chose, or "last"."""
        return self._preset.weights

    @property
    def beside(self) -> str:
        """The other weights, which are judged as well and told beside the results."""
        return "last" if self.weights == "best" else "best"

    def configs(self, arm: str, job: str = "train") -> list[Path]:
        """Config files of an arm's job."""
        folder = bundle_path(self.bundle)
        return [*job_configs(folder, job, arm), *(folder / "configs" / name for name in self._overlays(job))]

    @property
    def _preset(self) -> Preset:
        return AS_IT_IS if self.preset is None else PRESETS[self.preset]

    def _overlays(self, job: str) -> tuple[str, ...]:
        return self._preset.network + (self._preset.training if job == "train" else ())

    def searched(self, dataset: str) -> list[Run]:
        """Runs by which the learning rates are chosen; none where there is nothing to choose."""
        if len(self.lr_grid) < 2:
            return []
        return [run for rate in self.lr_grid for run in self._runs(dataset, dict.fromkeys(self.arms, rate))
                if run.seed < self.lr_seeds]  # fmt: skip

    def runs(self, dataset: str, chosen: Mapping[str, float | None]) -> list[Run]:
        """Runs that are compared, with the learning rate of each arm: arms of one seed one after another."""
        return list(self._runs(dataset, chosen))

    def _runs(self, dataset: str, rates: Mapping[str, float | None]) -> Iterator[Run]:
        for seed in range(self.seeds):
            for fold in range(self.folds) if self.folds else (None,):
                for arm in self.arms:
                    yield Run(dataset, arm, seed, rates[arm], fold)

    def arguments(self, run: Run, job: str, folder: Path, **more: Any) -> dict[str, Any]:
        """What ``monai.bundle`` takes for a job of a run whose checkpoints lie in ``folder``."""
        own: dict[str, Any] = {
            "dataset": run.dataset,
            "seed": run.seed,
            "block_seed": run.seed,
            "ckpt_dir": str(folder),
        }
        if run.learning_rate is not None:
            own["learning_rate"] = run.learning_rate
        if run.fold is not None:
            own |= {"folds": self.folds, "fold": run.fold}
        options = {**self.options_for(run.dataset), **own, "output_dir": str(folder), **more}
        return monai_arguments(self.bundle, job, run.arm, False, self._overlays(job), **options)

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it; two studies are one if these are equal."""
        return json.loads(json.dumps(asdict(self), default=str))


def _check_different(what: str, values: tuple, least: int = 1) -> None:
    if len(values) < least or len(set(values)) != len(values):
        number = f"{least} or more " if least else ""
        raise ValueError(f"expected {number}different {what}, got {', '.join(values) or 'none'}: name each once")


def _check_whole(what: str, value: Any, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise ValueError(
            f"expected {what} to be a whole number from {least}{f' to {most}' if most else ''}, got {value!r}"
        )
