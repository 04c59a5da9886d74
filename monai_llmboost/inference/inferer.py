# SPDX-License-Identifier: Apache-2.0
"""An inferer that continues if a batch does not fit the device's memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from monai.inferers import SimpleInferer
from torch import Tensor

UNFIT = "the case does not fit the memory of the device: use --device cpu"


class HalvingInferer(SimpleInferer):
    """Runs the network on a batch; if the device lacks memory, on halves of the batch, down to single cases.

    The output of a single case that does not fit is NaN, so that it is refused and the others are predicted. ``unfit``
    contains the positions of such cases in the latest batch, each with the reason.

    Raises:
        torch.OutOfMemoryError: no case of the batch fits, so that the shape of the output is unknown.

    Example:
        >>> HalvingInferer()(torch.ones(2, 1, 4, 4, 4), torch.nn.Flatten()).shape
        torch.Size([2, 64])
    """

    unfit: Mapping[int, str] = {}

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Return the network's outputs (B, ...) for images (B, channels, S0, S1, S2)."""
        outputs = self._halves(inputs, network, *args, **kwargs)
        known = next((output for output in outputs if output is not None), None)
        if known is None:
            raise torch.OutOfMemoryError(
                f"not even one case fits the memory of {inputs.device}: use --device cpu, or a smaller network"
            )
        nan = torch.full_like(known[:1], torch.nan)
        sizes = [1 if output is None else len(output) for output in outputs]
        positions = accumulate(sizes, initial=0)
        self.unfit = {position: UNFIT for position, output in zip(positions, outputs) if output is None}
        return torch.cat([nan if output is None else output for output in outputs])

    def _halves(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> list[Any]:
        try:
            return [network(inputs, *args, **kwargs)]
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                return [None]
        # Outside of the except clause, which would keep the tensors of the failed call.
        if inputs.is_cuda:
            torch.cuda.empty_cache()
        middle = len(inputs) // 2
        return [
            out for half in (inputs[:middle], inputs[middle:]) for out in self._halves(half, network, *args, **kwargs)
        ]
