# SPDX-License-Identifier: Apache-2.0
"""Arms with a block of their own, ``ARM@BLOCK``, so that one study compares several donors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

SEPARATOR = "@"


def split_arms(words: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the names of arms, with the block's file stem instead of its path, and the block of each stem.

    Args:
        words: arms, each plain or as ``ARM@BLOCK``, where BLOCK is what ``--block`` takes.

    Raises:
        ValueError: an arm or a block without a name; two blocks with one stem.

    Example:
        >>> split_arms(["none", "random@donors/smollm2-29.safetensors"])
        (('none', 'random@smollm2-29'), {'smollm2-29': 'donors/smollm2-29.safetensors'})
    """
    names: list[str] = []
    blocks: dict[str, str] = {}
    for word in words:
        arm, separator, block = word.partition(SEPARATOR)
        if not separator:
            names.append(word)
            continue
        stem = Path(block).stem
        if not arm or not stem:
            raise ValueError(f"an arm with its own block is ARM@BLOCK, such as pretrained@a.safetensors, not {word!r}")
        if blocks.setdefault(stem, block) != block:
            raise ValueError(
                f"the blocks {blocks[stem]} and {block} would both be called {stem!r} in the results: rename one"
            )
        names.append(f"{arm}{SEPARATOR}{stem}")
    return tuple(names), blocks


def base_of(arm: str) -> str:
    """Return the name of an arm in the bundle, without its block."""
    return arm.partition(SEPARATOR)[0]


def stem_of(arm: str) -> str:
    """Return the stem of an arm's own block; empty for an arm that has the block of the study."""
    return arm.partition(SEPARATOR)[2]


def are_compared(one: str, other: str, references: Collection[str], arms: Collection[str]) -> bool:
    """Return whether two arms of a study are compared.

    One of them must be a reference, by its full name or by the name of its arm. In the second case, it has the same
    block as the other arm; if the study has no such reference, one without a block of its own is taken instead.

    Example:
        >>> arms = ("none", "random@a", "random@b", "pretrained@a", "pretrained@b")
        >>> [arm for arm in arms if are_compared("random@a", arm, ("none", "random"), arms)]
        ['none', 'pretrained@a']
    """
    return _is_reference(one, other, references, arms) or _is_reference(other, one, references, arms)


def _is_reference(reference: str, arm: str, references: Collection[str], arms: Collection[str]) -> bool:
    if reference == arm:
        return False
    if SEPARATOR in reference:
        return reference in references or (base_of(reference) in references and stem_of(reference) == stem_of(arm))
    own = f"{reference}{SEPARATOR}{stem_of(arm)}"
    return reference in references and (not stem_of(arm) or own == arm or own not in arms)
