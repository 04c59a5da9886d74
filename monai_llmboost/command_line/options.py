# SPDX-License-Identifier: Apache-2.0
"""Options that commands share: the name of the bundle, and the bundle's own options `--key value`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from monai_llmboost.bundle import Rules, check_given, merged, typed_values
from monai_llmboost.bundle.options import RENAMED
from monai_llmboost.command_line.bundle_help import print_bundle_options

DEFAULT_BUNDLE = "medmnist3d_rllm_classification"
Bundle = Annotated[str, typer.Option(help="A bundle's folder, or the name of one in this package.")]
Network = Annotated[
    str | None,
    typer.Option(
        help="Another network of the bundle, such as resnet; default: its own. Or an expression for its key network, "
        "such as '$torch.compile(@network_def.to(@device))'."
    ),
]
# Values that users may give to a flag because they know it as an option of the bundle.
FLAG_VALUES = ("true", "false")


class BundleCommand(TyperCommand):
    """A command that also accepts the bundle's own options.

    Typer does not see the bundle's options, so it cannot read their values as options of the command, or the next word
    as a missing value. They are at the end of ``ctx.args``, each as ``--key=value``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the arguments into options of the command and options of the bundle."""
        if ctx.resilient_parsing:  # shell completion passes incomplete words
            return super().parse_args(ctx, args)
        ctx.meta["words"] = list(args)
        own, theirs = self._split(ctx, args)
        ctx.args = [*super().parse_args(ctx, own), *theirs]
        return ctx.args

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the command's help, and below it the options of the bundle."""
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
            own += self._take(ctx, option, word, rest, missing)
        return own, theirs

    def _take(self, ctx: Any, option: Any, word: str, rest: list[str], missing: bool) -> list[str]:
        """Return an option of the command with its value, which is taken from the rest."""
        key, equals, _ = word.partition("=")
        taken = [word]
        if option.is_flag:
            if rest and rest[0].lower() in FLAG_VALUES:
                ctx.fail(f"{key} takes no value, got {rest[0]!r}: leave it out")
            return taken
        if not equals:
            if missing:
                ctx.fail(f"{key} needs a value, got {rest[0] if rest else 'nothing'}: give one, or {key}=VALUE")
            taken.append(rest.pop(0))
        if not taken[-1].removeprefix(f"{key}=").strip() and option.default != "":
            ctx.fail(f"{key} needs a value, got an empty one: give one, or leave {key} out")
        return taken


def options_of_bundle(words: list[str], configs: Iterable[Path] = ()) -> dict[str, Any]:
    """Return the bundle's options from ``--key value`` and ``--key=value`` pairs.

    Args:
        words: the words in ``ctx.args`` of a :class:`BundleCommand`.
        configs: config files of the options; they determine which values are text, which is kept unchanged.

    Raises:
        ValueError: a word that is not an option, or a missing value.
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
    """Return ``--key value`` and ``--key=value`` pairs as typed, and all other words.

    If an option is given twice, the last value counts.

    Raises:
        ValueError: a missing value.
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
                renamed = RENAMED.get(key.removeprefix("--").removeprefix("no-"))
                advice = f"it is {renamed} now" if renamed else "give the value"
                raise ValueError(f"expected options of the bundle as --key value, got {got}: {advice}")
            value = rest.pop(0)
        name = key.removeprefix("--")
        if (
            "#" not in name and "::" not in name
        ):  # keys of configs have underscores, as options of commands have hyphens
            name = name.replace("-", "_")
        for earlier in [known for known in options if known.replace("::", "#") == name.replace("::", "#")]:
            del options[earlier]  # as for the command's own options, the last one counts
        options[name] = value
    return options, others
