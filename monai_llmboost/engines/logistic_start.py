# SPDX-License-Identifier: Apache-2.0
"""A logistic regression, chosen on validation, as the start of a linear head on frozen features."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from ignite.engine import Engine, Events
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import Dataset

from monai_llmboost.networks.feature_classifier import FeatureClassifier
from monai_llmboost.networks.wrappers import unwrap
from monai_llmboost.tasks import medmnist_auc

logger = logging.getLogger("monai_llmboost")
STRENGTHS = (0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 1.0)
STEPS = 5000  # at most


class LogisticStart:
    """Fits logistic regressions to the training cases before the first step, and starts the head from the best one.

    Features are standardised by mean and standard deviation of the training cases. For each inverse strength of
    regularisation C, scikit-learn's ``LogisticRegression`` is fitted to convergence; the AUC on the validation cases
    chooses. A resumed training keeps its weights.

    Args:
        network: a :class:`monai_llmboost.networks.FeatureClassifier`, perhaps wrapped.
        training: items with ``"image"`` (F, 1, 1, 1) and ``"label"``.
        validation: the same of the validation cases.
        strengths: values of C.
        balanced: whether all classes weigh the same, whatever their number of cases.

    Raises:
        ValueError: strengths that are not above 0; at the start, a class without a training case.
        TypeError: another network.

    Example:
        >>> from ignite.engine import Engine
        >>> from monai_llmboost.networks import FeatureClassifier
        >>> network = FeatureClassifier(2, 2)
        >>> cases = [{"image": torch.full((2, 1, 1, 1), float(n % 2)), "label": n % 2} for n in range(8)]
        >>> LogisticStart(network, cases, cases).start(Engine(lambda engine, batch: None))
        >>> network(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).argmax(1)
        tensor([0, 1])
    """

    def __init__(
        self,
        network: nn.Module,
        training: Dataset,
        validation: Dataset,
        strengths: Sequence[float] = STRENGTHS,
        balanced: bool = False,
    ) -> None:
        self.network = unwrap(network)
        if not isinstance(self.network, FeatureClassifier):
            raise TypeError(f"{type(self.network).__name__} has no head of features: take a FeatureClassifier")
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"the strengths {list(strengths)} must be above 0: give some, such as [0.01, 1]")
        self.training, self.validation = training, validation
        self.strengths, self.balanced = strengths, balanced

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, after the handler that resumes a training."""
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, engine: Engine) -> None:
        """Set statistics and head, unless a checkpoint has given them."""
        network = self.network
        if int(network.get_buffer("standardised_on")):
            return
        (x, y), (val_x, val_y) = _read(self.training), _read(self.validation)
        classes = network.class_names.num_classes
        if missing := sorted(set(range(classes)) - set(y.tolist())):
            raise ValueError(f"no training case is of the class(es) {missing}: add some, or give other --class_names")
        mean, deviation = x.mean(0), x.std(0)
        deviation[deviation < np.finfo(np.float32).tiny] = 1.0  # a feature that does not vary becomes 0
        x, val_x = (x - mean) / deviation, (val_x - mean) / deviation
        found = {}
        for strength in self.strengths:
            weight, bias = self._fit(x, y, strength, classes)
            auc = medmnist_auc(softmax(val_x @ weight.T + bias, axis=1), val_y)
            found[strength] = auc, weight, bias
        best = max(found, key=lambda strength: found[strength][0])
        auc, weight, bias = found[best]
        logger.info(f"start from the logistic regression with C {best:g}, validation AUC {auc:.4f}")
        network.start_from(*map(torch.as_tensor, (mean, deviation)), len(x), *map(torch.as_tensor, (weight, bias)))

    def _fit(self, x: np.ndarray, y: np.ndarray, strength: float, classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return weight (classes, F) and bias (classes,) of the logits."""
        model = LogisticRegression(C=strength, max_iter=STEPS, class_weight="balanced" if self.balanced else None)
        model.fit(x, y)
        weight, bias = model.coef_, model.intercept_
        if classes == 2:  # scikit-learn has one logit then, the difference of both
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias


def _read(cases: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return features (cases, F) and labels (cases,)."""
    items = [cases[number] for number in range(len(cases))]  # type: ignore[arg-type]
    x = np.stack([np.asarray(item["image"], dtype=np.float64).reshape(-1) for item in items])
    return x, np.asarray([int(item["label"]) for item in items])
