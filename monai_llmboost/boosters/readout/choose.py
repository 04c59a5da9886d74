# SPDX-License-Identifier: Apache-2.0
"""The read-out of a booster: the choice of a method to compute the first few tokens of its block, or all of them."""

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_llmboost.boosters.readout.encoded_tokens import EncodedTokens
from monai_llmboost.boosters.readout.folded_maps import FoldedMaps
from monai_llmboost.boosters.readout.normed_keys import NormedKeys
from monai_llmboost.boosters.readout.numerics import is_recorded
from monai_llmboost.boosters.readout.visual_tokens import VisualTokens
from monai_llmboost.llm.attention import AttentionForm, AttentionTensors, is_dense, is_linear_map


class AllKeys(nn.Module):
    """The block's own computation: keys and values of all encoded tokens, all else for the read tokens only."""

    def __init__(self, form: AttentionForm, channels: int, width: int) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        self.kv_features, self.features = form.num_kv_heads * form.head_size, form.num_heads * form.head_size

    def cost(self, batch: int, tokens: int, read: int) -> int:
        """Return the multiply-adds of a forward pass per case, for this batch size and these numbers of tokens.

        Operations that all methods share are not counted.
        """
        encoding_and_keys = tokens * self.width * (self.channels + 2 * self.kv_features)
        return encoding_and_keys + 2 * read * self.features * tokens


