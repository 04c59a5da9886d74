# SPDX-License-Identifier: Apache-2.0
"""The scheme with which intensities are scaled, chosen from the training scans."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_llmboost.inspection.survey import CaseSurvey

# CT: the ends of the window are multiples of this, within the range of common scanners, HU.
HU_STEP, HU_RANGE = 50, (-1024, 3000)
# A scan with at most this number of different values is a mask or a map of labels.
MASK_VALUES = 16
# Scans from about 0 to 1 are taken to be scaled.
SCALED = (-0.05, 1.05)
USUAL = [0.5, 99.5]


def choose_intensity(used: Sequence[CaseSurvey]) -> tuple[str, list[float], str]:
    """Return the scheme, its range, and why.

    CT has a window in HU from the foreground of all scans, in segmentation from the structures; masks and images in
    8 bits have the range of their values; scans from 0 to 1 stay as they are; the units of anything else, such as MR,
    mean nothing, so each scan is scaled by its own percentiles.
    """
    scans = [one for record in used for one in record.measures]
    low, high = min(one.minimum for one in scans), max(one.maximum for one in scans)
    if all(one.modality == "CT" for one in scans):
        maps = [record.label_map.inside_range for record in used if record.label_map and len(record.channels) == 1]
        inside = [ends for ends in maps if ends is not None]
        ends = np.median(inside or [one.foreground_range for one in scans], axis=0)
        least, most = HU_RANGE
        window = [
            float(np.clip(np.floor(ends[0] / HU_STEP) * HU_STEP, least, most - HU_STEP)),
            float(np.clip(np.ceil(ends[1] / HU_STEP) * HU_STEP, least + HU_STEP, most)),
        ]
        what = "structures" if inside else "foreground"
        return "window", window, f"CT: the 0.5th to the 99.5th percentile of the {what}, in HU"
    if all(one.values <= MASK_VALUES and one.whole == 1 for one in scans):
        return "window", [low, high], "masks: few whole numbers"
    if SCALED[0] <= low and SCALED[1] >= high:
        return "unchanged", USUAL, f"all values are from {low:.3g} to {high:.3g} already"
    if all(one.whole == 1 and one.minimum >= 0 and 127 < one.maximum <= 255 for one in scans):
        return "window", [0.0, 255.0], "whole numbers of 8 bits"
    return "percentiles", USUAL, "the units of the scans differ or mean nothing, so each is scaled by its percentiles"
