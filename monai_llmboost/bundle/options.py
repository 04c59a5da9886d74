# SPDX-License-Identifier: Apache-2.0
"""Checks of a bundle's options against its ``configs/options.json``, before slow imports.

An entry of that file is a line of help, or an object with ``help`` and the rules of the option: ``kind`` (whole,
number, switch or text; by default the kind of the value in the configs), ``least``, ``most``, ``above``, ``choices``,
``at_most`` and ``below`` (another option), ``none`` (may be left empty), ``length`` (a list of so many numbers).
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from monai_llmboost.arguments import check_choice, check_switch, check_whole, is_whole
from monai_llmboost.bundle.content import check_place, merged, read_config, set_at, value_at
from monai_llmboost.bundle.contract import DESCRIPTIONS, METADATA, NETWORKS, PLAN, PLAN_DESCRIPTION, STUDIES
from monai_llmboost.bundle.find import overlay_file
from monai_llmboost.bundle.words import is_computed

# Options of `monai.bundle run` itself, for experiment tracking.
MONAI_OPTIONS = ("tracking", "tracking_uri", "experiment_name", "run_name", "save_execute_config")
# Options of earlier versions, and what to give instead.
RENAMED = {"amp": "--precision float32, bfloat16, float16 or auto"}
WHOLE, NUMBER, SWITCH, TEXT = KINDS = ("whole", "number", "switch", "text")


@dataclass(frozen=True)
class Rule:
    """The declaration of one option; the docstring of this module describes the fields."""

    help: str = ""
    kind: str = ""
    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    at_most: str = ""
    below: str = ""
    choices: tuple[str, ...] = ()
    none: bool = False
    length: int = 0


class Rules:
    """The rules that a bundle declares for its options, by name.

    Args:
        folder: the ``configs`` of a bundle; without ``options.json`` there are no rules.

    Raises:
        ValueError: an entry with an unknown field; invalid JSON.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / DESCRIPTIONS
        declared = read_config(file) if file.is_file() else {}
        self.declared = {name: _rule(file, name, entry) for name, entry in declared.items()}

    def of(self, key: str, usual: Any) -> Rule:
        """Return the rule of an option.

        Args:
            key: key of the option.
            usual: its value in the configs, which gives the kind if none is declared.
        """
        rule = self.declared.get(key, Rule())
        return rule if rule.kind else replace(rule, kind=_kind(usual))

    @property
    def texts(self) -> frozenset[str]:
        """The options that are declared as text."""
        return frozenset(name for name, rule in self.declared.items() if rule.kind == TEXT)


def _rule(file: Path, name: str, entry: Any) -> Rule:
    if isinstance(entry, str):
        return Rule(entry)
    known = [field.name for field in fields(Rule)]
    if not isinstance(entry, Mapping) or set(entry) - set(known):
        raise ValueError(f"{name} in {file} must be a line of help or an object of {', '.join(known)}, not {entry!r}")
    rule = Rule(**{**entry, "choices": tuple(entry.get("choices", ()))})
    if rule.kind:
        check_choice(f"kind of {name} in {file}", rule.kind, KINDS)
    return rule


def _kind(usual: Any) -> str:
    if isinstance(usual, bool):
        return SWITCH
    if isinstance(usual, numbers.Real):
        return NUMBER
    return ""


def check_options(configs: list[Path], overrides: Mapping[str, Any]) -> None:
    """Refuse options that MONAI accepts silently or rejects without a helpful message.

    Raises:
        ValueError: a key that the configs do not have (the message suggests the closest one); a list entry by its
            position; a key below a value that is not an object; a value, of an option or in the configs, that the
            bundle's ``options.json`` does not allow; invalid JSON.
    """
    content = merged(configs)
    _check_plan(configs)
    rules = Rules(configs[0].parent)
    known = {*content, *MONAI_OPTIONS}
    names = ", ".join(file.name for file in configs)
    for given, value in overrides.items():
        key = given.replace("::", "#")
        first = key.partition("#")[0]
        if first not in known:
            raise ValueError(f"the bundle has no option --{first}{_instead(first, known, configs[0].parent)}")
        try:
            check_place(content, key)
        except ValueError as error:
            raise ValueError(f"--{given} changes nothing in {names}: {error}") from error
        if value is not None:  # MONAI ignores None
            check_value(key, value, rules.of(key, value_at(content, key)), f"correct --{given}")
            set_at(content, key, value)
    for key in content:
        value, rule = content[key], rules.declared.get(key, Rule())
        if value is not None:
            check_value(key, value, rule, f"correct it in {names}, or what {configs[0].parent / DESCRIPTIONS} declares")
        _check_relation(content, key, rule)


