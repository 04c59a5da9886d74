# SPDX-License-Identifier: Apache-2.0
"""The study settings of a bundle in ``configs/studies.json``: its presets and floors, and unused options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from monai_llmboost.arguments import check_choice
from monai_llmboost.bundle.content import read_config
from monai_llmboost.bundle.contract import CONFIGS, PRESET_NETWORK, PRESET_TRAINING, STUDIES
from monai_llmboost.bundle.find import networks_of

WEIGHTS = ("best", "last")
# The floors of a classification.
CLASS_FLOORS = ("floor-numbers", "floor-pca", "floor-random-features")


@dataclass(frozen=True)
class Preset:
    """A folder of overlays in ``configs``: ``network.json`` for every job, ``training.json`` for training only.

    A folder in it with the name of another network, such as ``resnet``, has the same two files, which are used instead
    with ``--network resnet``.

    Args:
        network: overlays for every job, relative to ``configs``.
        training: overlays for training only.
        weights: the weights to evaluate, ``"best"`` (of the epoch that validation chose) or ``"last"``.
        networks: by name of another network, the preset for it; there is none for further networks.

    Example:
        >>> Preset(("strong/network.json",), ("strong/training.json",), "last").overlays("evaluate")
        ('strong/network.json',)
    """

    network: tuple[str, ...] = ()
    training: tuple[str, ...] = ()
    weights: str = "best"
    networks: Mapping[str, Preset] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("weights", self.weights, WEIGHTS)

    def overlays(self, job: str) -> tuple[str, ...]:
        """Return the overlays of a job."""
        return self.network + (self.training if job == "train" else ())

    def with_network(self, name: str) -> Preset:
        """Return the preset for another network, which :attr:`networks` names."""
        return replace(self.networks[name], weights=self.weights)


@dataclass(frozen=True)
class StudySettings:
    """The study settings of a bundle; a bundle without ``studies.json`` has no presets.

    Args:
        presets: by name.
        unused: by data set, the options that it does not use, such as the folder of a synthetic data set.
        floors: the floors of its studies, unless others are asked for.
    """

    presets: Mapping[str, Preset] = field(default_factory=dict)
    unused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    floors: tuple[str, ...] = CLASS_FLOORS

    @classmethod
    def of(cls, bundle: Path) -> StudySettings:
        """Read the settings of a bundle.

        Raises:
            ValueError: invalid JSON; a preset with unknown weights.
        """
        file = bundle / CONFIGS / STUDIES
        content: Mapping[str, Any] = read_config(file) if file.is_file() else {}
        presets = {name: _preset(bundle, name, given) for name, given in content.get("presets", {}).items()}
        unused = {name: tuple(options) for name, options in content.get("unused", {}).items()}
        return cls(presets, unused, tuple(content.get("floors", CLASS_FLOORS)))

    def check_used(self, options: Mapping[str, Any], datasets: Sequence[str]) -> None:
        """Refuse options that none of the data sets uses.

        Raises:
            ValueError: an option without effect.
        """
        for name, value in options.items():
            if value and datasets and all(name in self.unused.get(dataset, ()) for dataset in datasets):
                raise ValueError(
                    f"--{name} has no effect: {', '.join(datasets)} does not use it; give --dataset NAME too, or leave "
                    "it out"
                )


def _preset(bundle: Path, name: str, given: Mapping[str, str]) -> Preset:
    folder = given.get("folder", name)
    others = {network: _overlays(bundle / CONFIGS, f"{folder}/{network}") for network in networks_of(bundle)}
    own = _overlays(bundle / CONFIGS, folder)
    networks = {network: preset for network, preset in others.items() if preset.overlays("train")}
    return replace(own, weights=given.get("weights", WEIGHTS[0]), networks=networks)


def _overlays(configs: Path, folder: str) -> Preset:
    """Return the overlays that a folder has."""
    there = {
        file: (f"{folder}/{file}",) for file in (PRESET_NETWORK, PRESET_TRAINING) if (configs / folder / file).is_file()
    }
    return Preset(there.get(PRESET_NETWORK, ()), there.get(PRESET_TRAINING, ()))
