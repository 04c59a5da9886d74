# SPDX-License-Identifier: Apache-2.0
"""What a network's logits mean, kept in its checkpoint: whoever loads one gets the names it was trained with."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from monai_llmboost.llm.signature import TEXT_BYTES, decode, encode

SEPARATOR = "\n"


class ClassNames(nn.Module):
    """The names of the classes, in the order of the logits, as a buffer that a checkpoint overwrites.

    Args:
        num_classes: number of logits.
        names: their names; ``None`` is "class 0", "class 1" ...

    Raises:
        ValueError: another number of names, or names too long to keep.
    """

    code: Tensor

    def __init__(self, num_classes: int, names: Sequence[str] | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        names = [] if names is None else names
        if names and len(names) != num_classes:
            raise ValueError(f"expected {num_classes} class names, got {len(names)}: {list(names)}")
        text = SEPARATOR.join(name.replace(SEPARATOR, " ") for name in names)
        if len(text.encode()) > TEXT_BYTES:
            raise ValueError(
                f"expected class names of at most {TEXT_BYTES} bytes in all, got {len(text.encode())}: shorten them"
            )
        self.register_buffer("code", encode(text))

    def names(self) -> list[str]:
        """The names, of the checkpoint if one was loaded."""
        text = decode(self.code)
        return text.split(SEPARATOR) if text else [f"class {index}" for index in range(self.num_classes)]


def class_names_of(network: Any) -> list[str]:
    """The names of the classes that a network keeps; none for what keeps none."""
    kept = getattr(unwrap(network), "class_names", None)
    return [] if kept is None else kept.names()


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside DistributedDataParallel, or itself."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
