# SPDX-License-Identifier: Apache-2.0
"""Joints for a booster in MONAI's networks: the deepest features, and the pooled vector of a classifier.

To add a network, add a line to :data:`JOINTS` and one to the table in ``tests/networks/monai_networks.py``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

DEEPEST, POOLED = "deepest", "pooled"


@dataclass(frozen=True)
class Joint:
    """A place for a booster.

    Args:
        name: name of a module, or a pattern for several of them, of which the most deeply nested and last one counts.
        before: place the booster before the module, on its input, instead of after it.
    """

    name: str
    before: bool = False


@dataclass(frozen=True)
class NetworkJoints:
    """The joints of a kind of network; ``pooled`` is ``None`` for one without a pooled vector."""

    deepest: Joint
    pooled: Joint | None = None


# By the name of MONAI's class, or of a class that it inherits from.
JOINTS = {
    "AttentionUnet": NetworkJoints(Joint(r"model\.1(\.submodule\.1)*\.submodule")),
    "BasicUNet": NetworkJoints(Joint("down_4")),
    "DenseNet": NetworkJoints(Joint("features"), Joint("class_layers.flatten")),
    "DynUNet": NetworkJoints(Joint("bottleneck")),
    "EfficientNet": NetworkJoints(Joint("_bn1"), Joint("_avg_pooling")),
    "ResNet": NetworkJoints(Joint("layer4"), Joint("avgpool")),
    "SegResNet": NetworkJoints(Joint(r"down_layers\.\d+")),
    "SegResNetDS": NetworkJoints(Joint(r"encoder\.layers\.\d+\.blocks")),
    "SENet": NetworkJoints(Joint("layer4"), Joint("adaptive_avg_pool")),
    "SwinUNETR": NetworkJoints(Joint("encoder10")),
    "UNet": NetworkJoints(Joint(r"model\.1(\.submodule\.1)*\.submodule")),
    "UNETR": NetworkJoints(Joint("vit.norm")),
    "ViT": NetworkJoints(Joint("norm"), Joint("classification_head", before=True)),
    "VNet": NetworkJoints(Joint("down_tr256")),
}


def known_joints(network: nn.Module) -> NetworkJoints | None:
    """Return the joints of a MONAI network or a subclass of one; ``None`` for another network."""
    kinds = [kind for kind in type(network).__mro__ if kind.__module__.startswith("monai.networks.")]
    return next((JOINTS[kind.__name__] for kind in kinds if kind.__name__ in JOINTS), None)


def find_joint(network: nn.Module, names: Iterable[str], at: str | None, before: bool) -> Joint:
    """Return the joint that ``at`` names.

    Args:
        network: the network.
        names: names of its modules.
        at: name of a module; ``"deepest"`` or ``None``, and ``"pooled"``, are looked up in :data:`JOINTS`, unless the
            network itself has a module of that name.
        before: place the booster before a module that is named.

    Raises:
        ValueError: no such module, or no such joint in this network.
    """
    names = [name for name in names if name]
    if (name := DEEPEST if at is None else at) in names:
        return Joint(name, before)
    kind = type(network).__name__
    if at not in (None, DEEPEST, POOLED):
        near = difflib.get_close_matches(str(at), names, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "see network.named_modules() for the names"
        raise ValueError(f"{kind} has no module {at!r}: {hint}")
    if before:
        raise ValueError(f"before belongs to a module that at names, not to at={at!r}: leave it out, or name a module")
    joints = known_joints(network)
    if joints is None:
        raise ValueError(
            f"no joint is known for {kind} (only for {', '.join(JOINTS)}): give the name of a module, such as "
            f"at={names[-1] if names else 'layer4'!r}; see network.named_modules() for the names"
        )
    joint = joints.pooled if at == POOLED else joints.deepest
    found = [] if joint is None else [name for name in names if re.fullmatch(joint.name, name)]
    if joint is None or not found:
        # For instance a ViT without classification head, or a network without a final pooling layer.
        raise ValueError(
            f"this {kind} has no {at or DEEPEST} joint: give the name of a module"
            + (", or leave out at for the deepest features" if at == POOLED else "")
        )
    return Joint(max(found, key=lambda name: (name.count("."), names.index(name))), joint.before)
