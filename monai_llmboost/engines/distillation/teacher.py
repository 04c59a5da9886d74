# SPDX-License-Identifier: Apache-2.0
"""A teacher: one trained network, or the mean of several, which is read and never trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.digests import tensors_digest
from monai_llmboost.engines.distillation.last_layer import LastLayer
from monai_llmboost.engines.distillation.stage_choice import TOKENS
from monai_llmboost.engines.distillation.stages import Pass, Stages
from monai_llmboost.engines.trained_folder import OpenedFolder
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.networks.class_names import class_names_of
from monai_llmboost.networks.joints import DEEPEST

# How features of several networks are combined; the first is the default.
COMBINATIONS = ("concatenate", "mean")


class Taught(NamedTuple):
    """What a teacher makes of a batch.

    Args:
        features: the features before its last layer, (B, F) or (B, C, S0, S1, S2); (B, 0) if it is not known.
        logits: its logits, (B, classes, ...).
        stages: the features of its stages, if it has some.
    """

    features: Tensor
    logits: Tensor
    stages: tuple[Tensor, ...] = ()

    def tensors(self) -> list[Tensor]:
        """Return the features, the logits and the features of the stages."""
        return [self.features, self.logits, *self.stages]


class Teacher(nn.Module):
    """One or several trained networks as one teacher: the mean of their logits, and their features.

    It stays in evaluation mode, and its weights need no gradients.

    Args:
        networks: trained networks from volumes to logits, of one shape.
        example: volumes for a trial run, (B, channels, S0, S1, S2).
        class_names: names of the classes in the order of the logits; ``None`` for those of the first network.
        combine: how the features of several networks are combined: ``"mean"``, or ``"concatenate"`` along the axis 1,
            because the features of networks with different seeds have nothing in common.
        stages: names of modules whose features deep distillation needs too; ``"deepest"`` for those of
            :func:`monai_llmboost.engines.distillation.find_stages`; ``None`` for no stages.

    Raises:
        ValueError: no network; networks with other classes, or other features, than the first; no such stages.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> several = [resnet10(spatial_dims=3, n_input_channels=1, num_classes=2) for seed in range(2)]
        >>> taught = Teacher(several, torch.zeros(2, 1, 32, 32, 32))(torch.zeros(4, 1, 32, 32, 32))
        >>> taught.features.shape, taught.logits.shape
        (torch.Size([4, 1024]), torch.Size([4, 2]))
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        example: Tensor,
        class_names: Sequence[str] | None = None,
        combine: str = "concatenate",
        stages: Sequence[str] | str | None = None,
    ) -> None:
        super().__init__()
        check_choice("combine", combine, COMBINATIONS)
        if not networks:
            raise ValueError("a teacher of no network: give the folder of a training")
        self.networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self.class_names = class_names_of(networks[0]) if class_names is None else list(class_names)
        self.combine = combine
        self.digest = tensors_digest(self.networks.state_dict())
        self.last_layers: list[LastLayer] = []
        self.why_no_features = ""
        try:
            self.last_layers = [LastLayer(network, example) for network in networks]
        except ValueError as error:  # logits and stages can be read all the same
            self.why_no_features = str(error)
        self.stages = [] if stages is None else [Stages(each, stage_names(stages), example) for each in networks]
        with torch.no_grad():
            passes = self._run(example)
            self._check_alike([each.output for each in passes])
            self._check_stages([each.features for each in passes])

    @property
    def num_stages(self) -> int:
        """Return the number of stages."""
        return len(self.stages[0].names) if self.stages else 0

    def _run(self, x: Tensor) -> list[Pass]:
        """Run all networks."""
        return [stages.run(x) for stages in self.stages] or [Pass(network(x)) for network in self.networks]

    def _check_stages(self, features: Sequence[Sequence[Tensor]]) -> None:
        """Raise ValueError unless the features of all networks at a stage can be combined."""
        for number, several in enumerate(features):
            if len(several) != len(features[0]):
                raise ValueError(
                    f"teacher {number + 1} has {len(several)} stages, and the first {len(features[0])}: name the stages"
                )
            for stage, (one, first) in enumerate(zip(several, features[0])):
                if _without_width(one, self.combine) != _without_width(first, self.combine):
                    raise ValueError(
                        f"teacher {number + 1} has features {list(one.shape[1:])} at the stage "
                        f"{self.stages[number].names[stage]!r}, and the first {list(first.shape[1:])} at "
                        f"{self.stages[0].names[stage]!r}: give networks of one kind, or other stages"
                    )

    def _check_alike(self, logits: Sequence[Tensor]) -> None:
        features = [last.take_features() for last in self.last_layers] or [logits[0].new_zeros(1, 0)] * len(logits)
        for number, network in enumerate(self.networks):
            if class_names_of(network) not in ([], self.class_names) or logits[number].shape != logits[0].shape:
                raise ValueError(
                    f"teacher {number + 1} tells {_named(class_names_of(network), logits[number])} apart, and the "
                    f"first {_named(self.class_names, logits[0])}: give networks for one task"
                )
            if _without_width(features[number], self.combine) != _without_width(features[0], self.combine):
                advice = "concatenate them, or give networks of one kind" if self.combine == "mean" else "give one kind"
                raise ValueError(
                    f"teacher {number + 1} has features {list(features[number].shape[1:])}, and the first "
                    f"{list(features[0].shape[1:])}: {advice}"
                )

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Taught:
        """Return the features and the logits of volumes (B, channels, S0, S1, S2), both in float32."""
        passes = self._run(x)
        logits = torch.stack([each.output for each in passes]).float().mean(dim=0)
        features = [last.take_features() for last in self.last_layers] or [logits.new_zeros(len(logits), 0)]
        return Taught(
            self._combined(features), logits, tuple(map(self._combined, zip(*(each.features for each in passes))))
        )

    def _combined(self, features: Sequence[Tensor]) -> Tensor:
        several = [each.float() for each in features]
        if self.combine == "mean":
            return torch.stack(several).mean(dim=0)
        return torch.cat(several, dim=_width_axis(several[0]))


