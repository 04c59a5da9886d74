# SPDX-License-Identifier: Apache-2.0
"""Handler that turns an evaluator's batches into rows of the journal, and at the end into tables and a report."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from monai_llmboost.arguments import check_switch
from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.data import Scan
from monai_llmboost.engines.checkpoint_files import WEIGHTS
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.inference.answers import Answers, ClassProbabilities
from monai_llmboost.inference.batches import PendingBatches
from monai_llmboost.inference.case import Case
from monai_llmboost.inference.cases import ScanCases
from monai_llmboost.inference.dicom.objects import CaseObjects
from monai_llmboost.inference.hidden import HASHED
from monai_llmboost.inference.identifiers import identifiers, parse_columns
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.maps.saliency import SaliencyMaps
from monai_llmboost.inference.outputs import CaseOutputs
from monai_llmboost.inference.reasons import kind_of, may_pass
from monai_llmboost.inference.rows import Row
from monai_llmboost.inference.writers import Results, read_run, write_results
from monai_llmboost.networks.class_names import unwrap

logger = logging.getLogger("monai_llmboost")
# Modality in the metadata of a bundle whose network takes images of any modality.
ANY_MODALITY = ("", "any", "n/a")
# Maximum memory for volumes that are kept for pictures, over all cases that a loader may read ahead. Other volumes are
# read again for their pictures.
KEPT_BYTES = 2 << 30


class Predictions:
    """Writes an evaluator's predictions for scans: each batch to the journal at once, all other files at the end.

    The output folder gets ``predictions.csv`` and ``predictions.json`` (a row for each case: probabilities or the
    reason of the refusal, warnings, seconds), ``run.json`` (provenance), ``report.html``, and on request ``saliency/``
    and ``dicom/``. A case whose output is not finite, or cannot be recorded, is refused.

    Args:
        output_dir: the folder; earlier files of these names are renamed, unless they belong to this run and the new
            files contain all their cases. Maps and DICOM objects of a case replace those of an earlier run; other files
            are never changed.
        network: the network, whose checkpoint contains the class names.
        cases: the scans.
        batches: the cases that are not predicted yet.
        journal: journal of finished cases.
        provenance: provenance of the predictions, see :func:`monai_llmboost.inference.run_provenance`.
        modality: modality of the training data, such as ``"CT"``; DICOM scans of another modality get a warning.
        report: write the report.
        saliency: draws saliency maps; None draws none.
        dicom: writes DICOM objects for DICOM scans; None writes none.
        view: names of cases for the page's three-plane viewer; None takes the first predicted case if there are maps.
        weights: loads the weights in ``provenance`` into ``network`` when the run starts, so that class names are right
            even if no case is left to predict. None loads a ``model.pt`` that ``provenance`` names.
        columns: additional columns of the tables for DICOM scans: ``"study_uid"``, ``"accession_number"``.
        facts: the name of ``provenance`` in earlier copies of bundles.
        answers: what an answer is: probabilities of classes (``None``), or
            :class:`monai_llmboost.inference.StructureMasks`.

    Raises:
        ValueError: a report that is neither True nor False; an unknown column, or columns with hidden names; from
            :meth:`start`, an unknown case to view, weights that do not fit, or a folder that contains names that must
            be hidden; from the run, a network without loaded weights.
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
        dicom: CaseObjects | None = None,
        view: Sequence[str] | str | None = None,
        weights: TrainedWeights | None = None,
        columns: Sequence[str] | str | None = None,
        facts: Mapping[str, Any] | None = None,
        answers: Answers | None = None,
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
        self.weights = weights
        self.answers: Answers = ClassProbabilities(network) if answers is None else answers
        self.outputs = CaseOutputs(cases, self.output_dir, self.answers, saliency, dicom, report, self.view)
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
        """Load the weights, lock the output folder, and log the numbers of scans."""
        self.load()
        self._check_hidden()
        self.journal.open()
        done = f", {self.batches.num_done} of them done before" if self.batches.num_done else ""
        logger.info(
            f"{len(self.cases.scans)} scans to predict{done}, {len(self.cases.refused)} refused, "
            f"{len(self.cases.skipped)} other files"
        )

    def load(self) -> None:
        """Load the weights, even if no case is left to predict, and check what does not concern a single case."""
        self._load()
        self.outputs.check()

    def _load(self) -> None:
        """Load the weights that the provenance names."""
        file, digest = Path(self.provenance["weights"]["file"]), self.provenance["weights"]["sha256"]
        if self.weights is None and file.name == WEIGHTS["best"] and file.is_file():
            self.weights = TrainedWeights(file.parent, self.network)  # for bundles from before the option `weights`
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
        """Attach to an evaluator that does not decollate and runs on batches of :class:`ScanCases`."""
        engine.add_event_handler(Events.STARTED, self._started_run)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(self.answers.event, self._predicted)

    def _started_run(self, engine: Engine) -> None:
        """Divide the memory for volumes among all cases that may be read ahead."""
        loader: Any = engine.state.dataloader
        ahead = getattr(loader, "num_workers", 0) * (getattr(loader, "prefetch_factor", None) or 0)
        self.outputs.keep_volumes(KEPT_BYTES // (self.batches.batch_size * (1 + ahead)))

    def _iteration_started(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _predicted(self, engine: Engine) -> None:
        self._check_loaded()
        class_names = self.answers.class_names  # raises, not for this case only
        state: Any = engine.state
        outputs = state.output["pred"]
        unfit = getattr(getattr(engine, "inferer", None), "unfit", {})
        share = (time.perf_counter() - self._started) / len(outputs)
        rows = []
        for position, output in enumerate(outputs):
            start = time.perf_counter()
            case = Case.from_batch(state.batch, position)
            row = self._row(case, output, unfit.get(position, ""), class_names)
            row.seconds = round(case.seconds + share + time.perf_counter() - start, 4)
            rows.append(row)
        self.journal.append(rows)

    def _row(self, case: Case, output: Tensor, unfit: str, class_names: Sequence[str]) -> Row:
        """Return the row of a case with the network's output, or with the reason of the refusal."""
        scan = self.cases.scans[case.index]
        row = Row.of_scan(scan, self.answers.refused())
        row.warnings, row.input_sha256 = case.warnings, case.input_sha256
        row.refused, row.refused_kind, row.may_pass = case.refused, case.refused_kind, case.may_pass
        if not row.refused and unfit:
            row.refused, row.refused_kind, row.may_pass = unfit, "memory", True
        if not row.refused:
            self._record(row, scan, case, output)
        if not row.refused:
            self.outputs.make(row, case, class_names)
        return row

    def _record(self, row: Row, scan: Scan, case: Case, output: Tensor) -> None:
        """Record the answer of a case, or refuse it."""
        try:
            row.answer = self.answers.record(scan, case, output)
        except (ValueError, MemoryError, RuntimeError) as error:  # concerns only this case; a full disk concerns all
            row.refused, row.refused_kind, row.may_pass = self.cases.reason(error), kind_of(error), may_pass(error)
            return
        if scan.modality and self.modality not in ANY_MODALITY and scan.modality != self.modality:
            row.warnings.append(f"the network was made for {self.modality} images, this is {scan.modality}")

    def finish(self) -> dict[str, int]:
        """Write tables, provenance and report on rank 0, and return :attr:`counts`."""
        idist.barrier()
        mine = {scan.name for scan in self.cases.scans}
        rows = [row for case, row in self.journal.rows().items() if case in mine]
        rows += [Row.of_scan(scan, self.answers.refused()) for scan in self.cases.refused]
        self.rows = sorted(rows, key=lambda row: row.case)
        if idist.get_rank() == 0:
            self._write()
        self.journal.close()
        return self.counts

    def _write(self) -> None:
        self._check_loaded()
        run = {
            **self.provenance,
            "class_names": self.answers.class_names,
            "cases": self.counts,
            "started": self.begun.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(timezone.utc) - self.begun).total_seconds(), 1),
        }
        if not self.cases.hides_names:
            run["command"] = shlex.join(sys.argv)
        if structures := self.answers.structures:
            run["structures"] = {str(value): name for value, name in structures.items()}
        viewers = self.outputs.complete(self.rows)
        scans = (*self.cases.scans, *self.cases.refused)
        identifying = {scan.name: identifiers(scan, self.columns) for scan in scans}
        results = Results(self.rows, self.cases.skipped, run, self.answers, identifying, viewers)
        write_results(self.output_dir, results, self.report, self.journal.overwrite)
        logger.info(f"{self.counts['predicted']} predicted, {self.counts['refused']} refused: {self.output_dir}")
