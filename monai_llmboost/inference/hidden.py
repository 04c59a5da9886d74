# SPDX-License-Identifier: Apache-2.0
"""Names that are hidden: salted hashes for cases, and sentences that name no file."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from monai_llmboost.data import Scan, SkippedFile

# Names of cases that are hidden.
HASHED = re.compile(r"case-[0-9a-f]{16}")
# What stands in a sentence for the name of a file.
A_FILE = "(a file)"


def hashed(text: str, salt: str) -> str:
    """Return the name that stands for another one; nobody finds it without the salt."""
    return f"case-{hmac.new(salt.encode(), text.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:16]}"


class HiddenNames:
    """Hides the names of cases and of all files of a run, which may be those of patients.

    A sentence loses every name and path of any file that was found, whatever it says of it.

    Args:
        salt: a secret word.
        scans: all scans that were found.
        skipped: all other files.
    """

    def __init__(self, salt: str, scans: Sequence[Scan], skipped: Sequence[SkippedFile]) -> None:
        self.salt = salt
        files = (*(file for scan in scans for file in scan.files), *(file.path for file in skipped))
        self._names = set(_names(files))
        self._lengths = sorted({len(name) for name in self._names}, reverse=True)
        self._known: dict[str, str] = {}  # many files are skipped for one reason

    def scan(self, scan: Scan) -> Scan:
        """Return a scan under its hash, without UID, and without names in its sentences."""
        return replace(
            scan,
            name=hashed(scan.name, self.salt),
            series_uid="",
            warnings=tuple(map(self.text, scan.warnings)),
            refused=self.text(scan.refused),
        )

    def skipped(self, file: SkippedFile) -> SkippedFile:
        """Return a skipped file under its hash, without names in its reason."""
        return SkippedFile(Path(hashed(str(file.path), self.salt)), self.text(file.reason))

    def text(self, text: str) -> str:
        """Return a text with :data:`A_FILE` in the place of each name."""
        if text not in self._known:
            self._known[text] = "".join(self._parts(text))
        return self._known[text]

    def _parts(self, text: str) -> Iterable[str]:
        place = 0
        while place < len(text):
            end = self._end_of_name(text, place)
            yield A_FILE if end else text[place]
            place = end or place + 1

    def _end_of_name(self, text: str, place: int) -> int:
        """Return where the longest name that begins at ``place`` ends; 0 if none does."""
        if place and _is_of_word(text[place - 1]):
            return 0
        for length in self._lengths:
            end = place + length
            if text[place:end] in self._names and not _is_of_word(text[end : end + 1]):
                return end
        return 0


def _names(files: Iterable[Path]) -> Iterable[str]:
    """Yield all by which a sentence may name files; spaces may be joined in it."""
    for file in files:
        paths = [str(path) for path in (file, file.absolute(), file.parent, file.parent.absolute())]
        # A folder such as "in", by itself, is a word of any sentence.
        for name in (file.name, *(path for path in paths if "/" in path.strip("/"))):
            yield name
            yield " ".join(name.split())


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character == "_"
