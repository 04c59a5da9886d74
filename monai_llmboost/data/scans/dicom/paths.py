# SPDX-License-Identifier: Apache-2.0
"""Paths with the volume to read from them, for MONAI's ``LoadImage``."""

from monai_llmboost.data.scans.scan import Scan

# Separates a path from the volume to read from it.
SEPARATOR = "::"


def get_reader_paths(scan: Scan) -> list[str]:
    """Return the paths with which ``LoadImaged`` and a `DicomSeriesReader` read exactly this scan."""
    return [f"{path}{SEPARATOR}{scan.stack}" for path in scan.files]
