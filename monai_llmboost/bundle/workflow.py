# SPDX-License-Identifier: Apache-2.0
"""MONAI's workflow of a bundle's configs with the ``model.json`` of its trained folder, for ``monai.bundle.load``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_llmboost.bundle.content import merged
from monai_llmboost.bundle.contract import MODELS, NETWORK_DEF, Option
from monai_llmboost.bundle.trained import TrainedFolder


class TrainedWorkflow(ConfigWorkflow):
    """The workflow of a config whose network is the trained one, as ``models/model.json`` describes it.

    ``monai.bundle.load`` creates a bundle's network with the defaults of its configs; with this workflow it is the
    network that was trained, with any options. A bundle without ``model.json`` is used as it is.

    Args:
        config_file: config of a bundle, or several.
        options: further arguments of MONAI's ``ConfigWorkflow``.

    Example:
        >>> name = "monai_llmboost.bundle.workflow.TrainedWorkflow"
        >>> network = monai.bundle.load("mine", bundle_dir=".", workflow_name=name)  # doctest: +SKIP
    """

    def __init__(self, config_file: str | Sequence[str], **options: Any) -> None:
        files = [config_file] if isinstance(config_file, str) else list(config_file)
        bundle = Path(files[0]).parents[1]
        trained = TrainedFolder.read(bundle / MODELS)
        if trained is not None:
            trained.check_block(options)
            files.append(str(trained.file))
        usual = {Option.BUNDLE_ROOT: str(bundle)}
        if Option.PRECISION in merged(map(Path, files)):
            usual[Option.PRECISION] = "float32"  # there is no autocast around the network
        super().__init__(files, **{**usual, **options})

    def initialize(self) -> Any:
        """Prepare the configs; nothing of ``initialize`` is needed to create a network."""
        self.parser.parse(reset=True)
        self._is_initialized = True
        return self.parser[NETWORK_DEF]
