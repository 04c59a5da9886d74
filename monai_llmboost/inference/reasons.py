# SPDX-License-Identifier: Apache-2.0
"""What an exception means for a case: the reason in a sentence, its kind, and whether it may pass."""

from __future__ import annotations

from collections.abc import Callable

import torch

from monai_llmboost.data import RefusedScan
from monai_llmboost.data.scans.scan import get_refused_kind

# Longest reason, in characters.
LONGEST = 300


def reason_of(error: BaseException, hide: Callable[[str], str] | None = None) -> str:
    """Return the message at the root of what MONAI wraps ("applying transform ..."), on one line.

    ``hide`` is applied to it, before it is cut to 300 characters.
    """
    error = _cause(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # a path may name a patient
    text = " ".join((text or type(error).__name__).split())
    return (text if hide is None else hide(text))[:LONGEST]


def kind_of(error: BaseException) -> str:
    """Return the short word for the kind of a refusal."""
    error = _cause(error)
    return "memory" if isinstance(error, torch.OutOfMemoryError) else get_refused_kind(error, "transforms")


def may_pass(error: BaseException) -> bool:
    """Return whether what went wrong may be gone in the next run: a lack of memory, or an error of the system.

    A scan that is refused for such a reason is not recorded as done, so that the same command tries it again.
    """
    error = _cause(error)
    if isinstance(error, RefusedScan):
        return error.may_pass
    if isinstance(error, OSError):
        return error.errno is not None  # a library's own, such as gzip's of a damaged file, have none
    # torch has no class of its own for a CPU that has no memory left.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    return error
