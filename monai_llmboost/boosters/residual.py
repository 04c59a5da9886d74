# SPDX-License-Identifier: Apache-2.0
"""The residual booster of R-LLM: a frozen block between two trained linear maps."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from monai_llmboost.adapters import LowRankLinear
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.boosters.readout.normed_keys import attend_normed, multiply_adds_of_normed
from monai_llmboost.boosters.readout.visual_tokens import GramMatrix, attend_encoded, attend_visual, multiply_adds
from monai_llmboost.llm import DecoderBlock, FrozenBlock

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
        block: Any  # a FrozenBlock where `exact`

    # So that scripting leaves out the branches not taken.
    __constants__ = ("exact", "folds", "has_gain", "inner", "norms_keys", "outer", "tokenwise")

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
        self.exact = type(block) is FrozenBlock  # what a subclass does in `forward` is not known
        frozen = block if isinstance(block, FrozenBlock) and self.exact else None
        self.folds = frozen is not None and frozen.folds
        self.norms_keys = frozen is not None and frozen.norms_keys
        self.has_gain = frozen is not None and frozen.has_gain
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
        self.gram = GramMatrix()
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
        if read is None or self.tokenwise:
            y = self.block_output(h)
        elif self.exact:
            y = self.read_block(x, h)
        else:
            y = self.block_output(self.encode(x))[:, :read]
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

    def read_block(self, x: Tensor, h: Tensor) -> Tensor:
        """The block on the first tokens, (B, R, D), whose attention sees all visual tokens ``x`` (B, N, C)."""
        if self.folds:
            keys, encoded, visual = self.costs(x.shape[0], x.shape[1], h.shape[1])
            if min(encoded, visual) < keys and self.parts_are_plain():
                return self.block.finish(h, self.attended(x, h, encoded <= visual))
        if self.norms_keys:
            keys, visual = self.costs_of_normed(x.shape[0], x.shape[1], h.shape[1])
            if visual < keys and self.parts_are_plain():
                return self.block.finish(h, self.attended_by_normed(x, h))
        return self.block(self.encode(x), h.shape[1])

    def attended(self, x: Tensor, h: Tensor, encoded: bool) -> Tensor:
        """What the heads of the first tokens gather, (B, R, heads * head size), without the others' keys and values."""
        layer = self.block.layer
        q, value_bias = self.block.queries(h), self.block.value_bias()
        gain, key, value = layer.attention_norm.weight, layer.key.weight, layer.value.weight
        size, scale, cap, eps = layer.head_size, layer.scale, layer.score_cap, layer.norm_eps
        if encoded:
            tokens = self.encode(x)  # (B, N, D)
            if self.block.centres:
                tokens = tokens - tokens.mean(dim=-1, keepdim=True)
            return attend_encoded(q, tokens, gain, key, value, value_bias, size, scale, cap, eps)
        encode = self.encode.weight  # (D, C)
        if self.block.centres:
            encode = encode - encode.mean(dim=0, keepdim=True)
        gram = self.gram(encode.detach())
        return attend_visual(q, x, encode, gram, gain, key, value, value_bias, size, scale, cap, eps)

    def attended_by_normed(self, x: Tensor, h: Tensor) -> Tensor:
        """The same where keys are normed, whose keys but not values are made of the visual tokens."""
        layer, encode = self.block.layer, self.encode.weight
        gain, gram = torch.ones_like(layer.key.weight[0]), None
        if self.has_gain:
            gain, gram = layer.attention_norm.weight, self.gram(encode.detach())
        return attend_normed(
            self.block.queries(h), x, encode, gram, gain, layer.key.weight, layer.key_norm.weight, layer.value.weight,
            self.block.value_bias(), layer.head_size, layer.scale, layer.score_cap, layer.norm_eps,
        )  # fmt: skip

    def costs_of_normed(self, batch: int, tokens: int, read: int) -> tuple[int, int]:
        """Multiply-adds by keys and by visual tokens; see ``multiply_adds_of_normed``."""
        layer = self.block.layer
        return multiply_adds_of_normed(
            batch, tokens, read, self.channels, self.width,
            layer.num_heads, layer.num_kv_heads, layer.head_size, self.gram.keeps(), self.has_gain,
        )  # fmt: skip

    def costs(self, batch: int, tokens: int, read: int) -> tuple[int, int, int]:
        """Multiply-adds of reading by keys, by encoded tokens and by visual tokens; see ``multiply_adds``."""
        layer = self.block.layer
        return multiply_adds(
            batch, tokens, read, self.channels, self.width,
            layer.num_heads, layer.num_kv_heads, layer.head_size, self.gram.keeps(),
        )  # fmt: skip

    def way(self, batch: int, tokens: int, read: int) -> str:
        """How the first ``read`` tokens are computed, in words, for tables."""
        if self.tokenwise:
            return "each token for itself"
        if not self.exact:
            return "whole block"
        if type(self.block.layer) is not DecoderBlock:
            return "whole block (run by transformers)"
        if len(self.block.before):
            return "whole block but for its last layer"
        if self.block.causal:
            return "keys and values of the tokens before it (causal)"
        if not self.folds and not self.norms_keys:
            return "keys and values of all tokens (for positions or biases)"
        if not self.parts_are_plain():
            return "keys and values of all tokens (a part was changed)"
        if self.norms_keys:
            keys, visual = self.costs_of_normed(batch, tokens, read)
            return "keys of all tokens, no values" if visual < keys else "keys and values of all tokens"
        keys, encoded, visual = self.costs(batch, tokens, read)
        if keys <= min(encoded, visual):
            return "keys and values of all tokens"
        return "no keys and values, encoded tokens" if encoded <= visual else "no keys and values, visual tokens"

    def parts_are_plain(self) -> bool:
        """Whether what is taken apart is nothing but its weights: another library's adapter, or a hook, is more."""
        if torch.jit.is_scripting():
            return True
        layer = self.block.layer
        maps = [self.encode, layer.key, layer.value]
        norm: type[nn.Module] = nn.LayerNorm if self.block.centres else nn.RMSNorm
        if self.norms_keys and not self.has_gain:
            norm = nn.Identity
        qk_norm = nn.RMSNorm if self.norms_keys else nn.Identity
        around = [layer.attention_norm, layer.query_norm, layer.key_norm, layer, self.block]
        return (
            all(type(part) in (nn.Linear, LowRankLinear) for part in maps)
            and self.encode.bias is None
            and (layer.key.bias is None or (self.folds and layer.score_cap == 0))
            and type(layer.attention_norm) is norm
            and type(layer.query_norm) is type(layer.key_norm) is qk_norm
            and not any(hooked(part) for part in (*maps, *around))
        )


class Gate(nn.Module):
    """``tanh(g) y`` with one trained number g that starts at zero: closed at first, and opened by training."""

    def __init__(self) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.zeros(1))

    def forward(self, y: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), in their dtype."""
        return (torch.tanh(self.g) * y).to(y.dtype)  # a sum over all tokens flows back to g: in g's own dtype


def hooked(part: nn.Module) -> bool:
    """Whether a call of the module does more than its ``forward``."""
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
