# SPDX-License-Identifier: Apache-2.0
"""Paths of models and of block files; a wrong one is reported without torch, whose import takes seconds."""

from __future__ import annotations

import re
from pathlib import Path

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+?)(?:/(?P<file>[^/]+\.gguf))?")
# The small block in the package; its model card is in the same folder.
EMBEDDED = Path(__file__).parent / "embedded" / "tiny-english.safetensors"


def find_block_file(file: str | Path) -> Path:
    """Return the path of a block file, or of the one in the package (``"embedded"``).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a folder.

    Example:
        >>> find_block_file("embedded").name
        'tiny-english.safetensors'
    """
    path = EMBEDDED if file == "embedded" else Path(file)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a block file: cut one layer out of the model with "
            f"`monai-llmboost extract {path} --layer -1 --out FILE`"
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"no block file at {path}: give --block FILE; make one with "
            "`monai-llmboost extract MODEL --layer -1 --out FILE`"
        )
    return path


def check_new_block_file(out: Path) -> None:
    """Check the path of a block file to write.

    Raises:
        ValueError: a folder, or another suffix than ``.safetensors``.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"{out.name!r} does not end in .safetensors: give --out {out.with_suffix('.safetensors')}")
    if out.is_dir():
        raise ValueError(f"{out} is a folder, not the file to write: give --out {out}/block.safetensors")


def parse_model(model: str | Path) -> re.Match[str] | None:
    """Return the parts of a hub id, or None for a local folder or GGUF file; nothing is asked of the hub.

    Raises:
        FileNotFoundError: anything else.

    Example:
        >>> parse_model("HuggingFaceTB/SmolLM2-135M")["repository"]
        'HuggingFaceTB/SmolLM2-135M'
    """
    path, on_hub = Path(model), HUB_ID.fullmatch(str(model))
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".gguf"):
        return None
    if path.exists() or on_hub is None:
        raise FileNotFoundError(
            f"no model at {str(model)!r}: give a model folder, a GGUF file, or a hub id such as owner/name"
        )
    return on_hub


def find_config(model: str | Path) -> Path:
    """Return the file with the geometry of a model: ``config.json``, or the GGUF file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(model)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"no config.json at {path}: give the file or its folder")
    return path
