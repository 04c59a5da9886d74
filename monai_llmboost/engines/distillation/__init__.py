# SPDX-License-Identifier: Apache-2.0
"""Distillation: a teacher, such as a boosted network, trains a light student, which is used without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from monai_llmboost.lazy import lazy_names

if TYPE_CHECKING:
    from monai_llmboost.engines.distillation.baselines import FeatureRegression, LogitDistillation
    from monai_llmboost.engines.distillation.booster_in_training import BoosterInTraining
    from monai_llmboost.engines.distillation.cka import CKALoss, linear_cka
    from monai_llmboost.engines.distillation.decay import LinearDecay
    from monai_llmboost.engines.distillation.deep import DeepLesson, DeepReprogrammingDistiller
    from monai_llmboost.engines.distillation.distillers import (
        Alignment,
        Distiller,
        FeatureDistiller,
        Lesson,
        LogitDistiller,
        ReprogrammingDistiller,
        WithoutTeacher,
    )
    from monai_llmboost.engines.distillation.last_layer import LastLayer
    from monai_llmboost.engines.distillation.projector import Projector
    from monai_llmboost.engines.distillation.reprogramming import ReprogrammingHead
    from monai_llmboost.engines.distillation.stage_choice import find_stages
    from monai_llmboost.engines.distillation.stages import ContinuedStages, Stages
    from monai_llmboost.engines.distillation.teacher import Taught, Teacher, load_teacher
    from monai_llmboost.engines.distillation.teacher_batches import TeacherBatches
else:
    __getattr__, __dir__ = lazy_names(__name__)

__all__ = [
    "Alignment",
    "BoosterInTraining",
    "CKALoss",
    "ContinuedStages",
    "DeepLesson",
    "DeepReprogrammingDistiller",
    "Distiller",
    "FeatureDistiller",
    "FeatureRegression",
    "LastLayer",
    "Lesson",
    "LinearDecay",
    "LogitDistillation",
    "LogitDistiller",
    "Projector",
    "ReprogrammingDistiller",
    "ReprogrammingHead",
    "Stages",
    "Taught",
    "Teacher",
    "TeacherBatches",
    "WithoutTeacher",
    "find_stages",
    "linear_cka",
    "load_teacher",
]
