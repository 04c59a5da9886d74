# SPDX-License-Identifier: Apache-2.0
"""From an evaluator's batches to files: the journal as they come, tables, facts and a page at the end."""

from __future__ import annotations

import base64
import csv
import json
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

from monai_llmboost.data import Scan
from monai_llmboost.engines.files import safe_row, written_whole
from monai_llmboost.inference.cases import PendingBatches, ScanCases, reason_of
from monai_llmboost.inference.dicom.objects import DicomObjects
from monai_llmboost.inference.journal import Journal
from monai_llmboost.inference.maps.previews import thumbnail
from monai_llmboost.inference.maps.saliency import SaliencyMaps
from monai_llmboost.inference.page.report import write_report
from monai_llmboost.inference.page.viewer import Viewer, viewer_html
from monai_llmboost.networks.class_names import class_names_of

logger = logging.getLogger("monai_llmboost")
# What a bundle's metadata says of a network that takes images of any kind.
ANY_MODALITY = ("", "any", "n/a")


class Predictions:
    """Writes what an evaluator finds for scans: each batch into the journal at once, everything else at the end.

    Into the output folder come ``predictions.csv`` and ``predictions.json`` (a row per case: probabilities or the
    reason why there are none, warnings, seconds), ``run.json`` (what made them), ``report.html``, and on request
    ``saliency/`` and ``dicom/``. A case whose probabilities are not finite is refused.

    Args:
        output_dir: the folder; what lies in it under these names is renamed, unless it is of this run. Maps and
            DICOM objects of a case replace those of an earlier run; other files are never touched.
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

    Raises:
        ValueError: a report that is neither True nor False; from :meth:`start`, a case to view that is not there.
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
        self.begun = datetime.now(timezone.utc)
        self.counts = {"predicted": 0, "refused": 0, "skipped": 0}
        self.refused: dict[str, str] = {}

    def start(self) -> None:
        """Take the output folder; tell what was found."""
        names = {scan.name for scan in self.cases.scans}
        for case in self.view or ():
            if case not in names:
                raise ValueError(f"expected a case to view among those found, got {case!r}: see the column case")
        self.journal.open()
        done = f", {self.batches.num_done} of them done before" if self.batches.num_done else ""
        logger.info(
            f"{len(self.cases.scans)} scans to predict{done}, {len(self.cases.refused)} refused, "
            f"{len(self.cases.skipped)} other files"
        )

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator that does not decollate, whose batches are of :class:`ScanCases`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration_started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration_completed)

    def _iteration_started(self, engine: Engine) -> None:
        self._started = time.perf_counter()

    def _iteration_completed(self, engine: Engine) -> None:
        state: Any = engine.state
        batch, probabilities = state.batch, state.output["pred"].tolist()
        share = (time.perf_counter() - self._started) / len(probabilities)
        names = class_names_of(self.network)
        rows = []
        for position, values in enumerate(probabilities):
            item = {key: batch[key][position] for key in batch}
            rows.append(self._row(item, values, names, share))
        self.journal.append(rows)

    def _row(self, item: Mapping[str, Any], values: list[float], names: list[str], share: float) -> dict[str, Any]:
        start = time.perf_counter()
        scan = self.cases.scans[int(item["index"])]
        refused = item["refused"]
        if not refused and not all(map(math.isfinite, values)):
            refused = "expected finite probabilities, the network's output is not (or the case did not fit in memory)"
        row = {**_about(scan), "refused": refused, "warnings": item["warnings"].split("\n") if item["warnings"] else []}
        row["input_sha256"] = item["input_sha256"]
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
            except ValueError as error:  # no geometry behind the user's own transforms, say
                row["warnings"].append(f"no saliency: {reason_of(error)}")
        if self.dicom is not None and scan.format == "DICOM":
            try:
                row["dicom"] = self.dicom(scan, row, names)
            except ValueError as error:  # the source lacks what the standard asks for
                row["warnings"].append(f"no DICOM objects: {reason_of(error)}")
        if self.report:
            row["thumbnail"] = base64.b64encode(thumbnail(item["image"].cpu())).decode()

    def finish(self) -> dict[str, int]:
        """Write tables, facts and page, on rank 0; the number of cases predicted and refused, and of files skipped."""
        idist.barrier()
        mine = {scan.name for scan in self.cases.scans}
        rows = [row for case, row in self.journal.rows().items() if case in mine]
        rows += [
            {**_about(scan), "refused": scan.refused, "warnings": list(scan.warnings)} for scan in self.cases.refused
        ]
        rows.sort(key=lambda row: row["case"])
        self.refused = {row["case"]: row["refused"] for row in rows if row["refused"]}
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
        aside = not (self.journal.overwrite or self._is_of_this_run())
        with written_whole(self.output_dir / "predictions.csv", aside) as file:
            _write_csv(file, rows, names)
        shown = [{key: value for key, value in row.items() if key != "thumbnail"} for row in rows]
        with written_whole(self.output_dir / "predictions.json", aside) as file:
            about = {key: run[key] for key in ("class_names", "intended_use") if key in run}
            skipped = [{"file": str(item.path), "reason": item.reason} for item in self.cases.skipped]
            _write_json(file, {**about, "cases": shown, "skipped": skipped})
        with written_whole(self.output_dir / "run.json", aside) as file:
            _write_json(file, run)
        if self.report:
            skips = [(str(item.path), item.reason) for item in self.cases.skipped]
            write_report(self.output_dir / "report.html", rows, run, skips, self._viewers(rows), aside)
        logger.info(f"{self.counts['predicted']} predicted, {self.counts['refused']} refused: {self.output_dir}")

    def _is_of_this_run(self) -> bool:
        try:
            return json.loads((self.output_dir / "run.json").read_text(encoding="utf-8"))["key"] == self.facts["key"]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _viewers(self, rows: list[dict[str, Any]]) -> list[Viewer]:
        drawn = {row["case"]: row for row in rows if not row["refused"]}
        wanted = self.view
        if wanted is None:
            wanted = list(drawn)[:1] if self.saliency is not None else []
        index = {scan.name: number for number, scan in enumerate(self.cases.scans)}
        viewers = []
        for case in wanted:
            if case in drawn:
                volume, affine = self.cases.volume(index[case])
                relevance = self._map_of(drawn[case])
                viewers.append(Viewer(case, viewer_html(volume, affine, relevance, case)))
        return viewers

    def _map_of(self, row: Mapping[str, Any]) -> Any:
        import nibabel
        import numpy as np

        path = row.get("saliency", {}).get("network")
        image: Any = nibabel.load(self.output_dir / path) if path else None
        return None if image is None else np.asarray(image.dataobj, dtype=np.float32)


def _about(scan: Scan) -> dict[str, Any]:
    """What is known of a case before it is predicted."""
    return {
        "case": scan.name,
        "format": scan.format,
        "series_uid": scan.series_uid,
        "modality": scan.modality,
        "shape": list(scan.shape),
        "spacing_mm": [round(float(distance), 6) for distance in scan.spacing_mm],
        "orientation": scan.orientation,
        "probabilities": [],
        "predicted": "",
        "refused": "",
        "warnings": [],
        "seconds": 0.0,
        "input_sha256": "",
        "saliency": {},
        "dicom": {},
        "thumbnail": "",
    }


def _write_csv(file: Any, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    columns = [f"p_{name}" for name in names]
    head = ["case", "series_uid", *columns, "predicted", "refused", "warnings", "seconds"]
    writer = csv.DictWriter(file, head, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        numbers = {column: f"{p:.9g}" for column, p in zip(columns, row["probabilities"])}
        writer.writerow(safe_row({**row, **numbers, "warnings": "; ".join(row["warnings"])}))


def _write_json(file: Any, value: Any) -> None:
    json.dump(value, file, indent=1, ensure_ascii=True)
    file.write("\n")
