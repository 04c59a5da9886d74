# SPDX-License-Identifier: Apache-2.0
"""Commands for block files: extract, info, donors."""

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
    overwrite: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
    bits: Annotated[
        int,
        typer.Option(
            help="Bits of a weight in the file: 16 (as in the model), or 8, 6, 5, 4 (smaller, not exact). Each bit "
            "less about doubles the error: take 8, half the size, unless the file must be smaller."
        ),
    ] = 16,
    salient: Annotated[
        float,
        typer.Option(
            help="Share of the input channels that stay in 16 bits, such as 0.1, with fewer --bits. One more of --bits "
            "(5 instead of 4) gives a smaller error at the same size."
        ),
    ] = 0.0,
) -> None:
    """Extract layers of a language model into a block file, for --block of a bundle.

    For a model on the Hugging Face Hub, only these layers are downloaded.
    Nothing is done if the file already contains these layers in these bits.
    --bits makes the file small, not the network: the weights are dequantised when they are read.
    `monai-llmboost donors` lists models to start with.
    """
    from monai_llmboost.llm.paths import check_new_block_file, parse_model

    check_new_block_file(out)
    parse_model(model)
    from monai_llmboost.llm import extract_block, read_header  # takes seconds; a wrong path is reported without it

    written = extract_block(model, out, layer, revision, overwrite, bits, salient)
    header = read_header(out)
    layers = json.loads(header["layers"])
    typer.echo(
        f"{out}: {'layer' if len(layers) == 1 else 'layers'} {', '.join(map(str, layers))} of {header['num_layers']} "
        f"of {header['donor']} (counted from 0), width {header['width']}, {int(header['num_weights']):,} weights, "
        + (f"dequantised from {header['quantised']}, " if header.get("quantised") else "")
        + (f"{header['bits']} bits (error {100 * float(header['error']):.2g} %), " if "bits" in header else "")
        + f"{out.stat().st_size / 1e6:.1f} MB, fingerprint {header['fingerprint'][:12]}"
        + ("" if written else " (already exists; --overwrite extracts it again)")
    )


def info(
    file: Annotated[str, typer.Argument(help="A block file, or the word embedded for the one in this package.")],
) -> None:
    """Show the content and origin of a block file, and run its self-test (exit status 1 if it fails)."""
    from rich.console import Console

    from monai_llmboost.llm.paths import find_block_file

    find_block_file(file)
    from monai_llmboost.llm.info import block_table  # takes seconds; a wrong path is reported without it

    Console().print(block_table(file))


def donors() -> None:
    """List language models to extract layers from: open models of several sizes, and well-known gated models."""
    from rich.console import Console

    from monai_llmboost.llm.donor.table import donors_table

    Console().print(donors_table())
