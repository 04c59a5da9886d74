# SPDX-License-Identifier: Apache-2.0
"""Find, copy and run the bundles; running is `python -m monai.bundle run` with its mistakes caught early."""

from __future__ import annotations

import difflib
import json
import math
import numbers
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Configs of a job, in the order in which MONAI merges them; the arm's overlay comes behind the first.
JOBS = {"train": ["train.json"], "evaluate": ["train.json", "evaluate.json"], "inference": ["inference.json"]}
ARMS_FOLDER = "arms"
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
DATASETS = Path(__file__).parent / "data" / "names.json"
# What MONAI's own wrappers around a failing config item begin with; the cause below them is what went wrong.
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
# What Python says when a config item, or an option below it, has a key that its class or function does not take.
UNEXPECTED = re.compile(r"([\w.]+?)(?:\.__init__)?\(\) got an unexpected keyword argument ('\w+')")


def bundle_path(name: str | Path) -> Path:
    """The folder of a bundle: a folder as it is, or a name of one that comes with this package.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists those of the package.
    """
    package = Path(__file__).parent
    # In an installed wheel they lie inside the package, in a checkout (and so an editable install) beside it.
    for place in (Path(), package / "bundles", package.parent / "bundles"):
        if (place / name / "configs" / "metadata.json").is_file():
            return place / name
    names = sorted(file.parts[-3] for file in package.parent.glob("**/bundles/*/configs/metadata.json"))
    raise FileNotFoundError(
        f"there is no bundle {str(name)!r}: give a bundle's folder, or one of {', '.join(names) or '(none installed)'}"
    )


def copy_bundle(name: str | Path, to: Path) -> None:
    """Copy a bundle without what was trained in it.

    Raises:
        FileExistsError: ``to`` is there already.
    """
    source = bundle_path(name)
    if to.exists():
        raise FileExistsError(f"{to} is there already: give another folder, or remove it")
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("models", "eval", "__pycache__"))


def job_configs(bundle: Path, job: str, arm: str | None = None) -> list[Path]:
    """The config files of a job, with the overlay of an arm.

    Raises:
        ValueError: an unknown job or arm.
    """
    if job not in JOBS:
        raise ValueError(f"expected a job of {', '.join(JOBS)}, got {job!r}")
    first, *rest = JOBS[job]
    if arm is None:
        overlays = []
    else:
        arms = sorted(file.stem for file in (bundle / "configs" / ARMS_FOLDER).glob("*.json"))
        if arm not in arms:
            raise ValueError(f"expected an arm of {', '.join(arms)}, got {arm!r}")
        overlays = [f"{ARMS_FOLDER}/{arm}.json"]
    return [bundle / "configs" / name for name in [first, *overlays, *rest]]


def check_options(configs: list[Path], overrides: Mapping[str, Any]) -> None:
    """Refuse options that MONAI would take without a word, or refuse in words that tell nobody what to do.

    Raises:
        ValueError: a key that the configs do not have (the message names the nearest one there is); a key below
            something that has no parts; no number, or too small a one, where the configs have a number; neither True
            nor False where they have one of these; an unknown data set; broken JSON.
    """
    content = _merged(configs)
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
        if above and not isinstance(there := _value(content, above), (dict, list)):
            raise ValueError(
                f"expected {above} to be an object or a list, got {'nothing' if there is None else repr(there)} in "
                f"{', '.join(file.name for file in configs)}: leave out --{given}"
            )
        if value is not None:  # which is as good as not given, for MONAI
            _check_number(key, value, usual := _value(content, key))
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


def _merged(configs: Iterable[Path]) -> dict[str, Any]:
    """What configs say together; a key such as ``train#handlers`` stays beside ``train``, a ``+`` is done."""
    content: dict[str, Any] = {}
    for file in configs:
        for given, value in _read(file).items():
            key = given.removeprefix("+").replace("::", "#")
            if given.startswith("+"):
                there = _value(content, key)
                value = [*(there or []), *value] if isinstance(value, list) else {**(there or {}), **value}
            content[key] = value
    return content


def _read(config: Path) -> dict[str, Any]:
    """A file of a bundle's ``configs``, or ValueError with the place of the mistake in it."""
    try:
        return json.loads(config.read_text())
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"expected JSON in {config}, got a mistake at {place} ({error.msg}): correct it") from error


def _value(content: Mapping[str, Any], key: str) -> Any:
    """What merged configs have at a key such as ``train#handlers#0``; ``None`` if nothing."""
    if key in content:
        return content[key]
    above, _, last = key.rpartition("#")
    parent = _value(content, above) if above else None
    if isinstance(parent, list):
        return parent[int(last)] if last.isdecimal() and int(last) < len(parent) else None
    return parent.get(last) if isinstance(parent, dict) else None


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


def run_bundle(
    name: str | Path, job: str, arm: str | None = None, logging_file: str | bool | None = None, **overrides: Any
) -> None:
    """Run one job of a bundle, as ``python -m monai.bundle run`` would.

    Args:
        name: a bundle's folder, or the name of one that comes with this package.
        job: ``"train"``, ``"evaluate"`` or ``"inference"``.
        arm: overlay of ``configs/arms``, such as ``"none"``; ``None`` for the configs as they are.
        logging_file: as in MONAI; ``None`` is the bundle's own, ``False`` leaves logging alone.
        overrides: config keys and their values; ``bundle_root`` is by default the folder, for a bundle of the package
            the working directory.

    Raises:
        ValueError: an unknown job, arm or key (MONAI itself takes an unknown key without a word).
        Whatever went wrong below MONAI's "Failed to instantiate ..." is raised itself.
    """
    arguments = monai_arguments(name, job, arm, logging_file, **overrides)
    from monai.bundle import run as monai_run  # takes seconds to import; a misspelt option should not

    try:
        monai_run(**arguments)
    except RuntimeError as error:
        raise root_cause(error) from error


def monai_arguments(
    name: str | Path,
    job: str,
    arm: str | None = None,
    logging_file: str | bool | None = None,
    overlays: Iterable[str] = (),
    **overrides: Any,
) -> dict[str, Any]:
    """What ``monai.bundle.run`` and ``create_workflow`` take for a job of a bundle; see :func:`run_bundle`.

    ``overlays`` are configs of the bundle to put on top, such as ``"multi_gpu_inference.json"``.
    """
    bundle = bundle_path(name)
    configs = [*job_configs(bundle, job, arm), *(bundle / "configs" / overlay for overlay in overlays)]
    check_options(configs, overrides)
    _read(bundle / "configs" / "metadata.json")  # MONAI's own words for a mistake in it would not name the file
    if Path(name).is_dir():
        overrides.setdefault("bundle_root", str(bundle))
    folder = bundle / "configs"
    log: Any = str(folder / "logging.conf") if logging_file is None else logging_file
    return {
        "config_file": [str(file) for file in configs],
        "meta_file": str(folder / "metadata.json"),
        "logging_file": log,
        "workflow_type": "infer" if job == "inference" else "train",
        **overrides,
    }


def root_cause(error: BaseException) -> BaseException:
    """What went wrong below the exceptions that MONAI wraps around it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    if isinstance(error, TypeError) and (found := UNEXPECTED.match(str(error))):
        return TypeError(f"expected arguments that {found[1]} takes, got {found[2]}: leave it out, or correct its name")
    return error
