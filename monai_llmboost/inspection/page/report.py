# SPDX-License-Identifier: Apache-2.0
"""The page of an inspection: what is wrong first, then what is there, the plan, and pictures of scans."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from monai_llmboost.artifacts.drawing import Look, house_style, keys_of, look_of, svg
from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import shortened, style_of, template_folders, visible
from monai_llmboost.data.labelled import SPLITS, LabelledCase
from monai_llmboost.inspection.measure import ChannelMeasures
from monai_llmboost.inspection.page.figures import Picture, draw_distributions, draw_volumes
from monai_llmboost.inspection.pictures import colour_of

if TYPE_CHECKING:
    from monai_llmboost.inspection.inspect import Inspection

HERE = Path(__file__).parent
# Most bytes of thumbnails, and most refused scans and sets of duplicates that are listed.
THUMBNAIL_BYTES, LISTED = 2_000_000, 200
# The group of all cases of a list for segmentation.
ALL = "all cases"
# Longest name below a thumbnail.
NAME = 42


def write_inspection_page(found: Inspection, path: Path) -> None:
    """Write an inspection as one HTML file without scripts, which sends no request.

    Names and reasons are shown as text, never as HTML. An earlier file is replaced.

    Args:
        found: the inspection.
        path: file to write.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_folders(HERE)),
        autoescape=True, finalize=_visible, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["shorten"] = lambda name: shortened(name, NAME)
    groups = group_names(found)
    looks = {name: look_of(number + 1) for number, name in enumerate(groups)}
    with house_style():
        text = environment.get_template("report.html").render(
            found=found,
            findings=found.findings,
            name=found.cases.path.name,
            classes=groups,
            kinds="structures" if found.cases.is_segmentation else "classes",
            counts=count_cases(found),
            structures=describe_structures(found),
            rows=describe_scans(found),
            plan=found.plan.to_lines() if found.plan else [],
            memory=found.plan.description["memory_mb"] if found.plan else 0,
            peak=found.plan.description["peak_mb"] if found.plan else 0,
            refused=found.refused[:LISTED],
            duplicates=found.findings.duplicates[:LISTED],
            listed=LISTED,
            key=keys_of(looks),
            pictures=_pictures(found, looks),
            thumbnails=_thumbnails(found),
            colours={one.name: colour_of(one.value) for one in found.structures},
            style=style_of(HERE),
        )
    with atomic_text(path, aside=False) as file:
        file.write(text)


def group_names(found: Inspection) -> list[str]:
    """Return the names of the classes, or of the structures."""
    return [one.name for one in found.structures] if found.cases.is_segmentation else [*found.cases.class_names]


def describe_structures(found: Inspection) -> list[tuple[str, ...]]:
    """Return name, value, number of cases, volume and voxels of each structure as text."""
    rows: list[tuple[str, ...]] = []
    for one in found.structures:
        volumes = [*one.volumes_mm3.values()]
        said = f"median {np.median(volumes):.4g}, from {min(volumes):.4g} to {max(volumes):.4g}" if volumes else "none"
        rows.append((one.name, str(one.value), str(len(volumes)), said, f"{one.median_voxels:.0f}"))
    return rows


