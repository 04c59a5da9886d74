# SPDX-License-Identifier: Apache-2.0
"""The two plain ways of distillation, which any other one is compared with: by logits and by features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from monai_llmboost.arguments import is_positive


class LogitDistillation(nn.Module):
    """The divergence of a student's class probabilities from its teacher's, both softened by a temperature.

    ``T² KL(softmax(teacher / T) || softmax(student / T))``, the mean over cases, or over voxels (Hinton et al. 2015,
    arXiv:1503.02531). The factor keeps its gradients about as large at each temperature.

    Args:
        temperature: T, above 0.

    Raises:
        ValueError: a temperature of 0 or below; in ``forward``, logits of different shapes.

    Example:
        >>> import torch
        >>> loss = LogitDistillation(temperature=2.0)
        >>> float(loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 2.0]])))
        0.0
    """

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        if not is_positive(temperature):
            raise ValueError(f"temperature must be a number above 0, not {temperature!r}: 4 is usual")
        self.temperature = temperature

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of logits (B, classes, ...) of the student and of the teacher."""
        _check_same("logits", student, teacher)
        student, teacher = (
            functional.log_softmax(logits.float() / self.temperature, dim=1) for logits in (student, teacher.detach())
        )
        divergence = functional.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1).mean()
        return divergence * self.temperature**2


class FeatureRegression(nn.Module):
    """The mean squared difference of a student's features from its teacher's (FitNets, Romero et al. 2015).

    The features are those after :class:`monai_llmboost.engines.distillation.ReprogrammingHead`, or another map to the
    same size.

    Raises:
        ValueError: in ``forward``, features of different shapes.

    Example:
        >>> import torch
        >>> float(FeatureRegression()(torch.zeros(2, 8), torch.ones(2, 8)))
        1.0
    """

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of features of one shape."""
        _check_same("features", student, teacher)
        return functional.mse_loss(student.float(), teacher.float())


def _check_same(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"the student's {what} have the shape {list(student.shape)}, and the teacher's {list(teacher.shape)}: give "
            f"{what} of one shape"
        )
