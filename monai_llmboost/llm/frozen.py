# SPDX-License-Identifier: Apache-2.0
"""Blocks of language-model layers: frozen, with a fingerprint instead of weights in checkpoints; or trained."""

import copy
import os
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from monai_llmboost.arguments import check_switch, is_positive
from monai_llmboost.artifacts.digests import tensors_digest
from monai_llmboost.artifacts.signature import Signature
from monai_llmboost.llm.attention import SIZE_EPS, AttentionForm, AttentionTensors, TokenMaps, runs_as
from monai_llmboost.llm.block import DecoderBlock
from monai_llmboost.llm.dtype import find_dtype
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.layers import DonorLayers

# Geometry of `--block random`: small enough to train on a laptop.
SMALL_GEOMETRY = BlockGeometry(width=192, mlp_width=512, num_heads=3, num_kv_heads=3, head_size=64)
REMEDY = "run with the block and options it was trained with (--block FILE{}), or train again"


def freeze_(module: nn.Module) -> None:
    """Turn every parameter of ``module`` and its submodules into a non-persistent buffer.

    Optimizers do not see it and checkpoints do not contain it.

    Example:
        >>> module = nn.Linear(2, 2)
        >>> freeze_(module)
        >>> list(module.parameters()), list(module.state_dict()), [name for name, _ in module.named_buffers()]
        ([], [], ['weight', 'bias'])
    """
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            delattr(child, name)
            child.register_buffer(name, parameter.detach())
        for name, buffer in list(child.named_buffers(recurse=False)):
            child.register_buffer(name, buffer, persistent=False)


