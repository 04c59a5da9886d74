# SPDX-License-Identifier: Apache-2.0
"""Read exactly one layer's tensors out of a language model's checkpoint; nothing of the model is ever executed."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from monai_llmboost.llm.geometry import BlockGeometry

# Names on disk -> names in block.py; the one table that differs between families of checkpoints.
HUGGING_FACE = {
    "input_layernorm.weight": "attention_norm.weight",
    "self_attn.q_proj.weight": "query.weight",
    "self_attn.k_proj.weight": "key.weight",
    "self_attn.v_proj.weight": "value.weight",
    "self_attn.o_proj.weight": "output.weight",
    "post_attention_layernorm.weight": "mlp_norm.weight",
    "mlp.gate_proj.weight": "gate.weight",
    "mlp.up_proj.weight": "up.weight",
    "mlp.down_proj.weight": "down.weight",
}
META = {
    "attention_norm.weight": "attention_norm.weight",
    "attention.wq.weight": "query.weight",
    "attention.wk.weight": "key.weight",
    "attention.wv.weight": "value.weight",
    "attention.wo.weight": "output.weight",
    "ffn_norm.weight": "mlp_norm.weight",
    "feed_forward.w1.weight": "gate.weight",
    "feed_forward.w3.weight": "up.weight",
    "feed_forward.w2.weight": "down.weight",
}
# A multi-file Meta checkpoint splits these along their inputs; the norms are repeated; all else along its outputs.
META_SPLIT_BY_INPUT = ("output.weight", "down.weight")
# Part of some old checkpoints, computed from the configuration, and of no use without positions.
NOT_WEIGHTS = ("self_attn.rotary_emb.inv_freq",)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What safetensors and torch raise for a file that is cut short, altered, or holds more than tensors.
DAMAGED = (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class DonorLayer:
    """One layer as it lies in its donor: geometry, tensors by the names of block.py, and where it came from."""

    geometry: BlockGeometry
    tensors: dict[str, Tensor]
    donor: str
    layer: int
    num_layers: int
    revision: str

    def __post_init__(self) -> None:
        self.geometry.check_tensors(self.tensors)


def read_layer(model: str | Path, layer: int = -1, revision: str | None = None) -> DonorLayer:
    """Read one layer of a language model.

    Args:
        model: a folder with ``config.json`` and safetensors or ``pytorch_model*.bin`` files (Hugging Face), a folder
            with ``params.json`` and ``consolidated.*.pth`` (Meta), or a hub id such as ``TinyLlama/TinyLlama_v1.1``.
        layer: index of the layer; negative counts from the end.
        revision: branch, tag or commit of a hub id.

    Raises:
        FileNotFoundError: there is no such folder, or a file of it is missing.
        ValueError: the model is of another family, damaged, or has no such layer.
        ConnectionError: the hub cannot be reached, or does not give this model to you.
    """
    folder = Path(model)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return _read_hugging_face(folder, layer, donor=folder.resolve().name, revision="")
        if (folder / "params.json").is_file():
            return _read_meta(folder, layer)
        raise FileNotFoundError(
            f"expected config.json (Hugging Face) or params.json (Meta) in {folder}, found neither: "
            "give the folder that holds the model's files"
        )
    if not HUB_ID.fullmatch(str(model)) or folder.exists():
        raise FileNotFoundError(f"expected a model folder or a hub id such as owner/name, got {str(model)!r}")
    folder = _download(str(model), layer, revision)
    return _read_hugging_face(folder, layer, donor=str(model), revision=folder.name)


def read_geometry(model: str | Path) -> BlockGeometry:
    """The widths and head counts of a model's layers, from its ``config.json`` alone; no weights are needed.

    Args:
        model: a Hugging Face folder, or the ``config.json`` itself.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the model is not of the LLaMA family, or the file says something impossible.
    """
    path = Path(model)
    config = path / "config.json" if path.is_dir() else path
    if not config.is_file():
        raise FileNotFoundError(
            f"expected a model's config.json, found nothing at {config}: give the file or its folder"
        )
    return BlockGeometry.from_config(_read_json(config))


def _resolve(layer: int, num_layers: int) -> int:
    if not -num_layers <= layer < num_layers:
        raise ValueError(
            f"layer {layer} is not in this model: it has the layers 0 to {num_layers - 1} "
            f"(or -{num_layers} to -1, counted from the end)"
        )
    return layer % num_layers


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected JSON in {path.name}, got something else ({error}): download it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object in {path.name}, got a {type(content).__name__}: download it again")
    return content


def _number_of_layers(config: dict[str, Any], key: str) -> int:
    number = config.get(key)
    if not isinstance(number, int) or not 0 < number < 10_000:
        raise ValueError(f"expected {key} to be the number of layers, got {number!r}: correct the model's config")
    return number


def _read_hugging_face(folder: Path, layer: int, donor: str, revision: str) -> DonorLayer:
    config = _read_json(folder / "config.json")
    geometry = BlockGeometry.from_config(config)
    num_layers = _number_of_layers(config, "num_hidden_layers")
    index = _resolve(layer, num_layers)
    files = _layer_files(_weight_map(folder), index)
    by_file: dict[str, list[str]] = {}
    for name, file in files.items():
        by_file.setdefault(file, []).append(name)
    raw: dict[str, Tensor] = {}
    for file, names in by_file.items():
        raw.update(_read_tensors(folder / file, names))
    tensors = _rename(raw, HUGGING_FACE, donor, index)
    return DonorLayer(geometry, tensors, donor, index, num_layers, revision)


def _weight_map(folder: Path) -> dict[str, str]:
    """Every tensor's name and the file that holds it."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            weight_map = _read_json(folder / index).get("weight_map", {})
            for file in weight_map.values():
                if not isinstance(file, str) or Path(file).name != file:
                    raise ValueError(f"expected plain file names in {index}, got {file!r}: do not trust this model")
            return weight_map
    for file in ("model.safetensors", "pytorch_model.bin"):
        if (folder / file).is_file():
            return dict.fromkeys(_read_tensors(folder / file, None), file)
    raise FileNotFoundError(f"expected model.safetensors or pytorch_model.bin in {folder}: download the weights too")


