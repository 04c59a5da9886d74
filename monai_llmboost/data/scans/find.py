# SPDX-License-Identifier: Apache-2.0
"""Search for scans on disk by the content of files instead of their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from monai_llmboost.data.scans.dicom.headers import looks_like_dicom
from monai_llmboost.data.scans.dicom.stacks import find_dicom_scans
from monai_llmboost.data.scans.inputs import Input, make_unique, open_inputs
from monai_llmboost.data.scans.kinds import (
    ANALYZE,
    CONVERTIBLE,
    DICOM_SUFFIXES,
    identify_kind,
    may_be_slice,
    read_first_bytes,
)
from monai_llmboost.data.scans.nifti.headers import find_partner, read_nifti_scan
from monai_llmboost.data.scans.parallel import read_files, show_progress
from monai_llmboost.data.scans.scan import MAX_VOXELS, Scan, SkippedFile, describe_error, get_refused_kind

# Characters that begin a formula in a spreadsheet.
FORMULA_STARTS = ("=", "+", "-", "@")


def find_scans(
    inputs: Sequence[str | Path] | str | Path,
    follow_links: bool = False,
    leave_out: Sequence[Path] = (),
    max_voxels: int = MAX_VOXELS,
    num_workers: int = 0,
) -> tuple[list[Scan], list[SkippedFile]]:
    """Find all scans at the inputs, readable or refused with a reason, and the files that are not scans.

    A scan is named by its path below the input; with several inputs, the name of the input comes first.

    Args:
        inputs: folders (searched with their subfolders), files, glob patterns, or lists of files and folders: .txt with
            one path a line, .csv with one column or a column ``image``, .json with a list of paths or of objects with
            ``image``; relative to the list's folder.
        follow_links: also follow links to folders, and links that lead out of the folder.
        leave_out: folders below the inputs that are not searched, such as the output folder.
        max_voxels: maximum number of voxels of a NIfTI volume; larger ones are refused.
        num_workers: processes that read headers; 0 reads them in this process.

    Raises:
        FileNotFoundError: an input without any scan.
        ValueError: a list file that is not a list; a folder that is both an input and left out.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("broken.nii", "notes.txt"):
        ...     _ = (folder / name).write_text("words")
        >>> scans, skipped = find_scans(folder)
        >>> [(scan.name, scan.refused_kind) for scan in scans], [file.reason for file in skipped]
        ([('broken.nii', 'format')], ['a text file'])
    """
    several = [inputs] if isinstance(inputs, (str, Path)) else list(inputs)
    if not several:
        raise FileNotFoundError("no NIfTI or DICOM scans at all: give a folder, a file, a pattern or a list of files")
    excluded = {Path(path).expanduser().resolve() for path in leave_out}
    scans: list[Scan] = []
    skipped: list[SkippedFile] = []
    seen: set[str] = set()
    names: set[str] = set()
    for source in open_inputs(several, follow_links, excluded):
        found, others, repeated = _find_in_input(source, seen, follow_links, max_voxels, num_workers)
        if not found and not repeated:
            raise FileNotFoundError(_describe_nothing_found(source.given, others))
        for scan in sorted(found, key=lambda scan: scan.name):
            name = make_unique(_escape_for_spreadsheet(scan.name), names)
            scans.append(scan if name == scan.name else replace(scan, name=name))
        skipped += others
    return scans, skipped


def _find_in_input(
    source: Input, seen: set[str], follow_links: bool, max_voxels: int, num_workers: int
) -> tuple[list[Scan], list[SkippedFile], bool]:
    """Return the scans of an input, its other files, and whether some of its files were found before."""
    scans: list[Scan] = []
    skipped: list[SkippedFile] = []
    dicom: list[Path] = []
    repeated = False
    paths: list[tuple[Path, str]] = []
    for path in show_progress(source.files, "find files"):
        if isinstance(path, SkippedFile):
            skipped.append(path)
        else:
            paths.append((path, str(path.resolve() if follow_links else path.absolute())))
    new = [path for path, key in paths if key not in seen]
    kinds = read_files(partial(_read, name=source.name, max_voxels=max_voxels), new, num_workers, "read headers")
    known = dict(zip(new, kinds))
    for path, key in paths:
        if key in seen:  # overlapping inputs, or a list that names a file twice
            repeated = True
            continue
        kind = known[path]
        if isinstance(kind, SkippedFile):
            skipped.append(kind)
            continue
        seen.add(key)
        if isinstance(kind, Scan):
            scans.append(kind)
        elif kind == "DICOM":
            dicom.append(path)
    stacks, others = find_dicom_scans(dicom, source.name, num_workers=num_workers) if dicom else ([], [])
    neighbours: dict[Path, list[SkippedFile]] = {}
    for file in (*skipped, *others, *(file for scan in (*scans, *stacks) for file in _list_unread(scan))):
        neighbours.setdefault(file.path.parent, []).append(file)
    return [*scans, *(_warn_of_neighbours(stack, neighbours) for stack in stacks)], [*skipped, *others], repeated


def _list_unread(scan: Scan) -> list[SkippedFile]:
    """Return the file of a damaged DICOM case with one file, because the file may be a slice of another case."""
    damaged = scan.refused_kind in ("damaged", "format", "unread")
    if scan.format == "DICOM" and len(scan.files) == 1 and damaged:
        return [SkippedFile(scan.files[0], scan.refused, unread=True)]
    return []


def _warn_of_neighbours(stack: Scan, neighbours: dict[Path, list[SkippedFile]]) -> Scan:
    """Add a warning to a DICOM scan whose first or last slices may be among the unread files of its folders."""
    if len(stack.files) == 1:
        return stack
    suffixes = {file.suffix.lower() for file in stack.files}
    lost = sum(
        file.unread or may_be_slice(file.path.name, file.reason, suffixes)
        for folder in {file.parent for file in stack.files}
        for file in neighbours.get(folder, [])
    )
    if not lost:
        return stack
    warning = (
        f"files next to it that cannot be read: {lost}; if they are of its series, its first or last slices are missing"
    )
    return replace(stack, warnings=(*stack.warnings, warning))


def _read(path: Path, name: Callable[[Path], str], max_voxels: int) -> str | Scan | SkippedFile:
    """Return ``"DICOM"``, ``"part"`` of a pair, a scan from its NIfTI header, or a skipped file."""
    kind = _classify(path, name)
    return read_nifti_scan(path, name(path), max_voxels) if kind == "NIfTI" else kind


def _classify(path: Path, name: Callable[[Path], str]) -> str | Scan | SkippedFile:
    """Return ``"NIfTI"``, ``"DICOM"``, ``"part"`` of a pair, a scan that is already refused, or a skipped file."""
    format = _get_named_format(path)
    if path.name.lower() == "dicomdir":
        return SkippedFile(path, "an index of DICOM files: the files themselves are searched")
    try:
        if path.exists() and not path.is_file():
            return SkippedFile(path, "no regular file but a pipe, a socket or a device")
        head, packed = read_first_bytes(path)
    except OSError as error:
        return _report_unreadable(path, name, format, error)
    kind = identify_kind(head)
    if kind == "NIfTI":
        return kind
    if kind == "DICOM" and not packed:
        return kind
    if side_file := _classify_side_file(path):
        return side_file
    if format == "NIfTI" and head:
        return format
    if not packed and kind.startswith("a file") and looks_like_dicom(path):
        return "DICOM"
    if format:
        return Scan(
            name(path),
            (path,),
            format,
            refused=f"expected a {format} file, got {kind}: copy or export it again",
            refused_kind="format",
        )
    return _classify_other(path, kind)


def _get_named_format(path: Path) -> str:
    """Return the format that a file's name promises; empty if none."""
    lower = path.name.lower()
    return "NIfTI" if lower.endswith((".nii", ".nii.gz")) else "DICOM" if lower.endswith(DICOM_SUFFIXES) else ""


