# SPDX-License-Identifier: Apache-2.0
"""Class probabilities of a whole volume by sliding windows, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, combinations, groupby
from typing import Any

import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import Inferer
from monai.inferers.utils import compute_importance_map
from monai.utils import ensure_tuple_rep
from torch import Tensor
from torch.nn.functional import pad

from monai_llmboost.arguments import check_switch, check_whole
from monai_llmboost.inference.masks.planes import PlaneWriter
from monai_llmboost.inference.reasons import lacks_memory

# Larger probabilities of a case are kept in a temporary file.
KEEP_BYTES = 1 << 30
# Standard deviation of the weights of a window along each axis, as a part of its length; as in nnU-Net and MONAI.
SIGMA = 0.125
FULL = "the folder of temporary files has no room for the case: make room, or set TMPDIR"
UNFIT = (
    "the case does not fit the memory, even with one window at a time: use {}a machine with more memory, or train "
    "again with a coarser spacing, a smaller patch or fewer structures"
)

Network = Callable[..., Tensor]
Place = tuple[slice, ...]  # a window in a volume


class WindowInferer(Inferer):
    """Runs a segmentation network on overlapping windows of a volume, and returns the probabilities of all voxels.

    The logits of windows are averaged with Gaussian weights, and then the softmax is taken, as in nnU-Net: a window
    that is sure outweighs one that is not. The result is the softmax of that of
    :func:`monai.inferers.sliding_window_inference`; the memory is that of one window's depth of the volume
    instead of all of it. Finished planes are stored, in a temporary file if the case is large
    (:class:`monai_llmboost.inference.masks.planes.PlaneWriter`).

    If the device lacks memory, fewer windows run at once.

    Args:
        patch_size: voxels of a window along each axis.
        overlap: overlap of neighbouring windows, 0 to below 1.
        windows: number of windows in a call of the network.
        flips: average over all flips of the window (True: 8 times the time), those of some axes (such as ``[0, 1]``),
            or none.
        keep_bytes: the largest output of a case that is kept in memory.
        keep_going: give NaN for a case that does not fit, whose position and reason are then in ``unfit``, instead of
            an error.

    Raises:
        ValueError: an overlap or flips that cannot be; from the call, a network whose output is not of the size of its
            input.
        torch.OutOfMemoryError: from the call, not even one window fits.

    Example:
        >>> network = torch.nn.Conv3d(1, 2, 1)
        >>> WindowInferer([8, 8, 8])(torch.rand(1, 1, 20, 8, 12), network).sum(1).mean().item()
        1.0
    """

    unfit: Mapping[int, str] = {}

    def __init__(
        self,
        patch_size: Sequence[int] | int,
        overlap: float = 0.5,
        windows: int = 4,
        flips: bool | Sequence[int] = False,
        keep_bytes: int = KEEP_BYTES,
        keep_going: bool = False,
    ) -> None:
        super().__init__()
        check_whole("windows", windows, 1)
        check_switch("keep_going", keep_going)
        if not 0 <= overlap < 1:
            raise ValueError(f"the overlap {overlap!r} must be from 0 to below 1: give 0.5, say")
        self.patch_size: tuple[int, ...] = ensure_tuple_rep(patch_size, 3)
        self.overlap = overlap
        self.windows = windows
        self.flips = _flips(flips)
        self.keep_bytes = keep_bytes
        self.keep_going = keep_going

    def __call__(self, inputs: Tensor, network: Network, *args: Any, **kwargs: Any) -> Tensor:
        """Return probabilities (B, classes, S0, S1, S2) float32 for images (B, channels, S0, S1, S2)."""
        images = torch.Tensor.as_subclass(inputs, torch.Tensor)  # operations of MetaTensor are slow
        outputs: list[Tensor] = []
        unfit: dict[int, str] = {}
        with torch.no_grad():
            for position, image in enumerate(images):
                try:
                    outputs.append(self._case(image, lambda batch: network(batch, *args, **kwargs)))
                except (MemoryError, RuntimeError, OSError) as error:
                    full = isinstance(error, OSError)
                    if not self.keep_going or not (full or lacks_memory(error)):
                        raise
                    other = "" if image.device.type == "cpu" else "--device cpu, "
                    unfit[position] = FULL if full else UNFIT.format(other)
                    outputs.append(images.new_full((1, 1, 1, 1), torch.nan))
        self.unfit = unfit
        if len(outputs) == 1:
            return outputs[0][None]
        known = next((output for position, output in enumerate(outputs) if position not in unfit), outputs[0])
        return torch.stack([output.expand_as(known) for output in outputs])

    def _case(self, image: Tensor, network: Network) -> Tensor:
        """Return the probabilities (classes, S0, S1, S2) of an image (channels, S0, S1, S2)."""
        sizes = image.shape[1:]
        before = [max(0, patch - size) // 2 for patch, size in zip(self.patch_size, sizes)]
        after = [max(0, patch - size) - low for patch, size, low in zip(self.patch_size, sizes, before)]
        padded = pad(image, [side for low, high in [*zip(before, after)][::-1] for side in (low, high)])
        inside = [slice(low, low + size) for low, size in zip(before, sizes)]
        weights = compute_importance_map(self.patch_size, "gaussian", SIGMA, image.device, torch.float32)
        sums: _RollingSums | None = None
        try:
            for places, logits in self._predict(padded, network):
                if sums is None:  # the network says how many classes there are
                    planes = PlaneWriter((logits.shape[1], *sizes), self.keep_bytes, image.device)
                    sums = _RollingSums(planes, weights, padded.shape[1:], inside)
                sums.add(places, logits)
            if sums is None:
                raise ValueError(f"an image of {tuple(sizes)} voxels has no windows: leave it out")
            return sums.finish()
        finally:
            if sums is not None:
                sums.planes.close()

    def _predict(self, image: Tensor, network: Network) -> Iterator[tuple[Sequence[Place], Tensor]]:
        """Yield the places of some windows of one depth, and their logits (windows, classes, ...)."""
        steps = [
            patch if patch == size else max(1, int(patch * (1 - self.overlap)))
            for patch, size in zip(self.patch_size, image.shape[1:])
        ]
        # As MONAI places windows, but sorted along the last axis.
        places = sorted(dense_patch_slices(image.shape[1:], self.patch_size, steps), key=_depth)
        at_once = self.windows
        for _, level in groupby(places, key=_depth):
            todo = list(level)
            while todo:
                some = todo[:at_once]
                try:
                    logits = self._flipped(torch.stack([image[(slice(None), *place)] for place in some]), network)
                except (RuntimeError, MemoryError) as error:
                    if len(some) == 1 or not lacks_memory(error):
                        raise
                    logits = None
                if logits is not None:
                    yield some, logits
                    todo = todo[len(some) :]
                    continue
                # Outside of the except clause, which would keep the tensors of the failed call.
                at_once = len(some) // 2
                if image.is_cuda:
                    torch.cuda.empty_cache()

    def _flipped(self, windows: Tensor, network: Network) -> Tensor:
        """Return the mean of the logits of all flips of windows (windows, channels, ...)."""
        every = []
        for axes in self.flips:
            logits = network(windows.flip(axes) if axes else windows)
            if not isinstance(logits, Tensor) or logits.shape[2:] != windows.shape[2:]:
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ValueError(
                    f"the network makes {got} of windows of the shape {tuple(windows.shape)}: it must return one "
                    "tensor of logits (windows, classes, ...) of the same size"
                )
            every.append(logits.float().flip(axes) if axes else logits.float())
        return sum(every[1:], every[0]) / len(every)


class _RollingSums:
    """Weighted sums of logits over the depth of one window; planes that no later window touches are written.

    Args:
        planes: takes the probabilities.
        weights: (P0, P1, P2), weights of a window.
        sizes: (S0, S1, S2) of the padded volume.
        inside: part of the padded volume that is written.
    """

    def __init__(self, planes: PlaneWriter, weights: Tensor, sizes: Sequence[int], inside: Sequence[slice]) -> None:
        self.planes = planes
        self.weights = weights.permute(2, 0, 1)[:, None]  # (P2, 1, P0, P1): planes are contiguous in this order
        self.inside = inside
        self.start = 0  # the first plane of the sums
        self.end = sizes[2]
        depth = weights.shape[2]
        self.sums = weights.new_zeros((depth, planes.shape[1], *sizes[:2]))
        self.total = weights.new_zeros((depth, 1, *sizes[:2]))

    def add(self, places: Sequence[Place], logits: Tensor) -> None:
        """Add the logits of windows of one depth, not before that of earlier ones."""
        self._roll_to(_depth(places[0]))
        for (one, other, _), each in zip(places, logits):
            self.sums[:, :, one, other] += each.permute(3, 0, 1, 2) * self.weights
            self.total[:, :, one, other] += self.weights

    def finish(self) -> Tensor:
        """Write the last planes, and return the volume (classes, S0, S1, S2)."""
        self._roll_to(self.end)
        return self.planes.volume()

    def _roll_to(self, start: int) -> None:
        done = min(start - self.start, len(self.sums))
        if not done:
            return
        one, other, depth = self.inside
        first, last = (min(max(place - self.start, 0), done) for place in (depth.start, depth.stop))
        for plane in range(first, last):  # one by one, for less memory
            mean = self.sums[plane, :, one, other] / self.total[plane, :, one, other]
            self.planes.append(mean.softmax(0)[None])
        kept = len(self.sums) - done
        for sums in (self.sums, self.total):
            for plane in range(kept):
                sums[plane] = sums[plane + done]
            sums[kept:] = 0
        self.start = start


def _depth(place: Place) -> int:
    return place[2].start


def _flips(flips: bool | Sequence[int]) -> list[tuple[int, ...]]:
    """Return the axes of each flip of a batch (B, channels, S0, S1, S2); the first one has none."""
    axes = {True: [0, 1, 2], False: []}[flips] if isinstance(flips, bool) else list(flips)
    if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
        raise ValueError(f"flips must be True, False or some of the axes 0, 1, 2, not {flips!r}: give [0, 1], say")
    of = [axis + 2 for axis in axes]
    return list(chain.from_iterable(combinations(of, number) for number in range(len(of) + 1)))
