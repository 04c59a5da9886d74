# SPDX-License-Identifier: Apache-2.0
"""Files of folders, sorted by name; links are followed only on request, and never in circles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from monai_llmboost.data.scans.scan import SkippedFile

# A folder with both of these contains predictions; its maps are not scans.
RUN, JOURNAL = "run.json", "journal"
# Folders with copies or side files of their neighbours.
NOT_SEARCHED = (".git", "__MACOSX")


def refuse_excluded(folder: Path, excluded: set[Path]) -> None:
    """Raise ValueError if a folder to search is excluded from the search."""
    if folder.resolve() in excluded:
        raise ValueError(
            f"the output folder is {folder}, which is also searched, so results would be taken for scans: give another "
            "output folder"
        )


def expand_path(path: Path, root: Path, follow_links: bool, excluded: set[Path]) -> Iterator[Path | SkippedFile]:
    """Yield a path of a list or pattern if it is a file, or all files in it if it is a folder."""
    if _ask(path.is_symlink) and (reason := _find_link_problem(path, root.resolve(), follow_links)):
        yield SkippedFile(path, reason, unread=not _ask(path.is_dir))
    elif _ask(path.is_dir):
        if path.resolve() not in excluded:
            yield from walk_folder(path, root, follow_links, excluded)
    elif not any(parent.resolve() in excluded for parent in path.parents if parent.is_relative_to(root)):
        yield path


def walk_folder(folder: Path, root: Path, follow_links: bool, excluded: set[Path]) -> Iterator[Path | SkippedFile]:
    """Yield the files of a folder and its subfolders, sorted by name; links are followed or skipped."""
    refuse_excluded(folder, excluded)
    resolved_root = root.resolve()
    visited = {folder.resolve()}
    todo = [folder]
    while todo:
        path = todo.pop()
        is_link = path != folder and _ask(path.is_symlink)
        if is_link and (reason := _find_link_problem(path, resolved_root, follow_links, visited)):
            yield SkippedFile(path, reason, unread=not _ask(path.is_dir))
        elif _ask(path.is_dir):
            if path.name in NOT_SEARCHED or path.resolve() in excluded:
                continue
            if _ask((path / RUN).is_file) and _ask((path / JOURNAL).is_dir):
                yield SkippedFile(path, "the folder of an earlier run's results")
                continue
            visited.add(path.resolve())
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


def _ask(question: Callable[[], bool]) -> bool:
    """Return the answer, or False on an error of the file system, which is reported when the path is opened."""
    try:
        return question()
    except OSError:
        return False


def _find_link_problem(path: Path, root: Path, follow_links: bool, visited: Iterable[Path] = ()) -> str:
    """Return why a link is not followed; empty if it is followed."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if target.is_dir():
        if not follow_links:
            return "a link to a folder: set follow_links to search it too"
        return "a link to a folder that is searched already" if target in visited else ""
    if not follow_links and not target.is_relative_to(root):
        return "a link that leads out of the folder: set follow_links to follow it"
    return ""
