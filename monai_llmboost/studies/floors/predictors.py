# SPDX-License-Identifier: Apache-2.0
"""The three floors, with scikit-learn: features of a volume, what is fitted to them first, and candidate models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from monai_llmboost.studies.floors.features import reduced_volumes, untrained_convolutions, volume_numbers
from monai_llmboost.tasks.task import TaskMetric

TREES = 300
LEAVES = (3, 10)  # fewest cases of a leaf of the forest
COMPONENTS = (10, 30, 100, 200)  # of the principal component analysis
PCA_C, RANDOM_C = (0.01, 1.0), (0.001, 0.003, 0.01, 0.03)  # inverse strength of regularisation
STEPS = 1000  # at most, of logistic regression

# Seed, number of training cases and of features -> what is fitted to the training features before every candidate.
Prepare = Callable[[int, int, int], Any]
# The same -> candidate models by name.
Candidates = Callable[[int, int, int], dict[str, Any]]


@dataclass(frozen=True)
class Floor:
    """A floor: a predictor without a trained network.

    Args:
        features: features of a batch of volumes: images (B, C, S0, S1, S2) and a seed -> (B, F).
        prepare: makes the transformer of features, which is fitted to the training cases.
        candidates: makes the models from which validation chooses.
        tests_shortcuts: whether its run also measures what single numbers alone predict.
        takes_embedding: whether it takes the frozen features of the arms in place of its own, if they have some.

    Example:
        >>> list(FLOORS["floor-random-features"].candidates(0, 100, 6048))
        ['C 0.001', 'C 0.003', 'C 0.01', 'C 0.03']
    """

    features: Callable[[Tensor, int], Tensor]
    prepare: Prepare
    candidates: Candidates
    tests_shortcuts: bool = False
    takes_embedding: bool = False


@dataclass(frozen=True)
class Chosen:
    """The model that validation chose.

    Args:
        name: its name among the candidates.
        validation: the metric of each candidate on the validation cases.
        scores: its class probabilities of the test cases (cases, classes).
    """

    name: str
    validation: Mapping[str, float]
    scores: np.ndarray


def fit_floor(
    floor: Floor,
    seed: int,
    cases: Mapping[str, tuple[np.ndarray, np.ndarray]],
    classes: int,
    metric: TaskMetric,
) -> Chosen:
    """Fit every candidate of a floor to the training cases, choose one on validation, and predict the test cases.

    Args:
        floor: one of ``FLOORS``.
        seed: seed of the models.
        cases: features (cases, F) and labels (cases,) of the splits "train", "val" and "test".
        classes: number of classes; one without a training case gets the probability 0.
        metric: metric that validation chooses by.

    Raises:
        ValueError: the training cases are all of one class.
    """
    x, y = cases["train"]
    if len(np.unique(y)) < 2:
        raise ValueError(f"the {len(y)} training cases are all of one class, so nothing can be fitted: add cases")
    prepared = floor.prepare(seed, *x.shape).fit(x)
    fitted = {name: model.fit(prepared.transform(x), y) for name, model in floor.candidates(seed, *x.shape).items()}

    def predict(model: Any, split: str) -> np.ndarray:
        return class_probabilities(model, prepared.transform(cases[split][0]), classes)

    found = {name: metric.compute(predict(model, "val"), cases["val"][1]) for name, model in fitted.items()}
    best = (max if metric.larger_is_better else min)(found, key=found.__getitem__)
    return Chosen(best, found, predict(fitted[best], "test"))


def class_probabilities(model: Any, features: np.ndarray, classes: int) -> np.ndarray:
    """Return the probabilities of a fitted classifier (cases, classes).

    A support vector machine has distances and no probabilities; their softmax has the same order and the same largest
    class, and needs no cases for a calibration.
    """
    known = model.classes_
    if hasattr(model, "predict_proba"):
        found = model.predict_proba(features)
    else:
        distance = model.decision_function(features)
        found = softmax(distance, axis=1) if distance.ndim == 2 else np.stack([expit(-distance), expit(distance)], 1)
    probabilities = np.zeros((len(features), classes))
    probabilities[:, known] = found
    return probabilities


def _number_models(seed: int, cases: int, features: int) -> dict[str, Any]:
    models: dict[str, Any] = {
        f"forest, {leaf} cases in a leaf": RandomForestClassifier(TREES, min_samples_leaf=leaf, random_state=seed)
        for leaf in LEAVES
    }
    boosting = HistGradientBoostingClassifier(learning_rate=0.05, max_leaf_nodes=8, random_state=seed)
    return {**models, "gradient boosting": boosting}


def _pca(seed: int, cases: int, features: int) -> Any:
    return PCA(min(max(COMPONENTS), cases - 1, features), svd_solver="randomized", random_state=seed)


def _pca_models(seed: int, cases: int, features: int) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for number in sorted({min(number, cases - 1, features) for number in COMPONENTS}):
        first = FunctionTransformer(lambda x, number=number: x[:, :number])
        for c in PCA_C:
            regression = LogisticRegression(C=c, max_iter=STEPS)
            models[f"{number} components, C {c:g}"] = make_pipeline(first, StandardScaler(), regression)
        models[f"{number} components, RBF-SVM"] = make_pipeline(first, SVC())
    return models


def _random_models(seed: int, cases: int, features: int) -> dict[str, Any]:
    return {f"C {c:g}": LogisticRegression(C=c, max_iter=STEPS) for c in RANDOM_C}


FLOORS = {
    "floor-numbers": Floor(volume_numbers, lambda *_: FunctionTransformer(), _number_models, tests_shortcuts=True),
    "floor-pca": Floor(reduced_volumes, _pca, _pca_models),
    "floor-random-features": Floor(
        untrained_convolutions, lambda *_: StandardScaler(), _random_models, takes_embedding=True
    ),
}
