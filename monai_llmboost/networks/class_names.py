# SPDX-License-Identifier: Apache-2.0
"""What a network's logits mean, and how its volumes were prepared, kept in its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from monai_llmboost.artifacts.signature import TEXT_BYTES, KeptText, decode
from monai_llmboost.networks.wrappers import unwrap

SEPARATOR = "\n"


class ReadText(KeptText):
    """A text that is replaced by that of a checkpoint when one is loaded.

    A text whose checksum does not fit is refused: it is damaged, or an average over networks with different ones.
    """

    what = "text"

    def read(self, code: Tensor) -> str:
        """Take over the text of a checkpoint."""
        text = decode(code)
        if text is None:
            return (
                f"the {self.what} in the checkpoint cannot be read: it is damaged, or an average over networks that "
                f"differ in their {self.what}; average networks of one kind only, or train again"
            )
        self.text = text
        return ""


class ClassNames(ReadText):
    """The names of the classes, in the order of the logits; a checkpoint replaces them.

    Args:
        num_classes: number of logits.
        names: their names; ``None`` is "class 0", "class 1" ...

    Raises:
        ValueError: names that are no texts, another number of them, the same one twice (but for line breaks), or names
            too long to keep.

    Example:
        >>> ClassNames(3).names(), ClassNames(2, ["benign", "malignant"]).names()
        (['class 0', 'class 1', 'class 2'], ['benign', 'malignant'])
    """

    what = "class names"

    def __init__(self, num_classes: int, names: Sequence[str] | None = None) -> None:
        names = [] if names is None else names
        _check_texts(names)
        if names and len(names) != num_classes:
            raise ValueError(f"{len(names)} class names {list(names)} for {num_classes} classes: give one for each")
        if len(set(map(_column, names))) < len(names):
            raise ValueError(
                f"class names {list(names)} are not all different: a table needs a column for each, named on one line"
            )
        text = SEPARATOR.join(map(on_one_line, names))
        if len(text.encode()) > TEXT_BYTES:
            raise ValueError(
                f"class names of {len(text.encode())} bytes in all are too long: shorten them to {TEXT_BYTES}"
            )
        super().__init__(text)
        self.num_classes = num_classes

    def names(self) -> list[str]:
        """Return the names, of the checkpoint if one was loaded."""
        return self.text.split(SEPARATOR) if self.text else [f"class {index}" for index in range(self.num_classes)]


class Preprocessing(ReadText):
    """The steps that prepared the volumes in training, in words, a line each; empty if they are unknown.

    Checkpoints of earlier versions hold none, and load. :class:`monai_llmboost.engines.TrainingCheckpoints` writes the
    text, :class:`monai_llmboost.engines.TrainedWeights` compares it.
    """

    what = "preprocessing"
    optional = True
    size = 2048


class TrainingCases(ReadText):
    """The division into folds that the network was trained by, such as "phantom, fold 0 of 4 by seed 0".

    Empty if it is unknown, as in checkpoints of earlier versions. What cannot be read is an average over networks
    of several divisions, and loads as :attr:`SEVERAL`. :class:`monai_llmboost.engines.TrainingCheckpoints` writes the
    text, :class:`monai_llmboost.engines.TrainedWeights` compares it.
    """

    what = "training cases"
    optional = True
    SEVERAL = "several divisions"

    def read(self, code: Tensor) -> str:
        """Take over the text of a checkpoint."""
        text = decode(code)
        self.text = self.SEVERAL if text is None else text
        return ""


def keep_text(networks: Iterable[Any], name: str, text: str | None) -> None:
    """Replace the text of this name, such as "preprocessing", in networks that keep one; ``None`` leaves theirs."""
    for network in networks:
        kept = getattr(network, name, None)
        if text is not None and isinstance(kept, KeptText):
            kept.text = text


def on_one_line(name: str) -> str:
    """Return a name as a checkpoint and a table hold it: with spaces in the place of line breaks."""
    return name.replace("\r", " ").replace("\n", " ")


def _column(name: str) -> str:
    """Return a name as the head of a table holds it, where any end of a line is a space."""
    return " ".join(on_one_line(name).splitlines())


def _check_texts(names: Sequence[str]) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        got = names if isinstance(names, str) else list(names)
        raise ValueError(f'class names {got!r} are no list of texts: write them as \'["a", "b"]\'')


def class_names_of(network: Any) -> list[str]:
    """Return the names of the classes that a network keeps; none for what keeps none."""
    kept = getattr(unwrap(network), "class_names", None)
    return [] if kept is None else kept.names()
