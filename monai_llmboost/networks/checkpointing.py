# SPDX-License-Identifier: Apache-2.0
"""Whether a module is called in a part of a network that is computed again in the backward pass."""

from __future__ import annotations

import sys
from types import FrameType

from torch.nn.modules import module
from torch.utils import checkpoint


def is_checkpointed(outermost: FrameType, with_whole: bool = True) -> bool:
    """Return whether the caller runs in a function that ``torch.utils.checkpoint`` was given.

    Hooks and other changes of a module are gone when such a function runs again, and gradients would be wrong, often
    without an error.

    Args:
        outermost: the frame from which the network was called; what is around it runs again as a whole.
        with_whole: also if the function is nothing but the module that called the caller.
    """
    frame: FrameType | None = sys._getframe(1)
    # The hook or forward that asks, and the machinery of torch between it and what calls the module.
    while frame is not None and frame.f_code.co_filename != module.__file__:
        frame = frame.f_back
    while frame is not None and frame.f_code.co_filename == module.__file__:
        frame = frame.f_back
    if frame is not None and not with_whole and frame.f_code.co_filename == checkpoint.__file__:
        return False
    while frame is not None and frame is not outermost:
        if frame.f_code.co_filename == checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
