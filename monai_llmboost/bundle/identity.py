# SPDX-License-Identifier: Apache-2.0
"""The identity of a run: the text of its merged config, except for an explicit list of free keys, and its code.

Two runs with the same identity compute the same results. The identity uses the text of the config, never the objects
made from it, because two transforms with equal attributes may do different things.
"""

from __future__ import annotations

import ast
import inspect
import re
import site
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest

# Top-level keys that do not affect what a run does, and why. All other keys count, used or not.
FREE = {
    "bundle_root": "a place",
    "dataset_dir": "a place; cases are known by their own digests or by their names",
    "ckpt_dir": "a place; weights are known by their digest",
    "output_dir": "a place",
    "block": "a place; a block is known by its fingerprint",
    "download": "how files come to their place",
    "device": "where it runs; what follows from it, such as the precision, is compared by value",
    "processes": "how processes that share the work find one another",
    "is_not_rank0": "which of these processes this is",
    "finalize": "what happens after the last result is written",
    "tracking": "display", "tracking_uri": "display", "experiment_name": "display", "run_name": "display",
    "save_execute_config": "display",
    "_meta_": "describes the bundle; what decides something is given to where it does",
}  # fmt: skip
FREE_IN_TRAINING = {
    "epochs": "compared by name, as one of the options of a checkpoint",
    "resume": "how a run is started again",
    "network": "how network_def runs: on several GPUs, compiled; its weights are compared",
    "imports": "several processes or a user's own expressions need others",
}
FREE_IN_PREDICTION = {
    "batch_size": "speed and memory",
    "num_workers": "speed",
    "rank": "which of several processes this is",
    "world_size": "how many processes share the cases",
    "only": "which cases, not what is predicted for them",
    "follow_links": "which cases, not what is predicted for them",
    "salt": "a secret, which a digest would help to guess; hidden names never match others",
    "view": "display", "report": "display", "columns": "display",
    "overwrite": "what happens to earlier results",
}  # fmt: skip
# Arguments of a data set or loader that affect how fast cases are loaded, not which cases.
FREE_ARGUMENTS = (
    "num_workers", "num_init_workers", "cache_rate", "cache_num", "copy_cache", "runtime_cache", "pin_memory",
    "persistent_workers", "prefetch_factor", "progress",
)  # fmt: skip
# Components that only log or display; adding or removing one does not change a run.
FREE_COMPONENTS = (
    "StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "TensorBoardCurves", "LearningCurves",
    "ProgressBar", "MLFlowHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "MetricLogger",
)  # fmt: skip
# Dotted names in a text of a config (a _target_, an expression), modules that it imports, and those it names as text.
DOTTED = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")
IMPORTED = re.compile(r"(?:\b(?:import|from) +|, *)([A-Za-z_][\w.]*)")
BY_NAME = re.compile(r"(?:__import__|import_module)\(\s*['\"]([\w.]+)")
REFERENCE = re.compile(r"@[\w#:]+")
NAMED = (DOTTED, IMPORTED, BY_NAME)
# What makes the value of an expression depend on more than its text: the environment, files, the time, chance.
OUTSIDE = re.compile(
    r"\b(?:environ|getenv|open|load\w*|read\w*|fromfile|genfromtxt|urlopen|glob|listdir|exists|now|time|rand\w*|argv)\b"
)
OWN_PACKAGE = Path(__file__).parents[1]


def running_config() -> dict[str, Any]:
    """Return the merged config that is creating the caller; an empty config for code without a config.

    MONAI passes a component its arguments, but not the surrounding config, whether ``python -m monai.bundle run``,
    ``create_workflow`` or MonaiAlgo started it. A macro (``%``) in the config would create the copied components a
    second time, and expressions see only finished items. So this function looks up the parser in the call stack.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigParser):
        frame = frame.f_back
    config = {} if frame is None else frame.f_locals["self"].config
    return dict(config) if isinstance(config, Mapping) else {}


@dataclass(frozen=True)
class RunConfig:
    """The part of a config that counts for the identity of a run.

    Args:
        values: plain JSON values by option, such as ``"network_def#dropout_rate"``. Their order counts because
            transforms and handlers are created in the order of their names in a config; keys of the config and
            arguments of a component, whose order has no effect, are sorted.
        objects: types of Python objects by option; they cannot be compared.
    """

    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)


def counting_config(config: Mapping[str, Any], free: Collection[str] = ()) -> RunConfig:
    """Return the part of a merged config that counts for the identity of a run.

    Args:
        config: from :func:`running_config`.
        free: top-level keys that do not count, in addition to :data:`FREE`.
    """
    left_out = {*FREE, *free}
    values: dict[str, Any] = {}
    objects: dict[str, str] = {}
    for name, value in _leaves({key: value for key, value in config.items() if key not in left_out}):
        try:
            values[name] = as_plain(value)
        except TypeError:
            objects[name] = type(value).__qualname__
    return RunConfig(values, objects)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and value of each leaf of a config."""
    if isinstance(value, Mapping) and value:
        parts = _parts(value, sort=not name or "_target_" in value)
    elif isinstance(value, (list, tuple)) and value:
        parts = {str(number): part for number, part in enumerate(part for part in value if not _only_shows(part))}
    else:
        yield name, value
        return
    for key, part in parts.items():
        yield from _leaves(part, f"{name}#{key}" if name else key)


