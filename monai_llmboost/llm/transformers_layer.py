# SPDX-License-Identifier: Apache-2.0
"""One decoder layer in its class of `transformers`, for the families that block.py does not run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from monai_llmboost.llm.transformers_model import (
    fill_buffers,
    on_disk,
    quiet,
    rename_weights,
    skeleton,
    use_eager_attention,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Layer types, classes and parameters that process tokens in order; the self-test finds any others.
IN_ORDER = re.compile(
    r"linear_attention|mamba|rwkv|lstm|rglru|recurrentblock|delta(net|attention)|lightning|short_?conv|^conv$|a_log$",
    re.IGNORECASE,
)
# Number of vectors that some models pass for each token from layer to layer.
STREAMS = ("hc_mult", "hc_count", "altup_num_inputs")
# Supported arguments of a layer besides the tokens.
ARGUMENTS = ("attention_mask", "position_ids", "position_embeddings", "alibi", "position_bias", "shared_kv_states")


class TransformersLayer(nn.Module):
    """One decoder layer in its class of transformers, run on visual tokens without a mask, all at one position.

    ``y = layer(x)``, where every submodule has ``is_causal = False`` (otherwise the attention of transformers is causal
    without a mask), and the model's rotary embedding puts all tokens at position 0, so that its widths, scale and
    per-layer variants are right. Dropout is always off.

    Args:
        config: the content of the model's ``config.json``; of a multi-part model, the language part is read.
        tensors: the layer's weights by their names on disk without the layer's prefix; not copied.
        layer: index of the layer in the donor.

    Raises:
        ValueError: the layer cannot be run in this way, or the tensors do not belong to it.
    """

    @quiet()
    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor], layer: int) -> None:
        super().__init__()
        model, stack, layers = skeleton(config)
        if not 0 <= layer < len(layers):
            raise ValueError(f"no layer {layer} in this model: choose one from 0 to {len(layers) - 1}")
        known = model.config
        name = f"{known.model_type} layer {layer}"
        kinds = getattr(known, "layer_types", None) or getattr(known, "layers_block_type", None)
        self.kind = kinds[layer] if kinds else None
        self.layer = layers[layer]
        parameters = [parameter for parameter, _ in self.layer.named_parameters()]
        _check_order([self.kind or "", *(type(module).__name__ for module in self.layer.modules()), *parameters], name)
        _check_streams(known, name)
        self.config = known
        self.width = getattr(known, "hidden_size", None)
        if self.width is None:
            raise ValueError(f"no hidden_size in the configuration of {name}: choose another donor")
        self.rotary = _rotary(model, stack)
        by_kind = self.rotary is not None and "layer_type" in inspect.signature(self.rotary.forward).parameters
        self.rotary_by_kind = by_kind and self.kind in known.rope_parameters
        self.takes = _arguments(self.layer, name)
        # Some layers select keys by scores plus the mask, so they need one: zeros mask nothing.
        self.needs_mask = any("Indexer" in type(module).__name__ for module in self.layer.modules())
        if any("sink" in parameter for parameter in parameters):
            use_eager_attention(model)
        self.masks = _take_masks(self.layer)
        fill_buffers(self, model)
        weights = rename_weights(model, f"{on_disk(model, stack)}.{layer}.", f"{stack}.{layer}.", tensors)
        _check(weights, self.layer.state_dict(), name)
        self.layer.load_state_dict(weights, strict=True, assign=True)
        _check_filled(self, name)
        for module in self.layer.modules():
            module.is_causal = False  # type: ignore[assignment]
        self.eval()

    def train(self, mode: bool = True) -> TransformersLayer:
        """Stay in ``eval()``, so that dropout is off in any mode of the network around the layer."""
        return super().train(False)

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Map tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, (B, R, D)."""
        b, n = x.shape[:2]
        for owner, mask, is_bool in self.masks:
            nothing_masked = torch.ones((), dtype=torch.bool if is_bool else x.dtype, device=x.device)
            setattr(self.layer.get_submodule(owner), mask, nothing_masked.expand(1, 1, n, n))
        positions = torch.zeros(b, n, dtype=torch.long, device=x.device)
        given: dict[str, Any] = dict.fromkeys(self.takes)
        if self.needs_mask:
            given["attention_mask"] = x.new_zeros(1, 1, n, n)
        if "position_ids" in given:
            given["position_ids"] = positions
        if "position_embeddings" in given:
            given["position_embeddings"] = self.rotary_embedding(x, positions)
        if "alibi" in given and getattr(self.config, "alibi", True):
            given["alibi"] = x.new_zeros(b * self.config.num_attention_heads, 1, n)
        if "position_bias" in given:
            given["position_bias"] = x.new_zeros(self.config.num_attention_heads, 1, n)
        if "shared_kv_states" in given:
            given["shared_kv_states"] = {}  # written for later layers; layers that read it are refused
        y = self.layer(x, **given)
        y = y[0] if isinstance(y, (tuple, list)) else y
        return y if read is None else y[:, :read]

    def rotary_embedding(self, x: Tensor, positions: Tensor) -> Any:
        """Return the model's rotary embedding of these positions (B, N); ``None`` if this layer has none."""
        if self.rotary is None:
            return None
        if not self.rotary_by_kind:
            return self.rotary(x, positions)
        if self.config.rope_parameters[self.kind] is None:
            return None
        return self.rotary(x, positions, layer_type=self.kind)


