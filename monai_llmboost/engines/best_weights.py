# SPDX-License-Identifier: Apache-2.0
"""The best network of a training, ``model.pt``, and ``last.pt``, which knows it by its digest.

Two files cannot be replaced at once. So new best weights are written as ``model.next.pt`` first, then ``last.pt`` with
their digest, and then they are renamed; a resumed run does what a killed one left undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest

BEST, LAST, NEXT = "model.pt", "last.pt", "model.next.pt"
# In last.pt: the sha256 of model.pt; empty before the first validation, None where an earlier version began the run.
DIGEST = "model_sha256"


def place_next(folder: Path) -> None:
    """Give the new best weights their name, if there are some."""
    if (folder / NEXT).is_file():
        (folder / NEXT).replace(folder / BEST)


def check_best(folder: Path, state: Mapping[str, Any]) -> None:
    """See that ``model.pt`` is of the run that is resumed.

    Args:
        folder: of the checkpoints.
        state: what ``last.pt`` holds; without a digest nothing is compared.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is of another run.
    """
    digest = state.get(DIGEST)
    if digest is None:
        return
    path, following = folder / BEST, folder / NEXT
    if following.is_file() and digest and file_digest(following) == digest:
        place_next(folder)
    following.unlink(missing_ok=True)
    advice = "or start again with another --ckpt_dir"
    if not digest and path.exists():
        raise ValueError(f"{path} is of another run, for that in {folder / LAST} has none yet: move it away, {advice}")
    if digest and not path.is_file():
        raise FileNotFoundError(f"{path}, the best network so far of the run to resume, is gone: put it back, {advice}")
    if digest and file_digest(path) != digest:
        raise ValueError(f"{path} is not the best network of the run in {folder / LAST}: put its own back, {advice}")
