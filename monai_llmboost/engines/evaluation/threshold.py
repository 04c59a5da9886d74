# SPDX-License-Identifier: Apache-2.0
"""The threshold of two classes, chosen on validation cases that the evaluated network predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys
from torch import nn
from torch.utils.data import DistributedSampler

from monai_llmboost.engines.evaluation.cases import gathered
from monai_llmboost.networks.wrappers import unwrap
from monai_llmboost.tasks import Task, choose_threshold, sensitivity_specificity
from monai_llmboost.tasks.operating_point import DEFAULT_THRESHOLD


@dataclass(frozen=True)
class Threshold:
    """A threshold of the second class's probability, and its numbers on the cases that it was chosen on.

    Args:
        value: the threshold; the second class is predicted from it on.
        cases: number of cases that it was chosen on; 0 for the default.
        sensitivity: sensitivity on these cases.
        specificity: specificity on these cases.
    """

    value: float = DEFAULT_THRESHOLD
    cases: int = 0
    sensitivity: float = float("nan")
    specificity: float = float("nan")

    @classmethod
    def choose(cls, probabilities: np.ndarray, labels: np.ndarray) -> Threshold:
        """Return the threshold that :func:`monai_llmboost.tasks.choose_threshold` chooses on these cases."""
        value = choose_threshold(probabilities, labels)
        return cls(value, len(labels), *sensitivity_specificity(probabilities, labels, value))

    @property
    def better_than_chance(self) -> bool:
        """Whether it separates the cases that it was chosen on better than calling all of them the same."""
        return self.sensitivity + self.specificity > 1

    def numbers(self) -> dict[str, Any]:
        """Return the threshold and its numbers on validation as in ``metrics.json``."""
        keys = ("cases", "sensitivity", "specificity")
        return {"threshold": self.value, "validation": {k: getattr(self, k) for k in keys} if self.cases else None}


def predict_cases(engine: Any, network: nn.Module, loader: Any, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (cases, values) and labels (cases,) of labelled cases, predicted as an evaluator predicts its own.

    The device, precision, inferer and preparation of batches are the evaluator's. Each rank predicts all cases, or
    its part if the loader has a ``DistributedSampler``.

    Args:
        engine: MONAI's evaluator; it is not changed.
        network: network, used in evaluation mode.
        loader: loader of the cases.
        task: task of the network, which activates its logits.

    Raises:
        ValueError: cases without labels.
    """
    scores: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def collect(evaluator: Engine) -> None:
        output: Any = evaluator.state.output
        if output[CommonKeys.LABEL] is None:
            raise ValueError("the validation cases have no labels: give a loader of labelled cases")
        scores.append(task.activate(output[CommonKeys.PRED]).cpu().numpy().astype(np.float64))
        labels.append(output[CommonKeys.LABEL].cpu().numpy().reshape(-1))

    evaluator = SupervisedEvaluator(
        device=engine.state.device,
        val_data_loader=loader,
        network=unwrap(network),
        inferer=engine.inferer,
        prepare_batch=engine.prepare_batch,
        non_blocking=engine.non_blocking,
        to_kwargs=engine.to_kwargs,
        amp=engine.amp,
        amp_kwargs=engine.amp_kwargs,
        decollate=False,
    )
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, collect)
    evaluator.run()
    mine = np.concatenate(scores), np.concatenate(labels)
    divided = isinstance(getattr(loader, "sampler", None), DistributedSampler)
    parts = gathered(mine) if divided else [mine]
    all_scores, all_labels = (np.concatenate(part) for part in zip(*parts))
    return all_scores, all_labels
