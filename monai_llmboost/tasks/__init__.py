# SPDX-License-Identifier: Apache-2.0
"""Tasks: activation, metrics, table columns and classes."""

from monai_llmboost.tasks.classification import Classification
from monai_llmboost.tasks.intervals import bootstrap_interval
from monai_llmboost.tasks.medmnist_metrics import MedMNISTACC, MedMNISTAUC, medmnist_acc, medmnist_auc
from monai_llmboost.tasks.task import Task, TaskMetric, TrainingDiverged

__all__ = [
    "Classification",
    "MedMNISTACC",
    "MedMNISTAUC",
    "Task",
    "TaskMetric",
    "TrainingDiverged",
    "bootstrap_interval",
    "medmnist_acc",
    "medmnist_auc",
]
