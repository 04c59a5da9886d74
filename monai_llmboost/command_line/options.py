# SPDX-License-Identifier: Apache-2.0
"""Options that verbs share: which bundle, and whatever `--key value` the bundle itself takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from monai_llmboost.bundle import Rules, check_given, merged, typed_values
from monai_llmboost.command_line.bundle_help import print_bundle_options

DEFAULT_BUNDLE = "medmnist3d_rllm_classification"
Bundle = Annotated[str, typer.Option(help="A bundle's folder, or the name of one in this package.")]
# What a flag is given by somebody who knows it as an option of the bundle.
FLAG_VALUES = ("true", "false")


class BundleCommand(TyperCommand):
    """A command whose further options are the bundle's own.

    Typer does not see the bundle's options, so that no value of theirs is taken for an option of the verb, nor a later
    word for a value that is missing. They follow the other words in ``ctx.args``, each as ``--key=value``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the arguments into those of the command and those of the bundle."""
        if ctx.resilient_parsing:  # a shell asks for completions of words that are not complete
            return super().parse_args(ctx, args)
        ctx.meta["words"] = list(args)
        own, theirs = self._split(ctx, args)
        ctx.args = [*super().parse_args(ctx, own), *theirs]
        return ctx.args

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the verb's help, and below it the options of the bundle."""
        super().format_help(ctx, formatter)
        print_bundle_options(str(ctx.info_name), ctx.meta.get("words", []), DEFAULT_BUNDLE)

    def _split(self, ctx: Any, words: Sequence[str]) -> tuple[list[str], list[str]]:
        options: dict[str, Any] = {name: option for option in self.get_params(ctx) if option.param_type_name == "option"
                   for name in (*option.opts, *option.secondary_opts)}  # fmt: skip
        own: list[str] = []
        theirs: list[str] = []
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return [*own, word, *rest], theirs
            key, equals, _ = word.partition("=")
            option = options.get(key)
            if option is None and not word.startswith("--"):
                own.append(word)
                continue
            missing = not rest or rest[0].startswith("--") or rest[0] in options
            if option is None:
                theirs.append(word if equals or missing else f"{key}={rest.pop(0)}")
                continue
            own.append(word)
            if option.is_flag:
                if rest and rest[0].lower() in FLAG_VALUES:
                    ctx.fail(f"{key} takes no value, got {rest[0]!r}: leave it out")
            elif not equals:
                if missing:
                    ctx.fail(f"{key} needs a value, got {rest[0] if rest else 'nothing'}: give one, or {key}=VALUE")
                own.append(rest.pop(0))
            if not option.is_flag and not own[-1].removeprefix(f"{key}=").strip() and option.default != "":
                ctx.fail(f"{key} needs a value, got an empty one: give one, or leave {key} out")
        return own, theirs


def options_of_bundle(words: list[str], configs: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the bundle's options from ``--key value`` and ``--key=value`` pairs, and nothing else.

    Args:
        words: as :class:`BundleCommand` leaves them in ``ctx.args``.
        configs: those that the options are for: they decide which values are text, which is kept unchanged.

    Raises:
        ValueError: a word that is no option, a value that is missing.
    """
    typed, others = split_options(words)
    if others:
        raise ValueError(f"expected options of the bundle as --key value, got {others[0]!r}")
    configs = list(configs)
    texts = Rules(configs[0].parent).texts if configs else ()
    options = typed_values(merged(configs), typed, texts)
    check_given(options, configs)
    return options


def split_options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return ``--key value`` and ``--key=value`` pairs as they were typed, and the words that are no part of one.

    Of an option that is given twice the last value counts.

    Raises:
        ValueError: a value that is missing.
    """
    options: dict[str, str] = {}
    others: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.partition("=")
        if not key.startswith("--"):
            others.append(word)
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                got = f"{key!r} and no value" if not rest else f"{key!r} and then {rest[0]!r}"
                raise ValueError(f"expected options of the bundle as --key value, got {got}: give the value")
            value = rest.pop(0)
        name = key.removeprefix("--")
        for earlier in [known for known in options if known.replace("::", "#") == name.replace("::", "#")]:
            del options[earlier]  # as with the verb's own options: the last one counts
        options[name] = value
    return options, others
