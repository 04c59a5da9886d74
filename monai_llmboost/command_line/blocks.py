# SPDX-License-Identifier: Apache-2.0
"""Verbs on blocks: extract, info, donors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def extract(
    model: Annotated[
        str, typer.Argument(help="Hugging Face folder or hub id, folder with consolidated.*, or GGUF file.")
    ],
    out: Annotated[Path, typer.Option(help="The block file to write, ending in .safetensors.")],
    layer: Annotated[
        str, typer.Option(help="Which layers: -1 (the last), 3,5 (two), 4:8 (four), -2: (the last two).")
    ] = "-1",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the file if it is there.")] = False,
) -> None:
    """Cut layers out of a language model and write them as a block file (for --block of a bundle).

    Of a model on the hub only the bytes of these layers are fetched.
    If the file is there already and holds them, nothing is done.
    `monai-llmboost donors` lists models to start with.
    """
    from monai_llmboost.llm import extract_block, read_header

    written = extract_block(model, out, layer, revision, overwrite)
    header = read_header(out)
    layers = json.loads(header["layers"])
    typer.echo(
        f"{out}: {'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))} of {header['num_layers']} "
        f"of {header['donor']} (counted from 0), width {header['width']}, {int(header['num_weights']):,} weights, "
        + (f"dequantised from {header['quantised']}, " if header.get("quantised") else "")
        + f"{out.stat().st_size / 1e6:.1f} MB, fingerprint {header['fingerprint'][:12]}"
        + ("" if written else " (was there already; --overwrite extracts it anew)")
    )


def info(
    file: Annotated[str, typer.Argument(help="A block file, or the word embedded for the one in this package.")],
) -> None:
    """What a block file holds, where it came from, and whether it passes its self-test (exit status 1 if not)."""
    from rich.console import Console

    from monai_llmboost.llm.info import block_table

    Console().print(block_table(file))


def donors() -> None:
    """Language models to take a layer from: open ones of several sizes, and the classics behind a gate."""
    from rich.console import Console

    from monai_llmboost.llm.info import donors_table

    Console().print(donors_table())
