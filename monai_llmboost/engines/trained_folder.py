# SPDX-License-Identifier: Apache-2.0
"""The network of a folder in which one was trained, before its weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_llmboost.bundle import BundleJob, Option, check_options, job_files, merged, split_network
from monai_llmboost.bundle.missing_block import MissingBlockError
from monai_llmboost.bundle.trained_options import trained_places
from monai_llmboost.precision import FLOAT32

INFERENCE = "inference"


@dataclass(frozen=True)
class OpenedFolder:
    """A trained folder whose network was created, in float32, without its trained weights.

    Args:
        network: the network on its device.
        job: the inference of the bundle, for its further items.
        ckpt_dir: folder of the weights.
        record: the description of the training in ``model.json``; empty without one.
    """

    network: nn.Module
    job: BundleJob
    ckpt_dir: Path
    record: Mapping[str, Any]

    @classmethod
    def open(
        cls, folder: Path, device: torch.device | str, arm: str | None = None, options: Mapping[str, Any] | None = None
    ) -> OpenedFolder:
        """Create the network of a bundle's folder, or of a training's ``ckpt_dir``.

        Args:
            folder: the folder.
            device: the device of the network.
            arm: the arm of the training, for a folder without ``model.json``.
            options: options of ``inference.json``; for a folder without ``model.json`` also those of the training.

        Raises:
            FileNotFoundError: there is no bundle, or its block file is gone.
            ValueError: an option contradicts ``model.json``.
        """
        bundle, ckpt_dir = trained_places(folder)
        overlay, given = split_network(bundle, {Option.CKPT_DIR: str(ckpt_dir), **(options or {})})
        files = job_files(bundle, INFERENCE, arm, overlay, given)
        check_options(files.configs, given)
        given = files.with_options_of_training(given)
        usual = {Option.BUNDLE_ROOT: str(bundle), Option.DEVICE: str(device), Option.PRECISION: FLOAT32}
        if Option.PRECISION not in merged(files.configs):  # a copy of an earlier bundle
            del usual[Option.PRECISION]
        job = BundleJob.read(files.configs, {**usual, **given})
        record = {} if files.trained is None else dict(files.trained.about)
        return cls(job.network_definition.to(device), job, Path(given[Option.CKPT_DIR]), record)

    @classmethod
    def open_teacher(
        cls, folder: Path, device: torch.device | str, options: Mapping[str, Any] | None = None
    ) -> OpenedFolder:
        """Create the network of a teacher, as :meth:`open` does.

        Raises:
            FileNotFoundError: there is no folder, or the block file of its training is gone.
            ValueError: see :meth:`open`.
        """
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no teacher at {folder}: give --teacher the folder of a training")
        try:
            return cls.open(folder, device, options=options)
        except MissingBlockError as error:  # --block is that of the student
            raise FileNotFoundError(
                f"the block file of the teacher in {folder} is no longer at {error.file}: put it back there, or link "
                f"to it; it has the fingerprint {error.fingerprint}"
            ) from error
