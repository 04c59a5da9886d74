# SPDX-License-Identifier: Apache-2.0
"""The table of a block file's content."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from monai_llmboost.llm.block_file import read_block, read_header, stored_h_rms
from monai_llmboost.llm.frozen import FrozenBlock
from monai_llmboost.llm.geometry import BlockGeometry
from monai_llmboost.llm.paths import find_block_file
from monai_llmboost.llm.self_tests import self_test
from monai_llmboost.llm.stream_size import LARGEST, RATIO, SMALLEST


def block_table(file: str | Path) -> Table:
    """Return a table of a block file's content and the results of its self-test.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a block file, altered after extraction, or its self-test fails.
    """
    donor, header = read_block(file), read_header(file)
    block = FrozenBlock(donor, known_fingerprint=donor.fingerprint)
    measured = self_test(block, donor.name)
    indices = ", ".join(str(layer.index) for layer in donor.layers)
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for one in donor.layers for t in one.tensors.values()})
    norm = "not in the file" if not donor.final_norm else "in the file (--final_norm donor)"
    rows = {
        "donor": donor.donor,
        "revision": donor.revision or "unknown (a local folder)",
        "licence": donor.licence or "unknown: see the donor's card",
        "layers": f"{indices} of {donor.num_layers} (0 to {donor.num_layers - 1})",
        "weights": f"{donor.num_weights:,} in {', '.join(dtypes)}"
        + (f", dequantised from {donor.quantised}" if donor.quantised else ""),
        **({"stored in": stored_in(header, find_block_file(file).stat().st_size)} if donor.bits < 16 else {}),
        "width": str(block.width),
        "layer": describe(donor.layers[-1].geometry, donor.layers[-1].config),
        "its model's final norm": norm,
        "size of tokens": token_size(stored_h_rms(header, donor)),
        "read by the CLS token": read_out(block),
        "fingerprint (sha256)": donor.fingerprint,
        "self-test": "passed: "
        + ", ".join(f"{name.replace('_', ' ')} {value:.1e}" for name, value in measured.items()),
    }
    table = Table(title=Text(str(file)), show_header=False, title_justify="left")
    for name, text in rows.items():
        table.add_row(name, Text(text, overflow="fold"))
    return table


def stored_in(header: Mapping[str, str], size: int) -> str:
    """Return the bits, size and error of a quantised file, as text."""
    salient = f", {100 * float(header['salient']):g} % of the inputs in 16 bits"
    return (
        f"{header['bits']} bits, a scale for {header['group']} inputs{salient if float(header['salient']) else ''}: "
        f"{size / 1e6:.1f} MB; the output differs "
        f"by {100 * float(header['error']):.2g} % from that of the original weights"
    )


def token_size(h_rms: float | None) -> str:
    """Return the size of tokens for ``--h_scale donor``, as text."""
    if h_rms is None:
        return (
            f"not scaled, because the layer adds {RATIO} times the size of its tokens at no size from {SMALLEST:g} to "
            f"{LARGEST:g}"
        )
    return f"scaled to {h_rms:g}, where the layer adds {RATIO} times their size, as in its model (--h_scale donor)"


def read_out(block: FrozenBlock) -> str:
    """Return how a booster computes only the CLS token, as text; see ``ResidualBooster.describe_readout``."""
    if block.attention_form is not None and not block.attention_form.normed_keys:
        return "exactly, where that pays without the other tokens' keys and values"
    if block.attention_form is not None:
        return "exactly, with the other tokens' keys and, where that pays, no values"
    if block.geometry is None:
        return "by computing the whole block"
    return "by computing all of the layers but the last, and its keys and values"


def describe(geometry: BlockGeometry | None, config: str) -> str:
    """Return a description of one layer as text."""
    if geometry is None:
        return f"{json.loads(config)['model_type']}, run by transformers' own class"
    heads = f"{geometry.num_heads} heads of {geometry.head_size}"
    if geometry.num_kv_heads != geometry.num_heads:
        heads += f" on {geometry.num_kv_heads} of keys and values"
    norm = "RMSNorm" if geometry.norm == "rms" else "LayerNorm"
    place = {(True, False): "before", (False, True): "after", (True, True): "before and after"}
    parts = [
        heads,
        f"MLP {geometry.mlp_width} ({geometry.activation}{', gated' if geometry.gated else ''})",
        f"{norm} {place[geometry.pre_norm, geometry.post_norm]} each part",
    ]
    parts += ["parallel"] if geometry.parallel else []
    parts += ["normed queries and keys"] if geometry.qk_norm != "none" else []
    parts += ["biases"] if geometry.qkv_bias or geometry.output_bias or geometry.mlp_bias else []
    parts += [f"scores capped at {geometry.score_cap:g}"] if geometry.score_cap else []
    return ", ".join(parts)
