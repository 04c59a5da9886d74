# SPDX-License-Identifier: Apache-2.0
"""Common parts of the DICOM objects of this package: manufacturer, UIDs, writing to disk.

A UID identifies content: it is derived from everything that determines an object (source images, numbers, names,
weights, versions) and not from the time of writing. So an object that is written again has the same UID, and an archive
keeps one; any difference gives another UID. UIDs have the form "2.25." and the number of a UUID (PS3.5 B.2).
"""

from __future__ import annotations

import json
import logging
import re
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydicom import Dataset

from monai_llmboost import __version__
from monai_llmboost.artifacts.files import atomic_path

MAKER = "monai-llmboost"
DISCLAIMER = "For research only; not for diagnosis."


def highdicom() -> tuple[Any, Any]:
    """Import highdicom and the codes of pydicom.

    Raises:
        ImportError: highdicom is not installed.
    """
    try:
        import highdicom
    except ImportError as error:
        raise ImportError(
            "DICOM objects need highdicom, which is not installed: pip install 'monai-llmboost[dicom]'"
        ) from error
    from pydicom.sr.codedict import codes

    return highdicom, codes


def parameters(algorithm: Mapping[str, str]) -> list[str]:
    """Return the digests of weights and block as texts."""
    labels = {"weights sha256": "weights_sha256", "block fingerprint": "block_fingerprint"}
    return [f"{label}: {algorithm[key]}" for label, key in labels.items() if algorithm.get(key)]


def equipment(algorithm: Mapping[str, str]) -> dict[str, Any]:
    """Return highdicom's arguments for the equipment that made an object."""
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": algorithm["name"][:64],
        "software_versions": [algorithm["version"], f"{MAKER} {__version__}"],
        "device_serial_number": algorithm["weights_sha256"] or "unknown",
    }


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress the warnings and log entries of pydicom and highdicom, which quote invalid values and UIDs."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)  # the loggers of their modules follow
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


@contextmanager
def refused_by_highdicom() -> Iterator[None]:
    """Turn errors of highdicom or pydicom for an invalid source into a ValueError that quotes no values."""
    try:
        with silenced():
            yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        text = re.split("['\"]", str(error))[0]
        if isinstance(error, AttributeError):
            if not isinstance(error.obj, Dataset):
                raise  # a bug in this package
            text = f"there is no {error.name}"
        raise ValueError(
            f"highdicom refuses to derive DICOM objects from the series ({type(error).__name__}: "
            f"{' '.join(text.split())}): correct the series, or run without DICOM objects"
        ) from error


class Uids:
    """UIDs of one object: ``uids("series")`` is the same whenever the same object is written."""

    def __init__(self, sources: Sequence[Dataset], algorithm: Mapping[str, str], *decisive: Any) -> None:
        images = [[str(source.PatientID), str(source.SOPInstanceUID)] for source in sources]
        self.decisive = (images, sorted(algorithm.items()), __version__, *decisive)

    def __call__(self, *role: Any) -> str:
        """Return the UID for a role in the object."""
        return uid_of(*self.decisive, *role)


def uid_of(*parts: Any) -> str:
    """Return a UID derived from plain values by the UUID of their digest (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['monai-llmboost', *parts])).int}"


def save_atomically(dataset: Dataset, path: Path, overwrite: bool) -> None:
    """Write a DICOM file atomically.

    Raises:
        ValueError: the file exists, or a folder or file is in the way.
    """
    occupied = f"{path} is there already: give another path, or overwrite=True to replace a file"
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(occupied)
    try:
        with atomic_path(path) as temporary, refused_by_highdicom():
            dataset.save_as(temporary, enforce_file_format=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(occupied) from error
