# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on any device; MONAI's engines have it on GPUs only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

HALF = (torch.bfloat16, torch.float16)


class AutocastInferer(Inferer):
    """Runs an inferer whose network computes in mixed precision, and returns outputs in float32.

    Only the network is under autocast. What the inferer does with its outputs, and the loss, are in float32. The
    inferer may only call the network; those that look into it need the network itself.

    Args:
        dtype: dtype of matrix products and convolutions, see :func:`monai_llmboost.precision.find_precision`; float32
            changes nothing.
        inferer: the inferer; default MONAI's ``SimpleInferer``.

    Example:
        >>> AutocastInferer(torch.bfloat16)(torch.ones(2, 4), torch.nn.Linear(4, 3)).dtype
        torch.float32
    """

    def __init__(self, dtype: torch.dtype, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.dtype = dtype
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the inferer returns for these inputs."""
        if self.dtype == torch.float32:
            return self.inferer(inputs, network, *args, **kwargs)

        def mixed(*batch: Any, **named: Any) -> Any:
            device = next(value.device for value in (*batch, *named.values(), inputs) if isinstance(value, Tensor))
            small_maps = SmallMapsInFloat32() if _needs_float32(device, self.dtype) else nullcontext()
            with torch.autocast(device.type, self.dtype), small_maps:
                outputs = network(*batch, **named)
            return tree_map(_as_float32, outputs)

        return self.inferer(inputs, mixed, *args, **kwargs)

    @property
    def unfit(self) -> Mapping[int, str]:
        """Positions and reasons of the cases that did not fit the memory, if the inferer reports them."""
        return getattr(self.inferer, "unfit", {})


class SmallMapsInFloat32(TorchFunctionMode):
    """Computes 3D convolutions of maps smaller than their kernel in float32, for correct gradients on a CPU.

    In bfloat16, the gradient of such a kernel contains values of foreign memory (oneDNN as in torch 2.14; seen for a
    kernel of 3 voxels over 2 along the first axis, and for one of 5 over 2 to 4): a training diverges now and then.
    The last maps of a ResNet3D for volumes of 28 voxels are as small. Convolutions in scripted networks, and those that
    gradient checkpointing repeats, are not seen: train such networks in float32 on a CPU.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), SmallMapsInFloat32():
        ...     torch.nn.Conv3d(2, 3, 3, padding=1)(torch.rand(1, 2, 2, 4, 4)).dtype
        torch.bfloat16
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace a convolution of a small map."""
        kwargs = kwargs or {}
        if function is torch.conv3d and torch.is_autocast_enabled("cpu") and _is_small(*args, **kwargs):
            with torch.autocast("cpu", enabled=False):
                exact = [_exact(value) for value in args]
                named = {name: _exact(value) for name, value in kwargs.items()}
                return function(*exact, **named).to(torch.bfloat16)
        return function(*args, **kwargs)


def _exact(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def _is_small(input: Tensor, weight: Tensor, *more: Any, **named: Any) -> bool:
    dilation = named.get("dilation", more[3] if len(more) > 3 else 1)  # after bias, stride and padding
    steps = ensure_tuple_rep(dilation, 3)
    spans = (step * (kernel - 1) + 1 for step, kernel in zip(steps, weight.shape[-3:]))
    return any(voxels < span for voxels, span in zip(input.shape[-3:], spans))


def _needs_float32(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cpu" and dtype == torch.bfloat16 and torch.is_grad_enabled()


def _as_float32(output: Any) -> Any:
    return output.float() if isinstance(output, Tensor) and output.dtype in HALF else output