class ReadOut(nn.Module):
    """The exact computation of a block at the first few tokens, by the cheapest method that the block supports.

    The constructor selects the available methods: two for linear scores, one for normed keys. If there is none, the
    block computes all keys and values itself. The cheapest method depends on the sizes of a batch. If all tokens are
    read, F_E may be folded into the maps before the attention.

    Args:
        encode: the map before the block, C to D features.
        block: the module between the booster's maps. Any class with the interface of
            :mod:`monai_llmboost.llm.attention` can use the cheap methods.

    Example:
        >>> from monai_llmboost.llm import random_block
        >>> readout = ReadOut(nn.Linear(32, 192, bias=False), random_block("random"))
        >>> readout.methods[readout.cheapest(batch=8, tokens=400, read=1)].description
        'no keys and values, visual tokens'
    """

    if TYPE_CHECKING:
        methods: Any  # a ModuleList of the methods
        folded: Any  # FoldedMaps, or an identity

    __constants__ = ("takes_read",)  # so that scripting skips the branch that is not taken
    __jit_ignored_attributes__ = ("form", "intact", "last_sizes", "last_choice")

    def __init__(self, encode: nn.Linear, block: nn.Module) -> None:
        super().__init__()
        form: AttentionForm | None = getattr(block, "attention_form", None)
        self.form = form
        self.takes_read = takes_read(block)
        self.methods = nn.ModuleList()
        self.folds = form is not None and hasattr(block, "token_maps")
        self.folded = nn.Identity()
        self.intact: list[tuple[nn.Module, type[nn.Module], Any]] = []  # the last parts found unchanged
        self.last_sizes: tuple[int, int, int, bool] | None = None
        self.last_choice = -1
        if form is not None:
            kinds = (NormedKeys,) if form.normed_keys else (EncodedTokens, VisualTokens)
            width, channels = encode.weight.shape
            self.block_itself = AllKeys(form, channels, width)
            self.methods.extend(kind(form, channels, width) for kind in kinds)
            if self.folds:
                self.folded = FoldedMaps(form, channels, width)
            self.is_exact(encode, block)

    def cheapest(self, batch: int, tokens: int, read: int) -> int:
        """Return the index of the method with the fewest operations; -1 is the block itself."""
        if torch.jit.is_scripting() or is_recorded():  # sizes may be symbolic
            return self.choose(batch, tokens, read)
        sizes = batch, tokens, read, self.training
        if sizes != self.last_sizes:
            self.last_sizes, self.last_choice = sizes, self.choose(batch, tokens, read)
        return self.last_choice

    def choose(self, batch: int, tokens: int, read: int) -> int:
        """Count the operations of all methods and return the index of the cheapest one; -1 is the block itself."""
        best, least = -1, self.block_itself.cost(batch, tokens, read)
        for number, method in enumerate(self.methods):
            cost = method.cost(batch, tokens, read)
            if cost < least:
                best, least = number, cost
        return best

    def forward(self, number: int, x: Tensor, encode: Tensor, layer: AttentionTensors) -> Tensor:
        """Return the output of the heads at the read tokens, (B, R, heads * head size), by one method.

        Args:
            number: index of the method.
            x: all visual tokens, (B, N, C).
            encode: the weight E of the map before the block, (D, C).
            layer: queries and tensors of the block.
        """
        attended = layer.queries
        for index, method in enumerate(self.methods):
            if index == number:
                attended = method(x, encode, layer)
        return attended

    @torch.jit.unused
    def all_tokens(self, x: Tensor, h: Tensor, encode: Any, block: Any) -> Tensor:
        """Return the block's output at all tokens, by folded maps where this needs fewer operations.

        Files and compiled networks compute the block itself, so that they take any number of tokens.

        Args:
            x: visual tokens, (B, N, C).
            h: encoded tokens, (B, N, D).
            encode: the map before the block.
            block: the block.
        """
        if not self.folds or is_recorded() or not self.is_exact(encode, block):
            return block(h)
        maps = block.token_maps()
        if maps is None:
            return block(h)
        frozen = _is_frozen(block)
        learns = torch.is_grad_enabled() and (encode.weight.requires_grad or not frozen)
        keep = frozen and not learns and not self.training
        if not self.folded.saves(x.shape[0], x.shape[1], learns, frozen, keep):
            return block(h)
        q, k, v = self.folded(x, h, encode.weight, maps, keep)
        return block.finish(h, block.attend_heads(q, k, v))

    @torch.jit.unused
    def is_exact(self, encode: nn.Module, block: Any) -> bool:
        """Return whether the methods compute the same as calls of these modules.

        This is checked in every call, because hooks, maps or ``forward`` may change at any time. The full check runs
        only after a change.
        """
        if not self.methods:
            return False
        parts = encode, *block.attention_parts()
        if _are_unchanged(parts, self.intact):
            return True
        same_form = getattr(block, "attention_form", None) == self.form  # another block may be in its place
        exact = same_form and is_linear_map(encode) and encode.bias is None and block.is_intact()
        self.intact = [(part, type(part), part._parameters.get("bias")) for part in parts] if exact else []
        return exact

    @torch.jit.unused
    def describe(self, encode: nn.Module, block: nn.Module, sizes: tuple[int, int, int]) -> str:
        """Return how a batch of these sizes (cases, tokens, read tokens) is computed, as text for tables."""
        if self.methods and not self.is_exact(encode, block):
            return "keys and values of all tokens (a part was changed)"
        number = self.cheapest(*sizes) if self.methods else -1
        return str(getattr(block, "reading", "whole block") if number < 0 else self.methods[number].description)

    @torch.jit.unused
    def describe_all(self, encode: nn.Module, block: Any, batch: int, tokens: int) -> str:
        """Return how all tokens of a batch are computed in training and in inference, as text for tables."""
        if not self.folds or not self.is_exact(encode, block) or block.token_maps() is None:
            return "whole block"
        frozen = _is_frozen(block)
        step = self.folded.saves(batch, tokens, learns=True, frozen=frozen, keep=False)
        inference = self.folded.saves(batch, tokens, learns=False, frozen=frozen, keep=frozen)
        in_training, in_inference = (self.folded.description if folds else "whole block" for folds in (step, inference))
        return in_training if step == inference else f"{in_training}; in inference {in_inference}"


def _are_unchanged(parts: Sequence[nn.Module], intact: Sequence[tuple[nn.Module, type[nn.Module], Any]]) -> bool:
    """Return whether modules are the ones found intact, without hooks and with the same class and bias."""
    if len(intact) != len(parts):
        return False
    for part, (known, kind, bias) in zip(parts, intact):
        hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks
        changed = part is not known or type(part) is not kind or "forward" in part.__dict__ or not is_dense(part)
        if changed or hooks or part._parameters.get("bias") is not bias:
            return False
    return True


def _is_frozen(block: nn.Module) -> bool:
    """Return whether a block has no trained weights."""
    return next(block.parameters(), None) is None


def takes_read(module: nn.Module) -> bool:
    """Return whether a module can compute its first few tokens only, ``module(x, read)``."""
    return "read" in inspect.signature(module.forward).parameters
