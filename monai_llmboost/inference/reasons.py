# SPDX-License-Identifier: Apache-2.0
"""Refusals from exceptions: the reason as a sentence, its kind, and whether another run may succeed."""

from __future__ import annotations

import sys
from collections.abc import Callable

from monai_llmboost.data.scans.scan import RefusedScan, get_refused_kind

# Longest reason, in characters.
LONGEST = 300


def reason_of(error: BaseException, hide: Callable[[str], str] | None = None) -> str:
    """Return the message of the original error without MONAI's wrapping ("applying transform ..."), on one line.

    ``hide`` is applied before the message is cut to 300 characters.
    """
    error = _cause(error)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # a path may name a patient
    text = " ".join((text or type(error).__name__).split())
    return (text if hide is None else hide(text))[:LONGEST]


def kind_of(error: BaseException) -> str:
    """Return the kind of the refusal."""
    error = _cause(error)
    return "memory" if _is_device_memory(error) else get_refused_kind(error, "transforms")


def may_pass(error: BaseException) -> bool:
    """Return whether another run may succeed, as after a lack of memory or an error of the operating system.

    A scan that is refused for such a reason is not recorded as done, so that the same command tries it again.
    """
    error = _cause(error)
    if isinstance(error, RefusedScan):
        return error.may_pass
    if isinstance(error, OSError):
        return error.errno is not None  # errors of libraries, such as gzip for a damaged file, have none
    return lacks_memory(error)


def lacks_memory(error: BaseException) -> bool:
    """Return whether the CPU or the device lacks memory."""
    # torch has no error class for a CPU without memory.
    return isinstance(error, MemoryError) or _is_device_memory(error) or "DefaultCPUAllocator" in str(error)


def _is_device_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # without it, there is no such error; a listing of scans does not import it
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def _cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None and str(error).startswith("applying transform"):
        error = error.__cause__
    return error
