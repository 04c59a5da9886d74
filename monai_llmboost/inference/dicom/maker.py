# SPDX-License-Identifier: Apache-2.0
"""What every DICOM object that is written here has in common: its maker, its UIDs, how it comes to disk.

A UID names content: it is made of all that decides an object (source images, numbers, names, weights, versions) and not
of the time of writing. So an object written again is the same object, of which an archive keeps one, and one in which
anything differs has another UID. The UIDs are of the kind "2.25.", the number of a UUID (PS3.5 B.2).
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
from monai_llmboost.artifacts.files import placed_whole

MAKER = "monai-llmboost"
DISCLAIMER = "For research only; not for diagnosis."


def highdicom() -> tuple[Any, Any]:
    """highdicom and the codes of pydicom, imported when they are needed."""
    try:
        import highdicom
    except ImportError as error:
        raise ImportError(
            "expected highdicom to write DICOM objects, it is not installed: pip install 'monai-llmboost[dicom]'"
        ) from error
    from pydicom.sr.codedict import codes

    return highdicom, codes


def parameters(algorithm: Mapping[str, str]) -> list[str]:
    """What the algorithm was run with, as sentences."""
    told = {"weights sha256": "weights_sha256", "block fingerprint": "block_fingerprint"}
    return [f"{words}: {algorithm[key]}" for words, key in told.items() if algorithm.get(key)]


def equipment(algorithm: Mapping[str, str]) -> dict[str, Any]:
    """What highdicom is told of the device that made an object."""
    return {
        "manufacturer": MAKER,
        "manufacturer_model_name": algorithm["name"][:64],
        "software_versions": [algorithm["version"], f"{MAKER} {__version__}"],
        "device_serial_number": algorithm["weights_sha256"] or "unknown",
    }


@contextmanager
def untold() -> Iterator[None]:
    """Without the warnings and log entries of pydicom and highdicom on odd values, which quote them."""
    logger = logging.getLogger("pydicom")
    before = logger.disabled
    logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


@contextmanager
def refused_by_highdicom() -> Iterator[None]:
    """What highdicom or pydicom raise for an odd source, as a ValueError without values."""
    try:
        with untold():
            yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        text = re.split("['\"]", str(error))[0]
        if isinstance(error, AttributeError):
            if not isinstance(error.obj, Dataset):
                raise  # of our own code
            text = f"there is no {error.name}"
        raise ValueError(
            f"expected images that DICOM objects can be derived from, got a series that highdicom refuses "
            f"({type(error).__name__}: {' '.join(text.split())}): correct the series, or run without DICOM objects"
        ) from error


class Uids:
    """UIDs of one object: ``uids("series")`` is the same wherever the same object is written."""

    def __init__(self, sources: Sequence[Dataset], algorithm: Mapping[str, str], *decisive: Any) -> None:
        images = [[str(source.PatientID), str(source.SOPInstanceUID)] for source in sources]
        self.decisive = (images, sorted(algorithm.items()), __version__, *decisive)

    def __call__(self, *role: Any) -> str:
        """The UID of what plays that role in the object."""
        return uid_of(*self.decisive, *role)


def uid_of(*parts: Any) -> str:
    """The UID of plain values, made of the UUID of their digest (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['monai-llmboost', *parts])).int}"


def save_whole(dataset: Dataset, path: Path, overwrite: bool) -> None:
    """Write a DICOM file that appears whole or not at all.

    Raises:
        ValueError: there is a file, or a folder where the file or its folder should be.
    """
    told = f"expected {path} to be free, got something that is there: give another path, or overwrite=True for a file"
    if path.is_dir() or (path.exists() and not overwrite):
        raise ValueError(told)
    try:
        with placed_whole(path) as temporary, refused_by_highdicom():
            dataset.save_as(temporary, enforce_file_format=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(told) from error
