# SPDX-License-Identifier: Apache-2.0
"""Rows and provenance of a run as a report takes them, made by code."""

import base64
import io

from PIL import Image

from monai_llmboost.inference.rows import Row

CLASSES = ["benign", "malignant"]


def png(width=60, height=20, grey=90):
    with io.BytesIO() as file:
        Image.new("L", (width, height), grey).save(file, "PNG")
        return file.getvalue()


def row(case, malignant=None, warnings=(), **changes):
    """A case with this probability of the second class, or a refused one."""
    return Row.from_json(
        {
            "case": case,
            "format": "NIfTI",
            "series_uid": "",
            "modality": "",
            "shape": [8, 9, 10],
            "spacing_mm": [0.7, 0.7, 5.0],
            "orientation": "LAS",
            "probabilities": [] if malignant is None else [1 - malignant, malignant],
            "predicted": "" if malignant is None else CLASSES[malignant > 0.5],
            "refused": "expected one volume, got 3: give one of them" if malignant is None else "",
            "warnings": list(warnings),
            "seconds": 0.25,
            "input_sha256": "ab" * 32,
            "saliency": {},
            "thumbnail": base64.b64encode(png()).decode(),
            **changes,
        }
    )


def run_of(rows, **changes):
    refused = sum(bool(row.refused) for row in rows)
    return {
        "bundle": "some_bundle",
        "class_names": CLASSES,
        "intended_use": "Research only; not for diagnosis",
        "weights": {"file": "model.pt", "sha256": "cd" * 32},
        "block": None,
        "started": "2025-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "preprocessing": [{"class": "Resized", "spatial_size": [28, 28, 28]}],
        "cases": {"predicted": len(rows) - refused, "refused": refused, "skipped": 0},
        **changes,
    }


# The second and the third look alike in three digits; the names sort otherwise as text than as numbers.
ROWS = [
    row("case-10", 0.9, ["first warning", "second warning"]),
    row("case-2", 0.12344),
    row("case-1", 0.12341, ["only warning"]),
    row("refused", None, ["a", "b", "c"]),
    row("case-3", 1e-7),
]