def _layer_files(weight_map: dict[str, str], index: int) -> dict[str, str]:
    """The part of ``weight_map`` that belongs to one layer, keyed by names on disk."""
    inside = re.compile(rf"(^|\.)layers\.{index}\.")
    return {name: file for name, file in weight_map.items() if inside.search(name)}


def _read_tensors(path: Path, names: list[str] | None) -> dict[str, Tensor]:
    """The named tensors of one file (all of a ``.bin``, all names of a safetensors with empty values, for ``None``)."""
    if not path.is_file():
        raise FileNotFoundError(f"expected the weight file {path.name} beside config.json: download it too")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                known = set(file.keys())
                if names is None:
                    return dict.fromkeys(known, torch.empty(0))
                missing = sorted(set(names) - known)
                tensors = {} if missing else {name: file.get_tensor(name) for name in names}
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            missing = sorted(set(names or []) - set(content))
            tensors = content if names is None else {name: content[name] for name in names if name in content}
    except DAMAGED as error:
        raise ValueError(f"cannot read {path.name}: {error}. Download it again") from error
    if missing:
        raise ValueError(f"expected {missing} in {path.name}, found none: index and weights are not of one model")
    return tensors


def _rename(raw: dict[str, Tensor], table: dict[str, str], donor: str, index: int) -> dict[str, Tensor]:
    """Tensors by the names of block.py; anything that a LLaMA layer does not have is a reason to refuse."""
    marker = f"layers.{index}."
    towers = sorted({name.partition(marker)[0] for name in raw})
    if len(towers) > 1:
        raise ValueError(f"expected one stack of layers in {donor}, found {towers}: choose a plain language model")
    short = {name.partition(marker)[2]: tensor for name, tensor in raw.items()}
    unknown = sorted(set(short) - set(table) - set(NOT_WEIGHTS))
    missing = sorted(set(table) - set(short))
    if unknown or missing:
        raise ValueError(
            f"layer {index} of {donor} is no LLaMA layer"
            + (f", it lacks {missing}" if missing else "")
            + (f", it also has {unknown}" if unknown else "")
            + ": choose another donor or download all its files"
        )
    tensors = {new: short[old] for old, new in table.items()}
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ValueError(
                f"expected float weights, got {tensor.dtype} for {name}: choose a donor that is not quantised"
            )
        if not all(bound.isfinite() for bound in tensor.aminmax()):  # which hand a NaN on, and copy nothing
            raise ValueError(f"expected finite weights, {name} has NaN or infinite ones: download the donor again")
    return tensors