def _parts(value: Mapping[Any, Any], sort: bool) -> dict[str, Any]:
    """Return the parts of a mapping that count, by key."""
    items: Iterable = sorted(value.items(), key=_name) if sort else value.items()
    free = FREE_ARGUMENTS if _loads(value) else ()
    return {str(key): part for key, part in items if key not in free and not _only_shows(part)}


def _name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _target(component: Any) -> str:
    target = component.get("_target_") if isinstance(component, Mapping) else None
    return target if isinstance(target, str) else ""


def _loads(component: Any) -> bool:
    """Return whether a component is a data set or a loader, by its name."""
    return _target(component).endswith(("Dataset", "Loader", "LoaderBase"))


def _only_shows(component: Any) -> bool:
    """Return whether a component is one of MONAI's, Ignite's or ours that only shows what happens."""
    package, _, name = _target(component).rpartition(".")
    return name in FREE_COMPONENTS and package.partition(".")[0] in ("", "monai", "ignite", "monai_llmboost")


def as_plain(value: Any) -> Any:
    """Return a value of a config, or a Python object, as an equivalent plain JSON value.

    Raises:
        TypeError: an object that JSON cannot describe completely.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, PathLike):
        return fspath(value)
    module = type(value).__module__
    if module == "torch" and type(value).__name__ in ("device", "dtype"):
        return str(value)
    if module == "numpy" and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return as_plain(value.item())
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): as_plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_plain(part) for part in value]
    raise TypeError(f"{type(value).__qualname__} is no plain value")


def code_digests(config: Any, folder: str | Path | None = None) -> dict[str, str]:
    """Return digests of the source files that a config may use outside installed packages.

    These are all files in the ``scripts`` of the bundle, and the modules that the config or these files name, each with
    its whole package.

    Args:
        config: a merged config.
        folder: the bundle's folder.

    Returns:
        Digests by file name relative to the folder in which Python found it, such as ``"scripts/net.py"``.
    """
    names = {found for text in _texts(config) for pattern in NAMED for found in pattern.findall(text)}
    files: dict[Path, str] = {}
    if folder is not None and (scripts := Path(folder).absolute() / "scripts").is_dir():
        files.update((file, str(file.relative_to(scripts.parent))) for file in _files(scripts, "*"))
    todo = [*names, *(name for file in files for name in _imported(file))]
    known: set[str] = set()
    while todo:
        name = todo.pop()
        if name in known:
            continue
        known.add(name)
        for file, place in _sources(name):
            if file not in files:
                files[file] = str(file.relative_to(place))
                todo += _imported(file)
    return {name: file_digest(file) for file, name in sorted(files.items(), key=lambda item: item[1])}


def reads_outside(config: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, str]:
    """Return the expressions of a config whose value depends on more than its text, by key.

    Args:
        config: from :func:`running_config`.
        free: top-level keys that do not count, in addition to :data:`FREE`.
    """
    values = counting_config(config, free).values
    expressions = {key: text for key, text in values.items() if isinstance(text, str) and text.startswith("$")}
    return {key: text for key, text in expressions.items() if OUTSIDE.search(REFERENCE.sub("", text))}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Return the files below a folder, without hidden files and caches."""
    found = (file for file in folder.rglob(pattern) if file.is_file())
    parts = ((file, file.relative_to(folder).parts) for file in found)
    return sorted(file for file, names in parts if not any(name.startswith((".", "__pycache__")) for name in names))


def _sources(name: str) -> Iterator[tuple[Path, Path]]:
    """Yield the source files of a module or its package, each with the folder where Python found it.

    Installed packages have none here.
    """
    for place in (place.absolute() for place in _places(name)):
        if _is_installed(place):
            continue
        for file in [place] if place.is_file() else _files(place, "*.py"):
            yield file, place.parent


def _places(name: str) -> list[Path]:
    """Return the file or the folders of a module or its package."""
    first, *rest = name.split(".")
    if first in sys.builtin_module_names:
        return []
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):  # a module without a spec, such as __main__
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin and Path(spec.origin).is_file() else []
    places = list(map(Path, spec.submodule_search_locations))
    if spec.origin is None:  # a folder without __init__.py, which may contain anything else as well
        parts = [rest[0], f"{rest[0]}.py"] if rest else []
        places = [place / part for place in places for part in parts if (place / part).exists()]
    return places


def _imported(file: Path) -> Iterable[str]:
    """Return the names of the modules that a source file imports, also by name at run time."""
    if file.suffix != ".py":
        return []
    text = file.read_bytes()
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return []  # Python reports it when the module is imported
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return named + BY_NAME.findall(text.decode(errors="replace"))


def _is_installed(path: Path) -> bool:
    return path == OWN_PACKAGE or any(path.is_relative_to(place) for place in _installed_places())


@lru_cache(maxsize=1)
def _installed_places() -> tuple[Path, ...]:
    named = sysconfig.get_paths()
    places = [named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(place).absolute() for place in (*places, *site.getsitepackages(), site.getusersitepackages()))
