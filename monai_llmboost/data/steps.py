# SPDX-License-Identifier: Apache-2.0
"""Preprocessing steps that change a network's input, as text that is stored with its weights."""

from __future__ import annotations

import enum
import functools
import hashlib
import inspect
import re
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import ImageReader
from monai.transforms import (
    Compose,
    MapTransform,
    OneOf,
    Randomizable,
    RandomizableTrait,
    RandomOrder,
    SomeOf,
    Transform,
)
from monai.utils import CommonKeys

# Steps that load, convert, move or rearrange data, and do not change voxels.
NEUTRAL_STEPS = {
    "AsChannelLast", "CastToType", "CheckVolume", "ClassesToIndices", "ConcatItems", "CopyItems", "DataStats",
    "Decollate", "DeleteItems", "EnsureChannelFirst", "EnsureType", "FgBgToIndices", "FlattenSequence",
    "FlattenSubKeys", "FromMetaTensor", "Identity", "IntensityStats", "LoadImage", "LoadScans", "RemoveRepeatedChannel",
    "RepeatChannel", "SaveImage", "SelectItems", "SimulateDelay", "SplitDim", "SqueezeDim", "ToCupy", "ToDevice",
    "ToMetaTensor", "ToNumpy", "ToPIL", "ToTensor", "WarnIfUnusual",
}  # fmt: skip
# Steps of this package with the result of a step of MONAI, under whose name earlier checkpoints have them.
SAME_STEPS = {"OrientScan": "Orientation"}
# Settings of windows that depend on the units of the raw values (HU, 0 to 255 ...); the network sees the output range.
WINDOW_SETTINGS = {"ScaleIntensityRange": {"a_min", "a_max", "clip"}}
# Settings that select keys and types, and do not change voxels.
IGNORED_SETTINGS = {
    "allow_missing_keys", "dtype", "first_key", "keys", "lazy", "meta_key_postfix", "meta_keys", "output_dtype",
    "track_meta",
}  # fmt: skip
# Settings that have one value for each key in dictionary transforms.
PER_KEY_SETTINGS = {"align_corners", "anti_aliasing", "anti_aliasing_sigma", "mode", "padding_mode"}
# Keys of items that are not input of the network.
NOT_INPUT_KEYS = {CommonKeys.LABEL, CommonKeys.PRED, CommonKeys.LOSS}
GEOMETRIC_MODULES = ("monai.transforms.spatial.", "monai.transforms.croppad.")
GEOMETRIC_STEPS = {"Transpose"}
RANDOM_CHOICES = (OneOf, RandomOrder, SomeOf)
RANDOM_TYPES = (Randomizable, RandomizableTrait, *RANDOM_CHOICES)
# Random transforms of other libraries, inside MONAI's TorchVision and TorchIO.
RANDOM_NAMES = re.compile("Rand|ColorJitter|GaussianBlur|GaussianNoise|Elastic|AutoAugment|TrivialAugment|AugMix")
NO_STEPS = "no steps"
MAX_VALUES = 16
# Digest of a function's code, which depends on the version of Python.
CODE_MARK = re.compile(r"<py[\d.]+ [0-9a-f]+>")


class Step(NamedTuple):
    """A step as text, such as "ScaleIntensityRange b_max 1, b_min 0", and whether it only moves voxels.

    Example:
        >>> Step("ScaleIntensityRange b_max 1, b_min 0", geometric=False).name
        'ScaleIntensityRange'
    """

    text: str
    geometric: bool

    @property
    def name(self) -> str:
        """Return its class, without the "d" of dictionary transforms."""
        return self.text.partition(" ")[0]

    @property
    def short(self) -> str:
        """Return the name, with a digest instead of the settings."""
        return f"{self.name} #{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


def list_voxel_steps(transform: Any, random: bool = False) -> list[Step]:
    """Return the steps of a transform, or of several, that change a network's input, in their order.

    Left out are steps that load, convert types, arrange channels or choose a device, steps on labels only, and random
    steps. With ``random``, only random steps are returned.
    """
    return [
        _describe_step(each)
        for each in flatten_transforms(transform)
        if _is_random(each) == random and not _is_neutral(each)
    ]


