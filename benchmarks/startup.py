# SPDX-License-Identifier: Apache-2.0
"""Start-up: time and memory from a sharded checkpoint to a ready block, ours and that of `AutoModel.from_pretrained`.

A checkpoint of random weights is made shard by shard in a temporary folder, or ``--model`` gives a real one. Its last
layer is then made ready on the CPU in three ways, in turn, round by round:

- ``AutoModel.from_pretrained``: the whole model by transformers, of which ``.layers[-1]`` is taken;
- ``read_layer``: ours, the layer's tensors out of the same files, into a ``FrozenBlock``;
- ``load_block``: ours, from the small file that ``monai-llmboost extract`` wrote once.

Seconds run from after the imports (transformers' module for the model included) until every weight of the block has
been read once, since some loaders only map files. Memory is the peak of the resident memory beyond that after the
imports, on Linux; pages of mapped files count, once they are read. All sides end with the same weights in the same
dtype: as stored (bfloat16 where a checkpoint is made), then in float32, where nothing can stay on the file's pages.
Ours also check, each time, that the weights are finite or unaltered, and take their fingerprint, a sha256: most of
their time. As stored, `from_pretrained` maps the files and reads little more of them than the layer.

This is the one benchmark whose sides do not share a process: what one has allocated and mapped would be the next one's
gain. So each measurement has a fresh process. The page cache is warm: a round that is not measured comes first.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, save, show
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from monai_llmboost.llm import BlockGeometry, FrozenBlock, extract_block, load_block, read_geometry, read_layer
from monai_llmboost.llm.checkpoint import HUGGING_FACE

# width, MLP width, layers, heads, key/value heads, words
GEOMETRIES = {
    "tinyllama-1.1b": (2048, 5632, 22, 32, 4, 32000),
    "llama-7b": (4096, 11008, 32, 32, 32, 32000),
    "llama-3-8b": (4096, 14336, 32, 32, 8, 128256),
}
SHARD_BYTES = 500_000_000
# Random weights are as large as those that transformers would begin a training with.
WEIGHT_STD = 0.02
# Room that the block file and what else happens on the disk may take, as a part of the checkpoint.
SPARE_ROOM = 0.1
DTYPES = {"stored": None, "bfloat16": torch.bfloat16, "float32": torch.float32}
# Linux: writing this there makes the peak of the resident memory begin anew (proc_pid_clear_refs(5)).
CLEAR_REFS, RESET_PEAK = Path("/proc/self/clear_refs"), "5"
STATUS = Path("/proc/self/status")


def config_of(name: str, layers: int | None) -> dict[str, Any]:
    """The ``config.json`` of a model of one of the ``GEOMETRIES``, with another number of layers if given."""
    width, mlp_width, depth, heads, kv_heads, words = GEOMETRIES[name]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "num_hidden_layers": layers or depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def shapes_of(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor of a checkpoint, in the order of the model."""
    words = (config["vocab_size"], config["hidden_size"])
    yield "model.embed_tokens.weight", words
    shapes = BlockGeometry.from_config(config).tensor_shapes
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in HUGGING_FACE.items():
            yield f"model.layers.{layer}.{theirs}", shapes[ours]
    yield "model.norm.weight", words[1:]
    yield "lm_head.weight", words


def shards_of(shapes: Iterable[tuple[str, tuple[int, ...]]]) -> list[dict[str, tuple[int, ...]]]:
    """The tensors of each shard; shards are filled up to ``SHARD_BYTES``."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, shape in shapes:
        size = math.prod(shape) * torch.bfloat16.itemsize
        if shards[-1] and size > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = shape
        room -= size
    return shards


def make_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """Write a sharded safetensors checkpoint of random bfloat16 weights; no more than one shard is in memory.

    Raises:
        OSError: the disk has not enough room.
    """
    shards = shards_of(shapes_of(config))
    total = sum(math.prod(shape) * torch.bfloat16.itemsize for shard in shards for shape in shard.values())
    free = shutil.disk_usage(folder).free
    if free < total * (1 + SPARE_ROOM):
        raise OSError(
            f"expected {total * (1 + SPARE_ROOM) / 1e9:.1f} GB of free disk for the checkpoint, there are "
            f"{free / 1e9:.1f} GB: give another --folder, or fewer --layers"
        )
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    with tqdm(total=total, desc="making the checkpoint", unit="B", unit_scale=True) as bar:
        for number, shard in enumerate(shards, start=1):
            file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            tensors = {}
            for name, shape in shard.items():
                tensors[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(std=WEIGHT_STD, generator=generator)
                bar.update(tensors[name].nbytes)
            save_file(tensors, file, metadata={"format": "pt"})
            with file.open("rb") as written:
                os.fsync(written.fileno())  # so that no writing goes on while it is measured
            weight_map |= dict.fromkeys(tensors, file.name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))


def by_transformers(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """What one would write without us: load the model and take its last layer."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Imports the module of this model, which `from_pretrained` would else do within the time.
    transformers.MODEL_MAPPING[type(transformers.AutoConfig.from_pretrained(model))]

    def load() -> list[Tensor]:
        layers = transformers.AutoModel.from_pretrained(model, dtype="auto" if dtype is None else dtype).layers
        return [weight.detach() for weight in layers[-1].parameters()]

    return load


