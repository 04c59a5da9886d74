# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share: which bundle, and whatever `--key value` the bundle itself takes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from fire.parser import DefaultParseValue

from monai_llmboost.bundle import check_given

DEFAULT_BUNDLE = "medmnist3d_rllm_classification"
Bundle = Annotated[str, typer.Option(help="A bundle's folder, or the name of one in this package.")]
# As JSON spells them; MONAI's own command would take them for text.
WORDS = {"true": True, "false": False, "null": None}


def options_of_bundle(words: list[str]) -> dict[str, Any]:
    """`--key value` and `--key=value` pairs, and nothing else."""
    options, others = parted(words)
    if others:
        raise ValueError(f"expected options of the bundle as --key value, got {others[0]!r}")
    return options


def parted(words: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`--key value` and `--key=value` pairs, and the words that are neither a key nor its value.

    Values are Python literals where they are some, as MONAI reads them.
    """
    options, others, rest = {}, [], list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            others.append(word)
            continue
        if not equals and not rest:
            raise ValueError(f"expected options of the bundle as --key value, got {key!r}")
        value = value if equals else rest.pop(0)
        options[key.removeprefix("--")] = WORDS[value] if value in WORDS else DefaultParseValue(value)
    check_given(options)
    return options, others
