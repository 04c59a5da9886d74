# SPDX-License-Identifier: Apache-2.0
"""Language models in classes of `transformers`, built without weights from their config.json."""

from __future__ import annotations

import io
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

# Undocumented parts of transformers, used in this file only; pyproject.toml has the tested range of versions:
# - configurations: `_attn_implementation`, `_experts_implementation`;
# - models: `_supports_sdpa`, `_init_weights`, `_keys_to_ignore_on_load_unexpected`, `base_model_prefix`;
# - `models.auto.configuration_auto.model_type_to_module_name`;
# - `conversion_mapping.get_model_conversion_mapping`;
# - `core_model_loading`: `revert_weight_conversion`, `rename_source_key`, `dot_natural_key`, `WeightConverter`,
#   `WeightRenaming`.
MOST_LAYERS = 10_000
# Buffers in some old checkpoints that the configuration determines: rotary frequencies and causal masks.
NOT_WEIGHTS = re.compile(r"(^|\.)(rotary_emb\..*|(attn|attention)\.bias|masked_bias|causal_mask)$")
# Keys of a config.json that select code to run are ignored: a model's files are data.
NOT_READ = re.compile(r"auto_map|_?(attn|experts)_implementation\w*|output_(attentions|hidden_states)|(torch_)?dtype")
# Keys under which a multi-part model keeps the configuration of its language model.
LANGUAGE_PARTS = ("text_config", "decoder")
# Number of tokens, or blocks of tokens, that sparse attention lets each token see: all. (Windows exist in masks only.)
CHOICES, ALL = ("index_topk", "index_topk_blocks", "keep_window_size"), 1 << 30
# Module lists other than the decoder's layers: inside the layers, or for modalities other than text.
ELSEWHERE = re.compile(r"\.\d+\.|vision|visual|image|audio")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the logs, warnings and prints of transformers, which concern the use as a language model.

    Errors are still raised. Works as a context manager and as a decorator.
    """
    logger = logging.getLogger("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _import()  # before the streams are redirected, because its log handler keeps the stream it finds
        level = logger.level
        try:
            logger.setLevel(logging.CRITICAL + 1)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                yield
        finally:
            logger.setLevel(level)


def _import() -> None:
    """Import transformers with its log messages suppressed."""
    if "transformers" not in sys.modules:
        enabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            import transformers  # noqa: F401
        finally:
            logging.disable(enabled)


def _read(config: Mapping[str, Any]) -> tuple[PretrainedConfig, type[PreTrainedModel]]:
    """Return the configuration of the language model as an object of transformers, and the model's class."""
    parts = [part for key in LANGUAGE_PARTS if isinstance(part := config.get(key), Mapping) and "model_type" in part]
    inner = parts[0] if parts else config
    model_type = str(inner.get("model_type"))
    if config.get("quantization_config") or inner.get("quantization_config"):
        raise ValueError(
            "the model is quantised (quantization_config in its config.json): choose the donor that it was made from"
        )
    from transformers import CONFIG_MAPPING

    if model_type in CONFIG_MAPPING:
        try:
            known = CONFIG_MAPPING[model_type].from_dict(_what_is_read(inner)).get_text_config()
        except Exception as error:  # each of some 200 classes raises its own errors for invalid values
            raise ValueError(
                f"transformers refuses the configuration of this {model_type} model ({_line(error)}): correct its "
                "config.json"
            ) from error
        model_class = _model_class(known)
        if model_class is not None:
            return known, model_class
    raise ValueError(
        f"the model type {model_type!r} is no causal language model that transformers knows: choose another donor, or "
        "a newer transformers"
    )


def _model_class(known: PretrainedConfig) -> Any:
    """Return the class of the causal language model for this configuration, or of the language part without one."""
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
    """Return a copy without the ignored keys, at any depth, and with infinity for ``{"__float__": "Infinity"}``."""

    def part(content: dict[str, Any]) -> Any:
        if content.keys() == {"__float__"}:
            return float(content["__float__"])
        return {key: value for key, value in content.items() if not NOT_READ.fullmatch(key)}

    return json.loads(json.dumps(config), object_hook=part)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