def describe_scans(found: Inspection) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Return for each channel its name, its number of scans, and its lines of what and text."""
    described = []
    for place, channel in enumerate(found.cases.channels):
        scans = [one for record in found.survey if not record.refused and (one := record.channels[place]) is not None]
        if scans:
            described.append((channel, f"{len(scans)} scans", _describe(scans)))
    return described


def _describe(scans: list[ChannelMeasures]) -> list[tuple[str, str]]:
    shapes = Counter(one.shape for one in scans)
    return [
        ("format", _count(Counter(f"{one.format} {one.modality}".strip() for one in scans))),
        ("voxels", _span([one.shape for one in scans]) + (f", {len(shapes)} different" if len(shapes) > 1 else "")),
        ("spacing, mm", _span([one.spacing_mm for one in scans])),
        ("size, mm", _span([one.size_mm for one in scans])),
        ("orientation", _count(Counter(one.orientation for one in scans))),
        ("intensities", f"{min(one.minimum for one in scans):.4g} to {max(one.maximum for one in scans):.4g}; "
                        f"median {np.median([one.percentiles[1] for one in scans]):.4g}"),
    ]  # fmt: skip


def _span(values: Any) -> str:
    table = np.array(values, dtype=float)
    low, middle, high = table.min(axis=0), np.median(table, axis=0), table.max(axis=0)
    product = " x ".join(f"{value:.4g}" for value in middle)
    if np.allclose(low, high, rtol=1e-3):
        return product
    return f"median {product}, from {' x '.join(f'{v:.4g}' for v in low)} to {' x '.join(f'{v:.4g}' for v in high)}"


def _count(values: Counter[str]) -> str:
    return next(iter(values)) if len(values) == 1 else ", ".join(f"{name} ({n})" for name, n in values.most_common())


def count_cases(found: Inspection) -> list[tuple[str, list[int], int]]:
    """Return the numbers of cases of each class, or with each structure, and of all: by split, and of the refused."""
    names, by_split = group_names(found), found.count()
    sizes = Counter(case.split for case in found.divided)
    refused = {record.name for record in found.refused}
    lost = [case for case in found.cases.cases if case.name in refused]
    rows = [(split, by_split[split], sizes[split]) for split in SPLITS if split in by_split]
    if not rows:
        usable = [case for case in found.cases.cases if case.name not in refused]
        rows = [("usable", _count_groups(found, usable), len(usable))]
    rows += [("cannot be used", _count_groups(found, lost), len(lost))] if lost else []
    return [(split, [count[name] for name in names], number) for split, count, number in rows]


def _count_groups(found: Inspection, cases: Sequence[LabelledCase]) -> Counter[str]:
    if not found.cases.is_segmentation:
        return Counter(case.label for case in cases)
    names = {case.name for case in cases}
    return Counter({one.name: len(names & {*one.volumes_mm3}) for one in found.structures})


def _pictures(found: Inspection, looks: Mapping[str, Look]) -> list[dict[str, Any]]:
    drawn: list[tuple[str, Picture]] = []
    if any(one.volumes_mm3 for one in found.structures):
        drawn.append(("", draw_volumes({one.name: [*one.volumes_mm3.values()] for one in found.structures}, looks)))
    labels = _labels(found)
    looks = {ALL: look_of(0)} if found.cases.is_segmentation else looks
    for place, channel in enumerate(found.cases.channels):
        scans: dict[str, list[ChannelMeasures]] = defaultdict(list)
        for record in found.survey:
            one = record.channels[place] if not record.refused else None
            if one is not None and labels[record.name] in looks:
                scans[labels[record.name]].append(one)
        if scans:
            ordered = {name: scans[name] for name in looks if name in scans}
            ending = f", {channel}" if len(found.cases.channels) > 1 else ""
            drawn += [(ending, picture) for picture in draw_distributions(ordered, looks)]
    return [
        {"caption": picture.caption + ending, "svg": svg(picture.figure, f"p{number}", picture.label)}
        for number, (ending, picture) in enumerate(drawn)
    ]


def _labels(found: Inspection) -> dict[str, str]:
    """Return the class of each case; one for all in segmentation."""
    return {case.name: ALL if found.cases.is_segmentation else case.label for case in found.cases.cases}


def _thumbnails(found: Inspection) -> dict[str, list[tuple[str, str]]]:
    """Return names and pictures of cases by class, within a bound on the size of the page."""
    labels = _labels(found)
    shown: dict[str, list[tuple[str, str]]] = defaultdict(list)
    total = 0
    for record in found.survey:
        total += len(record.thumbnail)
        if record.thumbnail and total <= THUMBNAIL_BYTES:
            shown[labels[record.name]].append((record.name, record.thumbnail))
    return {name: shown[name] for name in (*found.cases.class_names, ALL) if name in shown}


def _visible(value: Any) -> Any:
    return visible(value) if type(value) is str else value  # Markup is trusted text of the page
