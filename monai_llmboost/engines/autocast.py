# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on any device; MONAI's engines have it on GPUs only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import Tensor


class AutocastInferer(Inferer):
    """Runs an inferer whose network computes in mixed precision, and returns outputs in float32.

    Only the network is under autocast. What the inferer does with its outputs, and the loss, are in float32.

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

        def mixed(batch: Tensor, *more: Any, **named: Any) -> Any:
            with torch.autocast(batch.device.type, self.dtype):
                outputs = network(batch, *more, **named)
            return _as_float32(outputs)

        return self.inferer(inputs, mixed, *args, **kwargs)

    @property
    def unfit(self) -> Mapping[int, str]:
        """Positions and reasons of the cases that did not fit the memory, if the inferer reports them."""
        return getattr(self.inferer, "unfit", {})


def _as_float32(outputs: Any) -> Any:
    if isinstance(outputs, Tensor):
        return outputs.float() if outputs.is_floating_point() else outputs
    if isinstance(outputs, (list, tuple)):
        return type(outputs)(map(_as_float32, outputs))
    if isinstance(outputs, Mapping):
        return {key: _as_float32(value) for key, value in outputs.items()}
    return outputs