def _report_unreadable(path: Path, name: Callable[[Path], str], format: str, error: OSError) -> Scan | SkippedFile:
    """Return a file that cannot be read as a refused scan, or as a skipped file if it need not be a scan."""
    if format or isinstance(error, FileNotFoundError):
        return Scan(
            name(path),
            (path,),
            format or "NIfTI",
            refused=describe_error(error),
            refused_kind=get_refused_kind(error),
        )
    return SkippedFile(path, f"cannot be read: {error.strerror}", unread=True)


def _classify_side_file(path: Path) -> str | SkippedFile | None:
    """Return ``"part"`` of a pair or a skipped file for a file that, by its name, belongs to another one, or None."""
    lower = path.name.lower()
    if lower.startswith("._"):
        return SkippedFile(path, "a side file of macOS")
    if lower.endswith((".img", ".img.gz")):
        return "part" if find_partner(path, "hdr") else SkippedFile(path, "an .img file whose .hdr is missing")
    return None


def _classify_other(path: Path, kind: str) -> str | SkippedFile:
    """Return a file that neither its name nor its content makes a scan, usually as a skipped file."""
    if kind == ANALYZE and path.name.lower().endswith(".hdr"):
        return "NIfTI"  # its reader refuses it with a reason
    if kind == "DICOM":
        return SkippedFile(path, "a compressed DICOM file: unpack it", unread=True)
    reason = kind + (": convert it to NIfTI" if kind in CONVERTIBLE else "")
    return SkippedFile(path, reason)


def _describe_nothing_found(given: str, skipped: Sequence[SkippedFile]) -> str:
    seen = (
        f", only {len(skipped)} other file(s), such as {skipped[0].path.name}, {skipped[0].reason}" if skipped else ""
    )
    return (
        f"no NIfTI or DICOM scans at {given}{seen}: give a folder, a file, a pattern or a list of files (.txt, .csv, "
        ".json)"
    )


def _escape_for_spreadsheet(name: str) -> str:
    """Return a name in printable Unicode that no spreadsheet takes for a formula."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    name = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return f"./{name}" if name.lstrip().startswith(FORMULA_STARTS) else name