def by_read_layer(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """Ours, out of the same files."""

    def load() -> list[Tensor]:
        donor = read_layer(model)
        return list(FrozenBlock(donor.geometry, donor.tensors, donor.donor, dtype).layer.buffers())

    return load


def by_load_block(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """Ours, out of the block file."""

    def load() -> list[Tensor]:
        return list(load_block(file, dtype).layer.buffers())

    return load


SIDES = {"AutoModel.from_pretrained": by_transformers, "read_layer": by_read_layer, "load_block": by_load_block}


def measure(side: str, model: Path, file: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """One measurement, in a process that has done nothing else: seconds, memory, and which weights came."""
    load = SIDES[side](model, file, dtype)
    gc.collect()
    linux = CLEAR_REFS.exists()
    if linux:
        CLEAR_REFS.write_text(RESET_PEAK)
    before = resident("VmRSS") if linux else 0
    start = time.perf_counter()
    weights = load()
    extremes = sorted([bound.item() for bound in weight.aminmax()] for weight in weights)  # reads every weight
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "memory_bytes": resident("VmHWM") - before if linux else None,
        "dtype": ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights})),
        "weights": sum(weight.numel() for weight in weights),
        "extremes": extremes,
    }


def resident(field: str) -> int:
    """A line of this process's memory, bytes (as in `studies.measure`, whose import takes MONAI's seconds)."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def rows_of(model: Path, file: Path, dtype: torch.dtype | None, rounds: int) -> list[dict[str, Any]]:
    """Measure all sides in turn; one row for each.

    Raises:
        ValueError: the sides did not come to the same weights.
    """
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with tqdm(total=(rounds + 1) * len(SIDES), desc=f"loading, {'as stored' if dtype is None else dtype}") as bar:
        for round_number in range(rounds + 1):
            for side in SIDES:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    result = fresh.submit(measure, side, model, file, dtype).result()
                if round_number:
                    results[side].append(result)
                bar.update()
    first = next(iter(results.values()))
    for side, values in results.items():
        for a, b in zip(values, first):
            if any(a[key] != b[key] for key in ("dtype", "weights", "extremes")):
                raise ValueError(f"expected the same weights on all sides, {side} came to {a}, the first one to {b}")
    whole = sum(path.stat().st_size for path in {*model.glob("*.safetensors"), *model.glob("pytorch_model*.bin")})
    rows = []
    for side, values in results.items():
        seconds = [value["seconds"] for value in values]
        row = {
            "side": side,
            "dtype": values[0]["dtype"],
            "seconds": statistics.median(seconds),
            "seconds, least and most": f"{min(seconds):.3f} to {max(seconds):.3f}",
            "time / from_pretrained": ratio(values, first, "seconds"),
        }
        if values[0]["memory_bytes"] is not None:
            row["peak MB"] = statistics.median(value["memory_bytes"] for value in values) / 1e6
            row["peak / from_pretrained"] = ratio(values, first, "memory_bytes")
        row["MB on disk"] = (file.stat().st_size if side == "load_block" else whole) / 1e6
        rows.append(row)
    return rows


def ratio(values: list[dict[str, Any]], first: list[dict[str, Any]], key: str) -> float:
    """Median over the rounds of a side's value over the first side's in the same round."""
    return statistics.median(a[key] / b[key] for a, b in zip(values, first))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="The checkpoint that is made takes 2.2 GB of disk for tinyllama-1.1b, 13.5 GB for llama-7b, 16.1 GB for "
        "llama-3-8b, and is removed afterwards. transformers must be installed.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face checkpoint to measure; None: make one")
    parser.add_argument(
        "--geometry", choices=GEOMETRIES, default="tinyllama-1.1b", help="sizes of the one that is made"
    )
    parser.add_argument("--layers", type=int, help="its number of layers; None: all")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["stored", "float32"], help="of ready weights")
    parser.add_argument("--rounds", type=int, default=5, help="medians are given")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="where temporary files are made")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    if min(options.rounds, options.layers or 1) < 1:
        parser.error(f"expected --rounds and --layers from 1, got {options.rounds} and {options.layers}")
    if options.model and options.layers:
        parser.error("expected --layers or --model, got both: --layers is for the checkpoint that is made")
    try:
        settings, rows = run(options)
    except (ValueError, OSError, ImportError, BrokenProcessPool) as error:
        sys.exit(f"startup: {error}")
    from monai_llmboost.studies.measure import device_name  # not above, where each process would import MONAI

    benchmark = "from a checkpoint to the ready last block on the CPU, each measurement in a fresh process"
    save(options.out, benchmark, device_name(torch.device("cpu")), settings, rows)
    show(options.out)


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The settings and the rows that are saved; nothing else stays on the disk."""
    if not options.folder.is_dir():
        raise FileNotFoundError(f"expected --folder to be a folder, found none at {options.folder}")
    if options.model:
        read_geometry(options.model)  # refuse what is no LLaMA before anything is measured
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("startup: ended from outside"))  # removes the files too
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="startup-") as temporary:
        model = options.model or Path(temporary) / "model"
        if options.model is None:
            model.mkdir()
            make_checkpoint(model, config_of(options.geometry, options.layers))
        file = Path(temporary) / "block.safetensors"
        donor = extract_block(model, file)
        rows = [row for word in options.dtypes for row in rows_of(model, file, DTYPES[word], options.rounds)]
    settings = {
        "model": model.resolve().name if options.model else f"random weights, {options.geometry}",
        "layers": donor.num_layers,
        "weights of the block": sum(tensor.numel() for tensor in donor.tensors.values()),
        "dtypes": options.dtypes,
        "rounds": options.rounds,
        "page cache": "warm",
    }
    return settings, rows


if __name__ == "__main__":
    main()
