# SPDX-License-Identifier: Apache-2.0
"""From an evaluator's batches to files: the journal as they come, tables, facts and a page at the end."""

from __future__ import annotations

import base64
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
import torch
from ignite.engine import Engine, Events
from torch import nn

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import set_aside, written_whole
from monai_llmboost.data import Scan
from monai_llmboost.engines.best_weights import WEIGHTS
from monai_llmboost.engines.trained_weights import TrainedWeights
from monai_llmboost.inference.cases import PendingBatches, ScanCases, may_pass
from monai_llmboost.inference.dicom.objects import DicomObjects
from monai_llmboost.inference.earlier import facts_of, loses_cases
from monai_llmboost.inference.hidden import HASHED
from monai_llmboost.inference.identifiers import checked_columns, identifiers
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.maps.previews import thumbnail
from monai_llmboost.inference.maps.saliency import SaliencyMaps
from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.page.viewer import Viewer
from monai_llmboost.inference.pictures import draw_thumbnails, viewers_of
from monai_llmboost.inference.tables import as_shown, refused_row, row_of, write_csv, write_json
from monai_llmboost.networks.class_names import class_names_of, unwrap

logger = logging.getLogger("monai_llmboost")
# What a bundle's metadata says of a network that takes images of any kind.
ANY_MODALITY = ("", "any", "n/a")


