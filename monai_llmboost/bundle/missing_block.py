# SPDX-License-Identifier: Apache-2.0
"""The error of a block file that is gone; what to do depends on whose network it is."""

from __future__ import annotations

from pathlib import Path


class MissingBlockError(FileNotFoundError):
    """The block file of a training is not where it was.

    Args:
        file: where it was.
        fingerprint: the first digits of the fingerprint of its weights.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        super().__init__(
            f"the block file of the training is no longer at {file}: give its new place with --block FILE; it has the "
            f"fingerprint {fingerprint}"
        )
        self.file = file
        self.fingerprint = fingerprint
