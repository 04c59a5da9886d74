# SPDX-License-Identifier: Apache-2.0
"""Tasks: activation, metrics, table columns and classes."""

from monai_llmboost.tasks.calibration import Reliability, calibration_error, error_if_calibrated, reliability
from monai_llmboost.tasks.classification import Classification
from monai_llmboost.tasks.intervals import bootstrap_draws, bootstrap_interval
from monai_llmboost.tasks.mask_measures import MEASURES, StructureMeasures, measure_mask
from monai_llmboost.tasks.medmnist_metrics import MedMNISTACC, MedMNISTAUC, medmnist_acc, medmnist_auc
from monai_llmboost.tasks.operating_point import (
    balanced_accuracy,
    choose_threshold,
    class_recalls,
    confusion_counts,
    predicted_classes,
    sensitivity_specificity,
)
from monai_llmboost.tasks.segmentation import Segmentation
from monai_llmboost.tasks.task import Task, TaskMetric, TrainingDiverged

__all__ = [
    "MEASURES",
    "Classification",
    "MedMNISTACC",
    "MedMNISTAUC",
    "Reliability",
    "Segmentation",
    "StructureMeasures",
    "Task",
    "TaskMetric",
    "TrainingDiverged",
    "balanced_accuracy",
    "bootstrap_draws",
    "bootstrap_interval",
    "calibration_error",
    "choose_threshold",
    "class_recalls",
    "confusion_counts",
    "error_if_calibrated",
    "measure_mask",
    "medmnist_acc",
    "medmnist_auc",
    "predicted_classes",
    "reliability",
    "sensitivity_specificity",
]
