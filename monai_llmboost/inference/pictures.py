# SPDX-License-Identifier: Apache-2.0
"""What the page shows of scans beyond the rows: small pictures and three-plane viewers, from volumes read again."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.inference.cases import ScanCases
from monai_llmboost.inference.maps.previews import thumbnail
from monai_llmboost.inference.page.viewer import Viewer, viewer_html


def draw_thumbnails(rows: Sequence[dict[str, Any]], cases: ScanCases) -> None:
    """Draw the pictures of cases that were predicted by a run without a page."""
    index = {scan.name: number for number, scan in enumerate(cases.scans)}
    for row in rows:
        if row["probabilities"] and not row.get("thumbnail"):
            item = cases[index[row["case"]]]
            if not item["refused"]:
                row["thumbnail"] = base64.b64encode(thumbnail(item["image"])).decode()


def viewers_of(
    rows: Sequence[dict[str, Any]], cases: ScanCases, wanted: Sequence[str], output_dir: Path
) -> list[Viewer]:
    """Return the viewers of the wanted cases; a case that has none gets a warning in its row that says why."""
    by_case = {row["case"]: row for row in rows}
    index = {scan.name: number for number, scan in enumerate(cases.scans)}
    viewers = []
    for case in dict.fromkeys(wanted):
        if (row := by_case.get(case)) is None:
            continue
        if row["refused"]:
            row["warnings"].append("no viewer: the case is refused")
            continue
        try:
            volume, affine = cases.volume(index[case])
            html = viewer_html(volume, affine, _map_of(row, output_dir), case)
        except (ValueError, OSError) as error:  # it cannot be read any more; its prediction stands
            row["warnings"].append(f"no viewer: {cases.reason(error)}")
        else:
            viewers.append(Viewer(case, html))
    return viewers


def _map_of(row: Mapping[str, Any], output_dir: Path) -> Any:
    import nibabel
    import numpy as np

    path = row.get("saliency", {}).get("network")
    image: Any = nibabel.load(output_dir / path) if path else None
    return None if image is None else np.asarray(image.dataobj, dtype=np.float32)
