# SPDX-License-Identifier: Apache-2.0
"""Trained weights into the network of an evaluator, or one sentence that says why they are not its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.signature import KeptText
from monai_llmboost.artifacts.weights import load_weights
from monai_llmboost.engines.checkpoint_files import LAST, WEIGHTS
from monai_llmboost.engines.loading import load_trained
from monai_llmboost.engines.preprocessing import check_preprocessing
from monai_llmboost.engines.tracking import MlflowRuns
from monai_llmboost.engines.training_cases import check_cases
from monai_llmboost.networks.wrappers import unwrap


class TrainedWeights:
    """Loads trained weights strictly when an evaluator starts.

    MLflow handlers of the evaluator get a run of their own.

    Args:
        ckpt_dir: the folder that training wrote its checkpoints into.
        network: the network to load into.
        weights: ``"best"``, those of the epoch that validation chose (``model.pt``), or ``"last"``, those of the last
            epoch (in ``last.pt``).
        preprocessing: the transforms that prepare volumes here; ``None`` compares none. Every deterministic step that
            the checkpoint names must be there, with its settings. The window of raw values that
            ``ScaleIntensityRange`` maps is free, since it depends on their units; so are further steps that only move
            voxels.

    Raises:
        ValueError: other weights; from the run, if the file is damaged or was trained with other options, another arm,
            another block or another preprocessing, or if it was trained on some of the cases by another division into
            folds.
        FileNotFoundError: from the run, if there is no such file.

    Example:
        >>> network = torch.nn.Linear(1, 2)
        >>> handlers = [TrainedWeights("models", network)]  # of an evaluator, before those that read the network
    """

    def __init__(
        self, ckpt_dir: str | Path, network: nn.Module, weights: str = "best", preprocessing: Any = None
    ) -> None:
        check_choice("weights", weights, WEIGHTS)
        self.path = Path(ckpt_dir) / WEIGHTS[weights]
        self.network = network
        self.preprocessing = preprocessing
        self.loader: Any = None
        self.tracked = MlflowRuns(self.path.parent, "evaluate")

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        self.loader = getattr(engine, "data_loader", None)
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.STARTED, self.tracked.start)

    def load(self) -> None:
        """Load the weights."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path} is not there: train first, or give the --ckpt_dir of the training")
        state = load_weights(self.path, "Copy it again, or train again")
        if self.path.name == LAST and isinstance(state, Mapping):
            state = state.get("model")
        load_trained(self.network, state, self.path)
        kept = getattr(unwrap(self.network), "preprocessing", None)
        if self.preprocessing is not None and isinstance(kept, KeptText) and kept.text:
            check_preprocessing(kept.text, self.preprocessing, self.loader, self.path)
        cases = getattr(unwrap(self.network), "training_cases", None)
        if isinstance(cases, KeptText):
            check_cases(cases.text, self.loader, self.path)


# MonaiAlgo of MONAI's federated learning evaluates the weights that it is given; it disables handlers of this name.
TrainedCheckpointLoader = TrainedWeights
