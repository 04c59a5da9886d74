# SPDX-License-Identifier: Apache-2.0
"""The files of folders, in one order everywhere, without going in circles or where nobody asked to go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from monai_llmboost.data.scans.scan import SkippedFile

# What a folder of predictions has, whose maps are no scans.
RUN, JOURNAL = "run.json", "journal"
# Folders that hold copies or side files of what lies beside them.
NOT_SEARCHED = (".git", "__MACOSX")


def refuse_excluded(folder: Path, excluded: set[Path]) -> None:
    """Raise ValueError if a folder is to be searched and to be left out at once."""
    if folder.resolve() in excluded:
        raise ValueError(
            f"expected the folder that is written into to be another than {folder}, which is searched: its own results "
            "would be taken for scans; give another folder"
        )


def expand_path(path: Path, root: Path, follow_links: bool, excluded: set[Path]) -> Iterator[Path | SkippedFile]:
    """A path of a list or a pattern: itself, or what is in it."""
    if _is(path.is_symlink) and (reason := _link(path, root.resolve(), follow_links)):
        yield SkippedFile(path, reason, unread=not _is(path.is_dir))
    elif _is(path.is_dir):
        if path.resolve() not in excluded:
            yield from walk_folder(path, root, follow_links, excluded)
    elif not any(parent.resolve() in excluded for parent in path.parents if parent.is_relative_to(root)):
        yield path


def walk_folder(folder: Path, root: Path, follow_links: bool, excluded: set[Path]) -> Iterator[Path | SkippedFile]:
    """The files of a folder, to its depths, by name; links are followed or skipped."""
    refuse_excluded(folder, excluded)
    inside = root.resolve()
    entered = {folder.resolve()}
    todo = [folder]
    while todo:
        path = todo.pop()
        if path != folder and _is(path.is_symlink) and (reason := _link(path, inside, follow_links, entered)):
            yield SkippedFile(path, reason, unread=not _is(path.is_dir))
        elif _is(path.is_dir):
            if path.name in NOT_SEARCHED or path.resolve() in excluded:
                continue
            if _is((path / RUN).is_file) and _is((path / JOURNAL).is_dir):
                yield SkippedFile(path, "the folder of an earlier run's results")
                continue
            entered.add(path.resolve())
            if path.name.lower().endswith((".nii", ".nii.gz")):
                yield SkippedFile(path, "a folder, in spite of its name; it was searched")
            try:
                with os.scandir(path) as entries:
                    names = sorted((entry.name for entry in entries), reverse=True)
            except OSError as error:
                yield SkippedFile(path, f"a folder that cannot be read: {error.strerror}", unread=True)
                continue
            todo += [path / name for name in names]
        else:
            yield path


def _is(question: Callable[[], bool]) -> bool:
    """The answer, or no where the system gives none: whoever opens the path meets its reason."""
    try:
        return question()
    except OSError:
        return False


def _link(path: Path, inside: Path, follow_links: bool, entered: Iterable[Path] = ()) -> str:
    """Why a link is not followed; empty if it is."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if target.is_dir():
        if not follow_links:
            return "a link to a folder: set follow_links to search it too"
        return "a link to a folder that is searched already" if target in entered else ""
    if not follow_links and not target.is_relative_to(inside):
        return "a link that leads out of the folder: set follow_links to follow it"
    return ""
