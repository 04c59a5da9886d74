# SPDX-License-Identifier: Apache-2.0
"""Error reports: one sentence, or a traceback with MONAI_LLMBOOST_DEBUG=1."""

from __future__ import annotations

import os

import typer

# Reported in one sentence; any other error is a bug and gives a traceback.
USER_ERRORS = (ValueError, OSError, TypeError, RuntimeError, ImportError, MemoryError)
# The exit status that shells use for ctrl-C.
INTERRUPTED = 130


def report_error(error: BaseException) -> None:
    """Write the message of an error to standard error; with MONAI_LLMBOOST_DEBUG=1 raise the error."""
    if os.environ.get("MONAI_LLMBOOST_DEBUG"):
        raise error
    typer.echo(f"monai-llmboost: {str(error) or 'there is not enough memory'}", err=True)
