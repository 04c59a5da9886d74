# SPDX-License-Identifier: Apache-2.0
"""The page of an evaluation of a segmentation: one self-contained HTML file with numbers and the worst cases."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from monai_llmboost.artifacts.contours import colours_of, legend
from monai_llmboost.artifacts.drawing import house_style, svg
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import style_of, template_folders, visible
from monai_llmboost.engines.evaluation.mask_numbers import MeasuredCase, WorstCase
from monai_llmboost.engines.evaluation.page import figures
from monai_llmboost.tasks import Segmentation

HERE = Path(__file__).parent
# Title, unit and digits of the measures in the table of structures.
MEASURES = {
    "dice": ("Dice", "", 3), "hd95_mm": ("HD95", "mm", 2), "nsd": ("NSD", "", 3),
    "volume_mm3": ("Volume of the mask", "mm³", 0), "label_volume_mm3": ("Volume of the label", "mm³", 0),
}  # fmt: skip


def write_mask_page(
    path: Path,
    task: Segmentation,
    cases: Sequence[MeasuredCase],
    worst: Sequence[WorstCase],
    about: Mapping[str, Any],
    numbers: Mapping[str, Any],
) -> None:
    """Write an evaluation as one HTML file without scripts, which sends no request to any server.

    Names of structures and cases are shown as text, never as HTML; characters that are not seen are escaped.

    Args:
        path: the file; an earlier one is renamed.
        task: the task.
        cases: the measured cases.
        worst: the cases to show, the worst first.
        about: provenance, shown completely.
        numbers: numbers as in ``metrics.json``.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folders(HERE)),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "interval": _interval, "picture": _picture}
    names = [visible(name) for name in task.structures]
    with house_style():
        dice = np.array([case.dice for case in cases]).reshape(len(cases), len(names))
        words = "; ".join(
            f"{name}: median {_number(numbers['structures'][own]['dice'].get('median'))}"
            for name, own in zip(names, task.structures)
        )
        text = environment.get_template("masks.html").render(
            about=about,
            numbers=numbers,
            task=task,
            names=names,
            measures=MEASURES,
            strip=svg(figures.strips(dice, names), "strip", f"Dice of each case. {words}"),
            legend=legend(dict(enumerate(names, start=1)), colours_of(dict(enumerate(names, start=1)))),
            worst=worst,
            style=style_of(HERE),
        )
    with atomic_text(path) as file:
        file.write(text)


def _number(value: float | None, digits: int = 3) -> str:
    return "\N{EN DASH}" if value is None or not np.isfinite(value) else f"{value:,.{digits}f}"


def _interval(ends: Sequence[float] | None, digits: int = 3) -> str:
    return "" if ends is None else f"[{_number(ends[0], digits)}, {_number(ends[1], digits)}]"


def _picture(webp: bytes) -> Markup:
    return Markup("data:image/webp;base64,") + base64.b64encode(webp).decode()
