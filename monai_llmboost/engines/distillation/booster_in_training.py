# SPDX-License-Identifier: Apache-2.0
"""A booster that helps a network to learn, and is gone afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_switch
from monai_llmboost.networks.boosted_module import BoostedModule
from monai_llmboost.networks.boosted_network import BoostedNetwork
from monai_llmboost.networks.checkpointing import is_checkpointed
from monai_llmboost.networks.insertion import boost, unboost
from monai_llmboost.networks.trial import Features
from monai_llmboost.networks.wrappers import unwrap


class BoosterInTraining(nn.Module):
    """Trains a plain network whose features a booster changes in training only.

    ``z = x + share k (booster(x) - x)`` at the joint, where k of each case is 0 with the probability ``dropout``, else
    1, and ``share`` is 1, or falls to 1 / epochs with ``decay``. The booster starts as an identity, so the student is a
    valid network with it and without it. In ``eval()`` the student runs alone: it is validated, chosen, saved and used
    without the booster, whose maps (``head``) are only kept to resume the training.

    Dropping a branch for whole cases is stochastic depth (Huang et al. 2016, arXiv:1603.09382), but what is kept is
    not divided by ``1 - dropout``. That keeps the mean over k the same as with the branch, for a network that is used
    with it; this one is used without, so cases with k = 0 are computed as later, and the others show the layers after
    the joint no larger change than the booster makes.

    By default both are on: half of the cases train the student as it is used, from the first step, and the decay makes
    the others ever more like them. The latter also because running statistics of batch norms after the joint are those
    of both kinds of cases, and the best epoch is chosen by a validation with these statistics.

    The change is made by a hook, which is on the student only while it runs here. So the student can be copied,
    pickled and exported at any time, and its state dict is that of the plain network.

    Args:
        student: a network from volumes to logits, without a booster and not wrapped (DDP, ``torch.compile``); wrap this
            module instead.
        booster: a module or a function of the channels, as in :func:`monai_llmboost.networks.boost`, which maps tokens
            to the same tokens until it is trained, such as :class:`monai_llmboost.boosters.ResidualBooster`.
        task_loss: logits and labels -> one number.
        example: volumes for a trial run, as in ``boost``.
        at: the joint, as in ``boost``: ``None`` is the position of a network of this package, and the deepest features
            of another.
        dropout: probability to drop the booster's change of a case, from 0 and below 1.
        decay: whether the share falls; attach :class:`LinearDecay` to the trainer, which sets ``share``.
        token_stride: as in ``boost``.

    Raises:
        ValueError: another dropout, or neither dropout nor decay; a student with a booster or a wrapper; no joint is
            known, or a booster of another width, see ``boost``; a booster that changes tokens before it is trained.
        TypeError: the booster is no module and no function that makes one.

    Example:
        >>> from functools import partial
        >>> from monai.networks.nets import resnet10
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> student = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
        >>> booster = partial(ResidualBooster, block=load_block("embedded"))
        >>> trained = BoosterInTraining(student, booster, nn.CrossEntropyLoss(), decay=False)
        >>> trained.loss(trained(torch.zeros(4, 1, 32, 32, 32)), torch.tensor([0, 1, 0, 1])).shape
        torch.Size([])
        >>> any("booster" in name for name in student.state_dict())
        False
    """

    def __init__(
        self,
        student: nn.Module,
        booster: nn.Module | Callable[[int], nn.Module],
        task_loss: nn.Module,
        example: Tensor | None = None,
        at: str | None = None,
        dropout: float = 0.5,
        decay: bool = True,
        token_stride: int = 1,
    ) -> None:
        super().__init__()
        _check_chance(dropout, decay)
        _check_student(student)
        if booster is None:
            raise ValueError("there is no booster to train with: give one, or train the network alone")
        with torch.random.fork_rng(devices=[]):  # the training draws the same numbers as without a booster
            boost(student, booster, at, example=example, token_stride=token_stride)
            joint, self.head, self.reads_first = _take_booster(student)
            _check_starts_plain(self.head, student)
        self.student = student
        self.loss = task_loss
        self.dropout = dropout
        self.share: float | None = None if decay else 1.0
        self._joint = (joint,)  # in a tuple, because the module is the student's

    def forward(self, x: Tensor) -> Any:
        """Return the student's logits of volumes; in training with the booster."""
        if self.training and self.share is None:
            raise RuntimeError(
                "nothing has set the share of the booster: attach LinearDecay(module) to the trainer, or give "
                "decay=False"
            )
        if not self.training or not self.share:
            return self.student(x)
        (joint,) = self._joint
        needs_gradients, calls, outermost = torch.is_grad_enabled(), 0, sys._getframe()

        def mix(features: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            if needs_gradients and (not torch.is_grad_enabled() or is_checkpointed(outermost)):
                # The part would run again in the backward pass, when the hook is gone.
                raise RuntimeError(
                    "the joint is in a part of the network that is computed again in the backward pass: name another "
                    "joint, or leave out its checkpointing"
                )
            return self._mix(features)

        if self.head.before:
            handle = joint.register_forward_pre_hook(lambda module, inputs: (mix(inputs[0]), *inputs[1:]))
        else:
            handle = joint.register_forward_hook(lambda module, inputs, output: mix(output))
        try:
            logits = self.student(x)
        finally:
            handle.remove()
        if calls != 1:
            raise RuntimeError(f"the joint was called {calls} times in a forward pass: name another one")
        return logits

    def _mix(self, x: Tensor) -> Tensor:
        """Return features with the booster's change, as far as it is kept."""
        if self.reads_first:  # the student reads the first token only
            boosted, x = self.head.booster(x, 1), x[:, :1]
        else:
            boosted = self.head.boost(x)
        # Dropped cases run too, so that each weight of the booster has a gradient in each step, as DDP needs.
        weight = torch.full((len(x),), float(self.share or 0), device=x.device, dtype=x.dtype)
        if self.dropout:
            weight = weight * (torch.rand(len(x), device=x.device) >= self.dropout)
        # lerp is exact at 0 and at 1.
        return torch.lerp(x, boosted.to(x.dtype), weight.view(-1, *[1] * (x.dim() - 1)))

    def extra_repr(self) -> str:
        """Return the dropout and the share, for ``print``."""
        return f"dropout {self.dropout:g}, share {self.share}"


def _check_chance(dropout: float, decay: bool) -> None:
    check_switch("booster_decay", decay)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise ValueError(
            f"booster_dropout must be a number from 0 and below 1, not {dropout!r}: 0.5 drops the booster for half of "
            "the cases"
        )
    if not dropout and not decay:
        raise ValueError(
            "with booster_dropout 0 and no booster_decay the network would learn with a booster for good, and be used "
            "without: give one of the two, or train a boosted network"
        )


def _check_student(student: nn.Module) -> None:
    if unwrap(student) is not student:
        raise ValueError(
            f"the student is wrapped in {type(student).__name__}: give the network itself, and wrap this module"
        )
    for part in student.modules():
        own = isinstance(part, BoostedNetwork) and not isinstance(part.booster, nn.Identity)
        if own or isinstance(part, BoostedModule):
            raise ValueError(f"this {type(student).__name__} has a booster already: give the plain network")


def _take_booster(student: nn.Module) -> tuple[nn.Module, BoostedModule, bool]:
    """Remove the booster of a network, and return its joint, the booster, and whether only the first token is read."""
    if isinstance(student, BoostedNetwork):
        head = BoostedModule(nn.Identity(), student.booster, Features("tokens", student.joint_channels))
        reads_first = student.reads_cls
        unboost(student)
        return student.booster, head, reads_first
    (head,) = (part for part in student.modules() if isinstance(part, BoostedModule))
    unboost(student)
    joint, head.inner = head.inner, nn.Identity()
    return joint, head, False


def _check_starts_plain(head: BoostedModule, student: nn.Module) -> None:
    """Raise ValueError for a booster that changes tokens before it is trained."""
    like = next(chain(head.parameters(), student.parameters()))
    if like.is_meta:
        return
    # One token of a case each, because a block at a vector takes no more.
    tokens = torch.randn(2, 1, head.channels, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        changed = head.booster(tokens)
    if not torch.equal(changed, tokens):
        raise ValueError(
            "the booster changes tokens before it is trained, so that the network with it is not the one without: give "
            "one with start='plain' and the residual outer or both"
        )
