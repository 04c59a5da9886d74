# SPDX-License-Identifier: Apache-2.0
"""Only what MONAI's trainer, evaluator, handlers and metrics lack."""

from monai_llmboost.engines.checkpoints import TrainedWeights, TrainingCheckpoints
from monai_llmboost.engines.curves import LearningCurves
from monai_llmboost.engines.metrics import MedMNISTACC, MedMNISTAUC, bootstrap_interval, medmnist_acc, medmnist_auc
from monai_llmboost.engines.reproducible import SeededEpochs
from monai_llmboost.engines.results import MetricsFile, PredictionTable
from monai_llmboost.engines.whole_batches import WholeBatches

__all__ = [
    "LearningCurves",
    "MedMNISTACC",
    "MedMNISTAUC",
    "MetricsFile",
    "PredictionTable",
    "SeededEpochs",
    "TrainedWeights",
    "TrainingCheckpoints",
    "WholeBatches",
    "bootstrap_interval",
    "medmnist_acc",
    "medmnist_auc",
]
