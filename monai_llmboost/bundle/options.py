# SPDX-License-Identifier: Apache-2.0
"""Options of a bundle, checked before anything heavy is imported: their names, numbers, switches and data set."""

from __future__ import annotations

import difflib
import json
import math
import numbers
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, value_at

# What `monai.bundle run` itself takes beside a bundle's keys: experiment tracking.
MONAI_OPTIONS = ("tracking", "tracking_uri", "experiment_name", "run_name", "save_execute_config")
# The least that numbers of these names can be, and whether they are whole.
LEAST = {"epochs": 1, "batch_size": 1, "val_interval": 1, "learning_rate": 0.0, "weight_decay": 0.0}
# Further whole numbers, of which a bundle may also compute a default.
COUNTS = {
    "warmup_epochs": 0, "patience": 0, "seed": 0, "block_seed": 0, "folds": 0, "fold": 0, "size": 1, "patch_size": 1,
    "hidden_size": 1, "mlp_dim": 1, "num_layers": 1, "num_heads": 1, "stem_channels": 0, "lora_rank": 1,
    "num_workers": 0, "volume": 0, "min_slices": 1,
}  # fmt: skip
# Truth values of which a bundle may compute a default.
SWITCHES = ("amp",)
# Numbers that must be above their least.
ABOVE = ("learning_rate",)
LARGEST_SEED = 2**32 - 1
# Numbers that must stay below another: nothing would be validated, or no step would be at the full learning rate.
BELOW = {"val_interval": ("epochs", "at most"), "warmup_epochs": ("epochs", "below")}
# How a bundle of ours says what its classes are: then its key ``dataset`` is one of these names.
NAMED_SETS = {"_target_": "monai_llmboost.data.class_names", "dataset": "@dataset"}
DATASETS = Path(__file__).parents[1] / "data" / "datasets" / "names.json"


def check_options(configs: list[Path], overrides: Mapping[str, Any]) -> None:
    """Refuse options that MONAI would take without a word, or refuse in words that tell nobody what to do.

    Raises:
        ValueError: a key that the configs do not have (the message names the nearest one there is); a key below
            something that has no parts; no number, or too small a one, where the configs have a number; neither True
            nor False where they have one of these; an unknown data set; broken JSON.
    """
    content = merged(configs)
    known = {key.partition("#")[0] for key in content} | set(MONAI_OPTIONS)
    for given, value in overrides.items():
        key = given.replace("::", "#")
        first, above = key.partition("#")[0], key.rpartition("#")[0]
        if first not in known:
            near = difflib.get_close_matches(first, known, n=1)
            raise ValueError(
                f"the bundle has no option --{first}"
                + (f": did you mean --{near[0]}?" if near else f"; it has {', '.join(sorted(known))}")
            )
        if above and not isinstance(there := value_at(content, above), (dict, list)):
            raise ValueError(
                f"expected {above} to be an object or a list, got {'nothing' if there is None else repr(there)} in "
                f"{', '.join(file.name for file in configs)}: leave out --{given}"
            )
        if value is not None:  # which is as good as not given, for MONAI
            _check_number(key, value, usual := value_at(content, key))
            _check_count(key, value, usual)
            content[key] = value
    if content.get("class_names") == NAMED_SETS:
        _check_ours(content)


def check_dataset(name: Any) -> None:
    """Refuse a data set that is none of the named ones, before anything heavy is imported.

    Raises:
        ValueError: no such set; the message lists them.
    """
    names = list(json.loads(DATASETS.read_text(encoding="utf-8")))
    if name not in names:
        near = difflib.get_close_matches(str(name).lower(), names, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected dataset to be one of {', '.join(names)}, got {name!r}{hint}")


def check_given(options: Mapping[str, Any]) -> None:
    """Refuse numbers that were left empty on a command line, which MONAI takes as not given.

    Raises:
        ValueError: a number that is None.
    """
    for key, value in options.items():
        if value is None and key in {**LEAST, **COUNTS} and key != "volume":
            raise ValueError(f"expected --{key} to be a number, got none: leave the option out for its default")


def _check_number(key: str, value: Any, usual: Any) -> None:
    """Refuse what is no number, or no truth value, where the configs have one (``usual``), or one that cannot be."""
    if _is_computed(value) or value is None:
        return
    if isinstance(usual, bool) or (key in SWITCHES and _is_computed(usual)):
        if not isinstance(value, bool):  # the word "false" would be true
            raise ValueError(f"expected {key} to be True or False, got {value!r}: write it with a capital letter")
        return
    if not isinstance(usual, (int, float)):
        return
    least = LEAST.get(key)
    whole = isinstance(least, int)
    fits = isinstance(value, numbers.Integral if whole else numbers.Real) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or (least is not None and value < least):
        words = f"a {'whole ' if whole else ''}number{'' if least is None else f' from {least:g}'}"
        raise ValueError(f"expected {key} to be {words}, got {value!r}: give one, such as --{key} {usual}")
    if key in ABOVE and value == least:
        raise ValueError(f"expected {key} to be above {least:g}, got {value!r}: nothing would be trained")


def _check_count(key: str, value: Any, usual: Any) -> None:
    """Refuse what is not as :data:`COUNTS` has it, unless the configs have something else than a number there."""
    other = not (usual is None or _is_computed(usual) or isinstance(usual, numbers.Real))
    if _is_computed(value) or value is None or key not in COUNTS or other:
        return
    least, most = COUNTS[key], LARGEST_SEED if key.endswith("seed") else math.inf
    if not _is_whole(value) or not least <= value <= most:
        words = f"from {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"expected {key} to be a whole number {words}, got {value!r}: correct --{key}")


def _check_ours(content: Mapping[str, Any]) -> None:
    """Refuse what the configs of a bundle on the named sets say together, options and somebody's changes alike."""
    for key, least in {**LEAST, **COUNTS}.items():
        _check_number(key, content.get(key), least)
        _check_count(key, content.get(key), least)
    for key, (other, words) in BELOW.items():
        value: Any = content.get(key)
        limit: Any = content.get(other)
        if _is_whole(value) and _is_whole(limit) and (value > limit or (words == "below" and value == limit)):
            raise ValueError(
                f"expected {key} to be {words} {other}, got {value} and {limit}: lower --{key}, or raise --{other}"
            )
    if not _is_computed(content.get("dataset")):
        check_dataset(content.get("dataset"))


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_computed(value: Any) -> bool:
    """Whether a value is an expression or a reference of MONAI's, known only when it is evaluated."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))
