# SPDX-License-Identifier: Apache-2.0
"""The residual booster of R-LLM: a frozen block between two trained linear maps."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.boosters.readout.choose import ReadOut

RESIDUALS = ("inner", "outer", "both", "none", "projected")


class ResidualBooster(nn.Module):
    """Visual tokens through a frozen block, between two trained linear maps and a residual.

    ``h = F_E(x)``; ``y = [tanh(g)] block(h) [+ h]``; ``z = F_D(y) [+ x | + LeakyReLU(P x)]``

    Lai et al. 2024, arXiv:2403.17343; ``residual="inner"`` is the paper's best, its published code calls the five
    ``llm_in``, ``llm_out``, ``llm_hybrid``, ``llm`` and ``llm_out_nn``.

    Args:
        channels: features of a visual token, C.
        block: tokens (B, N, D) -> (B, N, D) with an attribute ``width`` = D, such as
            :class:`monai_llmboost.llm.FrozenBlock`; ``tokenwise = True`` tells of one that mixes no tokens.
        residual: ``"inner"`` adds h to the block's output, ``"outer"`` adds x to the booster's, ``"both"`` both,
            ``"none"`` neither, ``"projected"`` adds ``LeakyReLU(P x)`` with a trained P to the booster's output.
        use_checkpoint: in training, compute the block's activations again in the backward pass instead of keeping
            them: more time, and less memory between the passes (the peak of a step stays where the block comes last).
            For the full way only; where few tokens are read, few are kept.
        gate: multiply the block's output by ``tanh(g)``, g one trained number that starts at zero, so that training
            begins without the block and lets in as much of it as it finds of use (Alayrac et al. 2022,
            arXiv:2204.14198). It needs a residual: without one, nothing at all would pass at first.

    Raises:
        ValueError: an unknown residual, channels below 1, or a gate that is no bool or has no residual beside it.
        TypeError: the block has no whole-number attribute ``width``.
    """

    if TYPE_CHECKING:
        block: Any

    # So that scripting leaves out the branches not taken.
    __constants__ = ("inner", "outer", "takes_apart", "tokenwise")
    __jit_unused_properties__ = ["takes_apart"]  # noqa: RUF012  (torch's own)

    def __init__(
        self, channels: int, block: nn.Module, residual: str = "inner", use_checkpoint: bool = False, gate: bool = False
    ) -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"expected residual to be one of {', '.join(RESIDUALS)}, got {residual!r}")
        if not isinstance(gate, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected gate to be True or False, got {gate!r}")
        if gate and residual == "none":
            raise ValueError(
                "expected a residual beside a gate, got residual 'none', whose output would be zero while the gate is "
                "closed: give another residual, or no gate"
            )
        if not isinstance(use_checkpoint, bool):
            raise ValueError(f"expected use_checkpoint to be True or False, got {use_checkpoint!r}")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"expected channels to be a whole number from 1, got {channels!r}")
        width = getattr(block, "width", None)
        if not isinstance(width, int):
            raise TypeError(f"expected a block with an attribute `width`, got {type(block).__name__}: see FrozenBlock")
        self.channels = channels
        self.width = width
        self.use_checkpoint = use_checkpoint
        self.tokenwise = bool(getattr(block, "tokenwise", False))
        self.signature = Signature(
            "residual",
            f"{residual}, gated" if gate else residual,
            "give the --residual and --gate that it was trained with",
        )
        self.inner = residual in ("inner", "both")
        self.outer = residual in ("outer", "both", "projected")
        self.encode = nn.Linear(channels, width, bias=False)
        self.block = block
        self.readout = ReadOut(self.encode, block)
        self.decode = nn.Linear(width, channels, bias=False)
        self.skip: nn.Module = nn.Identity()
        if residual == "projected":
            self.skip = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.LeakyReLU())
        self.gate = Gate() if gate else nn.Identity()

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C), or exactly the first ``read`` of those, (B, R, C), at far less cost."""
        if read is not None and read < 1:
            raise ValueError("expected read from 1, or None for all tokens")
        rows = x if read is None else x[:, :read]
        h = self.encode(rows)  # (B, R, D)
        y = self.block_output(h) if read is None or self.tokenwise else self.block_at_first(x, h)
        y = self.gate(y)
        if self.inner:
            y = y + h
        z = self.decode(y)  # (B, R, C)
        if self.outer:
            z = z + self.skip(rows)
        return z

    def block_output(self, h: Tensor) -> Tensor:
        """The block on all tokens, (B, N, D) -> (B, N, D)."""
        if torch.jit.is_scripting():
            return self.block(h)
        elif self.use_checkpoint and self.training:
            return checkpoint(self.block, h, use_reentrant=False)
        return self.block(h)

    def block_at_first(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the block at the first tokens ``h`` (B, R, D), where it sees all visual tokens ``x`` (B, N, C)."""
        read = h.shape[1]
        if self.takes_apart:
            method = self.readout.cheapest(x.shape[0], x.shape[1], read)
            if method >= 0:
                attended = self.readout(method, x, self.encode.weight, self.block.attention_tensors(h))
                return self.block.finish(h, attended)
        if self.readout.takes_read:
            return self.block(self.encode(x), read)
        return self.block_output(self.encode(x))[:, :read]

    @property
    def takes_apart(self) -> bool:
        """Whether the block can be read without keys and values of all tokens now; when scripted, whether it could."""
        return self.readout.is_exact(self.encode, self.block)

    def describe_readout(self, batch: int, tokens: int, read: int) -> str:
        """Return how the first ``read`` tokens are computed, in words, for tables."""
        if self.tokenwise:
            return "each token for itself"
        return self.readout.describe(self.encode, self.block, (batch, tokens, read))


class Gate(nn.Module):
    """``tanh(g) y`` with one trained number g that starts at zero: closed at first, and opened by training."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), in their dtype."""
        return (torch.tanh(self.g) * y).to(y.dtype)  # a sum over all tokens flows back to g: in g's own dtype
