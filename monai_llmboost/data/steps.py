# SPDX-License-Identifier: Apache-2.0
"""The steps of a preprocessing that decide what a network sees, in words that travel with its weights."""

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

# Steps that read, type, move or arrange, and leave the voxels as they are.
NEUTRAL = {
    "AsChannelLast", "CastToType", "CheckVolume", "ClassesToIndices", "ConcatItems", "CopyItems", "DataStats",
    "Decollate", "DeleteItems", "EnsureChannelFirst", "EnsureType", "FgBgToIndices", "FlattenSequence",
    "FlattenSubKeys", "FromMetaTensor", "Identity", "IntensityStats", "LoadImage", "RemoveRepeatedChannel",
    "RepeatChannel", "SaveImage", "SelectItems", "SimulateDelay", "SplitDim", "SqueezeDim", "ToCupy", "ToDevice",
    "ToMetaTensor", "ToNumpy", "ToPIL", "ToTensor",
}  # fmt: skip
# The window of raw values depends on their units (HU, 0 to 255 ...): what it is mapped to is what the network sees.
WINDOW = {"ScaleIntensityRange": {"a_min", "a_max", "clip"}}
# Settings that say which items, and in which type, a step is applied to.
ASIDE = {
    "allow_missing_keys", "dtype", "first_key", "keys", "lazy", "meta_key_postfix", "meta_keys", "output_dtype",
    "track_meta",
}  # fmt: skip
# Settings of which a dictionary transform keeps one for each of its keys.
OF_KEYS = {"align_corners", "anti_aliasing", "anti_aliasing_sigma", "mode", "padding_mode"}
# Keys of items that are no input of the network.
NOT_INPUT = {CommonKeys.LABEL, CommonKeys.PRED, CommonKeys.LOSS}
GEOMETRY = ("monai.transforms.spatial.", "monai.transforms.croppad.")
GEOMETRIC = {"Transpose"}
RANDOM_CHOICES = (OneOf, RandomOrder, SomeOf)
RANDOM = (Randomizable, RandomizableTrait, *RANDOM_CHOICES)
# Random transforms of other libraries, inside MONAI's TorchVision and TorchIO.
OTHERS_RANDOM = re.compile("Rand|ColorJitter|GaussianBlur|GaussianNoise|Elastic|AutoAugment|TrivialAugment|AugMix")
NOTHING = "no steps"
MOST_VALUES = 16
# The mark of a function's code, which differs from one version of Python to the next.
CODE_MARK = re.compile(r"<py[\d.]+ [0-9a-f]+>")


class Step(NamedTuple):
    """A step in words, such as "ScaleIntensityRange b_max 1, b_min 0", and whether it only moves voxels."""

    text: str
    geometric: bool

    @property
    def name(self) -> str:
        """Its class, without the "d" of dictionary transforms."""
        return self.text.partition(" ")[0]

    @property
    def short(self) -> str:
        """The name, and a digest in the place of the settings."""
        return f"{self.name} #{hashlib.sha256(self.text.encode()).hexdigest()[:12]}"


def list_voxel_steps(transform: Any, random: bool = False) -> list[Step]:
    """Return the steps of a transform, or of several, that change what a network sees, in their order.

    Random steps are left out, or with ``random`` they are the only ones; so are those that load, type, arrange channels
    or choose a device, and those on labels alone.
    """
    return [
        _step(each) for each in flatten_transforms(transform) if _is_random(each) == random and not _is_neutral(each)
    ]


def steps_to_text(steps: Sequence[Step], room: int) -> str:
    """Return steps as text, a line each; where they are longer than ``room`` bytes, with digests of their settings.

    Raises:
        ValueError: too many steps even so.
    """
    for text in ("\n".join(step.text for step in steps) or NOTHING, "\n".join(step.short for step in steps)):
        if len(text.encode()) <= room:
            return text
    raise ValueError(f"expected steps of preprocessing that fit into {room} bytes, got {len(steps)}: join some")


def find_difference(trained: str, steps: Sequence[Step]) -> tuple[str, str] | None:
    """Return where a preprocessing differs from that of the training, or ``None``.

    Every step of the training must be there, in its order; steps beside them may only move voxels, since a data set may
    come as cubes that a scan has yet to be made.

    Args:
        trained: what :func:`steps_to_text` gave for the training.
        steps: of this run.

    Returns:
        The training's step and that of this run, in words.
    """
    wanted = [] if trained == NOTHING else trained.split("\n")
    place = 0
    for index, step in enumerate(steps):
        if place < len(wanted) and _is(step, wanted[place]):
            place += 1
        elif not step.geometric:
            missing = place < len(wanted) and not any(_is(later, wanted[place]) for later in steps[index:])
            return (wanted[place] if missing else f"no {step.name} in this place"), step.text
    return None if place == len(wanted) else (wanted[place], f"no {wanted[place].partition(' ')[0]} in this place")


def list_transforms(loader: Any) -> list[Any] | None:
    """Return the transforms that a loader applies, of single items and of whole batches; ``None`` if it keeps none."""
    owners = [loader]
    while (owner := getattr(owners[-1], "dataset", None)) is not None:
        owners.append(owner)
    known = [owner.transform for owner in reversed(owners) if hasattr(owner, "transform")]
    return [each for each in known if each is not None] if known else None


def flatten_transforms(transform: Any) -> list[Any]:
    """Return the transforms in a Compose or a list one by one; those that a random choice is made of stay together."""
    if isinstance(transform, Compose) and not isinstance(transform, RANDOM_CHOICES):
        transform = transform.transforms
    if isinstance(transform, (list, tuple)):
        return [single for each in transform for single in flatten_transforms(each)]
    return [] if transform is None else [transform]


