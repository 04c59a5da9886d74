# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: the names of its files and their typed content."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.engines.checkpoint_files import LAST
from monai_llmboost.engines.curves import CURVES, read_curves
from monai_llmboost.engines.results import PREDICTIONS_FILE

# Each file is written at the end of its stage and marks the stage as done.
TRAINED, DIVERGED, EVALUATED = "trained.json", "diverged.json", "evaluated.json"
# The state of a training that was paused after an epoch.
PAUSED = "paused-{}.json"
LOG = "run.log"
# Folders of predictions: with the weights that the study evaluates, and with the other weights.
TEST, OTHER_WEIGHTS = "test", "other_weights"
# Names in earlier versions.
EARLIER = {EVALUATED: "judged.json", OTHER_WEIGHTS: "beside"}

Record = TypeVar("Record")


@dataclass(frozen=True)
class EpochResult:
    """An epoch whose weights are saved.

    Args:
        epoch: number of the epoch, from 1; 0 for a floor, which has no epochs.
        validation: value of the metric that validation chooses by; ``None`` if the epoch was not validated.
    """

    epoch: int
    validation: float | None

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> EpochResult:
        """Return the result from its JSON object, including objects of earlier versions."""
        return cls(content["epoch"], content["validation"] if "validation" in content else content["validation_auc"])


@dataclass(frozen=True)
class Trained:
    """The result of a training: the epochs whose weights are saved.

    Args:
        best: the epoch that validation chose.
        last: the last epoch.
    """

    best: EpochResult
    last: EpochResult

    def of(self, weights: str) -> EpochResult:
        """Return the epoch of ``"best"`` or ``"last"`` weights."""
        return {"best": self.best, "last": self.last}[weights]


@dataclass(frozen=True)
class Evaluated:
    """The result of an evaluation.

    Args:
        diagnostics: effect of the booster, see :func:`monai_llmboost.studies.diagnostics.diagnose`; of a floor, the
            test AUC of single numbers, see :mod:`monai_llmboost.studies.floors.shortcuts`.
    """

    diagnostics: Mapping[str, float] | None


@dataclass
class RunFolder:
    """The folder of a run. A file that marks a stage as done does not change, so it is read only once.

    Args:
        path: path of the folder, which may not exist yet.

    Example:
        >>> RunFolder(Path("study/runs/phantom/none/seed0")).trained is None
        True
    """

    path: Path
    _known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def trained(self) -> Trained | None:
        """The result of the training; ``None`` if it is not done or its file is damaged."""
        return self._record(TRAINED, _trained)

    def paused(self, epoch: int) -> Trained | None:
        """Return the epochs whose weights were saved when the training was paused after an epoch; ``None`` before."""
        return self._record(PAUSED.format(epoch), _trained)

    @property
    def diverged(self) -> str | None:
        """The reason why the training diverged; ``None`` if it did not."""
        return self._record(DIVERGED, lambda content: str(content["reason"]))

    @property
    def evaluated(self) -> Evaluated | None:
        """The result of the evaluation; ``None`` if it is not done or its file is damaged."""
        return self._record(EVALUATED, lambda content: Evaluated(content["diagnostics"]))

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint, from which a training is resumed."""
        return self.path / LAST

    def curves(self) -> list[dict[str, Any]]:
        """Return the rows of the learning curves."""
        return read_curves(self.path / CURVES)

    def epochs_done(self) -> int:
        """Return the number of epochs in the learning curves."""
        file = self.path / CURVES
        return max(0, file.read_text(encoding="utf-8").count("\n") - 1) if file.is_file() else 0

    def predictions(self, place: str = TEST) -> list[dict[str, str]]:
        """Return the rows of the predictions in a folder, ``TEST`` or ``OTHER_WEIGHTS``."""
        with (self._place(place) / PREDICTIONS_FILE).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def diagnostics(self) -> Mapping[str, float] | None:
        """Return the diagnostics of the evaluation, if there are any."""
        return self.evaluated.diagnostics if self.evaluated else None

    def write_trained(self, trained: Trained) -> None:
        """Mark the training as done."""
        write_json(self.path / TRAINED, asdict(trained))

    def write_paused(self, epoch: int, trained: Trained) -> None:
        """Mark the training as paused after an epoch."""
        write_json(self.path / PAUSED.format(epoch), asdict(trained))

    def write_diverged(self, reason: str) -> None:
        """Mark the training as diverged, because a repeated training would diverge again."""
        write_json(self.path / DIVERGED, {"reason": reason})

    def write_evaluated(self, evaluated: Evaluated) -> None:
        """Mark the evaluation as done."""
        write_json(self.path / EVALUATED, asdict(evaluated))

    def _place(self, name: str) -> Path:
        earlier = self.path / EARLIER.get(name, name)
        return earlier if earlier.exists() and not (self.path / name).exists() else self.path / name

    def _record(self, name: str, make: Callable[[Any], Record]) -> Record | None:
        if name not in self._known and (file := self._place(name)).is_file():
            try:
                self._known[name] = make(json.loads(file.read_text(encoding="utf-8")))
            except (OSError, ValueError, LookupError, TypeError):
                return None  # the stage is repeated
        return self._known.get(name)


def _trained(content: Mapping[str, Any]) -> Trained:
    return Trained(*(EpochResult.read(content[name]) for name in ("best", "last")))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically; an earlier file is replaced."""
    with atomic_text(path, aside=False) as file:
        json.dump(content, file, indent=1)
        file.write("\n")