def check_early(folder: Path, options: Mapping[str, Any], overlays: Iterable[str] = ()) -> None:
    """Refuse options before slow work that does not need them, as far as they are wrong for every job of a bundle.

    Args:
        folder: the ``configs`` of the bundle.
        options: keys, with their values.
        overlays: names of overlays, which have keys of their own, as their arms do.

    Raises:
        FileNotFoundError: there is no such overlay.
        ValueError: a key that no config has, or a value that ``options.json`` does not allow.
    """
    files = [file for file in folder.rglob("*.json") if file.name not in (DESCRIPTIONS, METADATA, STUDIES)]
    for overlay in (overlay_file(folder.parent, name) for name in overlays):
        files += [overlay, *overlay.with_suffix("").glob("*.json")]
    known = {*MONAI_OPTIONS, "logging_file"}
    for file in files:
        with suppress(ValueError, OSError):  # one that is no config; a job reports those that it needs
            known |= {key.partition("#")[0] for key in read_config(file)}
    rules = Rules(folder)
    for key, value in options.items():
        if (first := key.replace("::", "#").partition("#")[0]) not in known:
            raise ValueError(f"the bundle has no option --{first}{_instead(first, known, folder)}")
        if value is not None:
            check_value(key, value, rules.declared.get(key, Rule()), f"correct --{key}")


def _check_plan(configs: Sequence[Path]) -> None:
    """Refuse a key of an edited plan that the bundle does not have."""
    for file in configs:
        if file.name != PLAN:
            continue
        known = merged(other for other in configs if other != file)
        for key in read_config(file):
            if key.partition("#")[0] not in known and key != PLAN_DESCRIPTION:
                raise ValueError(f"{file} has {key!r}, which is no option{_instead(key, known, configs[0].parent)}")


def _instead(key: str, known: Iterable[str], folder: Path) -> str:
    """Return what to give instead of an unknown option."""
    files = [file for file in sorted((folder / NETWORKS).glob("*.json")) if key in read_config(file)]
    if files:
        return f" here; it is an option of --network {' or '.join(file.stem for file in files)}"
    if key in RENAMED:
        return f": it is {RENAMED[key]} now"
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f": did you mean --{near[0]}?"
    described = Rules(folder).declared.keys() & set(known)
    return f"; it has {', '.join(sorted(described or known))}"


def check_given(options: Mapping[str, Any], configs: Iterable[Path] = ()) -> None:
    """Refuse None on a command line, which MONAI would ignore.

    Raises:
        ValueError: an option is None whose default is not.
    """
    configs = list(configs)
    if not configs or None not in options.values():
        return
    content, rules = merged(configs), Rules(configs[0].parent)
    for key, value in options.items():
        usual = value_at(content, key.replace("::", "#"))
        rule = rules.of(key, usual)
        if value is None and rule.kind in (WHOLE, NUMBER) and not rule.none:
            raise ValueError(f"--{key} must be a number, not none: leave the option out for its default")
        if value is None and usual is not None and key not in MONAI_OPTIONS:
            raise ValueError(
                f"--{key} None would change nothing, because MONAI ignores None: choose an arm without it, or write "
                "null into the configs of a copy of the bundle"
            )


def check_value(key: str, value: Any, rule: Rule, advice: str) -> None:
    """Check the value of an option; computed values, and options without a rule, are not checked.

    Raises:
        ValueError: the rule does not allow the value.
    """
    if is_computed(value):
        return
    if rule.kind == SWITCH:
        check_switch(key, value)
    elif rule.kind == WHOLE:
        check_whole(key, value, int(max(rule.least, -(2**63))), rule.most, advice)
    elif rule.kind == NUMBER:
        _check_number(key, value, rule, advice)
    if rule.choices:
        check_choice(key, value, rule.choices)
    if rule.length:
        _check_list(key, value, rule.length, advice)


def _check_list(key: str, value: Any, length: int, advice: str) -> None:
    entries = value if isinstance(value, (list, tuple)) else []
    plain = [one for one in entries if isinstance(one, numbers.Real) and not isinstance(one, bool)]
    computed = any(map(is_computed, entries))
    if len(entries) != length or (len(plain) < length and not computed):
        raise ValueError(f"{key} must be a list of {length} numbers, not {value!r}: {advice}")


def _check_number(key: str, value: Any, rule: Rule, advice: str) -> None:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not rule.least <= value <= rule.most or value <= rule.above:
        above = f" above {rule.above:g}" if rule.above > -math.inf else ""
        least = f" from {rule.least:g}" if rule.least > -math.inf else ""
        most = f" to {rule.most:g}" if rule.most < math.inf else ""
        raise ValueError(f"{key} must be a number{above or least}{most}, not {value!r}: {advice}")


def _check_relation(content: Mapping[str, Any], key: str, rule: Rule) -> None:
    """Check a number against another option that limits it, such as ``val_interval`` against ``epochs``."""
    other = rule.at_most or rule.below
    value, limit = content.get(key), content.get(other)
    if not is_whole(value) or not is_whole(limit):
        return
    if value > limit or (rule.below and value == limit):  # type: ignore[operator]
        words = "below" if rule.below else "at most"
        raise ValueError(f"{key} must be {words} {other} ({limit}), not {value}: lower --{key}, or raise --{other}")
