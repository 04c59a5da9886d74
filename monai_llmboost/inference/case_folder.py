# SPDX-License-Identifier: Apache-2.0
"""Safe folder names for the files of a case, derived from its name."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

# Longer parts of a case's name are cut; file systems allow 255 bytes.
LONGEST_PART = 60
# Names of files in such a folder, which parts of a case's name must not equal.
MAP_NAMES = ("network", "before_booster", "after_booster")
PREVIEW = "preview.webp"
FILE_NAMES = {PREVIEW, "preview.png", *(f"{name}.nii.gz" for name in MAP_NAMES)}


def case_folder(name: str) -> Path:
    """Return a relative path without ``..`` for a case; different names give different folders.

    A part of the name is kept if it is valid on every file system; otherwise it is shortened and gets a digest.

    Example:
        >>> case_folder("site-1/scan.nii").as_posix()
        'site-1/scan.nii'
        >>> case_folder("..").as_posix()
        '_5ec1f7e700f3'
    """
    return Path(*(_folder_part(part) for part in name.split("/")))


def _folder_part(part: str) -> str:
    kept = re.sub(r"[^\w .,()+=@-]", "_", part)[:LONGEST_PART]
    if kept == part and part not in FILE_NAMES and part.strip(". ") and part[-1] not in ". ":
        return part
    digest = hashlib.sha256(part.encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{kept.strip('. ')}_{digest}"
