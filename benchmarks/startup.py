# SPDX-License-Identifier: Apache-2.0
"""Time and memory to load a block from a sharded checkpoint, compared with `AutoModel.from_pretrained`.

``transformers`` writes a checkpoint of random weights to a temporary folder, or ``--model`` gives a real one. Its last
layer is then loaded to the CPU in three ways, in turn, round by round:

- ``AutoModel.from_pretrained``: transformers loads the whole model, and ``.layers[-1]`` is taken;
- ``read_layers``: ours, reads the layer's tensors from the same files into a ``FrozenBlock``;
- ``load_block``: ours, reads the small file that ``monai-llmboost extract`` wrote once.

Seconds run from after the imports (transformers' module for the model included) until every weight of the block has
been read once, since some loaders only map files. Memory is the peak of the resident memory beyond that after the
imports, on Linux; pages of mapped files count, once they are read. All sides end with the same weights in the same
dtype: as stored (bfloat16 where a checkpoint is made), then in float32, where nothing can stay on the file's pages.
Ours also check, each time, that the weights are finite or unaltered, and take their fingerprint, a sha256. As stored,
`from_pretrained` maps the files and reads little more of them than the layer.

Each measurement runs in a fresh process, because memory that one side has allocated and mapped would help the next one.
The page cache is warm: the first round is not counted.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import transformers
from report import RESULTS, save, show
from torch import Tensor
from tqdm import tqdm

from monai_llmboost.llm import FrozenBlock, extract_block, load_block, read_block, read_geometry, read_layers
from monai_llmboost.studies.cost.measure import device_name, memory_growth

# The size of TinyLlama-1.1B.
SIZES = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4}
MADE = "Random weights of TinyLlama-1.1B's size"
CPU = torch.device("cpu")
DTYPES = {"stored": None, "bfloat16": torch.bfloat16, "float32": torch.float32}


def make_checkpoint(folder: Path) -> None:
    """Let transformers write a sharded checkpoint of random bfloat16 weights."""
    print(f"making a checkpoint: {MADE}", file=sys.stderr)
    config = transformers.LlamaConfig(**SIZES, num_attention_heads=32)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="500MB")
    os.sync()  # so that no writing goes on while it is measured


def prepare_transformers(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """Return a function that loads the whole model with transformers and takes its last layer."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Import the module of this model now, so that `from_pretrained` does not do it while it is timed.
    transformers.MODEL_MAPPING[type(transformers.AutoConfig.from_pretrained(model))]

    def load() -> list[Tensor]:
        layers = transformers.AutoModel.from_pretrained(model, dtype="auto" if dtype is None else dtype).layers
        return [weight.detach() for weight in layers[-1].parameters()]

    return load


def prepare_read_layers(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """Return a function that reads the layer from the same files."""

    def load() -> list[Tensor]:
        return list(FrozenBlock(read_layers(model), dtype).layer.buffers())

    return load


def prepare_load_block(model: Path, file: Path, dtype: torch.dtype | None) -> Callable[[], list[Tensor]]:
    """Return a function that reads the block file."""

    def load() -> list[Tensor]:
        return list(load_block(file, dtype).layer.buffers())

    return load


SIDES = {
    "AutoModel.from_pretrained": prepare_transformers,
    "read_layers": prepare_read_layers,
    "load_block": prepare_load_block,
}


def measure(side: str, model: Path, file: Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """Measure seconds and memory in a fresh process, and return them with statistics of the weights."""
    load = SIDES[side](model, file, dtype)
    result: dict[str, Any] = {}

    def load_all() -> None:
        start = time.perf_counter()
        weights = load()
        result["extremes"] = sorted([bound.item() for bound in weight.aminmax()] for weight in weights)  # reads all
        result["seconds"] = time.perf_counter() - start
        result["dtype"] = ", ".join(sorted({str(weight.dtype).removeprefix("torch.") for weight in weights}))
        result["weights"] = sum(weight.numel() for weight in weights)

    result["memory_bytes"] = memory_growth(load_all, CPU)
    return result


def measure_rows(model: Path, file: Path, dtype: torch.dtype | None, rounds: int) -> list[dict[str, Any]]:
    """Measure all sides in turn, and return one row for each.

    Raises:
        ValueError: the sides loaded different weights.
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
                raise ValueError(f"the sides loaded different weights: {side} {a}, the first one {b}")
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
    """Return the median of the ratios to the first side in the same round."""
    return statistics.median(a[key] / b[key] for a, b in zip(values, first))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        epilog="The checkpoint that is made takes 2.2 GB of disk, and is removed afterwards.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", type=Path, help="folder of a Hugging Face checkpoint; None: make one")
    parser.add_argument(
        "--dtypes", nargs="+", choices=DTYPES, default=["stored", "float32"], help="dtypes of the loaded weights"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds; the results are medians")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="folder for temporary files")
    parser.add_argument("--out", type=Path, default=RESULTS / "startup-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    try:
        settings, rows = run(options)
    except (ValueError, OSError, BrokenProcessPool) as error:
        sys.exit(f"startup: {error}")
    benchmark = "from a checkpoint to the ready last block on the CPU, each measurement in a fresh process"
    save(options.out, benchmark, device_name(CPU), settings, rows)
    show(options.out)


def run(options: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings and rows to save; temporary files are removed."""
    if not options.folder.is_dir():
        raise FileNotFoundError(f"--folder {options.folder} is not a folder: give an existing one")
    if options.model:
        read_geometry(options.model)  # refuse what is not run natively before anything is measured
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("startup: terminated"))  # removes the files too
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="startup-") as temporary:
        model = options.model or Path(temporary) / "model"
        if options.model is None:
            make_checkpoint(model)
        file = Path(temporary) / "block.safetensors"
        extract_block(model, file)
        donor = read_block(file)
        rows = [row for word in options.dtypes for row in measure_rows(model, file, DTYPES[word], options.rounds)]
    settings = {
        "model": model.resolve().name if options.model else MADE,
        "layers": donor.num_layers,
        "weights of the block": donor.num_weights,
        "rounds": options.rounds,
        "page cache": "warm",
    }
    return settings, rows


if __name__ == "__main__":
    main()
