# SPDX-License-Identifier: Apache-2.0
"""Trainings of a student with a teacher: by logits, by features, and by reprogramming distillation (RD)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import is_positive
from monai_llmboost.engines.distillation.baselines import FeatureRegression, LogitDistillation
from monai_llmboost.engines.distillation.cka import CKALoss
from monai_llmboost.engines.distillation.last_layer import LastLayer
from monai_llmboost.engines.distillation.reprogramming import ReprogrammingHead
from monai_llmboost.engines.distillation.teacher import Teacher

# Cases of a batch from which the alignment of features can be estimated.
LEAST_CASES = 4


class Lesson(NamedTuple):
    """The output of a student in training.

    Args:
        logits: its logits, (B, classes, ...).
        student: what of it is compared, logits or features.
        teacher: what it is compared with.
        taught_logits: logits of the teacher's features by the student's classifier, in reprogramming distillation.
    """

    logits: Tensor
    student: Tensor
    teacher: Tensor
    taught_logits: Tensor | None = None


class WithoutTeacher(nn.Module):
    """Trains a network alone, in the place of a :class:`Distiller`: the base that a distillation is compared with.

    Args:
        student: any network from volumes to logits.
        task_loss: logits and labels -> one number.

    Example:
        >>> alone = WithoutTeacher(nn.Linear(3, 2), nn.CrossEntropyLoss())
        >>> alone.loss(alone(torch.zeros(4, 3)), torch.tensor([0, 1, 0, 1])).shape
        torch.Size([])
    """

    def __init__(self, student: nn.Module, task_loss: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.loss = task_loss
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of volumes."""
        return self.student(x)


class Distiller(nn.Module):
    """The network that a trainer trains instead of the student: it returns a :class:`Lesson`, and has the loss of it.

    The student itself is validated and saved; what the distiller adds to it is only trained.

    Args:
        student: any network from volumes to logits.
        teacher: the teacher, for the sizes of its features; it is not part of this module.
        example: volumes for a trial run, (B, channels, S0, S1, S2).
        task_loss: logits and labels -> one number, as without a teacher.
        weight: weight of the distillation in the loss, above 0.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, example: Tensor, task_loss: nn.Module, weight: float = 1.0
    ) -> None:
        super().__init__()
        if not is_positive(weight):
            raise ValueError(f"distil_weight must be a number above 0, not {weight!r}: leave the teacher out instead")
        self.student = student
        self.task_loss = task_loss
        self.weight = weight
        self.head: nn.Module = nn.Identity()  # what is trained in addition to the student
        self.last_layer = LastLayer(student, example)
        self.features = self.last_layer.take_features()  # of the example, for their shape
        with torch.random.fork_rng():  # a teacher's sizes; nothing of it is kept
            self.taught = teacher(example)

    def forward(self, x: Tensor, features: Tensor, logits: Tensor) -> Lesson:
        """Return the lesson of volumes, with the teacher's features and logits of them."""
        raise NotImplementedError

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        raise NotImplementedError


class LogitDistiller(Distiller):
    """Trains a student with its teacher's logits: ``task(z_S, y) + weight T² KL(z_T / T || z_S / T)``.

    See :class:`LogitDistillation`; further arguments as in :class:`Distiller`.

    Args:
        temperature: T.

    Raises:
        ValueError: another number of classes.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        example: Tensor,
        task_loss: nn.Module,
        weight: float = 1.0,
        temperature: float = 4.0,
    ) -> None:
        super().__init__(student, teacher, example, task_loss, weight)
        self.distillation = LogitDistillation(temperature)

    def forward(self, x: Tensor, features: Tensor, logits: Tensor) -> Lesson:
        """Return the student's and the teacher's logits."""
        own = self.student(x)
        self.last_layer.take_features()
        return Lesson(own, own, logits)

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        return self.task_loss(lesson.logits, labels) + self.weight * self.distillation(lesson.student, lesson.teacher)


class FeatureDistiller(Distiller):
    """Trains a student to predict its teacher's features from its own: ``task(z_S, y) + weight ||phi(f_S) - f_T||²``.

    The map ``phi`` is a :class:`ReprogrammingHead` (the other way round than in RD: mapped to the student, the
    teacher's features could all become zero). The teacher's features are divided by their root mean square in the
    batch, so that one weight fits any teacher. Arguments as in :class:`Distiller`.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, example: Tensor, task_loss: nn.Module, weight: float = 1.0
    ) -> None:
        super().__init__(student, teacher, example, task_loss, weight)
        self.head = _head(self.features, self.taught.features)
        self.distillation = FeatureRegression()

    def forward(self, x: Tensor, features: Tensor, logits: Tensor) -> Lesson:
        """Return the student's mapped features, and the teacher's."""
        own = self.student(x)
        scale = features.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return Lesson(own, self.head(self.last_layer.take_features()), features / scale)

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        return self.task_loss(lesson.logits, labels) + self.weight * self.distillation(lesson.student, lesson.teacher)


class ReprogrammingDistiller(Distiller):
    """Reprogramming Distillation (RD, MICCAI 2024, arXiv:2407.06504).

    ``task(g(f_S), y) + task(g(phi(f_T)), y) + weight (1 - CKA(phi(f_T), f_S))``: the teacher's features f_T are mapped
    to the size of the student's, f_S, and classified by the student's own last layer g, so that phi has to say in the
    student's terms what the teacher knows about the task. The weight, and the layers of phi, are not known to us from
    the paper; here the weight is 1, and phi a :class:`ReprogrammingHead`.

    A smaller last batch, of less than 4 cases, is trained on without the alignment, which it cannot estimate.

    Arguments as in :class:`Distiller`.

    Args:
        unbiased: see :class:`CKALoss`.

    Raises:
        ValueError: in training, batches of less than 4 cases.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        example: Tensor,
        task_loss: nn.Module,
        weight: float = 1.0,
        unbiased: bool = True,
    ) -> None:
        super().__init__(student, teacher, example, task_loss, weight)
        self.head = _head(self.taught.features, self.features)
        self.alignment = CKALoss("batch", unbiased)
        self.was_estimated = False

    def forward(self, x: Tensor, features: Tensor, logits: Tensor) -> Lesson:
        """Return the student's features, and the teacher's mapped to them, with the logits of both."""
        own = self.student(x)
        mine = self.last_layer.take_features()
        mapped = self.head(features)
        return Lesson(own, mine, mapped, self.last_layer.classify(mapped))

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        if lesson.taught_logits is None:
            raise ValueError("this lesson has no logits of the teacher's features: it is of another distiller")
        task = self.task_loss(lesson.logits, labels) + self.task_loss(lesson.taught_logits, labels)
        if len(labels) < LEAST_CASES and self.was_estimated:
            return task
        self.was_estimated = True
        return task + self.weight * self.alignment(lesson.teacher, lesson.student)


def _head(given: Tensor, wanted: Tensor) -> ReprogrammingHead:
    """Return a head that maps features of one shape to another.

    Raises:
        ValueError: one of them is a vector and the other a feature map.
    """
    if given.dim() != wanted.dim():
        raise ValueError(
            f"features of shape {list(given.shape[1:])} cannot be mapped to {list(wanted.shape[1:])}: give a teacher "
            "and a student for one kind of task"
        )
    axes = given.dim() - 2
    return ReprogrammingHead(given.shape[1], wanted.shape[1], axes, size=[*wanted.shape[2:]] if axes else None)