def _name(transform: Any) -> str:
    name = type(transform).__name__
    return name.removesuffix("d") if isinstance(transform, MapTransform) else name


def _is_random(transform: Any) -> bool:
    inner = type(getattr(getattr(transform, "trans", transform), "trans", None)).__name__  # TorchVisiond, TorchIOd
    return isinstance(transform, RANDOM) or bool(OTHERS_RANDOM.match(inner))


def _is_neutral(transform: Any) -> bool:
    keys = set(transform.keys) if isinstance(transform, MapTransform) else set()
    return _name(transform) in NEUTRAL or bool(keys and keys <= NOT_INPUT)


def _step(transform: Any) -> Step:
    name = _name(transform)
    settings = _settings(transform, _is_random(transform))
    if name == "ScaleIntensityRange":  # without both it maps to 0 to 1, as with them
        settings = {"b_min": "0", "b_max": "1", **settings}
    kept = {key: value for key, value in sorted(settings.items()) if key not in WINDOW.get(name, ())}
    words = ", ".join(f"{key} {value}" for key, value in kept.items())
    modules = [f"{kind.__module__}." for kind in type(transform).__mro__]
    geometric = name in GEOMETRIC or any(module.startswith(GEOMETRY) for module in modules)
    return Step(f"{name} {words}".strip().replace("\n", " "), geometric)


def _settings(transform: Any, random: bool) -> dict[str, str]:
    """Return what a transform was made with, as far as it is not the default; those of transforms in it as well.

    Of a random one only arguments count: its other attributes hold what it drew last.
    """
    if isinstance(transform, (types.FunctionType, functools.partial)):
        return {"of": _word(transform)}
    defaults = _defaults(type(transform))
    index = _of_input(transform)
    inner: dict[str, str] = {}
    own: dict[str, str] = {}
    for name, value in getattr(transform, "__dict__", {}).items():
        if name.startswith("_") or name in ASIDE or isinstance(value, (np.random.RandomState, torch.Generator)):
            continue
        if isinstance(value, Transform):
            inner |= _settings(value, random)  # the array transform in a dictionary transform
        elif name in defaults or not (random or value is None):
            if name in OF_KEYS and isinstance(value, (list, tuple)) and len(value) > index:
                value = value[index]
            word = _word(value)
            own[name] = "" if word == _word(defaults.get(name, {})) else word
    return {name: word for name, word in {**inner, **own}.items() if word}


def _defaults(kind: type) -> dict[str, Any]:
    try:
        return {name: parameter.default for name, parameter in inspect.signature(kind).parameters.items()}
    except (TypeError, ValueError):
        return {}


def _of_input(transform: Any) -> int:
    """Return the place of the network's input among a transform's keys."""
    keys = list(getattr(transform, "keys", ())) if isinstance(transform, MapTransform) else []
    return next((place for place, key in enumerate(keys) if key not in NOT_INPUT), 0)


def _word(value: Any) -> str:
    """Return a setting in words: one number and a list of that number alike, 1 and 1.0 too."""
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, (bool, str, type(None))):
        return str(value)
    if isinstance(value, (int, float, np.generic)):
        return f"{float(value):.10g}" if np.isreal(value) else str(value)
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value.detach().cpu() if isinstance(value, torch.Tensor) else value)
        if array.size > MOST_VALUES:
            return f"{array.shape} {hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:12]}"
        return _word(array.tolist())
    if isinstance(value, (list, tuple)):
        words = [_word(each) for each in value]
        return words[0] if len(set(words)) == 1 else f"[{', '.join(words)}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_word(each)}" for key, each in value.items())
    if isinstance(value, (set, frozenset)):
        return _word(sorted(map(_word, value)))
    if isinstance(value, Transform):
        return f"({_step(value).text})"
    if isinstance(value, functools.partial):
        return f"{_word(value.func)} {_word(list(value.args))} {_word(list(value.keywords.items()))}"
    if isinstance(value, types.FunctionType):
        return _function(value)
    shown = str(value)
    if " at 0x" not in shown:
        return shown
    name = getattr(value, "__qualname__", type(value).__qualname__)
    settings = {} if isinstance(value, (type, types.BuiltinFunctionType)) else getattr(value, "__dict__", {})
    return f"({name} {_word({key: each for key, each in settings.items() if _is_plain(each)})})"


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str, list, tuple, np.ndarray, torch.Tensor))


def _function(function: types.FunctionType) -> str:
    """Return a function's name, the names and constants in it, and a mark of its code."""
    code = function.__code__
    constants = [str(each) for each in code.co_consts if not isinstance(each, types.CodeType)]
    known = hashlib.sha256(str((constants, code.co_names, code.co_varnames)).encode()).hexdigest()[:8]
    mark = hashlib.sha256(code.co_code).hexdigest()[:8]
    return f"{function.__qualname__} {known} <py{sys.version_info.major}.{sys.version_info.minor} {mark}>"


def _is(step: Step, wanted: str) -> bool:
    if wanted in (step.text, step.short):
        return True
    marks = [CODE_MARK.findall(text) for text in (step.text, wanted)]
    versions = [{mark.split()[0] for mark in each} for each in marks]
    other = versions[0] != versions[1] and all(versions)
    return other and CODE_MARK.sub("", step.text) == CODE_MARK.sub("", wanted)
