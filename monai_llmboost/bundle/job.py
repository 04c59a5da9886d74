# SPDX-License-Identifier: Apache-2.0
"""Typed accessors of the config items that our code reads; an error names a missing item.

This module imports fast: MONAI and torch are imported when a job is opened.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_llmboost.bundle.content import merged
from monai_llmboost.bundle.contract import METADATA, Option
from monai_llmboost.bundle.errors import root_cause
from monai_llmboost.bundle.options import Rules
from monai_llmboost.bundle.words import config_values

if TYPE_CHECKING:
    import torch
    from monai.bundle import ConfigParser
    from torch import nn


# What the commands read of a job; each is named again by the accessor that reads it.
PREDICT_KEYS = ("cases", "predictions", "network_def")
COST_KEYS = ("network_def", Option.DEVICE, Option.BATCH_SIZE)
# Where the bundles of MONAI's model zoo have the batch size of the training.
BATCHES = "train#dataloader#batch_size"
STUDY_KEYS = ("train", "validate", "network")


def check_keys(content: Mapping[str, Any], keys: Iterable[str], reader: str, bundle: str | Path) -> None:
    """Check that a bundle has the keys that a command reads.

    Args:
        content: the merged configs of the job.
        keys: top-level keys.
        reader: the command, for the message.
        bundle: name or folder, for the message.

    Raises:
        ValueError: a key is missing.
    """
    for key in keys:
        if key not in content:
            raise ValueError(_missing(key, reader, Path(bundle).name))


def _missing(key: str, reader: str, bundle: str) -> str:
    return (
        f"the bundle {bundle} has no key {key!r}, which {reader} reads: add it to the bundle's configs, as the bundles "
        "of this package have it"
    )


class BundleJob:
    """An open job of a bundle: the items of its configs, each created when it is first read.

    Args:
        parser: the parser of the job's merged configs.
        bundle: name or folder, for messages.
        workflow: the workflow that runs the job, if there is one.

    Raises:
        ValueError: reading an item whose key the bundle does not have, or whose arguments are invalid.

    Example:
        >>> job = BundleJob.open(monai_arguments("medmnist3d_rllm_classification", "train"))  # doctest: +SKIP
        >>> job.network  # doctest: +SKIP
    """

    def __init__(self, parser: ConfigParser, bundle: str | Path, workflow: Any = None) -> None:
        self.parser = parser
        self.bundle = str(bundle)
        self.workflow = workflow

    @classmethod
    def open(cls, arguments: Mapping[str, Any]) -> BundleJob:
        """Open a job to run it, with the arguments that :func:`monai_llmboost.bundle.monai_arguments` returns."""
        from monai.bundle import create_workflow

        folder = Path(arguments["config_file"][0]).parents[1]
        _add_scripts(folder)
        workflow: Any = create_workflow(**arguments)
        return cls(workflow.parser, folder.name, workflow)

    @classmethod
    def read(cls, configs: Sequence[Path], options: Mapping[str, Any]) -> BundleJob:
        """Read the configs of a job to use its items without running it; ``options`` override the configs."""
        from monai.bundle import ConfigParser

        _add_scripts(configs[0].parents[1])
        parser = ConfigParser()
        parser.read_meta(str(configs[0].parent / METADATA))
        parser.read_config([str(file) for file in configs])
        parser.update(config_values(merged(configs), options, Rules(configs[0].parent).texts))
        return cls(parser, configs[0].parents[1].name)

    def run(self) -> None:
        """Run the job."""
        try:
            self.workflow.run()
        except RuntimeError as error:
            raise root_cause(error) from error

    def finalize(self) -> None:
        """End the job."""
        self.workflow.finalize()

    def __contains__(self, key: str) -> bool:
        """Return whether the configs have a key."""
        return key in self.parser

    def item(self, key: str, reader: str) -> Any:
        """Return the item at a key; it is created on first use.

        Args:
            key: such as ``"validate#evaluator"``.
            reader: the command that reads the item, for the message.

        Raises:
            ValueError: there is no such key.
        """
        if key not in self.parser:
            raise ValueError(_missing(key, reader, self.bundle))
        try:
            return self.parser.get_parsed_content(key)
        except RuntimeError as error:
            raise root_cause(error) from error

    def _optional(self, key: str, reader: str, default: Any = None) -> Any:
        return self.item(key, reader) if key in self.parser else default

    # Items of inference that the command predict reads.

    @property
    def cases(self) -> Any:
        """The scans to predict, a :class:`monai_llmboost.inference.ScanCases`."""
        return self.item("cases", "predict")

    @property
    def predictions(self) -> Any:
        """The writer of the tables, a :class:`monai_llmboost.inference.Predictions`."""
        return self.item("predictions", "predict")

    # Items of training and evaluation that the command study reads.

    @property
    def network(self) -> nn.Module:
        """The network on its device, with its wrappers."""
        return self.item("network", "study")

    @property
    def booster(self) -> nn.Module | None:
        """The booster; ``None`` for a network without one."""
        return self._optional("booster", "study")

    @property
    def trainer(self) -> Any:
        """The engine that trains."""
        return self.item("train#trainer", "study")

    @property
    def evaluator(self) -> Any:
        """The engine that validates and evaluates."""
        return self.item("validate#evaluator", "study")

    @property
    def class_names(self) -> list[str]:
        """The names of the classes in the order of the network's output."""
        return list(self.item("class_names", "study"))

    @property
    def training_data(self) -> Any:
        """The data set of the training cases."""
        return self.item("train#dataset", "study")

    @property
    def validation_data(self) -> Any:
        """The data set of the split that is validated or evaluated."""
        return self.item("validate#dataset", "study")

    @property
    def validation_batches(self) -> Any:
        """The loader of :attr:`validation_data`."""
        return self.item("validate#dataloader", "study")

    @property
    def intended_use(self) -> str:
        """The intended use in the bundle's metadata; empty if it is missing."""
        return str(self._optional("_meta_#intended_use", "study", ""))

    # Items of training that the measurement of costs reads.

    @property
    def network_definition(self) -> nn.Module:
        """The network as it was created, not yet moved to a device or wrapped."""
        return self.item("network_def", "cost")

    @property
    def device(self) -> torch.device:
        """The device of the job."""
        import torch

        return torch.device(self.item("device", "cost"))

    @property
    def batch_size(self) -> Any:
        """The number of cases in a batch: the key ``batch_size``, or the loader's (other bundles)."""
        own = Option.BATCH_SIZE in self.parser or BATCHES not in self.parser
        return self.item(Option.BATCH_SIZE if own else BATCHES, "cost")

    @property
    def amp_dtype(self) -> torch.dtype | None:
        """The dtype of mixed precision in training; ``None`` for full precision."""
        import torch

        if (dtype := self._optional(Option.COMPUTE_DTYPE, "cost")) is not None:
            return None if dtype == torch.float32 else dtype
        if not self._optional(Option.AMP, "cost", False):
            return None
        return (self._optional("train#trainer#amp_kwargs", "cost") or {}).get("dtype", torch.float16)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """The number of channels, and of voxels along each axis, of the network's input.

        Read from the key ``input_shape`` (of bundles that embed volumes first) or ``image_shape``, or from ``size`` and
        ``network_def#in_channels`` (copies of earlier bundles), or from the metadata (other bundles).
        """
        for key in ("input_shape", "image_shape"):
            if key in self.parser:
                return tuple(self.item(key, "cost"))
        if "size" in self.parser and "network_def#in_channels" in self.parser:
            size = self.item("size", "cost")
            return (self.item("network_def#in_channels", "cost"), size, size, size)
        image = self.item("_meta_#network_data_format#inputs#image", "cost")
        shape = (image["num_channels"], *image["spatial_shape"])
        if not all(isinstance(number, int) for number in shape):
            raise ValueError(
                f"the bundle {self.bundle} has no key 'image_shape', which cost reads, and its metadata leaves the "
                f"shape of an image open ({shape}): add image_shape, such as [1, 64, 64, 64]"
            )
        return shape


def _add_scripts(folder: Path) -> None:
    """Add a bundle's folder to Python's path so that its scripts can be imported; MONAI does so only in a run."""
    if str(folder) not in sys.path:
        sys.path.insert(1, str(folder))
