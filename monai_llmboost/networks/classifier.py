# SPDX-License-Identifier: Apache-2.0
"""Any network from volumes to logits as a classifier of this package: with class names, and a booster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_llmboost.networks.class_names import ClassNames, add_texts
from monai_llmboost.networks.insertion import boost
from monai_llmboost.networks.pretrained import load_encoder_weights
from monai_llmboost.networks.trial import example_of, in_eval_mode


def scan_classifier(
    network: nn.Module,
    class_names: Sequence[str],
    booster: nn.Module | Callable[[int], nn.Module] | None = None,
    at: str | None = "pooled",
    weights: str | Path | None = None,
) -> nn.Module:
    """Make a network from volumes to logits a classifier of this package, in place, and return it.

    Its checkpoints then contain the class names, the preprocessing and the division of the training cases, as those of
    :class:`monai_llmboost.networks.ResNet3D` do.

    Args:
        network: maps volumes (B, channels, S0, S1, S2) to raw logits (B, classes), such as MONAI's ``resnet10``; a
            network without a booster.
        class_names: names of the classes in the order of the logits.
        booster: maps tokens (B, N, C) to tokens (B, N, C), or a function that makes one for C channels, as in
            :func:`monai_llmboost.networks.boost`; ``None`` for the plain network.
        at: place of the booster: ``"pooled"``, ``"deepest"`` or the name of a module.
        weights: file with weights of the plain network, of its encoder or of a network with the same encoder, see
            :func:`monai_llmboost.networks.load_encoder_weights`; ``None`` for the random start.

    Raises:
        ValueError: class names that do not fit the network's logits; a network that returns anything but logits; a
            weight file that gives less than half of the network's tensors; a booster that fits no such place.
        TypeError: the network is no module.

    Example:
        >>> from functools import partial
        >>> from monai.networks.nets import resnet10
        >>> from monai_llmboost.boosters import ResidualBooster
        >>> from monai_llmboost.llm import load_block
        >>> plain = resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)
        >>> booster = partial(ResidualBooster, block=load_block("embedded"))
        >>> network = scan_classifier(plain, ["benign", "malignant"], booster)
        >>> network(torch.zeros(2, 1, 32, 32, 32)).shape, network.class_names.names()
        (torch.Size([2, 2]), ['benign', 'malignant'])
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"the network is {type(network).__name__}: give a module, such as monai.networks.nets.resnet10")
    names = ClassNames(len(class_names), class_names)
    _check_logits(network, names.num_classes)
    if weights is not None:
        load_encoder_weights(network, weights)
    add_texts(network, names)
    return boost(network, booster, at)


def _check_logits(network: nn.Module, num_classes: int) -> None:
    """Raise ValueError unless a network returns logits for so many classes, as far as a trial run shows it."""
    kind = type(network).__name__
    if isinstance(own := getattr(network, "class_names", None), ClassNames):
        _check_count(kind, own.num_classes, num_classes)
        return
    try:
        x = example_of(network)
    except ValueError:  # it takes volumes of one unusual size, so that its first batch must show it
        return
    with in_eval_mode(network), torch.no_grad():
        output: Any = network(x)
    if not isinstance(output, Tensor) or output.dim() != 2:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(
            f"this {kind} returns {shape} for a volume, not logits (1, {num_classes}): give a classification network; "
            "EncoderClassifier makes one of the encoder of a segmentation network"
        )
    _check_count(kind, output.shape[1], num_classes)


def _check_count(kind: str, logits: int, num_classes: int) -> None:
    if logits != num_classes:
        raise ValueError(
            f"this {kind} has {logits} logits for {num_classes} class names: give it as many classes as there are names"
        )