def stage_names(stages: Sequence[str] | str | None) -> list[str] | None:
    """Return names of stages, of a list or of names with commas between them; ``None`` for ``"deepest"`` or ``None``.

    Example:
        >>> stage_names("layer2, layer3"), stage_names("deepest")
        (['layer2', 'layer3'], None)
        >>> stage_names("['layer2', 'layer3']")  # a list on the command line
        ['layer2', 'layer3']
    """
    if stages is None or stages == DEEPEST:
        return None
    return [name.strip(" []'\"") for name in (stages.split(",") if isinstance(stages, str) else map(str, stages))]


def load_teacher(
    folders: str | Path | Sequence[str | Path],
    class_names: Sequence[str],
    image_shape: Sequence[int],
    device: torch.device | str = "cpu",
    loader: Any = None,
    combine: str = "concatenate",
    stages: Sequence[str] | str | None = None,
) -> Teacher:
    """Load a teacher from the folder of a training, or from several as an ensemble.

    Args:
        folders: bundles' folders in which networks were trained, or folders of checkpoints, such as of the runs of a
            study.
        class_names: the classes of the student, in the order of its logits.
        image_shape: channels and voxels along each axis of the student's input.
        device: device of the teacher.
        loader: the student's validation cases. The teacher must have been trained with their preprocessing, and with
            the same division into folds, or it would have seen them; ``None`` compares neither.
        combine: see :class:`Teacher`.
        stages: see :class:`Teacher`.

    Raises:
        FileNotFoundError: no folder, bundle, weights or block file.
        ValueError: an unknown ``combine``, or one without effect; a teacher for another task, another order of the
            classes, other volumes, another preprocessing or another division of the cases; no such stages.
    """
    several = [folders] if isinstance(folders, (str, Path)) else list(folders or ())
    if not several:
        raise ValueError("there is no teacher: give --teacher FOLDER, in which a network was trained")
    check_choice("ensemble", combine, COMBINATIONS)
    if combine != COMBINATIONS[0] and len(several) < 2:
        raise ValueError(f"ensemble {combine!r} is for several teachers: leave it out, or give more folders")
    example = torch.zeros(1, *image_shape, device=device)
    networks = []
    with torch.random.fork_rng():  # the student starts with the same weights with any teacher
        for folder in map(Path, several):
            networks.append(_trained(folder, list(class_names), device, loader))
            _check_input(folder, networks[-1], example)
    return Teacher(networks, example, class_names, combine, stages)


def _trained(folder: Path, class_names: list[str], device: torch.device | str, loader: Any) -> nn.Module:
    opened = OpenedFolder.open_teacher(folder, device)
    _check_task(folder, class_names_of(opened.network), class_names)  # other structures are another list, too
    weights = TrainedWeights(opened.ckpt_dir, opened.network, preprocessing=loader)
    weights.loader = loader
    weights.load()
    _check_task(folder, class_names_of(opened.network), class_names)
    return opened.network


def _check_task(folder: Path, own: Sequence[str], wanted: Sequence[str]) -> None:
    if own and list(own) != list(wanted):
        order = " in another order" if sorted(own) == sorted(wanted) else ""
        raise ValueError(
            f"the teacher in {folder} tells {', '.join(own)} apart, and the student {', '.join(wanted)}{order}: train "
            "the teacher for the classes of the student"
        )


def _check_input(folder: Path, network: nn.Module, example: Tensor) -> None:
    try:
        with torch.no_grad():
            network.eval()(example)
    except Exception as error:  # a network refuses an input with any kind of error
        raise ValueError(
            f"the teacher in {folder} does not take the volumes of the student, {list(example.shape[1:])} ({error}): "
            "train both on volumes of one size"
        ) from error


def _named(names: Sequence[str], logits: Tensor) -> str:
    return ", ".join(names) or f"{logits.shape[1]} classes"


def _width_axis(features: Tensor) -> int:
    """Return the axis of the features: the last one of tokens (B, N, C), and the axis 1 otherwise."""
    return 2 if features.dim() == TOKENS else 1


def _without_width(features: Tensor, combine: str) -> list[int]:
    """Return the shape that features must share with others, to be combined with them."""
    shape = list(features.shape)
    return shape if combine == "mean" else [size for axis, size in enumerate(shape) if axis != _width_axis(features)]