@quiet()
def skeleton(config: Mapping[str, Any]) -> tuple[PreTrainedModel, str, nn.ModuleList]:
    """Return the causal language model without weights, and the name and the list of its decoder layers."""
    known, model_class = _read(config)
    number = getattr(known, "num_hidden_layers", None)
    if number is not None and not (isinstance(number, int) and 0 < number <= MOST_LAYERS):
        raise ValueError(f"{number!r} layers are not from 1 to {MOST_LAYERS}: correct the model's config.json")
    capped = any("attn" in key and "softcap" in key and value for key, value in known.to_dict().items())
    known._attn_implementation = "sdpa" if model_class._supports_sdpa and not capped else "eager"
    known._experts_implementation = "eager"
    for key in CHOICES:
        if hasattr(known, key):
            setattr(known, key, ALL)
    if getattr(known, "attention_type", None) == "block_sparse":
        known.attention_type = "original_full"  # full attention in BigBird
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = model_class(known)
    except Exception as error:  # as above
        raise ValueError(
            f"transformers cannot build a {known.model_type} model from this config.json ({_line(error)}): correct it "
            "or choose another donor"
        ) from error
    return model, *_find_layers(model, known.model_type, number)


def _find_layers(model: nn.Module, model_type: str, number: int | None) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the model's decoder layers; ``number`` is their number if it is known."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    lists = {name: module for name, module in lists.items() if len(module) and not ELSEWHERE.search(name)}
    longest = max(map(len, lists.values()), default=0)
    likely = [name for name in lists if len(lists[name]) == number] or [
        name for name in lists if len(lists[name]) == longest
    ]
    if len(likely) != 1:
        raise ValueError(
            f"a {model_type} model has not one list of decoder layers, but {', '.join(likely) or 'none'}: choose "
            "another donor"
        )
    return likely[0], lists[likely[0]]


def use_eager_attention(model: PreTrainedModel) -> None:
    """Set the model's layers to eager attention, because SDPA ignores attention sinks."""
    model.config._attn_implementation = "eager"


def fill_buffers(module: nn.Module, model: PreTrainedModel) -> None:
    """Initialise the buffers of a model's module as transformers does on loading; buffers it leaves out become NaN."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for part in module.modules():
            empty = {name: buffer for name, buffer in part.named_buffers(recurse=False) if buffer.is_meta}
            for name, buffer in empty.items():
                unknown = float("nan") if buffer.is_floating_point() else 0
                part._buffers[name] = torch.full(buffer.shape, unknown, dtype=buffer.dtype)
            if empty:
                model._init_weights(part)


@quiet()
def on_disk(model: PreTrainedModel, stack: str) -> str:
    """Return the name of the list of layers in the model's files; a few model types use an older name there."""
    from transformers.core_model_loading import revert_weight_conversion

    within = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(f"{stack}.0.")}
    least = min(within, key=lambda name: within[name].numel())  # a norm, so that no matrix is converted
    return next(iter(revert_weight_conversion(model, {least: within[least]}))).partition(".0.")[0]


def stack_of(config: Mapping[str, Any]) -> str:
    """Return the dotted name of the list of decoder layers in the model's files, such as ``"model.layers"``.

    Raises:
        ValueError: transformers has no such model, or the model does not have exactly one list of layers.
    """
    model, stack, _ = skeleton(config)
    return on_disk(model, stack)


def number_of_layers(config: Mapping[str, Any]) -> int:
    """Return the number of decoder layers of the causal language model; raise what :func:`stack_of` raises."""
    return len(skeleton(config)[2])


@quiet()
def rename_weights(model: PreTrainedModel, stored: str, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the layer's tensors renamed and converted for the class of transformers, by its conversion table.

    For example, experts have separate matrices on disk and share one tensor in memory.
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
                f"transformers cannot join the tensors that make up {new} ({_line(error)}): read them from the model "
                "again"
            ) from error
    useful = _drop_useless(model, weights, expected)
    return {
        name.removeprefix(prefix): tensor[0] if isinstance(tensor, list) else tensor for name, tensor in useful.items()
    }


def _drop_useless(
    model: PreTrainedModel, weights: dict[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights without the known tensors in old checkpoints that the model does not load."""
    useless = [NOT_WEIGHTS, *map(re.compile, model._keys_to_ignore_on_load_unexpected or [])]
    return {
        name: tensor
        for name, tensor in weights.items()
        if name in expected or not any(pattern.search(name) for pattern in useless)
    }
