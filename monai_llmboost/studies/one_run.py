# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation of one run of a study, each in a separate process."""

from __future__ import annotations

from collections.abc import Iterator

from monai.data import MetaTensor
from torch import Tensor

from monai_llmboost.bundle import BundleJob, root_cause
from monai_llmboost.bundle.contract import IMAGE
from monai_llmboost.engines.progress import TrainingProgress
from monai_llmboost.studies.diagnostics import MEASURES, START, diagnose
from monai_llmboost.studies.plan import Plan, Run
from monai_llmboost.studies.run_folder import OTHER_WEIGHTS, TEST, EpochResult, Evaluated, RunFolder, Trained
from monai_llmboost.tasks.task import TrainingDiverged


def train(plan: Plan, run: Run, folder: RunFolder, until: int | None = None, *, metric: str) -> None:
    """Train a run, or resume it if it was interrupted or paused.

    Divergence is recorded as well, because a repeated training would diverge again.

    Args:
        plan: the study.
        run: the run to train.
        folder: folder of the run.
        until: the epoch after which to pause; ``None`` trains all epochs. The schedule of the learning rate is that of
            all epochs in either case.
        metric: key of the metric that validation chooses by, a column of the learning curves such as ``"val_auc"``.
    """
    arguments = plan.arguments(run, "train", folder.path, resume=folder.checkpoint.is_file())
    try:
        job = BundleJob.open(arguments)
        if until is not None:
            job.trainer.state.max_epochs = until
        job.run()
        job.finalize()
    except (RuntimeError, ValueError) as error:
        cause = root_cause(error)
        if isinstance(cause, TrainingDiverged):
            folder.write_diverged(str(cause))
        raise
    progress = TrainingProgress.read(folder.checkpoint)
    epoch = progress.epoch
    # A paused training may have no validation yet that is a number.
    best = EpochResult(progress.best_epoch, progress.best_value if progress.best_epoch else None)
    # Use only the last epoch's own validation; it has none if val_interval does not divide it.
    validation = next((row.get(metric) for row in folder.curves() if row["epoch"] == epoch), None)
    trained = Trained(best, EpochResult(epoch, validation))
    if until is None or epoch < until:  # stopped before by its patience
        folder.write_trained(trained)
    else:
        folder.write_paused(until, trained)


def evaluate(plan: Plan, run: Run, folder: RunFolder) -> None:
    """Predict the test split with the weights that the plan uses, and with the other weights."""
    diagnostics = None
    for place, weights in ((TEST, plan.weights), (OTHER_WEIGHTS, plan.other_weights)):
        options = {"output_dir": str(folder.path / place), "weights": weights}
        job = BundleJob.open(plan.arguments(run, "evaluate", folder.path, **options))
        job.run()
        if place == TEST:
            diagnostics = _effect_of_booster(plan, run, folder, job)
        job.finalize()
    folder.write_evaluated(Evaluated(diagnostics))


def _effect_of_booster(plan: Plan, run: Run, folder: RunFolder, job: BundleJob) -> dict[str, float] | None:
    """Return the diagnostics of the trained network, and those of the same network before training."""
    infer = job.evaluator.inferer  # the untrained network is applied in the same way
    trained = diagnose(job.network, _images(job), infer)
    if trained is None:
        return None
    # The items of a training are created with the seed of the run; nothing is trained here.
    untrained = BundleJob.open(plan.arguments(run, "train", folder.path, resume=False)).network
    first = diagnose(untrained, _images(job), infer) or {}
    return trained | {f"{START}{name}": value for name, value in first.items() if f"{START}{name}" in MEASURES}


def _images(job: BundleJob) -> Iterator[Tensor]:
    """Yield the evaluated images of a job on the device of its network, as plain tensors."""
    for batch in job.validation_batches:
        image = batch[IMAGE].to(next(job.network.parameters()).device)
        yield image.as_tensor() if isinstance(image, MetaTensor) else image
