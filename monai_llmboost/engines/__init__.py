# SPDX-License-Identifier: Apache-2.0
"""Handlers and schedules that MONAI lacks for training and evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.engines.autocast import AutocastInferer
    from monai_llmboost.engines.checkpoints import TrainingCheckpoints
    from monai_llmboost.engines.curves import LearningCurves, TensorBoardCurves
    from monai_llmboost.engines.evaluation.mask_metrics import MaskMetrics
    from monai_llmboost.engines.evaluation.scan_metrics import ScanMetrics
    from monai_llmboost.engines.heads_loss import HeadsLoss
    from monai_llmboost.engines.logistic_start import LogisticStart
    from monai_llmboost.engines.named_handlers import NamedHandlers
    from monai_llmboost.engines.reproducible import SeededEpochs
    from monai_llmboost.engines.results import MetricsFile, PredictionTable
    from monai_llmboost.engines.schedule import HeldWarmupCosine
    from monai_llmboost.engines.shared_statistics import SharedStatistics
    from monai_llmboost.engines.structure_dice import StructureDice
    from monai_llmboost.engines.trained_weights import TrainedCheckpointLoader, TrainedWeights
    from monai_llmboost.engines.whole_batches import WholeBatches
    from monai_llmboost.tasks import MedMNISTACC, MedMNISTAUC, bootstrap_interval, medmnist_acc, medmnist_auc
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "AutocastInferer",
    "HeadsLoss",
    "HeldWarmupCosine",
    "LearningCurves",
    "LogisticStart",
    "MaskMetrics",
    "MedMNISTACC",
    "MedMNISTAUC",
    "MetricsFile",
    "NamedHandlers",
    "PredictionTable",
    "ScanMetrics",
    "SeededEpochs",
    "SharedStatistics",
    "StructureDice",
    "TensorBoardCurves",
    "TrainedCheckpointLoader",
    "TrainedWeights",
    "TrainingCheckpoints",
    "WholeBatches",
    "bootstrap_interval",
    "medmnist_acc",
    "medmnist_auc",
]
