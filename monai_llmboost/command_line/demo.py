# SPDX-License-Identifier: Apache-2.0
"""The verb demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="The folder to make; it must not be there yet.")] = Path("llmboost-demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of each training run.")] = 6,
) -> None:
    """Train two arms on phantoms made by code, evaluate them, predict NIfTI files, print the tables."""
    from monai_llmboost.demo import run_demo

    run_demo(output, epochs)