class Predictions:
    """Writes what an evaluator finds for scans: each batch into the journal at once, everything else at the end.

    Into the output folder come ``predictions.csv`` and ``predictions.json`` (a row per case: probabilities or the
    reason why there are none, warnings, seconds), ``run.json`` (what made them), ``report.html``, and on request
    ``saliency/`` and ``dicom/``. A case whose probabilities are not finite is refused.

    Args:
        output_dir: the folder; what lies in it under these names is renamed, unless it is of this run and all its cases
            are there again. Maps and DICOM objects of a case replace those of an earlier run; other files are never
            touched.
        network: gives the names of its classes, those of the checkpoint it loaded.
        cases: the scans.
        batches: what of them is to be predicted.
        journal: where finished cases are kept.
        facts: what makes the predictions, see :func:`monai_llmboost.inference.run_facts`.
        modality: what the network was trained on, such as ``"CT"``; a DICOM scan of another modality gets a warning.
        report: write the page.
        saliency: draws maps of what the network looked at; None draws none.
        dicom: writes DICOM objects for scans that came as DICOM; None writes none.
        view: names of cases for the page's three-plane viewer; None takes the first case if there are maps.
        weights: loads the weights of ``facts`` into ``network`` when the run starts, so that names and numbers are
            theirs whether or not anything is left to predict. None is a ``model.pt`` where ``facts`` name one.
        columns: further columns of the tables, of scans that came as DICOM: ``"study_uid"``, ``"accession_number"``.

    Raises:
        ValueError: a report that is neither True nor False; an unknown column, or one of cases whose names are hidden;
            from :meth:`start`, a case to view that is not there, weights that do not fit, or a folder that holds the
            names that are to be hidden; from the run, a network without loaded weights.
        FileNotFoundError: from :meth:`start`, there are no weights.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: nn.Module,
        cases: ScanCases,
        batches: PendingBatches,
        journal: Journal,
        facts: Mapping[str, Any],
        modality: str = "any",
        report: bool = True,
        saliency: SaliencyMaps | None = None,
        dicom: DicomObjects | None = None,
        view: Sequence[str] | str | None = None,
        weights: TrainedWeights | None = None,
        columns: Sequence[str] | str | None = None,
    ) -> None:
        if not isinstance(report, bool):  # the word "false" on a command line would be true
            raise ValueError(f"expected report to be True or False, got {report!r}")
        self.output_dir = Path(output_dir)
        self.network = network
        self.cases = cases
        self.batches = batches
        self.journal = journal
        self.facts = dict(facts)
        self.modality = modality
        self.report = report
        self.saliency = saliency
        self.dicom = dicom
        self.view = [view] if isinstance(view, str) else view
        self.weights = weights
        self.columns = checked_columns(columns)
        if self.columns and cases.hides_names:
            raise ValueError(f"expected --salt or --columns, got both: {self.columns[0]} identifies a patient")
        self.loaded = False
        unwrap(network).register_load_state_dict_post_hook(self._network_loaded)
        self.begun = datetime.now(timezone.utc)
        self.counts = {"predicted": 0, "refused": 0, "skipped": 0}
        self.refused: dict[str, str] = {}
        self.refused_kinds: dict[str, str] = {}

    def _network_loaded(self, *_: Any) -> None:
        self.loaded = True

    def start(self) -> None:
        """Load the weights; take the output folder; tell what was found."""
        names = {scan.name for scan in self.cases.scans}
        for case in self.view or ():
            if case not in names:
                raise ValueError(f"expected a case to view among those found, got {case!r}: see the column case")
        self._load()
        self._check_hidden()
        self.journal.open()
        done = f", {self.batches.num_done} of them done before" if self.batches.num_done else ""
        logger.info(
            f"{len(self.cases.scans)} scans to predict{done}, {len(self.cases.refused)} refused, "
            f"{len(self.cases.skipped)} other files"
        )

    def _load(self) -> None:
        """Load the weights that ``facts`` tell of, as the first thing, on every way through a run."""
        file, digest = Path(self.facts["weights"]["file"]), self.facts["weights"]["sha256"]
        if self.weights is None and file.name == WEIGHTS["best"] and file.is_file():
            self.weights = TrainedWeights(file.parent, self.network)  # copies of the bundle from before it named them
        if self.weights is None:
            return
        self.weights.load()
        if digest and file == self.weights.path and file_digest(file) != digest:
            raise ValueError(f"expected {file} to stay as it is, it was written while it was read: run this again")

    def _check_hidden(self) -> None:
        """Refuse to hide names in a folder where an earlier run left them."""
        if not self.cases.hides_names:
            return
        if "command" in facts_of(self.output_dir) or not all(map(HASHED.fullmatch, self.journal.names())):
            raise ValueError(
                f"expected a folder without names of cases for --salt, but an earlier run without it wrote into "
                f"{self.output_dir}: give another folder"
            )

    def _check_loaded(self) -> None:
        if not self.loaded:
            raise ValueError(
                "expected trained weights in the network, none were loaded: what it predicts means nothing; "
                'give Predictions its "weights", such as "@trained_weights"'
            )

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that does not decollate, whose batches are of :class:`ScanCases`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _iteration_started(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _iteration_completed(self, engine: Engine) -> None:
        self._check_loaded()
        state: Any = engine.state
        batch, probabilities = state.batch, state.output["pred"].tolist()
        unfit = getattr(getattr(engine, "inferer", None), "unfit", ())
        share = (time.perf_counter() - self._started) / len(probabilities)
        names = class_names_of(self.network)
        rows = []
        for position, values in enumerate(probabilities):
            item = {key: batch[key][position] for key in batch}
            item["unfit"] = position in unfit
            rows.append(self._row(item, values, names, share))
        self.journal.append(rows)

    def _row(self, item: Mapping[str, Any], values: list[float], names: list[str], share: float) -> dict[str, Any]:
        start = time.perf_counter()
        scan = self.cases.scans[int(item["index"])]
        refused, kind, may_pass = item["refused"], item["refused_kind"], bool(item["may_pass"])
        if not refused and item["unfit"]:
            refused = "expected a case that fits the memory of the device: use --device cpu"
            kind, may_pass = "memory", True
        elif not refused and not all(map(math.isfinite, values)):
            refused = "expected finite probabilities, the network's output is not: look at the scan, or train again"
            kind = "not-finite"
        row = {**row_of(scan), "refused": refused, "warnings": item["warnings"].split("\n") if item["warnings"] else []}
        row |= {"refused_kind": kind, "may_pass": may_pass, "input_sha256": item["input_sha256"]}
        if not refused:
            predicted = values.index(max(values))
            row |= {"probabilities": values, "predicted": names[predicted]}
            if scan.modality and self.modality not in ANY_MODALITY and scan.modality != self.modality:
                row["warnings"].append(f"the network was made for {self.modality} images, this is {scan.modality}")
            self._draw(row, scan, item, predicted, names)
        row["seconds"] = round(float(item["seconds"]) + share + time.perf_counter() - start, 4)
        return row

    def _draw(self, row: dict[str, Any], scan: Scan, item: Mapping[str, Any], predicted: int, names: list[str]) -> None:
        """Maps, DICOM objects and a small picture of a predicted case, as far as they are asked for."""
        if self.saliency is not None:
            try:
                row["saliency"] = self.saliency(
                    scan.name,
                    item["image"][None],
                    predicted,
                    item["affine"].numpy(),
                    item["input_affine"].numpy(),
                    tuple(item["input_shape"].tolist()),
                    lambda: self.cases.volume(int(item["index"]))[0],
                    f"{scan.name}: {row['predicted']} {max(row['probabilities']):.3f}",
                )
            # No geometry behind the user's own transforms, say; what may pass is tried again, and so is the case.
            except (ValueError, MemoryError, torch.OutOfMemoryError) as error:
                row["warnings"].append(f"no saliency: {self.cases.reason(error)}")
                row["may_pass"] = row["may_pass"] or may_pass(error)
        if self.dicom is not None and scan.format == "DICOM":
            try:
                row["dicom"] = self.dicom(scan, row, names)
            except ValueError as error:  # the source lacks what the standard asks for
                row["warnings"].append(f"no DICOM objects: {self.cases.reason(error)}")
        if self.report:
            row["thumbnail"] = base64.b64encode(thumbnail(item["image"].cpu())).decode()

    def finish(self) -> dict[str, int]:
        """Write tables, facts and page, on rank 0; the number of cases predicted and refused, and of files skipped."""
        idist.barrier()
        mine = {scan.name for scan in self.cases.scans}
        rows = [row for case, row in self.journal.rows().items() if case in mine]
        rows += [refused_row(scan) for scan in self.cases.refused]
        rows.sort(key=lambda row: row["case"])
        self.refused = {row["case"]: row["refused"] for row in rows if row["refused"]}
        self.refused_kinds = {row["case"]: row.get("refused_kind", "") for row in rows if row["refused"]}
        refused = len(self.refused)
        self.counts = {
            "predicted": len(rows) - refused,
            "refused": refused,
            "skipped": len(self.cases.skipped),
        }
        if idist.get_rank() == 0:
            self._write(rows)
        self.journal.close()
        return self.counts

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._check_loaded()
        names = class_names_of(self.network)
        run = {
            **self.facts,
            "class_names": names,
            "cases": self.counts,
            "started": self.begun.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(timezone.utc) - self.begun).total_seconds(), 1),
        }
        if not self.cases.hides_names:
            run["command"] = shlex.join(sys.argv)
        aside = not self.journal.overwrite and loses_cases(self.output_dir, self.facts["key"], rows)
        viewers: list[Viewer] = []
        if self.report:
            draw_thumbnails(rows, self.cases)
            viewers = viewers_of(rows, self.cases, self._wanted(rows), self.output_dir)
        scans = {scan.name: scan for scan in (*self.cases.scans, *self.cases.refused)}
        shown = [as_shown(row) | identifiers(scans[row["case"]], self.columns) for row in rows]
        with written_whole(self.output_dir / "predictions.csv", aside) as file:
            write_csv(file, shown, names, self.columns)
        with written_whole(self.output_dir / "predictions.json", aside) as file:
            about = {key: run[key] for key in ("class_names", "intended_use") if key in run}
            skipped = [{"file": str(item.path), "reason": item.reason} for item in self.cases.skipped]
            write_json(file, {**about, "cases": shown, "skipped": skipped})
        with written_whole(self.output_dir / "run.json", aside) as file:
            write_json(file, run)
        if self.report:
            skips = [(str(item.path), item.reason) for item in self.cases.skipped]
            write_report(self.output_dir / "report.html", rows, run, skips, viewers, aside)
        elif aside or self.journal.overwrite:
            set_aside(self.output_dir / "report.html")  # it shows the cases of the earlier tables
        logger.info(f"{self.counts['predicted']} predicted, {self.counts['refused']} refused: {self.output_dir}")

    def _wanted(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
        """Return the names of the cases that get a viewer."""
        if self.view is not None:
            return self.view
        return [row["case"] for row in rows if not row["refused"]][:1] if self.saliency is not None else []
