# SPDX-License-Identifier: Apache-2.0
"""Trainings of a student with a teacher: by logits, by features, and by reprogramming distillation (RD)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import is_positive
from monai_llmboost.engines.distillation.baselines import FeatureRegression, LogitDistillation
from monai_llmboost.engines.distillation.cka import CKALoss
from monai_llmboost.engines.distillation.last_layer import LastLayer
from monai_llmboost.engines.distillation.projector import Projector
from monai_llmboost.engines.distillation.teacher import Teacher
from monai_llmboost.networks.trial import in_eval_mode

# Cases of a batch from which the alignment of vectors can be estimated.
LEAST_CASES = 4


class Lesson(NamedTuple):
    """The output of a student in training.

    Args:
        output: its logits, (B, classes, ...), or those of several heads.
        student: what of it is compared, logits or features.
        teacher: what it is compared with.
        taught_logits: logits of the teacher's features by the student's classifier, in reprogramming distillation.
    """

    output: Any
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
    """The network that a trainer trains instead of the student: it returns a lesson, and has the loss of it.

    The student itself is validated and saved; what the distiller adds to it is only trained. A student that returns the
    logits of several heads in training is taught the first, those of the full resolution.

    Args:
        student: any network from volumes to logits, of classes or of the classes of each voxel.
        teacher: the teacher, for the sizes of its features; it is not part of this module.
        example: volumes for a trial run, (B, channels, S0, S1, S2).
        task_loss: logits and labels -> one number, as without a teacher.
        weight: weight of the distillation in the loss, above 0.

    Raises:
        ValueError: a weight that is not above 0; a student with weights of the teacher; another kind of task.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, example: Tensor, task_loss: nn.Module, weight: float = 1.0
    ) -> None:
        super().__init__()
        if not is_positive(weight):
            raise ValueError(f"distil_weight must be a number above 0, not {weight!r}: leave the teacher out instead")
        weights = {id(weight) for weight in teacher.parameters()}
        if any(id(weight) in weights for weight in student.parameters()):
            raise ValueError("the student has weights of the teacher, which are not trained: give it a copy of them")
        self.student = student
        self.task_loss = task_loss
        self.weight = weight
        self.head: nn.Module = nn.Identity()  # what is trained in addition to the student
        self.image_size = [*example.shape[2:]]
        # Of the teacher, only the shapes are kept.
        with torch.random.fork_rng(), in_eval_mode(student), torch.no_grad():
            logits, self.taught = student(example), teacher(example)
        self.axes = logits.dim()
        self.why_no_features = teacher.why_no_features
        if self.taught.logits.shape != logits.shape:
            raise ValueError(
                f"the teacher's logits are of shape {list(self.taught.logits.shape[1:])}, and the student's "
                f"{list(logits.shape[1:])}: give networks for one task"
            )

    def forward(self, x: Tensor, features: Tensor, logits: Tensor, *stages: Tensor) -> Any:
        """Return the lesson of volumes, with the teacher's features and logits of them, and those of its stages."""
        raise NotImplementedError

    def loss(self, lesson: Any, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        raise NotImplementedError

    def projector(self, given: Tensor, wanted: Tensor) -> Projector:
        """Return a map between the features of the teacher's and the student's last layer.

        Raises:
            ValueError: the teacher's are not known, or the one cannot be mapped to the other.
        """
        if self.why_no_features:
            raise ValueError(f"the teacher has no features for this method ({self.why_no_features}): distil by logits")
        return Projector(given.shape[1:], wanted.shape[1:], self.image_size)

    def main_logits(self, output: Any) -> Tensor:
        """Return the logits of the full resolution from those of all heads."""
        if isinstance(output, Tensor):
            return output if output.dim() == self.axes else output[:, 0]
        first: Tensor = output[0]
        return first


class LogitDistiller(Distiller):
    """Trains a student with its teacher's logits: ``task(z_S, y) + weight T² KL(z_T / T || z_S / T)``.

    See :class:`LogitDistillation`; further arguments as in :class:`Distiller`.

    Args:
        temperature: T.
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

    def forward(self, x: Tensor, features: Tensor, logits: Tensor, *stages: Tensor) -> Lesson:
        """Return the student's and the teacher's logits."""
        output = self.student(x)
        return Lesson(output, self.main_logits(output), logits)

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        return self.task_loss(lesson.output, labels) + self.weight * self.distillation(lesson.student, lesson.teacher)


class FeatureDistiller(Distiller):
    """Trains a student to predict its teacher's features from its own: ``task(z_S, y) + weight ||phi(f_S) - f_T||²``.

    The map ``phi`` is a :class:`Projector` (the other way round than in RD: mapped to the student, the teacher's
    features could all become zero). The teacher's features are divided by their root mean square in the batch, so that
    one weight fits any teacher. Arguments as in :class:`Distiller`.

    Raises:
        ValueError: see :class:`Distiller`; features that the student's cannot be mapped to.
    """

    def __init__(
        self, student: nn.Module, teacher: Teacher, example: Tensor, task_loss: nn.Module, weight: float = 1.0
    ) -> None:
        super().__init__(student, teacher, example, task_loss, weight)
        self.last_layer = LastLayer(student, example)
        own = self.last_layer.take_features()
        self.head = self.projector(own, self.taught.features)
        self.distillation = FeatureRegression()

    def forward(self, x: Tensor, features: Tensor, logits: Tensor, *stages: Tensor) -> Lesson:
        """Return the student's mapped features, and the teacher's."""
        output = self.student(x)
        scale = features.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
        return Lesson(output, self.head(self.last_layer.take_features()), features / scale)

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        return self.task_loss(lesson.output, labels) + self.weight * self.distillation(lesson.student, lesson.teacher)


class ReprogrammingDistiller(Distiller):
    """Reprogramming Distillation (RD, MICCAI 2024, arXiv:2407.06504).

    ``task(g(f_S), y) + task(g(phi(f_T)), y) + weight (1 - CKA(phi(f_T), f_S))``: the teacher's features f_T are mapped
    to the size of the student's, f_S, and classified by the student's own last layer g, so that phi has to say in the
    student's terms what the teacher knows about the task. The weight, and the layers of phi, are not known to us from
    the paper; here the weight is 1, and phi a :class:`Projector`.

    The cases of a batch are the samples of the alignment, or the voxels of feature maps. A smaller last batch, of less
    than 4 cases, is trained on without the alignment, which it cannot estimate.

    Arguments as in :class:`Distiller`.

    Args:
        unbiased: see :class:`CKALoss`.

    Raises:
        ValueError: see :class:`Distiller`; features that cannot be mapped; in training, batches of less than 4 cases.
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
        self.last_layer = LastLayer(student, example)
        own = self.last_layer.take_features()
        self.head = self.projector(self.taught.features, own)
        self.alignment = Alignment(unbiased)

    def forward(self, x: Tensor, features: Tensor, logits: Tensor, *stages: Tensor) -> Lesson:
        """Return the student's features, and the teacher's mapped to them, with the logits of both."""
        output = self.student(x)
        own = self.last_layer.take_features()
        mapped = self.head(features)
        return Lesson(output, own, mapped, self.last_layer.classify(mapped))

    def loss(self, lesson: Lesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        if lesson.taught_logits is None:
            raise ValueError("this lesson has no logits of the teacher's features: it is of another distiller")
        task = self.task_loss(lesson.output, labels) + self.task_loss(lesson.taught_logits, labels)
        return task + self.weight * self.alignment(lesson.teacher, lesson.student)


class Alignment(nn.Module):
    """One minus the alignment of two features of one shape: over the cases of vectors, tokens, or voxels of a map.

    It is 0 for a smaller last batch, of too few cases, and an error for a first one.

    Args:
        unbiased: see :class:`CKALoss`.

    Raises:
        ValueError: in ``forward``, a first batch of vectors of less than 4 cases.

    Example:
        >>> x = torch.rand(1, 8, 4, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> round(float(Alignment()(x, 2 * x)), 4)
        0.0
    """

    def __init__(self, unbiased: bool = True) -> None:
        super().__init__()
        self.losses = nn.ModuleDict({name: CKALoss(name, unbiased) for name in ("batch", "tokens", "voxels")})
        self.was_estimated = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of two features."""
        if x.dim() == 2 and len(x) < LEAST_CASES and self.was_estimated:
            return x.new_zeros(())
        self.was_estimated = True
        samples = {2: "batch", 3: "tokens"}.get(x.dim(), "voxels")
        loss: Tensor = self.losses[samples](x, y)
        return loss
