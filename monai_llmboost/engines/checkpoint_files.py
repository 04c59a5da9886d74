# SPDX-License-Identifier: Apache-2.0
"""The files of a training: ``model.pt``, its best network, and ``last.pt``, which knows that one by its digest.

Two files cannot be replaced at once. So new best weights are written as ``model.next.pt`` first, then ``last.pt`` with
their digest, and then they are renamed; a resumed run completes what a killed one left undone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import atomic_path

BEST, LAST, NEXT = "model.pt", "last.pt", "model.next.pt"
# Files by whose weights they hold, as the option ``weights`` names them.
WEIGHTS = {"best": BEST, "last": LAST}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state, or leave the earlier file as it is."""
    with atomic_path(path) as part:
        torch.save(state, part)


def place_next(folder: Path) -> None:
    """Give the new best weights their name, if there are some."""
    if (folder / NEXT).is_file():
        (folder / NEXT).replace(folder / BEST)


def check_best(folder: Path, digest: str | None) -> None:
    """Check that ``model.pt`` is of the run that is resumed.

    Args:
        folder: of the checkpoints.
        digest: that ``last.pt`` keeps; ``None`` compares nothing.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is of another run.
    """
    if digest is None:
        return
    path, following = folder / BEST, folder / NEXT
    if following.is_file() and digest and file_digest(following) == digest:
        place_next(folder)
    following.unlink(missing_ok=True)
    advice = "or start again with another --ckpt_dir"
    if not digest and path.exists():
        raise ValueError(f"{path} is of another run, since {folder / LAST} has no best network yet: move it, {advice}")
    if digest and not path.is_file():
        raise FileNotFoundError(f"{path}, the best network so far of the run to resume, is gone: put it back, {advice}")
    if digest and file_digest(path) != digest:
        raise ValueError(f"{path} is not the best network of the run in {folder / LAST}: put its own back, {advice}")
