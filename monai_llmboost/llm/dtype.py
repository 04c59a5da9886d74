# SPDX-License-Identifier: Apache-2.0
"""The dtype in which a block keeps its weights and runs."""

from __future__ import annotations

import torch

from monai_llmboost.precision import computes_bfloat16


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    """Return the dtype of a block's weights.

    Args:
        dtype: a floating dtype; ``None`` for float32; ``"auto"`` for bfloat16 where the GPU, or without one the
            processor, computes with it natively, and for float32 elsewhere.

    Raises:
        ValueError: anything else.

    Example:
        >>> find_dtype(None), find_dtype("auto") in (torch.float32, torch.bfloat16)
        (torch.float32, True)
    """
    if dtype is None:
        return torch.float32
    if isinstance(dtype, str) and dtype == "auto":
        return torch.bfloat16 if computes_bfloat16() else torch.float32
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f"unknown dtype {dtype!r} of the block; use auto, or a floating one, torch.float32 or torch.bfloat16 "
            "(on a command line '$torch.bfloat16', in single quotes)"
        )
    return dtype
