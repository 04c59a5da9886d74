# SPDX-License-Identifier: Apache-2.0
"""How a mistake is told: one sentence, or with MONAI_LLMBOOST_DEBUG=1 a traceback."""

from __future__ import annotations

import os

import typer

# What is told in one sentence; anything else is a mistake of ours, and a traceback.
MISTAKES = (ValueError, OSError, TypeError, RuntimeError, ImportError, MemoryError)
# What shells give for ctrl-C.
INTERRUPTED = 130


def tell(error: BaseException) -> None:
    """The error's sentence on standard error; raises the error itself with MONAI_LLMBOOST_DEBUG=1."""
    if os.environ.get("MONAI_LLMBOOST_DEBUG"):
        raise error
    typer.echo(f"monai-llmboost: {str(error) or 'there is not enough memory'}", err=True)
