# SPDX-License-Identifier: Apache-2.0
"""Texts in a network's checkpoint: class names, preprocessing, and the division of the training cases."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from monai_llmboost.arguments import check_whole
from monai_llmboost.artifacts.signature import TEXT_BYTES, KeptText, decode
from monai_llmboost.networks.wrappers import unwrap

SEPARATOR = "\n"


class ReadText(KeptText):
    """A text in a network that loading a checkpoint replaces.

    A text with a wrong checksum is refused: it is damaged, or an average over networks with different texts.
    """

    what = "text"

    def read(self, code: Tensor) -> str:
        """Use the text of a checkpoint; return an error message, or an empty text."""
        text = decode(code)
        if text is None:
            return (
                f"the {self.what} in the checkpoint cannot be read: it is damaged, or an average over networks that "
                f"differ in their {self.what}; average networks of one kind only, or train again"
            )
        self.text = text
        return ""


class ClassNames(ReadText):
    """The names of the classes, in the order of the logits; loading a checkpoint replaces them.

    Args:
        num_classes: number of logits.
        names: names of the classes; ``None`` is "class 0", "class 1" ...

    Raises:
        ValueError: names that are not texts, a wrong number of names, duplicates (line breaks count as spaces), or
            names that are too long.

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
        """Return the names, from the checkpoint if one was loaded."""
        return self.text.split(SEPARATOR) if self.text else [f"class {index}" for index in range(self.num_classes)]


class LabelValues(ReadText):
    """The value of each structure in label maps, in the order of the logits after the background.

    Args:
        values: different whole numbers from 1.

    Raises:
        ValueError: other values.

    Example:
        >>> LabelValues([1, 4]).values()
        [1, 4]
    """

    what = "label values"
    size = 2048

    def __init__(self, values: Sequence[int]) -> None:
        for value in values:
            check_whole("each label value", value, 1, 2**16 - 1)
        if len({*values}) < len(values):
            raise ValueError(f"the label values {list(values)} are not all different: give each structure its own")
        super().__init__(SEPARATOR.join(map(str, values)))

    def values(self) -> list[int]:
        """Return the values, from the checkpoint if one was loaded."""
        return [int(text) for text in self.text.split(SEPARATOR)]


class Preprocessing(ReadText):
    """The preprocessing steps of the training as text, one per line; empty if unknown.

    Checkpoints of earlier versions do not contain this text, and still load.
    :class:`monai_llmboost.engines.TrainingCheckpoints` writes the text, and
    :class:`monai_llmboost.engines.TrainedWeights` compares it.
    """

    what = "preprocessing"
    optional = True
    size = 2048


class TrainingCases(ReadText):
    """The division into folds of the training, such as "phantom, fold 0 of 4 by seed 0".

    It is empty if unknown, as in checkpoints of earlier versions. An unreadable text is an average over networks with
    different divisions, and loads as :attr:`SEVERAL`. :class:`monai_llmboost.engines.TrainingCheckpoints` writes the
    text, and :class:`monai_llmboost.engines.TrainedWeights` compares it.
    """

    what = "training cases"
    optional = True
    SEVERAL = "several divisions"

    def read(self, code: Tensor) -> str:
        """Use the text of a checkpoint; return an empty text, because there is no error."""
        text = decode(code)
        self.text = self.SEVERAL if text is None else text
        return ""


def add_texts(network: nn.Module, class_names: ClassNames) -> None:
    """Give a network texts for its checkpoint: the class names, and empty ones for what the training writes."""
    network.class_names = class_names
    for name, text in (("preprocessing", Preprocessing()), ("training_cases", TrainingCases())):
        if not isinstance(getattr(network, name, None), KeptText):
            setattr(network, name, text)


def keep_text(networks: Iterable[Any], name: str, text: str | None) -> None:
    """Replace the text ``name``, such as "preprocessing", in networks that have it; ``None`` changes nothing."""
    for network in networks:
        kept = getattr(network, name, None)
        if text is not None and isinstance(kept, KeptText):
            kept.text = text


def on_one_line(name: str) -> str:
    """Return a name with spaces instead of line breaks, as in checkpoints and tables."""
    return name.replace("\r", " ").replace("\n", " ")


def _column(name: str) -> str:
    """Return a name as a column title, with a space for any kind of line break."""
    return " ".join(on_one_line(name).splitlines())


def _check_texts(names: Sequence[str]) -> None:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        got = names if isinstance(names, str) else list(names)
        raise ValueError(f'class names {got!r} are no list of texts: write them as \'["a", "b"]\'')


def class_names_of(network: Any) -> list[str]:
    """Return the class names of a network; an empty list if it has none."""
    kept = getattr(unwrap(network), "class_names", None)
    return [] if kept is None else kept.names()


def label_values_of(network: Any) -> list[int]:
    """Return the value of each structure in label maps, of a segmenter; an empty list for another network."""
    kept = getattr(unwrap(network), "label_values", None)
    return kept.values() if isinstance(kept, LabelValues) else []
