# SPDX-License-Identifier: Apache-2.0
"""The record of a case of a run, for the journal, the tables and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from monai_llmboost.artifacts.files import safe_row

if TYPE_CHECKING:
    from monai_llmboost.data import Scan
    from monai_llmboost.inference.answers import Answers

# Fields of a row for the journal or the page only.
NOT_IN_TABLES = ("thumbnail", "run", "may_pass")
# Answer of a refused case in files.
NO_ANSWER: Mapping[str, Any] = {"probabilities": [], "predicted": ""}
# Columns of predictions.csv before and after the columns of the answer.
FIRST_COLUMNS, LAST_COLUMNS = ("case", "series_uid"), ("refused", "refused_kind", "warnings", "seconds")


@dataclass
class Row:
    """A case of a run, predicted or refused. Files contain the fields in this order.

    Args:
        case: name of the case.
        format: ``"NIfTI"`` or ``"DICOM"``.
        series_uid: SeriesInstanceUID; DICOM only.
        modality: modality such as ``"CT"``; DICOM only.
        shape: voxels along (i, j, k), and the number of volumes if there are several.
        spacing_mm: distance of neighbouring voxels along (i, j, k).
        orientation: anatomical directions of i, j, k, such as ``"LPS"``.
        answer: what the network's output says, see :class:`monai_llmboost.inference.answers.Answers`; files contain its
            items instead of this field.
        refused: why there is no answer; empty if there is one.
        refused_kind: kind of the refusal.
        warnings: sentences.
        seconds: time for this case.
        input_sha256: digest of the bytes that were read; empty if none were read.
        saliency: path of each map and of the preview, relative to the output folder.
        dicom: path of each DICOM object, relative to the output folder.
        thumbnail: PNG in base64 for the page; empty without a page.
        may_pass: whether another run may succeed.
        run: number of the run that added the row to the journal.

    Example:
        >>> row = Row("a.nii", answer={"probabilities": [0.25, 0.75], "predicted": "ring"})
        >>> Row.from_json(row.to_json()) == row
        True
        >>> row.probabilities
        [0.25, 0.75]
    """

    case: str
    format: str = ""
    series_uid: str = ""
    modality: str = ""
    shape: list[int] = field(default_factory=list)
    spacing_mm: list[float] = field(default_factory=list)
    orientation: str = ""
    answer: dict[str, Any] = field(default_factory=lambda: dict(NO_ANSWER))
    refused: str = ""
    refused_kind: str = ""
    warnings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    input_sha256: str = ""
    saliency: dict[str, str] = field(default_factory=dict)
    dicom: dict[str, str] = field(default_factory=dict)
    thumbnail: str = ""
    may_pass: bool = False
    run: int = 0

    @classmethod
    def of_scan(cls, scan: Scan, answer: Mapping[str, Any] = NO_ANSWER) -> Row:
        """Return the row of a scan before it is read; this is the final row if the search refused the scan.

        Args:
            scan: the scan.
            answer: the answer of a refused case.
        """
        return cls(
            case=scan.name,
            answer=dict(answer),
            format=scan.format,
            series_uid=scan.series_uid,
            modality=scan.modality,
            shape=list(scan.shape),
            spacing_mm=[round(float(distance), 6) for distance in scan.spacing_mm],
            orientation=scan.orientation,
            refused=scan.refused,
            refused_kind=scan.refused_kind,
            warnings=list(scan.warnings),
        )

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Row:
        """Return the row from a line of a journal; lines of earlier versions may lack fields."""
        names = {each.name for each in fields(cls)}
        known = {name: value for name, value in line.items() if name in names}
        known.setdefault("may_pass", bool(line.get("refused")))  # earlier refusals do not say whether they may pass
        return cls(**known, answer={name: value for name, value in line.items() if name not in names})

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types, with the items of the answer instead of ``answer``."""
        values: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            values |= value if each.name == "answer" else {each.name: value}
        return values

    def to_table(self) -> dict[str, Any]:
        """Return the case for ``predictions.json``."""
        values = {name: value for name, value in self.to_json().items() if name not in NOT_IN_TABLES}
        return {"refused_kind": self.refused_kind, **values}

    def to_cells(self, answers: Answers) -> dict[str, Any]:
        """Return the cells of ``predictions.csv``, each on one line."""
        answer = answers.cells(self.answer)
        texts = {"refused": self.refused, "refused_kind": self.refused_kind, "warnings": "; ".join(self.warnings)}
        cells = {"case": self.case, "series_uid": self.series_uid, **answer, **texts, "seconds": self.seconds}
        return safe_row(one_line(cells, (*answer, *texts)))

    @property
    def files(self) -> list[str]:
        """The paths of all files of the case, relative to the output folder."""
        mask = [self.mask] if self.mask else []
        return [
            *mask,
            *self.answer.get("probability_files", {}).values(),
            *self.saliency.values(),
            *self.dicom.values(),
        ]

    @property
    def mask(self) -> str:
        """The path of the mask of a segmentation, relative to the output folder; empty if there is none."""
        return self.answer.get("mask", "")

    @property
    def probabilities(self) -> list[float]:
        """The probability of each class; empty if refused."""
        return self.answer.get("probabilities", [])

    @property
    def predicted(self) -> str:
        """The name of the predicted class; empty if refused."""
        return self.answer.get("predicted", "")


def csv_columns(answers: Answers, identifying: Sequence[str] = ()) -> list[str]:
    """Return the columns of ``predictions.csv`` in order; identifying columns follow ``series_uid``."""
    return [*FIRST_COLUMNS, *identifying, *answers.columns(), *LAST_COLUMNS]


def one_line(cells: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the cells, without line breaks in the named ones."""
    return {**cells, **{name: " ".join(str(cells[name]).splitlines()) for name in names}}
