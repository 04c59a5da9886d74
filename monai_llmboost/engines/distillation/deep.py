# SPDX-License-Identifier: Apache-2.0
"""Deep reprogramming distillation (DRD): a teacher's features in the place of the student's, at several stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import is_positive
from monai_llmboost.engines.distillation.baselines import LogitDistillation
from monai_llmboost.engines.distillation.distillers import Alignment, Distiller
from monai_llmboost.engines.distillation.projector import Projector
from monai_llmboost.engines.distillation.stages import ContinuedStages
from monai_llmboost.engines.distillation.teacher import Teacher, stage_names
from monai_llmboost.networks.trial import in_eval_mode


class DeepLesson(NamedTuple):
    """The output of a student in training, and of hybrids: the student from a stage on, with the teacher's features.

    Args:
        output: the student's logits, or those of several heads.
        features: the student's features at each stage.
        mapped: the teacher's features at each stage, mapped to the student's.
        hybrids: the logits, or those of several heads, of the hybrid of each stage.
    """

    output: Any
    features: list[Tensor]
    mapped: list[Tensor]
    hybrids: list[Any]


class DeepReprogrammingDistiller(Distiller):
    """Deep Reprogramming Distillation (DRD, arXiv:2605.04447).

    At each stage i, the teacher's features are mapped to the student's by a trained map phi_i of three convolutions (a
    :class:`Projector`) and put in the place of the student's: the rest of the student makes logits z_i of them. With
    z_S and f_i^S for the student's own,

    ``task(z_S, y) + s sum_i [hybrid_weight task(z_i, y) + divergence_weight KL(z_i || z_S)]
    + weight sum_i (1 - CKA(phi_i(f_i^T), f_i^S))``

    where the share s falls linearly over the epochs (:class:`LinearDecay`). The student learns what the better features
    make of its own later layers. Of the paper we know this form, the weights of 1 and their linear decay, not where a
    stage ends, nor the layers of phi: those are our choice. The teacher must see the volumes as the student sees them,
    augmented, or its feature maps show other places. The divergence is not followed into z_i, and hybrids do not change
    the student's running statistics of batch normalization.

    Arguments as in :class:`Distiller`.

    Args:
        stages: names of the student's modules, one for each stage of the teacher; ``"deepest"`` for those of
            :func:`find_stages`; if these are fewer than the teacher's, its last ones are taken.
        hybrid_weight: weight of the hybrids' loss, 0 or above.
        divergence_weight: weight of the divergence, 0 or above.
        temperature: of the divergence.
        unbiased: see :class:`CKALoss`.

    Raises:
        ValueError: see :class:`Distiller`; a teacher without stages, or with another number than named here; stages
            that the student has not, from which it cannot be run on, or whose features cannot be mapped.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> x, labels = torch.rand(4, 1, 32, 32, 32), torch.tensor([0, 1, 0, 1])
        >>> teacher, student = (resnet10(spatial_dims=3, n_input_channels=1, num_classes=2) for _ in range(2))
        >>> frozen = Teacher([teacher], x, stages="layer2,layer3")
        >>> distiller = DeepReprogrammingDistiller(student, frozen, x, nn.CrossEntropyLoss(), stages="layer1,layer3")
        >>> lesson = distiller(x, *frozen(x).tensors())
        >>> [list(logits.shape) for logits in lesson.hybrids]
        [[4, 2], [4, 2]]
        >>> distiller.loss(lesson, labels).backward()
    """

    head: nn.ModuleList

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        example: Tensor,
        task_loss: nn.Module,
        weight: float = 1.0,
        stages: Sequence[str] | str = "deepest",
        hybrid_weight: float = 1.0,
        divergence_weight: float = 1.0,
        temperature: float = 1.0,
        unbiased: bool = True,
    ) -> None:
        super().__init__(student, teacher, example, task_loss, weight)
        for name, value in (("hybrid_weight", hybrid_weight), ("divergence_weight", divergence_weight)):
            if value != 0 and not is_positive(value):
                raise ValueError(f"{name} must be a number from 0, not {value!r}: 1 is that of the paper")
        self.hybrid_weight, self.divergence_weight = hybrid_weight, divergence_weight
        self.share = 1.0
        if not self.taught.stages:
            raise ValueError("the teacher has no stages: name some, such as teacher_stages deepest")
        names = stage_names(stages)
        if names is not None and len(names) != len(self.taught.stages):
            raise ValueError(
                f"the student has {len(names)} stages, {', '.join(names)}, and the teacher {len(self.taught.stages)}, "
                f"{', '.join(teacher.stages[0].names)}: name as many of one as of the other"
            )
        self.stages = ContinuedStages(student, names, example, most=len(self.taught.stages))
        with in_eval_mode(student), torch.no_grad():
            own = self.stages.run(example).features
        # Where a student has fewer stages, the teacher's last ones are taken.
        self.first = len(self.taught.stages) - len(own)
        self.head = nn.ModuleList(
            Projector(theirs.shape[1:], mine.shape[1:], self.image_size)
            for theirs, mine in zip(self.taught.stages[self.first :], own)
        )
        self.divergence = LogitDistillation(temperature)
        self.alignment = Alignment(unbiased)

    def forward(self, x: Tensor, features: Tensor, logits: Tensor, *stages: Tensor) -> DeepLesson:
        """Return the student's logits and features, and the hybrids' logits with the teacher's mapped features."""
        this = self.stages.run(x)
        mapped = [head(theirs) for head, theirs in zip(self.head, stages[self.first :], strict=True)]
        hybrids = [self.stages.run_from(number, each, this, x) for number, each in enumerate(mapped)]
        return DeepLesson(this.output, this.features, mapped, hybrids)

    def loss(self, lesson: DeepLesson, labels: Tensor) -> Tensor:
        """Return the loss of a lesson."""
        loss = self.task_loss(lesson.output, labels)
        own = self.main_logits(lesson.output)
        for hybrid, mapped, features in zip(lesson.hybrids, lesson.mapped, lesson.features):
            taught = self.hybrid_weight * self.task_loss(hybrid, labels)
            taught = taught + self.divergence_weight * self.divergence(own, self.main_logits(hybrid))
            loss = loss + self.share * taught + self.weight * self.alignment(mapped, features)
        return loss
