# SPDX-License-Identifier: Apache-2.0
"""The general way: one decoder layer in `transformers`' own class, for the families that block.py does not know."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MOST_LAYERS = 10_000
# What a config.json says about code to run or how to run it is not read: a model's files are data.
NOT_READ = re.compile(r"auto_map|_?(attn|experts)_implementation\w*|output_(attentions|hidden_states)|(torch_)?dtype")
# Where a model of several parts keeps the configuration of its language model.
LANGUAGE_PARTS = ("text_config", "decoder")
# How many tokens, or blocks of them, sparse attention lets each token see: all. (Windows exist in masks only.)
CHOICES, ALL = ("index_topk", "index_topk_blocks", "keep_window_size"), 1 << 30
# Layer types, classes and parameters of what reads tokens in order; what is not named here is left to the self-test.
IN_ORDER = re.compile(
    r"linear_attention|mamba|rwkv|lstm|rglru|recurrentblock|delta(net|attention)|lightning|short_?conv|^conv$|a_log$",
    re.IGNORECASE,
)
# How many vectors some models carry for each token from layer to layer.
STREAMS = ("hc_mult", "hc_count", "altup_num_inputs")
# What a layer can be told beside the tokens, and is.
TOLD = ("attention_mask", "position_ids", "position_embeddings", "alibi", "position_bias", "shared_kv_states")
# Lists of modules that are not the decoder's: within its layers, or for what is not text.
ELSEWHERE = re.compile(r"\.\d+\.|vision|visual|image|audio")
# Part of some old checkpoints: computed from the configuration, and made anew here.
LEFTOVERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.bias|masked_bias|causal_mask)$")


def _read(config: Mapping[str, Any]) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """The configuration of the language model in transformers' class, and the class of the model itself."""
    parts = [part for key in LANGUAGE_PARTS if isinstance(part := config.get(key), Mapping) and "model_type" in part]
    inner = parts[0] if parts else config
    model_type = str(inner.get("model_type"))
    if config.get("quantization_config") or inner.get("quantization_config"):
        raise ValueError(
            "expected weights as they were trained, got a quantised model (quantization_config in its config.json): "
            "choose the donor that it was made from"
        )
    try:
        from transformers import CONFIG_MAPPING
    except ImportError as error:
        raise ImportError(
            f"expected transformers, which a layer of the model type {model_type!r} needs, found none: "
            "pip install 'monai-llmboost[transformers]'"
        ) from error
    if model_type in CONFIG_MAPPING:
        try:
            known = CONFIG_MAPPING[model_type].from_dict(_what_is_read(inner)).get_text_config()
        except Exception as error:  # each of some 200 classes has its own ways to say that a value is impossible
            raise ValueError(
                f"expected the configuration of a {model_type} model, transformers refuses it ({_line(error)}): "
                "correct its config.json"
            ) from error
        model_class = _model_class(known)
        if model_class is not None:
            return known, model_class
    raise ValueError(
        f"expected a causal language model that transformers knows, got the model type {model_type!r}: "
        "choose another donor, or a newer transformers"
    )


def _model_class(known: PretrainedConfig) -> Any:
    """The causal language model with this configuration; of models that have none, their language part."""
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(known), None)
    module = model_type_to_module_name(known.model_type)
    if model_class is None and module in CONFIG_MAPPING:
        outer: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[module], None)
        model_class = outer if outer is not None and outer.config_class is type(known) else None
    if model_class is None and "_text" in known.model_type:
        model_class = MODEL_MAPPING.get(type(known), None)
    return model_class