def steps_to_text(steps: Sequence[Step], max_bytes: int) -> str:
    """Return steps as text, one per line; if it is longer than ``max_bytes``, with digests instead of settings.

    Raises:
        ValueError: the text with digests is still too long.
    """
    for text in ("\n".join(step.text for step in steps) or NO_STEPS, "\n".join(step.short for step in steps)):
        if len(text.encode()) <= max_bytes:
            return text
    raise ValueError(f"{len(steps)} preprocessing steps are too many for {max_bytes} bytes of text: join some")


def settings_to_text(value: Any) -> str:
    """Return a transform, or several, with all settings as text, also those of readers and of steps on labels."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(settings_to_text, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{name} {settings_to_text(each)}" for name, each in sorted(value.items(), key=str))
    if isinstance(value, (Transform, ImageReader)) or type(value).__module__.startswith("monai_llmboost."):
        kept = {name: each for name, each in vars(value).items() if not isinstance(each, np.random.RandomState)}
        return f"({type(value).__qualname__} {settings_to_text(kept)})"
    return _to_text(value)


def find_difference(trained: str, steps: Sequence[Step]) -> tuple[str, str] | None:
    """Return the first difference between the preprocessing of this run and of the training, or ``None``.

    All steps of the training must be present in the same order. Additional steps may only move voxels, because scans
    may first be resampled to the cubes that a training set already has.

    Args:
        trained: text of :func:`steps_to_text` for the training.
        steps: steps of this run.

    Returns:
        The step of the training and the step of this run, as text.
    """
    wanted = [] if trained == NO_STEPS else trained.split("\n")
    found = 0
    for index, step in enumerate(steps):
        if found < len(wanted) and _matches(step, wanted[found]):
            found += 1
        elif not step.geometric:
            missing = found < len(wanted) and not any(_matches(later, wanted[found]) for later in steps[index:])
            return (wanted[found] if missing else f"no {step.name} in this place"), step.text
    return None if found == len(wanted) else (wanted[found], f"no {wanted[found].partition(' ')[0]} in this place")


def list_transforms(loader: Any) -> list[Any] | None:
    """Return the transforms that a loader applies, to single items and to batches; ``None`` if it has none."""
    owners = [loader]
    while (owner := getattr(owners[-1], "dataset", None)) is not None:
        owners.append(owner)
    known = [owner.transform for owner in reversed(owners) if hasattr(owner, "transform")]
    return [each for each in known if each is not None] if known else None


def flatten_transforms(transform: Any) -> list[Any]:
    """Return the transforms in a Compose or a list one by one; random choices, such as OneOf, are not split."""
    if isinstance(transform, Compose) and not isinstance(transform, RANDOM_CHOICES):
        transform = transform.transforms
    if isinstance(transform, (list, tuple)):
        return [single for each in transform for single in flatten_transforms(each)]
    return [] if transform is None else [transform]


def _get_name(transform: Any) -> str:
    name = type(transform).__name__
    name = name.removesuffix("d") if isinstance(transform, MapTransform) else name
    return SAME_STEPS.get(name, name)


def _is_random(transform: Any) -> bool:
    inner = type(getattr(getattr(transform, "trans", transform), "trans", None)).__name__  # TorchVisiond, TorchIOd
    return isinstance(transform, RANDOM_TYPES) or bool(RANDOM_NAMES.match(inner))


def _is_neutral(transform: Any) -> bool:
    keys = set(transform.keys) if isinstance(transform, MapTransform) else set()
    return _get_name(transform) in NEUTRAL_STEPS or bool(keys and keys <= NOT_INPUT_KEYS)


def _describe_step(transform: Any) -> Step:
    name = _get_name(transform)
    settings = _list_settings(transform, _is_random(transform))
    if name == "ScaleIntensityRange":  # without both, it maps to 0 to 1
        settings = {"b_min": "0", "b_max": "1", **settings}
    kept = {key: value for key, value in sorted(settings.items()) if key not in WINDOW_SETTINGS.get(name, ())}
    text = ", ".join(f"{key} {value}" for key, value in kept.items())
    modules = [f"{kind.__module__}." for kind in type(transform).__mro__]
    geometric = name in GEOMETRIC_STEPS or any(module.startswith(GEOMETRIC_MODULES) for module in modules)
    return Step(f"{name} {text}".strip().replace("\n", " "), geometric)


def _list_settings(transform: Any, random: bool) -> dict[str, str]:
    """Return the settings of a transform that are not defaults, including the settings of transforms in it.

    For random transforms only constructor arguments count, because other attributes contain the last random values.
    """
    if isinstance(transform, (types.FunctionType, functools.partial)):
        return {"of": _to_text(transform)}
    defaults = _get_defaults(type(transform))
    index = _get_input_index(transform)
    inner: dict[str, str] = {}
    own: dict[str, str] = {}
    for name, value in getattr(transform, "__dict__", {}).items():
        if _is_ignored(name, value):
            continue
        if isinstance(value, Transform):
            inner |= _list_settings(value, random)  # the array transform in a dictionary transform
        elif name in defaults or not (random or value is None):
            if name in PER_KEY_SETTINGS and isinstance(value, (list, tuple)) and len(value) > index:
                value = value[index]
            text = _to_text(value)
            own[name] = "" if text == _to_text(defaults.get(name, {})) else text
    return {name: text for name, text in {**inner, **own}.items() if text}


def _is_ignored(name: str, value: Any) -> bool:
    """Return whether an attribute of a transform is internal, or a setting that does not change voxels."""
    generator = isinstance(value, (np.random.RandomState, torch.Generator))
    return name.startswith("_") or name in IGNORED_SETTINGS or generator


def _get_defaults(kind: type) -> dict[str, Any]:
    try:
        return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    except (TypeError, ValueError):
        return {}


def _get_input_index(transform: Any) -> int:
    """Return the index of the network's input among a transform's keys."""
    keys = list(getattr(transform, "keys", ())) if isinstance(transform, MapTransform) else []
    return next((index for index, key in enumerate(keys) if key not in NOT_INPUT_KEYS), 0)


def _to_text(value: Any) -> str:
    """Return a setting as text, equal for a number and a list of it, and for 1 and 1.0."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (bool, str, type(None))):
        return str(value)
    if isinstance(value, (int, float, np.generic)):
        return f"{float(value):.10g}" if np.isreal(value) else str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return _array_to_text(value)
    if isinstance(value, (list, tuple)):
        words = [_to_text(each) for each in value]
        return words[0] if len(set(words)) == 1 else f"[{', '.join(words)}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_to_text(each)}" for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return _to_text(sorted(map(_to_text, value)))
    if isinstance(value, Transform):
        return f"({_describe_step(value).text})"
    if isinstance(value, functools.partial):
        return f"{_to_text(value.func)} {_to_text(list(value.args))} {_to_text(list(value.keywords.items()))}"
    if isinstance(value, types.FunctionType):
        return _describe_function(value)
    return _object_to_text(value)