def _check_order(words: list[str], name: str) -> None:
    """Raise ValueError if one of these words of a layer means that it processes tokens in order."""
    ordered = [word for word in words if IN_ORDER.search(word)]
    if ordered:
        raise ValueError(
            f"{name} reads tokens in order ({', '.join(list(dict.fromkeys(ordered))[:2])}): choose another layer "
            "or donor, with attention over all tokens"
        )


def _check_streams(known: PretrainedConfig, name: str) -> None:
    """Raise ValueError if the model passes several vectors for each token from layer to layer."""
    for key in STREAMS:
        if getattr(known, key, 1) > 1:
            raise ValueError(
                f"{name} has {getattr(known, key)} vectors for each token ({key}), not one: choose another donor"
            )


def _check_filled(module: nn.Module, name: str) -> None:
    """Raise ValueError if a buffer was left without values."""
    for path, buffer in module.named_buffers():
        if buffer.is_floating_point() and not buffer.is_meta and buffer.isnan().any():
            raise ValueError(f"{path} of {name} has no values: choose another donor")


def _rotary(model: nn.Module, stack: str) -> nn.Module | None:
    """Return the rotary embedding in the closest parent of the list of layers; ``None`` if there is none."""
    while stack:
        stack = stack.rpartition(".")[0]
        for child in model.get_submodule(stack).children():
            if "Rotary" in type(child).__name__:
                return child
    return None


def _arguments(layer: nn.Module, name: str) -> list[str]:
    """Return the arguments that the layer takes besides the tokens.

    Raises:
        ValueError: the layer requires an argument that visual tokens do not have.
    """
    others = list(inspect.signature(layer.forward).parameters.values())[1:]  # without the tokens
    takes = [other.name for other in others if other.name in ARGUMENTS]
    missing = [
        other.name
        for other in others
        if other.default is other.empty and other.kind is other.POSITIONAL_OR_KEYWORD and other.name not in ARGUMENTS
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)} besides its tokens: choose another donor")
    if any(other.kind is other.VAR_KEYWORD for other in others):  # passed on to the attention
        within = {key for module in layer.modules() for key in inspect.signature(module.forward).parameters}
        takes += [key for key in ("position_ids", "position_embeddings") if key in within and key not in takes]
    return takes


def _take_masks(layer: nn.Module) -> list[tuple[str, str, bool]]:
    """Remove causal masks (1, 1, N, N) kept as buffers; return their owners, names, and whether they are bool."""
    masks = []
    for path, module in layer.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim == 4 and buffer.shape[:2] == (1, 1) and buffer.shape[2] == buffer.shape[3]:
                delattr(module, name)
                masks.append((path, name, buffer.dtype == torch.bool))
    return masks


def _check(weights: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise ValueError if the names or shapes of the tensors do not match the layer."""
    other = sorted(weights.keys() ^ expected.keys())
    if other:
        raise ValueError(f"tensors of {name} that are missing or unknown: {other[:8]}; read them from the model again")
    for key, tensor in expected.items():
        if weights[key].shape != tensor.shape:
            raise ValueError(
                f"{key} of {name} has shape {tuple(weights[key].shape)}, not {tuple(tensor.shape)}: give the "
                "config.json of this model"
            )
