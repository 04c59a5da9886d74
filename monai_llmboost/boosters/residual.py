# SPDX-License-Identifier: Apache-2.0
"""The residual booster of R-LLM: a frozen block between two trained linear maps."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.boosters.readout import GramMatrix, attend_encoded, attend_visual, multiply_adds
from monai_llmboost.llm import FrozenBlock, Signature

RESIDUALS = ("inner", "outer", "both", "none", "projected")


class ResidualBooster(nn.Module):
    """Visual tokens through a frozen block, between two trained linear maps and a residual.

    ``h = F_E(x)``; ``y = block(h) [+ h]``; ``z = F_D(y) [+ x | + LeakyReLU(P x)]``

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

    Raises:
        ValueError: an unknown residual or channels below 1.
        TypeError: the block has no whole-number attribute ``width``.
    """

    if TYPE_CHECKING:
        block: Any  # a FrozenBlock where `exact`

    __constants__ = ("exact", "inner", "outer", "tokenwise")  # so that scripting leaves out the branches not taken

    def __init__(self, channels: int, block: nn.Module, residual: str = "inner", use_checkpoint: bool = False) -> None:
        super().__init__()
        if residual not in RESIDUALS:
            raise ValueError(f"expected residual to be one of {', '.join(RESIDUALS)}, got {residual!r}")
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f"expected channels to be a whole number from 1, got {channels!r}")
        width = getattr(block, "width", None)
        if not isinstance(width, int):
            raise TypeError(f"expected a block with an attribute `width`, got {type(block).__name__}: see FrozenBlock")
        self.channels = channels
        self.width = width
        self.use_checkpoint = use_checkpoint
        self.exact = type(block) is FrozenBlock  # what a subclass does in `forward` is not known
        self.tokenwise = bool(getattr(block, "tokenwise", False))
        self.signature = Signature("residual", residual, "give the --residual that it was trained with")
        self.inner = residual in ("inner", "both")
        self.outer = residual in ("outer", "both", "projected")
        self.encode = nn.Linear(channels, width, bias=False)
        self.block = block
        self.gram = GramMatrix()
        self.decode = nn.Linear(width, channels, bias=False)
        self.skip: nn.Module = nn.Identity()
        if residual == "projected":
            self.skip = nn.Sequential(nn.Linear(channels, channels, bias=False), nn.LeakyReLU())

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N, C), or exactly the first ``read`` of those, (B, R, C), at far less cost."""
        rows = x if read is None else x[:, :read]
        h = self.encode(rows)  # (B, R, D)
        if read is None or self.tokenwise:
            y = self.block_output(h)
        elif self.exact:
            y = self.read_block(x, h)
        else:
            y = self.block_output(self.encode(x))[:, :read]
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

    def read_block(self, x: Tensor, h: Tensor) -> Tensor:
        """The block on the first tokens, (B, R, D), whose attention sees all visual tokens ``x`` (B, N, C)."""
        layer = self.block.layer
        encode, gain, key, value = self.encode.weight, layer.attention_norm.weight, layer.key.weight, layer.value.weight
        keys, encoded, visual = multiply_adds(
            x.shape[0], x.shape[1], h.shape[1], self.channels, self.width,
            layer.num_heads, layer.num_kv_heads, layer.head_size, self.gram.keeps(),
        )  # fmt: skip
        if keys <= min(encoded, visual) or not self.parts_are_plain():
            return self.block(self.encode(x), h.shape[1])
        q, eps = self.block.queries(h), self.block.norm_eps
        if encoded <= visual:
            attended = attend_encoded(q, self.encode(x), gain, key, value, layer.head_size, eps)
        else:
            attended = attend_visual(q, x, encode, self.gram(encode.detach()), gain, key, value, layer.head_size, eps)
        return self.block.finish(h, attended)

    def parts_are_plain(self) -> bool:
        """Whether what is taken apart is nothing but its weights: an adapter such as LoRA, or a hook, is more."""
        if torch.jit.is_scripting():
            return True
        layer = self.block.layer
        maps = [self.encode, layer.key, layer.value]
        return (
            all(type(part) is nn.Linear and part.bias is None for part in maps)
            and type(layer.attention_norm) is nn.RMSNorm
            and not any(hooked(part) for part in (*maps, layer.attention_norm, layer, self.block))
        )


def hooked(part: nn.Module) -> bool:
    """Whether a call of the module does more than its ``forward``."""
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