class FrozenBlock(nn.Module):
    """Frozen layers of a language model in sequence, then a norm: ``y = norm(layer(... layer(h)))``.

    With a size s = ``h_rms`` each token is first scaled to that size: ``h' = s h / sqrt(mean(h^2) + 1e-12)``, where the
    mean is over its features. A layer adds as much to tokens of the right size as in its model, see
    :func:`monai_llmboost.llm.find_h_rms`.

    The weights are buffers, not parameters: any optimizer line, ``CheckpointSaver``, strict ``CheckpointLoader``,
    ``deepcopy``, ``.to()`` and DDP work unchanged (see :func:`monai_llmboost.networks.ignore_frozen_in_ddp`). A
    checkpoint contains the block's name and fingerprint instead of its weights. Loading a checkpoint into a network
    with another block fails.

    With ``trained=True`` the weights are parameters initialised from the donor, and checkpoints contain them.

    Args:
        donor: the layers, one or several.
        dtype: dtype of the weights; ``None`` is float32, which every CPU and exported file can run; ``"auto"`` is
            bfloat16 on devices that compute with it natively, which is several times faster there, else float32.
        final_norm: ``"unit"`` is the donor's kind of norm with gain one, as in the published R-LLM code, which does not
            load the language model's own; ``"donor"`` is the donor's own norm; ``"none"`` is no norm.
        causal: mask the tokens after each token, as language models do; images do not need this.
        rotary: give tokens positions by their order, as many language models do.
        known_fingerprint: fingerprint of these layers if the caller has just computed it; ``None`` computes it.
        trained: train the weights with the network around the block, the control for the effect of freezing.
        h_rms: root mean square to which each token is scaled; ``None`` takes tokens as they are.

    Raises:
        ValueError: ``dtype`` is no floating type and not ``"auto"``, ``h_rms`` is not a number above 0, or the layers
            do not support an option.

    Example:
        >>> block = FrozenBlock(random_layer(SMALL_GEOMETRY, seed=0))
        >>> block(torch.zeros(2, 5, block.width)).shape, len(list(block.parameters())), list(block.state_dict())
        (torch.Size([2, 5, 192]), 0, ['signature.code'])
    """

    if TYPE_CHECKING:
        layer: Any  # a DecoderBlock if `native`

    __constants__ = ("h_rms", "native")  # so that scripting skips the branches that are not taken

    def __init__(
        self,
        donor: DonorLayers,
        dtype: torch.dtype | str | None = None,
        final_norm: str = "unit",
        causal: bool = False,
        rotary: bool = False,
        known_fingerprint: str | None = None,
        trained: bool = False,
        h_rms: float | None = None,
    ) -> None:
        super().__init__()
        dtype = find_dtype(dtype)
        if h_rms is not None and not is_positive(h_rms):
            raise ValueError(f"h_rms must be a number above 0, not {h_rms!r}; None takes tokens as they are")
        for name, switch in (("causal", causal), ("rotary", rotary), ("trained", trained)):
            check_switch(name, switch)
        *before, last = [layer.module(dtype, causal, rotary) for layer in donor.layers]
        self.geometry = donor.layers[-1].geometry
        self.width = last.width
        self.causal = causal
        self.in_order = causal or rotary
        self.frozen = not trained
        self.h_rms = None if h_rms is None else float(h_rms)
        self.size_eps = SIZE_EPS  # scripting takes no global numbers
        self.native = isinstance(last, DecoderBlock)
        self.before = nn.Sequential(*before)
        self.layer = last
        self.final_norm = donor.final_norm_module(final_norm)
        self.final_norm.to(max(last.state_dict().values(), key=torch.numel).dtype)
        # Of the donor's original weights, so that it does not depend on the dtype in which the block runs.
        self.fingerprint = known_fingerprint or donor.fingerprint
        options = _format_options(causal, rotary, self.h_rms)
        remedy = REMEDY.format(scale_advice(self.h_rms))
        if trained:
            train_(self)
            text = f"trained on from {donor.name} ({self.fingerprint[:12]}{options}, final norm {final_norm})"
            self.signature = Signature("block", text, remedy)
        else:
            for part in (self.before, self.layer, self.final_norm):
                freeze_(part)
            self.signature = _sign_frozen(donor, self.fingerprint, options, final_norm, remedy)
        self.attention_form = self._form(trained)
        self.reading = self._reading()

    def _form(self, trained: bool) -> AttentionForm | None:
        """Return the form of the attention if the read-out can skip keys and values of the other tokens."""
        form = self.layer.attention_form if self.native and not len(self.before) else None
        # The fast read-out leaves out the bias of the keys; a trained one must be in the graph.
        if form is None or (trained and self.geometry and self.geometry.qkv_bias):
            return None
        return replace(form, h_rms=self.h_rms or 0.0)

    def _reading(self) -> str:
        """Return how ``forward`` computes a few tokens, as text."""
        if not self.native:
            return "whole block (run by transformers)"
        if len(self.before):
            return "whole block but for its last layer"
        if self.causal:
            return "keys and values of the tokens before it (causal)"
        return "keys and values of all tokens" + ("" if self.attention_form else " (for positions or biases)")

    def forward(self, h: Tensor, read: int | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, in the dtype of the input."""
        return self.final_norm(self.run_layers(h, read)).to(h.dtype)

    def run_layers(self, h: Tensor, read: int | None = None) -> Tensor:
        """Map tokens as in ``forward``, without the final norm and in the dtype of the weights."""
        return self.layer(self.before(self.take(h)), read)

    @torch.jit.unused
    def _apply(self, fn: Any, recurse: bool = True) -> "FrozenBlock":
        """Change all tensors as ``to`` does, but refuse a change that loses the weights, which no checkpoint contains.

        Raises:
            ValueError: the change keeps no values, as ``to_empty``.
        """
        if self.frozen and _loses_values(fn):
            raise ValueError(
                "this would lose the frozen weights of the block, which no checkpoint contains: instead of to_empty(), "
                "load trained weights with load_state_dict(state, assign=True), and then move the network with to()"
            )
        return super()._apply(fn, recurse)

    def take(self, h: Tensor) -> Tensor:
        """Return tokens at the size of the block, if it has one, and in the dtype of its weights."""
        if self.h_rms is not None:
            exact = h if h.dtype == torch.float64 else h.float()
            h = self.h_rms * F.rms_norm(exact, [h.shape[-1]], None, self.size_eps)
        if self.native:
            return h.to(self.layer.down.weight.dtype)
        return h.to(max([*self.layer.parameters(), *self.layer.buffers()], key=torch.numel).dtype)

    def attention_tensors(self, h: Tensor) -> AttentionTensors:
        """Return the queries of tokens (B, R, D) and the attention weights applied to all tokens."""
        return self.layer.attention_tensors(self.take(h))

    @torch.jit.unused
    def token_maps(self) -> TokenMaps | None:
        """Return the maps of all tokens before the attention; ``None`` if that of the queries is not linear."""
        maps: TokenMaps | None = self.layer.token_maps()
        return maps

    def attend_heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the output of the heads for what the maps of all tokens give, (B, N, heads * head size)."""
        return self.layer.attend_heads(q, k, v)

    def finish(self, h: Tensor, attended: Tensor) -> Tensor:
        """Map tokens (B, R, D) and the output of their heads, (B, R, heads * head size), to tokens (B, R, D)."""
        return self.final_norm(self.layer.finish(self.take(h), attended)).to(h.dtype)

    @torch.jit.unused
    def frozen_names(self) -> list[str]:
        """Return the names of the buffers that no training changes: those that checkpoints do not contain."""
        if not self.frozen:
            return []
        parts = self.named_modules(remove_duplicate=False)
        return [f"{name}.{own}".lstrip(".") for name, part in parts for own in part._non_persistent_buffers_set]

    @torch.jit.unused
    def for_one_token(self) -> "FrozenBlock":
        """Return this block for sequences of one token (B, 1, D), with the same signature and shared weights.

        Queries and keys are left out, because the attention of one token to itself is its value, also with positions or
        a causal mask. A block that transformers runs keeps them.

        Example:
            >>> block = FrozenBlock(random_layer(SMALL_GEOMETRY, seed=0))
            >>> h = torch.randn(2, 1, block.width)
            >>> torch.allclose(block.for_one_token()(h), block(h), atol=1e-5)
            True
        """
        if not self.native:
            return self
        block = copy.copy(self)
        block._modules = dict(self._modules)
        before: Any = self.before
        block.before = nn.Sequential(*(layer.for_one_token() for layer in before))
        block.layer = self.layer.for_one_token()
        block.attention_form = None
        block.reading = "value of the only token"
        return block

    @torch.jit.unused
    def attention_parts(self) -> tuple[nn.Module, ...]:
        """Return the modules that a read-out without all keys and values skips, or runs for some tokens only."""
        layer = self.layer
        return self, layer, layer.key, layer.value, layer.attention_norm, layer.query_norm, layer.key_norm

    @torch.jit.unused
    def is_intact(self) -> bool:
        """Return whether :meth:`attention_tensors` and :meth:`finish` still compute the same as a call."""
        return runs_as(self, FrozenBlock) and self.layer.is_intact()

    def extra_repr(self) -> str:
        """Return the block's name and fingerprint, for ``print(network)``."""
        return self.signature.text


def _loses_values(fn: Any) -> bool:
    """Return whether a function of a tensor returns memory without its values, which ``to("meta")`` may do."""
    # Not from torch's random numbers, and never the same, because new memory may still hold the last ones.
    probe = torch.frombuffer(bytearray(os.urandom(8)), dtype=torch.uint8).float() / 255
    changed = fn(probe)
    return not changed.is_meta and not torch.allclose(changed.cpu().float(), probe, atol=0.1)


def scale_advice(h_rms: float | None) -> str:
    """Return what to do with a checkpoint of an earlier version, whose block takes tokens as they are."""
    return "" if h_rms is None else "; --h_scale published if its block has no size of tokens"


def _format_options(causal: bool, rotary: bool, h_rms: float | None) -> str:
    """Return the options that are on, as the end of a text."""
    on = "".join(f", {name}" for name, on in (("causal", causal), ("rotary", rotary)) if on)
    return on if h_rms is None else f"{on}, tokens of size {h_rms:g}"


def _sign_frozen(donor: DonorLayers, fingerprint: str, options: str, final_norm: str, remedy: str) -> Signature:
    """Return the signature of a frozen block."""
    options += "" if final_norm == "unit" else f", final norm {final_norm}"
    norm = tensors_digest(donor.final_norm) if final_norm == "donor" else ""
    text, compared = f"{donor.name} ({fingerprint[:12]}{options})", f"{fingerprint}{options}{norm}"
    return Signature("block", text, remedy, compared)


def TrainedBlock(
    donor: DonorLayers, final_norm: str = "unit", causal: bool = False, rotary: bool = False
) -> FrozenBlock:
    """Return a trained block; deprecated, use ``FrozenBlock(donor, trained=True)``."""
    warnings.warn(
        "monai_llmboost.llm.TrainedBlock is deprecated: use monai_llmboost.llm.FrozenBlock(donor, trained=True)",
        DeprecationWarning,
        stacklevel=2,
    )
    return FrozenBlock(donor, None, final_norm, causal, rotary, trained=True)


def train_(block: FrozenBlock) -> None:
    """Turn the weights of a block into parameters, which checkpoints name ``layers.N.*``."""
    for name, parameter in list(block.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        # A copy, because the donor's tensors may be a memory-mapped file.
        setattr(block.get_submodule(owner), leaf, nn.Parameter(parameter.detach().clone()))
    block.register_state_dict_post_hook(_number_layers)
    block.register_load_state_dict_pre_hook(_place_layers)


def _number_layers(block: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the layers in a state dict to ``layers.N``, the names in checkpoints of trained blocks."""
    for own, numbered in _prefixes(block, prefix):
        for name in [name for name in state if name.startswith(own)]:
            state[numbered + name.removeprefix(own)] = state.pop(name)


def _place_layers(block: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the layers in a state dict from ``layers.N`` to their names in the block."""
    for own, numbered in _prefixes(block, prefix):
        for name in [name for name in state if name.startswith(numbered)]:
            state[own + name.removeprefix(numbered)] = state.pop(name)


def _prefixes(block: nn.Module, prefix: str) -> list[tuple[str, str]]:
    """Return the prefixes of each layer's weights, in the block and in a checkpoint."""
    own = [f"before.{name}" for name, _ in block.get_submodule("before").named_children()] + ["layer"]
    return [(f"{prefix}{name}.", f"{prefix}layers.{number}.") for number, name in enumerate(own)]