def _read_meta(folder: Path, layer: int) -> DonorLayer:
    params = _read_json(folder / "params.json")
    num_layers = _number_of_layers(params, "n_layers")
    index = _resolve(layer, num_layers)
    paths = sorted(folder.glob("consolidated.*.pth"))
    if not paths:
        raise FileNotFoundError(
            f"expected consolidated.00.pth beside params.json in {folder}: download the weights too"
        )
    numbers = [path.suffixes[-2] for path in paths]
    if numbers != [f".{number:02d}" for number in range(len(paths))]:
        raise FileNotFoundError(f"expected all parts from consolidated.00.pth on, found {[p.name for p in paths]}")
    parts = []
    for path in paths:
        content = _read_tensors(path, None)
        raw = {name: content[name] for name in _layer_files(dict.fromkeys(content, path.name), index)}
        parts.append(_rename(raw, META, folder.name, index))
    tensors = {}
    for name, first in parts[0].items():
        pieces = [part[name] for part in parts]
        joined = first if first.ndim == 1 else torch.cat(pieces, dim=1 if name in META_SPLIT_BY_INPUT else 0)
        tensors[name] = joined.clone()  # off the memory map, which the file's removal would pull away
    width, heads = params.get("dim"), params.get("n_heads")
    if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise ValueError(f"expected dim to be a multiple of n_heads, got {width!r} and {heads!r}: correct params.json")
    head_size = width // heads
    geometry = BlockGeometry(
        width=width,
        mlp_width=tensors["gate.weight"].shape[0],
        num_heads=heads,
        num_kv_heads=params.get("n_kv_heads") or heads,
        head_size=head_size,
        norm_eps=float(params.get("norm_eps", 1e-6)),
    )
    geometry.check_tensors(tensors)  # also tells if the last of several files is missing
    # Meta stores the two halves of each rotary pair side by side, Hugging Face one after the other. Without rotary
    # positions the order cancels; it is undone so that both forms of one model have one fingerprint.
    for name in ("query.weight", "key.weight"):
        pairs = tensors[name].view(-1, head_size // 2, 2, geometry.width)
        tensors[name] = pairs.transpose(1, 2).reshape(tensors[name].shape).contiguous()
    return DonorLayer(geometry, tensors, folder.resolve().name, index, num_layers, "")


def _download(repo: str, layer: int, revision: str | None) -> Path:
    """Fetch configuration, index and the files that hold one layer from the hub; the folder they lie in."""
    from huggingface_hub import errors, hf_hub_download

    try:
        folder = Path(hf_hub_download(repo, "config.json", revision=revision)).parent
        config = _read_json(folder / "config.json")
        BlockGeometry.from_config(config)  # refuse before gigabytes are fetched
        index = _resolve(layer, _number_of_layers(config, "num_hidden_layers"))
        commit = folder.name  # one commit for all files, even if the branch moves meanwhile
        for whole in ("model.safetensors", "pytorch_model.bin"):
            try:
                hf_hub_download(repo, f"{whole}.index.json", revision=commit)
            except errors.EntryNotFoundError:
                try:
                    hf_hub_download(repo, whole, revision=commit)
                except errors.EntryNotFoundError:
                    continue
                return folder
            for file in sorted(set(_layer_files(_weight_map(folder), index).values())):
                hf_hub_download(repo, file, revision=commit)
            return folder
    except errors.GatedRepoError as error:
        raise ConnectionError(
            f"{repo} is gated: accept its licence on its hub page, then run `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ConnectionError(
            f"the hub has no model {repo!r} that you may see: check the spelling, or run `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConnectionError(f"{repo} has no revision {revision!r}: give a branch, tag or commit of it") from error
    except errors.EntryNotFoundError as error:
        raise ConnectionError(
            f"cannot get config.json of {repo}: it is no transformers model, or the hub cannot be reached "
            "(no network?) and it is not in the local cache"
        ) from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise ConnectionError(
            f"cannot reach the hub for {repo} ({error}): check the network, then try again"
        ) from error
    raise FileNotFoundError(f"{repo} has neither model.safetensors nor pytorch_model.bin: choose another donor")
