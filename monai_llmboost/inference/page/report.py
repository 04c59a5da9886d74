# SPDX-License-Identifier: Apache-2.0
"""The report of a run: one self-contained page with the picture, probabilities and warnings of every case."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from monai_llmboost.artifacts.contours import legend, volume_text
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import style_of, template_folders, visible
from monai_llmboost.inference.case_folder import case_folder
from monai_llmboost.inference.figures import sentences
from monai_llmboost.inference.page.viewer import Viewer, viewer_html
from monai_llmboost.inference.rows import Row

__all__ = ["Viewer", "viewer_html", "write_report"]

HERE = Path(__file__).parent
NUM_BINS = 20
# Maximum bytes of previews and of viewers inside the page, in the order of the cases; the others are separate files.
PREVIEW_BUDGET = 20_000_000
VIEWER_BUDGET = 5_000_000
VIEWERS = "viewers"
TYPES = {".png": "image/png", ".webp": "image/webp"}


def write_report(
    path: Path,
    rows: Sequence[Row | Mapping[str, Any]],
    run: Mapping[str, Any],
    skipped: Sequence[tuple[str, str]],
    viewers: Sequence[Viewer] = (),
    aside: bool = True,
) -> None:
    """Write a run as one HTML file, which sends no request to any server.

    The content of rows is shown as text; control characters and characters that change the reading direction are
    escaped. The page forbids all requests, and all scripts except its own.

    Args:
        path: the file to write. Paths of maps and previews in ``rows`` are relative to its folder.
        rows: one row for each case, predicted or refused, as records or as lines of the journal.
        run: provenance of the predictions, shown completely. Required are ``bundle``, ``class_names``,
            ``intended_use``, ``started`` (ISO 8601), ``seconds`` and ``cases`` (numbers of ``predicted``, ``refused``,
            ``skipped``). With ``structures`` (value to name), rows have masks and volumes instead of probabilities.
        skipped: files that are not scans, each with the reason.
        viewers: viewers of cases; those beyond 5 MB are written as separate pages into the folder ``viewers`` next to
            the page. The browser draws a viewer when it is opened.
        aside: rename an earlier file of that name; otherwise it is replaced.

    Raises:
        ValueError: a row without one finite probability or volume for each class, or a viewer of an unknown case.

    Example:
        >>> write_report(Path("out/report.html"), rows, run, skipped=[("notes.txt", "a text file")])  # doctest: +SKIP
    """
    records = [row if isinstance(row, Row) else Row.from_json(row) for row in rows]
    class_names = list(run["class_names"])
    structures = {int(value): name for value, name in (run.get("structures") or {}).items()}
    columns = list(structures.values()) or class_names
    for row in records:
        _check_volumes(row, columns) if structures else _check_probabilities(row, class_names)
    numbers = {row.case: number for number, row in enumerate(records)}
    for viewer in viewers:
        if viewer.case not in numbers:
            raise ValueError(f"there is a viewer of {viewer.case!r}, which is no case: give a case's name")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folders(HERE)),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"address": _address, "number": _number}
    environment.filters |= {"picture_type": _picture_type, "volume": volume_text}
    environment.tests["flat"] = _is_flat
    previews = _previews(path.parent, records)
    inside, outside = _split_by_budget(viewers)
    links = {numbers[viewer.case]: _write_viewer(path.parent, viewer) for viewer in outside}
    script = _read_text("report.js")
    parts = environment.get_template("report.html").generate(
        rows=records,
        run=run,
        class_names=class_names,
        columns=columns,
        structures=structures,
        legend=legend(structures),
        unpictured=_beyond_budget(records) if structures else (),
        keys=[_keys(row, number, columns, bool(structures)) for number, row in enumerate(records)],
        histograms=[_histogram(records, index, name) for index, name in enumerate(class_names)],
        skipped=_by_reason(skipped),
        viewers=inside,
        viewer_of={numbers[viewer.case]: index for index, viewer in enumerate(inside)},
        viewer_files=links,
        figures=sentences(run.get("figures") or {}),
        previews=previews,
        embedded=_within_budget(previews),
        budget=PREVIEW_BUDGET,
        type_of=lambda file: TYPES.get(file.suffix, "image/png"),
        base64_of=lambda file: base64.b64encode(file.read_bytes()).decode(),
        style=style_of(HERE),
        script=script,
        allowed_scripts=_allow_scripts([script, *(text for viewer in inside for text in _scripts(viewer.html))]),
    )
    with atomic_text(path, aside) as file:
        file.writelines(parts)


def _check_probabilities(row: Row, class_names: list[str]) -> None:
    given = row.probabilities
    if row.refused and not given:
        return
    if len(given) != len(class_names) or not all(map(math.isfinite, given)):
        raise ValueError(
            f"{row.case!r} has the probabilities {given}, not {len(class_names)} finite ones: give those of all "
            "classes in the order of class_names, or the reason why the case is refused"
        )


def _check_volumes(row: Row, names: list[str]) -> None:
    volumes = row.answer.get("volume_mm3", {})
    if not row.refused and (set(volumes) != set(names) or not all(map(math.isfinite, volumes.values()))):
        raise ValueError(
            f"{row.case!r} has the volumes {volumes}, not finite ones of {', '.join(names)}: give those of all "
            "structures, or the reason why the case is refused"
        )


def _keys(row: Row, number: int, columns: list[str], structures: bool) -> list[Any]:
    """Return the sort key of a row for each column, null if empty, and whether the case was refused."""
    volumes = row.answer.get("volume_mm3", {})
    values: list[Any] = [volumes.get(name) for name in columns] if structures else row.probabilities
    return [
        number,
        row.case,
        f"{row.format} {row.modality}",
        math.prod(row.shape) if row.shape else None,
        *(values or [None] * len(columns)),
        *([] if structures else [row.predicted or None]),
        len(row.warnings),
        row.seconds,
        bool(row.refused),
    ]


def _histogram(rows: Sequence[Row], index: int, name: str) -> dict[str, Any]:
    """Return the histogram of the probabilities of a class over [0, 1]."""
    counts = [0] * NUM_BINS
    for row in rows:
        if row.probabilities:
            counts[min(max(int(row.probabilities[index] * NUM_BINS), 0), NUM_BINS - 1)] += 1
    return {"name": name, "counts": counts, "predicted": sum(row.predicted == name for row in rows)}


def _by_reason(skipped: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return skipped files by reason, the most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for name, reason in skipped:
        groups.setdefault(reason, []).append(name)
    return dict(sorted(groups.items(), key=lambda group: -len(group[1])))


def _previews(folder: Path, rows: Sequence[Row]) -> dict[int, Path]:
    """Return the existing previews by the index of their row."""
    named = {number: row.saliency.get("preview") for number, row in enumerate(rows)}
    return {number: folder / name for number, name in named.items() if name and (folder / name).is_file()}


def _within_budget(previews: dict[int, Path]) -> dict[int, Path]:
    embedded, total = {}, 0
    for number, file in previews.items():
        total += file.stat().st_size * 4 // 3  # in base64
        if total > PREVIEW_BUDGET:
            break
        embedded[number] = file
    return embedded


def _beyond_budget(rows: Sequence[Row]) -> set[int]:
    """Return the rows whose contours have no place in the page."""
    sizes = accumulate(len(row.thumbnail) for row in rows)
    return {number for number, size in enumerate(sizes) if size > PREVIEW_BUDGET}


def _split_by_budget(viewers: Sequence[Viewer]) -> tuple[list[Viewer], list[Viewer]]:
    """Return the viewers inside the page, and the others."""
    sizes = accumulate(len(viewer.html) for viewer in viewers)
    inside = [viewer for viewer, size in zip(viewers, sizes) if size <= VIEWER_BUDGET]
    return inside, list(viewers[len(inside) :])


def _write_viewer(folder: Path, viewer: Viewer) -> str:
    """Write a viewer as a separate page without requests; return its path relative to the folder."""
    file = folder / VIEWERS / case_folder(viewer.case)
    file = file.with_name(f"{file.name}.html")
    policy = (
        f"default-src 'none'; script-src {_allow_scripts(_scripts(viewer.html))}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    meta = f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
    with atomic_text(file, aside=False) as page:
        page.write(re.sub(r"<head[^>]*>", lambda head: head[0] + meta, viewer.html, count=1))
    return file.relative_to(folder).as_posix()


def _read_text(name: str) -> Markup:
    return Markup((HERE / name).read_text(encoding="utf-8"))


def _scripts(html: str) -> list[str]:
    return re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL | re.IGNORECASE)


def _allow_scripts(scripts: Sequence[str]) -> str:
    """Return the entry of a page's Content-Security-Policy that allows exactly these scripts."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    return " ".join(dict.fromkeys(f"'sha256-{digest}'" for digest in digests))


def _visible(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is trusted text of the page


def _is_flat(value: Any) -> bool:
    """Return whether a value is a list of texts and numbers, which fits on one line."""
    return isinstance(value, (list, tuple)) and not any(isinstance(item, (dict, list, tuple)) for item in value)


def _address(path: str) -> str:
    """Return the address of a relative path, for a link."""
    return quote("./" + path, errors="surrogateescape")


def _picture_type(picture: str) -> str:
    """Return the type of a picture in base64."""
    return "image/webp" if picture.startswith("UklGR") else "image/png"  # "RIFF"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.0f}"
