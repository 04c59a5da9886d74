# SPDX-License-Identifier: Apache-2.0
"""Run a bundle's `inference.json` on scans: check, find, predict; results are returned, and nothing is printed.

Importing this module and making a :class:`PredictJob`, which checks the options, is fast: torch and MONAI are imported
only for the search for scans.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_llmboost.bundle import BundleJob, Option, check_job_effect, monai_arguments, root_cause
from monai_llmboost.bundle.contract import MULTI_GPU
from monai_llmboost.inference.options import check_places, check_together, check_weights
from monai_llmboost.inference.status import AcceptedRefusals, Refusal, status_of

if TYPE_CHECKING:
    from monai_llmboost.data import Scan, SkippedFile
    from monai_llmboost.inference.case_search import FoundCases
    from monai_llmboost.inference.cases import ScanCases
    from monai_llmboost.inference.distributed.cluster import RayOptions
    from monai_llmboost.inference.rows import Row

JOB = "inference"


class StoppedEarly(RuntimeError):
    """A run that ended before its last scan; the predictions so far are kept."""


@dataclass(frozen=True)
class Inventory:
    """The result of a search for scans.

    Args:
        scans: scans to predict.
        refused: scans that cannot be read correctly according to their headers.
        skipped: files that are not scans.
        status: exit code of a run that predicts all ``scans``.
    """

    scans: Sequence[Scan]
    refused: Sequence[Scan]
    skipped: Sequence[SkippedFile]
    status: int


@dataclass(frozen=True)
class PredictResult:
    """The result of a run.

    Args:
        output: the folder with the files.
        rows: all cases, predicted or refused.
        counts: the number of cases ``predicted`` and ``refused``, and of files ``skipped``.
        accepted: the number of accepted refusals.
        without_viewer: cases that have no viewer because they were refused.
        weights: the file of the weights.
        figures: sentences on the performance of these weights on labelled cases.
        status: exit code: 0 if every scan was predicted or its refusal is accepted, 1 if some were refused, 2 if none
            was predicted.
    """

    output: Path
    rows: Sequence[Row]
    counts: Mapping[str, int]
    accepted: int
    without_viewer: Sequence[str]
    weights: str
    figures: Sequence[str]
    status: int


class PredictJob:
    """Predicts scans with a bundle.

    Under ``torchrun`` each process predicts a part of the scans, and the first process writes the results of all.

    Args:
        bundle: a bundle's folder, or the name of a bundle of this package.
        output: the output folder; an interrupted run is resumed there. None only searches for scans.
        arm: the arm that was trained.
        accepted: refusals that do not change the exit code.
        only_find: only search for scans, without weights and output.
        ray: share the scans over a Ray cluster; ``None`` predicts them in this process.
        options: keys of ``inference.json``, such as ``dataset_dir`` and ``batch_size``.

    Raises:
        ValueError, OSError: an unknown option, options that contradict each other, no scans at a path, no weights.

    Example:
        >>> job = PredictJob("my_bundle", Path("out"), dataset_dir=["scans"])  # doctest: +SKIP
        >>> len(job.find().scans)  # doctest: +SKIP
        12
        >>> job.run().counts  # doctest: +SKIP
        {'predicted': 12, 'refused': 0, 'skipped': 0}
    """

    def __init__(
        self,
        bundle: str | Path,
        output: Path | None,
        arm: str | None = None,
        accepted: AcceptedRefusals | None = None,
        only_find: bool = False,
        ray: RayOptions | None = None,
        **options: Any,
    ) -> None:
        self.output = output
        self.accepted = accepted or AcceptedRefusals()
        self.ray = ray
        self._only_find = only_find
        self.is_first = int(os.environ.get("RANK", "0")) == 0
        several = not only_find and int(os.environ.get("WORLD_SIZE", "1")) > 1
        overlays = [MULTI_GPU.format(JOB)] if several else []
        check_together(options)
        check_places(output or Path(), options)
        if ray is not None:
            ray.check(options.get(Option.DEVICE))
        place: dict[str, Any] = {Option.LEAVE_OUT: []} if output is None else {Option.OUTPUT_DIR: str(output)}
        self.options: dict[str, Any] = {**options, **place}
        self._arguments = monai_arguments(bundle, JOB, arm, False, overlays, **self.options)
        check_job_effect(bundle, JOB, [arm], self.options, overlays)
        if not only_find:
            check_weights(self._arguments, options)
        self.accepted.check()
        self._job: BundleJob | None = None

    def find(self) -> Inventory:
        """Search for the scans and check their headers.

        Raises:
            ValueError, OSError: no scan was found, or a case to view was not found.
        """
        with _quietly():
            cases = self._find()
        view = self.options.get(Option.VIEW) or ()
        for case in [view] if isinstance(view, str) else view:
            if case not in {scan.name for scan in cases.scans}:
                raise ValueError(f"--view {case!r} is none of the cases that were found: see the column case")
        refusals = [Refusal(scan.name, scan.refused, scan.refused_kind) for scan in cases.refused]
        status = status_of(len(cases.scans), refusals, self.accepted)
        return Inventory(cases.scans, cases.refused, cases.skipped, status)

    def run(self) -> PredictResult:
        """Predict the scans, and write tables, provenance and report.

        Raises:
            ValueError, OSError: an error before any prediction, such as no scans or weights that do not fit.
            StoppedEarly: an error after some scans were predicted.
        """
        with _quietly():
            job = self._open()
            predictions = job.predictions
            try:
                if self.ray is None:
                    job.run()
                else:
                    from monai_llmboost.inference.distributed.head import predict_on_ray

                    predict_on_ray(job, self._arguments, self.ray)
            except (OSError, RuntimeError, MemoryError) as error:
                if (stopped := _stopped_early(error, predictions.journal)) is not None:
                    raise stopped from error
                raise
            finally:
                predictions.journal.close()
            job.finalize()
        from monai_llmboost.inference.figures import sentences

        refused = {
            row.case: Refusal(row.case, row.refused, row.refused_kind) for row in predictions.rows if row.refused
        }
        refusals = list(refused.values())
        return PredictResult(
            output=predictions.output_dir,
            rows=predictions.rows,
            counts=predictions.counts,
            accepted=len(self.accepted.split(refusals)[0]),
            without_viewer=[case for case in predictions.view or () if case in refused],
            weights=predictions.provenance["weights"]["file"],
            figures=sentences(predictions.provenance.get("figures") or {}),
            status=status_of(predictions.counts["predicted"], refusals, self.accepted),
        )

    def _find(self) -> FoundCases | ScanCases:
        """Return the cases; for a dry run without MONAI, where that gives the same."""
        if self._only_find and self._job is None:
            from monai_llmboost.bundle.plain_items import NotPlainError
            from monai_llmboost.inference.quick_listing import list_cases

            try:
                return list_cases(self._arguments, self.options.keys())
            except NotPlainError:
                pass  # MONAI's parser knows
        return self._open().cases

    def _open(self) -> BundleJob:
        if self._job is None:
            self._job = BundleJob.open(self._arguments)
        return self._job


def run_predict(
    bundle: str | Path,
    output: Path,
    arm: str | None = None,
    accepted: AcceptedRefusals | None = None,
    ray: RayOptions | None = None,
    **options: Any,
) -> PredictResult:
    """Predict scans with a bundle, and write tables, provenance and report into a folder; see :class:`PredictJob`."""
    return PredictJob(bundle, output, arm, accepted, ray=ray, **options).run()


def _stopped_early(error: Exception, journal: Any) -> StoppedEarly | None:
    """Return the error for a run that can be resumed; None for other errors."""
    import torch

    cause = root_cause(error)
    if not isinstance(cause, (OSError, MemoryError, torch.OutOfMemoryError)) or not journal.is_open:
        return None
    kept = len(journal.rows())
    how = "run the same command again" + (" without --overwrite" if journal.overwrite else "")
    message = f"{str(cause) or 'there is not enough memory'}; {kept} cases are kept: {how} to resume"
    return StoppedEarly(message) if kept else None


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the usual logs and warnings of MONAI and Ignite, and raise the root cause of MONAI's exceptions."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        try:
            yield
        except StoppedEarly:
            raise
        except RuntimeError as error:
            raise root_cause(error) from error
        finally:
            logging.disable(disabled)
