# SPDX-License-Identifier: Apache-2.0
"""The identity of a run: the text of its merged config, but for an explicit list of what may change, and its code.

Two runs with the same identity do the same. It is made of the text of the config
only, never of the objects made from it, because two transforms with equal attributes may do different things.
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

# Top-level keys that may change without changing what a run does, and why. Everything else counts, used or not.
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
# Arguments of any component that decide how fast cases come, and not which.
FREE_ARGUMENTS = (
    "num_workers", "num_init_workers", "cache_rate", "cache_num", "copy_cache", "runtime_cache", "pin_memory",
    "persistent_workers", "prefetch_factor", "progress",
)  # fmt: skip
# Components that only show what happens; they come and go among the handlers.
FREE_COMPONENTS = (
    "StatsHandler", "TensorBoardStatsHandler", "TensorBoardImageHandler", "TensorBoardCurves", "LearningCurves",
    "ProgressBar", "MLFlowHandler", "ClearMLStatsHandler", "ClearMLImageHandler", "MetricLogger",
)  # fmt: skip
# The parts of a dotted name in a text of a config: of a _target_, an expression or an import.
DOTTED = re.compile(r"(?<![\w.'\"])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|(?<=import )\w+|(?<=from )[\w.]+")
OWN_PACKAGE = Path(__file__).parents[1]


def running_config() -> dict[str, Any]:
    """Return the merged config that the caller is being made from; an empty one for code without a config.

    The one place that knows how: MONAI gives a component its arguments and nothing of the config around them, whether
    it was started by ``python -m monai.bundle run``, ``create_workflow`` or MonaiAlgo. Of what a config may hold, a
    macro (``%``) copies parts of the config, but they would be made a second time, and expressions see finished items
    only. So the parser is looked up among the callers.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None and not isinstance(frame.f_locals.get("self"), ConfigParser):
        frame = frame.f_back
    config = {} if frame is None else frame.f_locals["self"].config
    return dict(config) if isinstance(config, Mapping) else {}


@dataclass(frozen=True)
class RunConfig:
    """What counts of a config.

    Args:
        values: plain JSON values by option, such as ``"network_def#dropout_rate"``. Their order counts, for transforms
            and handlers are made in the order of their names in a config; keys of the config and arguments of a
            component, whose order means nothing, are sorted.
        objects: types of objects of Python by option; they cannot be compared.
    """

    values: dict[str, Any] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)


def counting_config(config: Mapping[str, Any], free: Collection[str] = ()) -> RunConfig:
    """Return what counts of a merged config.

    Args:
        config: of :func:`running_config`.
        free: top-level keys that do not count, besides :data:`FREE`.
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
    """Yield the values that have no parts, by their places."""
    if isinstance(value, Mapping) and value:
        items: Iterable = value.items() if name and "_target_" not in value else sorted(value.items(), key=_name)
        parts = {str(key): part for key, part in items if key not in FREE_ARGUMENTS and not _only_shows(part)}
    elif isinstance(value, (list, tuple)) and value:
        parts = {str(number): part for number, part in enumerate(part for part in value if not _only_shows(part))}
    else:
        yield name, value
        return
    for key, part in parts.items():
        yield from _leaves(part, f"{name}#{key}" if name else key)


def _name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _only_shows(component: Any) -> bool:
    target = component.get("_target_") if isinstance(component, Mapping) else None
    return isinstance(target, str) and target.rpartition(".")[2] in FREE_COMPONENTS


def as_plain(value: Any) -> Any:
    """Return a value of a config, or of Python, as a plain JSON value that says all of it.

    Raises:
        TypeError: an object that no text describes in full.
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
    """Return digests of the source files that a config names, and of those they import, outside installed packages.

    Args:
        config: a merged config.
        folder: of the bundle, where its ``scripts`` are found though Python does not look there yet.

    Returns:
        Digests by the name of the file below the folder that Python found it in, such as ``"scripts/net.py"``.
    """
    names = [found for text in _texts(config) for found in DOTTED.findall(text)]
    files: dict[Path, str] = {}
    while names:
        for file, place in _sources(names.pop(), folder):
            if file not in files:
                files[file] = str(file.relative_to(place))
                names += _imported(file)
    return {name: file_digest(file) for file, name in sorted(files.items(), key=lambda item: item[1])}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)


def _sources(name: str, folder: str | Path | None) -> Iterator[tuple[Path, Path]]:
    """Yield the source files of a module, and the folder that each was found in; none of an installed package."""
    first, *rest = name.split(".")
    if first in sys.builtin_module_names or first in sys.stdlib_module_names:
        return
    try:
        spec = find_spec(first)
    except (ImportError, ValueError):  # of a module without one, such as __main__
        spec = None
    origin, places = (None, []) if spec is None else (spec.origin, list(spec.submodule_search_locations or []))
    if spec is None and folder is not None:
        places = [str(Path(folder) / first), str(Path(folder) / f"{first}.py")]
    for place in map(Path, places or [origin or ""]):
        if not place.exists() or _is_installed(place.absolute()):
            continue
        if place.is_file():
            yield place.absolute(), place.absolute().parent
        elif (place / "__init__.py").is_file():
            yield from ((file.absolute(), place.absolute().parent) for file in sorted(place.rglob("*.py")))
        else:  # a folder of modules, which may hold anything else as well
            parts = (place.joinpath(*rest[:length]).with_suffix(".py") for length in range(1, len(rest) + 1))
            yield from ((file.absolute(), place.absolute().parent) for file in parts if file.is_file())


def _imported(file: Path) -> Iterable[str]:
    """Return the names of the modules that a source file imports."""
    try:
        nodes = list(ast.walk(ast.parse(file.read_bytes()))) if file.suffix == ".py" else []
    except (SyntaxError, ValueError):
        return []  # Python says so when it comes to it
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]


def _is_installed(path: Path) -> bool:
    return path == OWN_PACKAGE or any(path.is_relative_to(place) for place in _installed_places())


@lru_cache(maxsize=1)
def _installed_places() -> tuple[Path, ...]:
    named = sysconfig.get_paths()
    places = [named[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple(Path(place).absolute() for place in (*places, *site.getsitepackages(), site.getusersitepackages()))