def _what_is_read(config: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what is not read, at any depth, and with infinity for ``{"__float__": "Infinity"}``."""

    def part(content: dict[str, Any]) -> Any:
        if content.keys() == {"__float__"}:
            return float(content["__float__"])
        return {key: value for key, value in content.items() if not NOT_READ.fullmatch(key)}

    return json.loads(json.dumps(config), object_hook=part)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _skeleton(config: Mapping[str, Any]) -> tuple[PreTrainedModel, str, nn.ModuleList]:
    """The whole causal language model without weights, and the name and the list of its decoder layers."""
    known, model_class = _read(config)
    number = getattr(known, "num_hidden_layers", None)
    if number is not None and not (isinstance(number, int) and 0 < number <= MOST_LAYERS):
        raise ValueError(f"expected 1 to {MOST_LAYERS} layers, got {number!r}: correct the model's config.json")
    capped = any("attn" in key and "softcap" in key and value for key, value in known.to_dict().items())
    known._attn_implementation = "sdpa" if model_class._supports_sdpa and not capped else "eager"
    known._experts_implementation = "eager"
    for key in CHOICES:
        if hasattr(known, key):
            setattr(known, key, ALL)
    if getattr(known, "attention_type", None) == "block_sparse":
        known.attention_type = "original_full"  # the same in BigBird's words
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = model_class(known)
    except Exception as error:  # as above
        raise ValueError(
            f"expected a {known.model_type} model, transformers cannot build it from this config.json "
            f"({_line(error)}): correct it or choose another donor"
        ) from error
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {name: module for name, module in lists.items() if len(module) and not ELSEWHERE.search(name)}
    longest = max(map(len, lists.values()), default=0)
    likely = [name for name in lists if len(lists[name]) == number] or [
        name for name in lists if len(lists[name]) == longest
    ]
    if len(likely) != 1:
        raise ValueError(
            f"expected one list of decoder layers in a {known.model_type} model, got {', '.join(likely) or 'none'}: "
            "choose another donor"
        )
    return model, likely[0], lists[likely[0]]


def _on_disk(model: PreTrainedModel, stack: str) -> str:
    """What the list of layers is called in the model's files, which a few types keep in an older form."""
    from transformers.core_model_loading import revert_weight_conversion

    within = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{stack}.0.")}
    least = min(within, key=lambda name: within[name].numel())  # a norm: no matrix is computed for this
    return next(iter(revert_weight_conversion(model, {least: within[least]}))).partition(".0.")[0]


def stack_of(config: Mapping[str, Any]) -> str:
    """Dotted name of the list of decoder layers in the model's files, such as ``"model.layers"``.

    Raises:
        ValueError: transformers has no such model, or not one list of layers; ImportError: transformers is missing.
    """
    model, stack, _ = _skeleton(config)
    return _on_disk(model, stack)


def number_of_layers(config: Mapping[str, Any]) -> int:
    """How many decoder layers the causal language model has; raises what :func:`stack_of` raises."""
    return len(_skeleton(config)[2])


class TransformersLayer(nn.Module):
    """One decoder layer in transformers' own class, run on visual tokens: no mask, all at one position.

    ``y = layer(x)``, where every submodule has ``is_causal = False`` (without a mask transformers' attention is causal
    otherwise), and the model's own rotary embedding turns all tokens by position 0, so that its widths, its scale and
    its forms per layer are right. Dropout is never on.

    Args:
        config: the content of the model's ``config.json``; of several parts, that of the language model is read.
        tensors: the layer's weights by their names on disk, without what names the layer; used as they are.
        layer: index of the layer in the donor.

    Raises:
        ValueError: the model or this layer of it cannot be run so, or the tensors are not those of the layer.
        ImportError: transformers is missing.
    """

    def __init__(self, config: Mapping[str, Any], tensors: dict[str, Tensor], layer: int) -> None:
        super().__init__()
        model, stack, layers = _skeleton(config)
        if not 0 <= layer < len(layers):
            raise ValueError(f"expected a layer from 0 to {len(layers) - 1} of this model, got {layer}")
        known = model.config
        name = f"{known.model_type} layer {layer}"
        kinds = getattr(known, "layer_types", None) or getattr(known, "layers_block_type", None)
        self.kind = kinds[layer] if kinds else None
        self.layer = layers[layer]
        classes = [type(module).__name__ for module in self.layer.modules()]
        parameters = [parameter for parameter, _ in self.layer.named_parameters()]
        ordered = [word for word in (self.kind or "", *classes, *parameters) if IN_ORDER.search(word)]
        if ordered:
            raise ValueError(
                f"expected a layer of attention over all tokens, {name} reads tokens in order "
                f"({', '.join(list(dict.fromkeys(ordered))[:2])}): choose another layer or donor"
            )
        streams = [key for key in STREAMS if getattr(known, key, 1) > 1]
        if streams:
            raise ValueError(
                f"expected a layer with one vector for each token, {name} has {getattr(known, streams[0])} "
                f"({streams[0]}): choose another donor"
            )
        self.config = known
        self.width = getattr(known, "hidden_size", None)
        if self.width is None:
            raise ValueError(f"expected hidden_size in the configuration of {name}, found none: choose another donor")
        self.rotary = _rotary(model, stack)
        by_kind = self.rotary is not None and "layer_type" in inspect.signature(self.rotary.forward).parameters
        self.rotary_by_kind = by_kind and self.kind in known.rope_parameters
        self.takes = _arguments(self.layer, name)
        # Some choose keys by scores of their own, to which they add the mask: all zeros, nothing is masked.
        self.needs_mask = any("Indexer" in type(module).__name__ for module in self.layer.modules())
        if any("sink" in parameter for parameter in parameters):
            known._attn_implementation = "eager"  # SDPA would leave the sinks out
        self.masks = _take_masks(self.layer)
        _fill_buffers(self, model)
        weights = _renamed(model, f"{_on_disk(model, stack)}.{layer}.", f"{stack}.{layer}.", tensors)
        _check(weights, self.layer.state_dict(), name)
        self.layer.load_state_dict(weights, strict=True, assign=True)
        filled = [
            (path, buffer) for path, buffer in self.named_buffers() if buffer.is_floating_point() and not buffer.is_meta
        ]
        unknown = [path for path, buffer in filled if buffer.isnan().any()]
        if unknown:
            raise ValueError(f"expected values in all of {name}, {unknown[0]} has none: choose another donor")
        for module in self.layer.modules():
            module.is_causal = False  # type: ignore[assignment]
        self.eval()

    def train(self, mode: bool = True) -> TransformersLayer:
        """A frozen layer has no dropout, whatever the network around it does."""
        return super().train(False)

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """Tokens (B, N, D) to tokens (B, N, D), or to the first ``read`` of them, (B, R, D)."""
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
            given["position_embeddings"] = self.turn(x, positions)
        if "alibi" in given and getattr(self.config, "alibi", True):
            given["alibi"] = x.new_zeros(b * self.config.num_attention_heads, 1, n)
        if "position_bias" in given:
            given["position_bias"] = x.new_zeros(self.config.num_attention_heads, 1, n)
        if "shared_kv_states" in given:
            given["shared_kv_states"] = {}  # kept for later layers, which without them are refused
        y = self.layer(x, **given)
        y = y[0] if isinstance(y, (tuple, list)) else y
        return y if read is None else y[:, :read]

    def turn(self, x: Tensor, positions: Tensor) -> Any:
        """What the model's own rotary embedding gives for these positions (B, N); ``None`` if this layer has none."""
        if self.rotary is None:
            return None
        if not self.rotary_by_kind:
            return self.rotary(x, positions)
        if self.config.rope_parameters[self.kind] is None:
            return None
        return self.rotary(x, positions, layer_type=self.kind)


def _rotary(model: nn.Module, stack: str) -> nn.Module | None:
    """The rotary embedding nearest to the list of layers, outside of it."""
    while stack:
        stack = stack.rpartition(".")[0]
        for child in model.get_submodule(stack).children():
            if "Rotary" in type(child).__name__:
                return child
    return None


def _arguments(layer: nn.Module, name: str) -> list[str]:
    """What the layer must or may be told beside the tokens.

    Raises:
        ValueError: it must be told something that visual tokens do not have.
    """
    others = list(inspect.signature(layer.forward).parameters.values())[1:]  # the first one: tokens
    takes = [other.name for other in others if other.name in TOLD]
    missing = [
        other.name
        for other in others
        if other.default is other.empty and other.kind is other.POSITIONAL_OR_KEYWORD and other.name not in TOLD
    ]
    if missing:
        raise ValueError(
            f"expected a layer that needs tokens only, {name} also needs {', '.join(missing)}: choose another donor"
        )
    if any(other.kind is other.VAR_KEYWORD for other in others):  # handed on to the attention
        within = {key for module in layer.modules() for key in inspect.signature(module.forward).parameters}
        takes += [key for key in ("position_ids", "position_embeddings") if key in within and key not in takes]
    return takes


def _take_masks(layer: nn.Module) -> list[tuple[str, str, bool]]:
    """Remove the causal masks (1, 1, N, N) that some layers keep as buffers: their owners, names, and if bool."""
    masks = []
    for path, module in layer.named_modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.ndim == 4 and buffer.shape[:2] == (1, 1) and buffer.shape[2] == buffer.shape[3]:
                delattr(module, name)
                masks.append((path, name, buffer.dtype == torch.bool))
    return masks


def _fill_buffers(block: TransformersLayer, model: PreTrainedModel) -> None:
    """Give the buffers real values, as transformers does when it loads; NaN where it gives none."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for module in block.modules():
            empty = {name: buffer for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta}
            for name, buffer in empty.items():
                unknown = float("nan") if buffer.is_floating_point() else 0
                module._buffers[name] = torch.full(buffer.shape, unknown, dtype=buffer.dtype)
            if empty:
                model._init_weights(module)


def _renamed(model: PreTrainedModel, stored: str, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layer's tensors by the names and in the form of transformers' class, by transformers' own table.

    On disk each expert has its own matrices, for example, in memory there is one tensor of them all.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    table = get_model_conversion_mapping(model)
    renamings = [entry for entry in table if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in table if isinstance(entry, WeightConverter)]
    expected = model.state_dict()
    weights: dict[str, Tensor] = {}
    gathered: dict[str, Any] = {}
    for name in sorted(tensors, key=dot_natural_key):
        new, pattern = rename_source_key(stored + name, renamings, converters, model.base_model_prefix, expected)
        if new not in expected and prefix + name in expected:
            new, pattern = prefix + name, None
        if pattern is None:
            weights[new] = tensors[name]
        else:
            of_pattern = next(entry for entry in converters if pattern in entry.source_patterns)
            gathered.setdefault(new, deepcopy(of_pattern)).add_tensor(new, stored + name, pattern, tensors[name])
    for new, converter in gathered.items():
        try:
            weights.update(converter.convert(new, model=model, config=model.config))
        except Exception as error:  # as above
            raise ValueError(
                f"expected all tensors that make up {new}, transformers cannot join them ({_line(error)}): "
                "read them from the model again"
            ) from error
    useless = [LEFTOVERS, *map(re.compile, model._keys_to_ignore_on_load_unexpected or [])]
    return {
        name.removeprefix(prefix): tensor[0] if isinstance(tensor, list) else tensor
        for name, tensor in weights.items()
        if name in expected or not any(pattern.search(name) for pattern in useless)
    }


def _check(weights: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    """Raise ValueError if these are not the tensors of this layer."""
    other = sorted(weights.keys() ^ expected.keys())
    if other:
        raise ValueError(
            f"expected the tensors of {name}, missing or unknown: {other[:8]}: read them from the model again"
        )
    for key, tensor in expected.items():
        if weights[key].shape != tensor.shape:
            raise ValueError(
                f"expected {key} of shape {tuple(tensor.shape)} in {name}, got {tuple(weights[key].shape)}: "
                "give the config.json of this model"
            )