def _array_to_text(value: np.ndarray | torch.Tensor) -> str:
    """Return the values of a small array as text, and the shape and a digest of a large one."""
    array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
    if array.size > MAX_VALUES:
        return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]}"
    return _to_text(array.tolist())


def _object_to_text(value: Any) -> str:
    """Return an object's own text, or its name and plain settings if that text is a memory address."""
    shown = str(value)
    if " at 0x" not in shown:
        return shown
    name = getattr(value, "__qualname__", type(value).__qualname__)
    settings = {} if isinstance(value, (type, types.BuiltinFunctionType)) else getattr(value, "__dict__", {})
    return f"({name} {_to_text({key: each for key, each in settings.items() if _is_plain(each)})})"


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, list, tuple, np.ndarray, torch.Tensor))


def _describe_function(function: types.FunctionType) -> str:
    """Return a function's name, a digest of its names and constants, and a digest of its code."""
    code = function.__code__
    constants = [str(each) for each in code.co_consts if not isinstance(each, types.CodeType)]
    known = hashlib.sha256(str((constants, code.co_names, code.co_varnames)).encode()).hexdigest()[:8]
    mark = hashlib.sha256(code.co_code).hexdigest()[:8]
    return f"{function.__qualname__} {known} <py{sys.version_info.major}.{sys.version_info.minor} {mark}>"


def _matches(step: Step, wanted: str) -> bool:
    if wanted in (step.text, step.short):
        return True
    marks = [CODE_MARK.findall(text) for text in (step.text, wanted)]
    versions = [{mark.split()[0] for mark in each} for each in marks]
    other = versions[0] != versions[1] and all(versions)
    return other and CODE_MARK.sub("", step.text) == CODE_MARK.sub("", wanted)
