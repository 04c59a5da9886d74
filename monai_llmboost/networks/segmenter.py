# SPDX-License-Identifier: Apache-2.0
"""Any network from volumes to logits of each voxel as a segmenter of this package: with class names, and a booster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks.class_names import ClassNames, LabelValues, add_texts
from monai_llmboost.networks.insertion import boost
from monai_llmboost.networks.pretrained import load_encoder_weights
from monai_llmboost.networks.trial import in_eval_mode


def scan_segmenter(
    network: nn.Module,
    class_names: Sequence[str],
    label_values: Sequence[int],
    image_shape: Sequence[int],
    booster: nn.Module | Callable[[int], nn.Module] | None = None,
    at: str | None = "deepest",
    weights: str | Path | None = None,
    token_stride: int = 1,
) -> nn.Module:
    """Make a network from volumes to logits of each voxel a segmenter of this package, in place, and return it.

    Its checkpoints then contain the class names, the preprocessing and the division of the training cases. At the
    deepest features there are few tokens, so that a booster costs little.

    Args:
        network: maps volumes (B, channels, S0, S1, S2) to raw logits (B, classes, S0, S1, S2) in ``eval()`` mode, such
            as MONAI's ``DynUNet``, ``SegResNet`` or ``SwinUNETR``; in training it may return several heads.
        class_names: the background first, then the structures, in the order of the logits.
        label_values: the value of each structure in label maps, kept in the checkpoint too.
        image_shape: channels and voxels along each axis of a patch, for a trial run.
        booster: maps tokens (B, N, C) to tokens (B, N, C), or a function that makes one for C channels, as in
            :func:`monai_llmboost.networks.boost`; ``None`` for the plain network.
        at: place of the booster: ``"deepest"`` or the name of a module, such as one of the decoder.
        weights: file with weights of the plain network or of its encoder, see
            :func:`monai_llmboost.networks.load_encoder_weights`; ``None`` for the random start.
        token_stride: voxels along each axis that the booster takes together, see
            :func:`monai_llmboost.networks.boost`; an approximation.

    Raises:
        ValueError: class names that do not fit the logits; a network that does not accept a patch, or returns anything
            but logits of each voxel; weights of another network; a booster that fits no such place.
        TypeError: the network is no module.

    Example:
        >>> from functools import partial
        >>> from monai.networks.nets import SegResNet
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> plain = SegResNet(init_filters=8, in_channels=1, out_channels=2)
        >>> booster = partial(ResidualBooster, block=load_block("embedded"))
        >>> network = scan_segmenter(plain, ["background", "liver"], [1], [1, 32, 32, 16], booster)
        >>> network(torch.zeros(1, 1, 32, 32, 16)).shape
        torch.Size([1, 2, 32, 32, 16])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"the network is {type(network).__name__}: give a module, such as monai.networks.nets.SegResNet"
        )
    names, values = ClassNames(len(class_names), class_names), LabelValues(label_values)
    if len(label_values) != len(class_names) - 1:
        raise ValueError(
            f"{len(label_values)} label values for the structures {list(class_names[1:])}: give one for each, and none "
            "for the background, which is the first class"
        )
    patch = torch.zeros(1, *map(int, image_shape), device=next(network.parameters()).device)
    _check_logits(network, names.num_classes, patch)
    if weights is not None:
        load_encoder_weights(network, weights)
    add_texts(network, names)
    network.label_values = values
    return boost(network, booster, at, example=patch, token_stride=token_stride)


def _check_logits(network: nn.Module, num_classes: int, patch: Tensor) -> None:
    """Raise ValueError unless a network returns logits of each voxel for so many classes."""
    kind, size = type(network).__name__, list(patch.shape[1:])
    try:
        with in_eval_mode(network), torch.no_grad():
            output: Any = network(patch)
    except Exception as error:  # a network refuses an input with any kind of error
        raise ValueError(
            f"this {kind} does not accept a patch of shape {size} ({str(error).splitlines()[0]}): change image_shape, "
            "such as to multiples of 32, or the network"
        ) from error
    wanted = [1, num_classes, *patch.shape[2:]]
    shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != wanted:
        raise ValueError(
            f"this {kind} returns {shape} for a patch of shape {size}, not logits {wanted} of "
            f"{num_classes} classes: give a segmentation network with as many channels as the background and structures"
        )
