# SPDX-License-Identifier: Apache-2.0
"""The checkpoints of a training: ``model.pt``, the best network, and ``last.pt``, which contains the digest of it.

Two files cannot be replaced at once. So new best weights are written to ``model.next.pt`` first, then ``last.pt`` with
their digest, and then ``model.next.pt`` is renamed; a resumed run completes these steps if the run was killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai_llmboost.artifacts.digests import file_digest
from monai_llmboost.artifacts.files import atomic_path

BEST, LAST, NEXT = "model.pt", "last.pt", "model.next.pt"
# Checkpoint files by the value of the option ``weights``.
WEIGHTS = {"best": BEST, "last": LAST}


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state atomically: if writing fails, the earlier file stays unchanged."""
    import torch  # the rest of this file is used without it

    with atomic_path(path) as part:
        torch.save(state, part)


def place_next(folder: Path) -> None:
    """Rename new best weights, if there are any, to ``model.pt``."""
    if (folder / NEXT).is_file():
        (folder / NEXT).replace(folder / BEST)


def check_best(folder: Path, digest: str | None) -> None:
    """Check that ``model.pt`` belongs to the run that is resumed.

    Args:
        folder: folder of the checkpoints.
        digest: digest in ``last.pt``; ``None`` skips the check.

    Raises:
        FileNotFoundError: ``model.pt`` does not exist.
        ValueError: ``model.pt`` belongs to another run.
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
