# SPDX-License-Identifier: Apache-2.0
"""The residual booster of R-LLM: a frozen block between two trained linear maps."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.arguments import check_choice, check_switch, check_whole
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.boosters.readout.choose import ReadOut

RESIDUALS = ("inner", "outer", "both", "none", "projected")
# How a booster starts, and the residual that comes with it by default.
STARTS = {"plain": "outer", "published": "inner"}
# Residuals that give back x, bit for bit, while F_D is zero.
STARTS_PLAIN = ("outer", "both")


class ResidualBooster(nn.Module):
    """A frozen block between two trained linear maps, with a residual.

    ``h = F_E(x)``; ``y = [tanh(g)] block(h) [+ h]``; ``z = F_D(y) [+ x | + LeakyReLU(P x)]``

    Lai et al. 2024, arXiv:2403.17343. The published code calls the five residuals, in the order below, ``llm_in``,
    ``llm_out``, ``llm_hybrid``, ``llm`` and ``llm_out_nn``; ``llm_in`` is the paper's best. With it, random maps are in
    the only path from encoder to head, so a network starts worse with the booster than without it. By default, x is
    added and F_D starts at zero, so that the boosted network starts as the plain one. The maps also need smaller steps
    than the network around them: :func:`monai_llmboost.boosters.parameter_groups`.

    Args:
        channels: features of a visual token, C.
        block: maps tokens (B, N, D) to tokens (B, N, D) and has an attribute ``width`` = D, such as
            :class:`monai_llmboost.llm.FrozenBlock`. A block that does not mix tokens sets ``tokenwise = True``. The
            interface of :mod:`monai_llmboost.llm.attention`, if the block has it, allows a cheaper read-out.
        residual: ``"inner"`` adds h to the block's output, ``"outer"`` adds x to the booster's, ``"both"`` both,
            ``"none"`` neither, ``"projected"`` adds ``LeakyReLU(P x)`` with a trained P to the booster's output.
            ``None`` is ``"outer"`` for ``start="plain"`` and ``"inner"`` for ``start="published"``.
        use_checkpoint: in training, recompute the block's activations in the backward pass instead of keeping them:
            more time, and less memory between the passes (the peak of a step does not change if the block comes last).
            Only for the full computation, because reading a few tokens keeps few activations.
        gate: multiply the block's output by ``tanh(g)``, where the trained number g starts at zero, so that training
            starts without the block and learns how much of it to add (Alayrac et al. 2022, arXiv:2204.14198). A gate
            needs a residual, because a closed gate alone gives zero. With ``start="published"`` and an inner residual,
            F_D F_E stays in the path: this is not the plain network.
        start: ``"plain"``: at first the output is x, bit for bit, because F_D starts at zero. With a gate and the outer
            residual the closed gate does this, and F_D starts at random: two zeros in a row would never be trained.
            Only for the residuals ``"outer"`` and ``"both"``. ``"published"``: all maps start at random, as in the
            published code. ``None`` is ``"plain"`` if the residual allows it.

    Raises:
        ValueError: an unknown residual or start, a residual that cannot start as the plain network, channels below 1,
            or a gate that is not a bool or has no residual.
        TypeError: the block has no integer attribute ``width``.

    Example:
        >>> from monai_llmboost.llm import load_block
        >>> booster = ResidualBooster(32, load_block("embedded"))
        >>> x = torch.randn(2, 65, 32)
        >>> booster(x).shape, booster(x, 1).shape  # the second computes the first token only, exactly
        (torch.Size([2, 65, 32]), torch.Size([2, 1, 32]))
        >>> torch.equal(booster(x), x)  # until it is trained
        True
    """

    if TYPE_CHECKING:
        block: Any

    # So that scripting skips the branches that are not taken.
    __constants__ = ("inner", "outer", "takes_apart", "tokenwise")
    __jit_unused_properties__ = ["takes_apart"]  # noqa: RUF012  (torch's own)

    def __init__(
        self,
        channels: int,
        block: nn.Module,
        residual: str | None = None,
        use_checkpoint: bool = False,
        gate: bool = False,
        start: str | None = None,
    ) -> None:
        super().__init__()
        residual, start = choose_start(residual, start)
        check_switch("gate", gate)
        check_switch("use_checkpoint", use_checkpoint)
        check_whole("channels", channels, 1)
        if gate and residual == "none":
            raise ValueError(
                "a gate with residual 'none' gives zero while it is closed: use another residual, or no gate"
            )
        width = getattr(block, "width", None)
        if not isinstance(width, int):
            raise TypeError(
                f"the block, {type(block).__name__}, has no whole number `width`: use one such as FrozenBlock"
            )
        self.channels = channels
        self.width = width
        self.use_checkpoint = use_checkpoint
        self.tokenwise = bool(getattr(block, "tokenwise", False))
        self.signature = Signature(
            "residual",
            f"{residual}, gated" if gate else residual,
            "give the --start, --residual and --gate that it was trained with (before there was --start: published)",
        )
        self.inner = residual in ("inner", "both")
        self.outer = residual in ("outer", "both", "projected")
        self.encode = nn.Linear(channels, width, bias=False)
        self.block = block
        self.readout = ReadOut(self.encode, block)
        self.decode = nn.Linear(width, channels, bias=False)
        if start == "plain" and not (gate and residual == "outer"):
            nn.init.zeros_(self.decode.weight)
        self.skip: nn.Module = nn.Identity()
        if residual == "projected":
            self.skip = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.LeakyReLU())
        self.gate = Gate() if gate else nn.Identity()

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Map tokens (B, N, C) to tokens (B, N, C), or only to the first ``read`` of them, exactly and at less cost."""
        if read is not None and read < 1:
            raise ValueError("read must be a whole number from 1, or None for all tokens")
        rows = x if read is None else x[:, :read]
        h = self.encode(rows)  # (B, R, D)
        y = self.block_output(rows, h) if read is None or self.tokenwise else self.block_at_first(x, h)
        y = self.gate(y)
        if self.inner:
            y = y + h
        z = self.decode(y)  # (B, R, C)
        if self.outer:
            z = z + self.skip(rows)
        return z

    def block_output(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the block's output at all visual tokens ``x`` (B, N, C), encoded ones ``h`` (B, N, D); (B, N, D)."""
        if torch.jit.is_scripting():
            return self.block(h)
        else:  # so that scripting skips it
            if self.use_checkpoint and self.training:
                return checkpoint(self.block, h, use_reentrant=False)
            return self.readout.all_tokens(x, h, self.encode, self.block)

    def block_at_first(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the block's output at the first tokens ``h`` (B, R, D) of all visual tokens ``x`` (B, N, C)."""
        read = h.shape[1]
        if self.takes_apart:
            method = self.readout.cheapest(x.shape[0], x.shape[1], read)
            if method >= 0:
                attended = self.readout(method, x, self.encode.weight, self.block.attention_tensors(h))
                return self.block.finish(h, attended)
        if self.readout.takes_read:
            return self.block(self.encode(x), read)
        return self.block_output(x, self.encode(x))[:, :read]

    @property
    def takes_apart(self) -> bool:
        """Whether the block can be read without keys and values of all tokens; scripting keeps the current value."""
        return self.readout.is_exact(self.encode, self.block)

    def keep_one_token(self) -> None:
        """Prepare a frozen block for sequences of one token: its queries and keys are no longer kept in memory.

        The block is replaced by a copy that shares the other weights; see
        :meth:`monai_llmboost.llm.FrozenBlock.for_one_token`. A block with trained weights, or without that method,
        stays as it is.
        """
        shrink = getattr(self.block, "for_one_token", None)
        if shrink is not None and not any(True for _ in self.block.parameters()):
            self.block = shrink()
            self.readout = ReadOut(self.encode, self.block)

    def describe_readout(self, batch: int, tokens: int, read: int | None = None) -> str:
        """Return how the first ``read`` tokens are computed, or all of them, as text for tables."""
        if self.tokenwise:
            return "each token for itself"
        if read is None:
            folded = not self.use_checkpoint
            how = self.readout.describe_all(self.encode, self.block, batch, tokens) if folded else "whole block"
            return f"all tokens are read: {how}"
        return self.readout.describe(self.encode, self.block, (batch, tokens, read))


def choose_start(residual: str | None, start: str | None) -> tuple[str, str]:
    """Return the residual and the start of a booster; each may follow from the other.

    Raises:
        ValueError: an unknown one, or a residual with which a booster cannot start as the plain network.
    """
    if start is not None:
        check_choice("start", start, STARTS)
    if residual is None:
        residual = STARTS[start or "plain"]
    check_choice("residual", residual, RESIDUALS)
    possible = residual in STARTS_PLAIN
    if start == "plain" and not possible:
        raise ValueError(
            f"residual {residual!r} cannot start as the plain network, because nothing adds the tokens themselves: use "
            f"residual {' or '.join(STARTS_PLAIN)}, or start 'published'"
        )
    return residual, start or ("plain" if possible else "published")


class Gate(nn.Module):
    """A gate ``tanh(g) y`` with one trained number g, which starts at zero, so that the gate is closed at first."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D), in their dtype."""
        return (torch.tanh(self.g) * y).to(y.dtype)  # in g's dtype, because its gradient sums all tokens
