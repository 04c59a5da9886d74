# SPDX-License-Identifier: Apache-2.0
"""What a task is: activation, metrics of a case, columns, classes."""

from monai_llmboost.tasks.classification import (
    MedMNISTACC,
    MedMNISTAUC,
    bootstrap_interval,
    medmnist_acc,
    medmnist_auc,
)

__all__ = ["MedMNISTACC", "MedMNISTAUC", "bootstrap_interval", "medmnist_acc", "medmnist_auc"]
