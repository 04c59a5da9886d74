# SPDX-License-Identifier: Apache-2.0
"""From an evaluator's batches to rows: into the journal as they come, into tables and a page at the end."""

from __future__ import annotations

import logging
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_llmboost.arguments import check_switch
from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.engines.checkpoint_files import WEIGHTS
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.inference.batches import PendingBatches
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.cases import ScanCases
from monai_llmboost.inference.dicom.objects import DicomObjects
from monai_llmboost.inference.hidden import HASHED
from monai_llmboost.inference.identifiers import identifiers, parse_columns
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.maps.saliency import SaliencyMaps
from monai_llmboost.inference.outputs import CaseOutputs
from monai_llmboost.inference.rows import Row
from monai_llmboost.inference.writers import Results, read_run, write_results
from monai_llmboost.networks.class_names import unwrap
from monai_llmboost.tasks import Classification

logger = logging.getLogger("monai_llmboost")
# What a bundle's metadata says of a network that takes images of any kind.
ANY_MODALITY = ("", "any", "n/a")
# Most memory for volumes that wait for their pictures, over all cases that a loader may have read ahead. Volumes beyond
# it are read again for their pictures.
KEPT_BYTES = 2 << 30


class Predictions:
    """Writes what an evaluator predicts for scans: each batch into the journal at once, everything else at the end.

    Into the output folder come ``predictions.csv`` and ``predictions.json`` (a row for each case: probabilities or the
    reason why there are none, warnings, seconds), ``run.json`` (what made them), ``report.html``, and on request
    ``saliency/`` and ``dicom/``. A case whose probabilities are not finite is refused.

    Args:
        output_dir: the folder; earlier files of these names are renamed, unless they are of this run and all their
            cases are there again. Maps and DICOM objects of a case replace those of an earlier run; other files are
            never touched.
        network: gives the names of its classes, those of the checkpoint it loaded.
        cases: the scans.
        batches: the part of them to be predicted.
        journal: where finished cases are kept.
        provenance: what makes the predictions, see :func:`monai_llmboost.inference.run_provenance`.
        modality: what the network was trained on, such as ``"CT"``; a DICOM scan of another modality gets a warning.
        report: write the page.
        saliency: draws maps of what the prediction rests on; None draws none.
        dicom: writes DICOM objects for scans that came as DICOM; None writes none.
        view: names of cases for the page's three-plane viewer; None takes the first predicted case if there are maps.
        weights: loads the weights that ``provenance`` names into ``network`` when the run starts, so that names and
            numbers are theirs whether or not anything is left to predict. None is a ``model.pt`` that it names.
        columns: further columns of the tables, of scans that came as DICOM: ``"study_uid"``, ``"accession_number"``.
        facts: the name of ``provenance`` in earlier copies of bundles.

    Raises:
        ValueError: a report that is neither True nor False; an unknown column, or one of cases whose names are hidden;
            from :meth:`start`, a case to view that is not there, weights that do not fit, or a folder that holds the
            names that are to be hidden; from the run, a network without loaded weights.
        FileNotFoundError: from :meth:`start`, there are no weights.

    Example:
        >>> predictions = Predictions("out", network, cases, batches, journal, provenance)  # doctest: +SKIP
        >>> predictions.start()  # doctest: +SKIP
        >>> predictions.attach(evaluator)  # doctest: +SKIP
        >>> evaluator.run()  # doctest: +SKIP
        >>> predictions.finish()  # doctest: +SKIP
        {'predicted': 3, 'refused': 1, 'skipped': 0}
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        cases: ScanCases,
        batches: PendingBatches,
        journal: Journal,
        provenance: Mapping[str, Any] | None = None,
        modality: str = "any",
        report: bool = True,
        saliency: SaliencyMaps | None = None,
        dicom: DicomObjects | None = None,
        view: Sequence[str] | str | None = None,
        weights: TrainedWeights | None = None,
        columns: Sequence[str] | str | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        check_switch("report", report)
        provenance = facts if provenance is None else provenance
        if provenance is None:
            raise ValueError("there is no provenance: give what run_provenance returns")
        self.output_dir = Path(output_dir)
        self.network = network
        self.cases = cases
        self.batches = batches
        self.journal = journal
        self.provenance = dict(provenance)
        self.modality = modality
        self.report = report
        self.view = [view] if isinstance(view, str) else view
        self.outputs = CaseOutputs(cases, self.output_dir, saliency, dicom, report, self.view)
        self.weights = weights
        self.columns = parse_columns(columns)
        if self.columns and cases.hides_names:
            raise ValueError(f"--salt hides names and {self.columns[0]} identifies a patient: leave out one of them")
        self.loaded = False
        unwrap(network).register_load_state_dict_post_hook(self._network_loaded)
        self.begun = datetime.now(timezone.utc)
        self.rows: list[Row] = []

    @property
    def counts(self) -> dict[str, int]:
        """The number of cases predicted and refused, and of files skipped."""
        refused = sum(bool(row.refused) for row in self.rows)
        return {"predicted": len(self.rows) - refused, "refused": refused, "skipped": len(self.cases.skipped)}

    def _network_loaded(self, *_: Any) -> None:
        self.loaded = True

    def start(self) -> None:
        """Load the weights, lock the output folder, and log what was found."""
        self.outputs.check_view()
        self._load()
        self._check_hidden()
        self.journal.open()
        done = f", {self.batches.num_done} of them done before" if self.batches.num_done else ""
        logger.info(
            f"{len(self.cases.scans)} scans to predict{done}, {len(self.cases.refused)} refused, "
            f"{len(self.cases.skipped)} other files"
        )

    def _load(self) -> None:
        """Load the weights that the provenance names, first of all, whatever is left to do."""
        file, digest = Path(self.provenance["weights"]["file"]), self.provenance["weights"]["sha256"]
        if self.weights is None and file.name == WEIGHTS["best"] and file.is_file():
            self.weights = TrainedWeights(file.parent, self.network)  # copies of the bundle from before it named them
        if self.weights is None:
            return
        self.weights.load()
        if digest and file == self.weights.path and file_digest(file) != digest:
            raise ValueError(f"{file} was written while it was read: run this again")

    def _check_hidden(self) -> None:
        """Refuse ``--salt`` if an earlier run wrote names into the folder."""
        if not self.cases.hides_names:
            return
        if "command" in read_run(self.output_dir) or not all(map(HASHED.fullmatch, self.journal.names())):
            raise ValueError(
                f"{self.output_dir} holds names of cases, of an earlier run without --salt: give another folder"
            )

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise ValueError(
                "no trained weights were loaded into the network, and what it predicts means nothing: give Predictions "
                'its "weights", such as "@trained_weights"'
            )

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that does not decollate, whose batches are of :class:`ScanCases`."""
        engine.add_event_handler(Events.STARTED, self._started_run)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _started_run(self, engine: Engine) -> None:
        """Share out the memory for volumes among all cases that may be read at a time."""
        loader: Any = engine.state.dataloader
        ahead = getattr(loader, "num_workers", 0) * (getattr(loader, "prefetch_factor", None) or 0)
        self.outputs.keep_volumes(KEPT_BYTES // (self.batches.batch_size * (1 + ahead)))

    def _iteration_started(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _iteration_completed(self, engine: Engine) -> None:
        self._check_loaded()
        state: Any = engine.state
        probabilities = state.output["pred"].tolist()
        unfit = getattr(getattr(engine, "inferer", None), "unfit", ())
        share = (time.perf_counter() - self._started) / len(probabilities)
        task = Classification.of(self.network)
        rows = []
        for position, values in enumerate(probabilities):
            start = time.perf_counter()
            case = Case.from_batch(state.batch, position)
            row = self._row(case, values, position not in unfit, task)
            row.seconds = round(case.seconds + share + time.perf_counter() - start, 4)
            rows.append(row)
        self.journal.append(rows)

    def _row(self, case: Case, values: list[float], fits: bool, task: Classification) -> Row:
        """Return the row of a case from the network's output, or with the reason why it is refused."""
        scan = self.cases.scans[case.index]
        row = Row.of_scan(scan)
        row.warnings, row.input_sha256 = case.warnings, case.input_sha256
        row.refused, row.refused_kind, row.may_pass = case.refused, case.refused_kind, case.may_pass
        if not row.refused and not fits:
            row.refused = "the case does not fit the memory of the device: use --device cpu"
            row.refused_kind, row.may_pass = "memory", True
        elif not row.refused and not all(map(math.isfinite, values)):
            row.refused = "the network's output is not finite: look at the scan, or train again"
            row.refused_kind = "not-finite"
        if not row.refused:
            row.answer = task.record(values)
            if scan.modality and self.modality not in ANY_MODALITY and scan.modality != self.modality:
                row.warnings.append(f"the network was made for {self.modality} images, this is {scan.modality}")
            self.outputs.make(row, case, task)
        return row

    def finish(self) -> dict[str, int]:
        """Write tables, provenance and page, on rank 0, and return :attr:`counts`."""
        idist.barrier()
        mine = {scan.name for scan in self.cases.scans}
        rows = [row for case, row in self.journal.rows().items() if case in mine]
        rows += map(Row.of_scan, self.cases.refused)
        self.rows = sorted(rows, key=lambda row: row.case)
        if idist.get_rank() == 0:
            self._write()
        self.journal.close()
        return self.counts

    def _write(self) -> None:
        self._check_loaded()
        task = Classification.of(self.network)
        run = {
            **self.provenance,
            "class_names": task.class_names,
            "cases": self.counts,
            "started": self.begun.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(timezone.utc) - self.begun).total_seconds(), 1),
        }
        if not self.cases.hides_names:
            run["command"] = shlex.join(sys.argv)
        viewers = self.outputs.complete(self.rows)
        scans = (*self.cases.scans, *self.cases.refused)
        identifying = {scan.name: identifiers(scan, self.columns) for scan in scans}
        results = Results(self.rows, self.cases.skipped, run, task, identifying, viewers)
        write_results(self.output_dir, results, self.report, self.journal.overwrite)
        logger.info(f"{self.counts['predicted']} predicted, {self.counts['refused']} refused: {self.output_dir}")
