# SPDX-License-Identifier: Apache-2.0
"""The survey of a labelled list: every scan is read once, measured or refused, and what was read is kept."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from monai_llmboost.artifacts.files import atomic_text
from monai_llmboost.artifacts.page import visible
from monai_llmboost.data import RefusedScan, ScanReader
from monai_llmboost.data.labelled import CaseList, LabelledCase, Source
from monai_llmboost.data.scans.dicom.paths import SEPARATOR
from monai_llmboost.data.transforms import CropScand, LoadScansd
from monai_llmboost.data.transforms.load import LEAST_COVER, grid_cover
from monai_llmboost.inference.reasons import kind_of, reason_of
from monai_llmboost.inspection.label_map import LabelMapMeasures, measure_label_map
from monai_llmboost.inspection.measure import ChannelMeasures, Triple, Volume, box_mm, measure, read_volume
from monai_llmboost.inspection.pictures import draw_case

# Another format of survey.json is read again.
FORMAT = 3
# Seconds after which the scans that were read are written.
SAVED_EVERY = 20.0
# Largest number of thumbnails.
THUMBNAILS = 60


@dataclass(frozen=True)
class CaseSurvey:
    """What was found of one case.

    Args:
        name: name of the case.
        state: digest of names, sizes and times of its files, and of what was asked.
        channels: measures of each channel; ``None`` if it is missing or cannot be read.
        missing: names of the channels that the list leaves out, or whose file is not there.
        refused: why the case cannot be used; empty if it can.
        refused_kind: kind of that reason.
        cover: smallest part of the first channel's grid that another channel covers.
        mask_mm: size of the box around its mask along x, y, z.
        label_map: measures of its label map, in segmentation.
        thumbnail: PNG or WebP in base64; empty if none was asked for.
        seconds: time that reading took.
    """

    name: str
    state: str
    channels: tuple[ChannelMeasures | None, ...] = ()
    missing: tuple[str, ...] = ()
    refused: str = ""
    refused_kind: str = ""
    cover: float = 1.0
    mask_mm: Triple | None = None
    label_map: LabelMapMeasures | None = None
    thumbnail: str = ""
    seconds: float = 0.0

    @property
    def measures(self) -> list[ChannelMeasures]:
        """The measures of the channels that are there."""
        return [channel for channel in self.channels if channel is not None]


def survey_cases(
    cases: CaseList,
    file: Path | None = None,
    reader: ScanReader | None = None,
    missing: str = "refuse",
    workers: int = 0,
    progress: bool = True,
) -> list[CaseSurvey]:
    """Read every case of a list once; a scan that cannot be read correctly does not stop the others.

    Args:
        cases: the list.
        file: ``survey.json``, from which a case whose files have the same size and time is taken; written also when
            the survey is interrupted.
        reader: reader of one scan.
        missing: ``"refuse"`` cases with a missing channel, or accept them, to be filled with ``"zeros"``.
        workers: processes that read scans, one volume at a time each; 0 reads them in this process.
        progress: whether to show a progress bar on a terminal.

    Returns:
        A record of each case, in the order of the list.

    Example:
        >>> survey_cases(read_cases("scans.csv"), Path("out/survey.json"))  # doctest: +SKIP
    """
    known = _read_known(file)
    pictured = choose_pictured(cases.cases)
    read = _Reading(cases, reader or ScanReader(), missing, pictured)
    found: dict[str, CaseSurvey] = {}
    for number, case in enumerate(cases.cases):
        earlier = known.get(case.name)
        usable = earlier is not None and earlier.state == read.state(number)
        if earlier is not None and usable and (earlier.thumbnail or earlier.refused or case.name not in pictured):
            found[case.name] = earlier
    todo = [number for number, case in enumerate(cases.cases) if case.name not in found]
    saved = time.monotonic()
    try:
        for record in tqdm(
            _read_all(read, todo, workers), "inspect", len(todo), unit="scan", disable=None if progress else True
        ):
            found[record.name] = record
            if time.monotonic() - saved > SAVED_EVERY:
                _write(file, found)
                saved = time.monotonic()
    finally:
        if todo or not known:
            _write(file, found)
    return [found[case.name] for case in cases.cases]


def choose_pictured(cases: Sequence[LabelledCase], most: int = THUMBNAILS) -> set[str]:
    """Return the names of cases to show, evenly chosen from the list, about as many of each class."""
    labels = list(dict.fromkeys(case.label for case in cases))
    chosen: set[str] = set()
    for label in labels:
        own = [case.name for case in cases if case.label == label]
        count = min(len(own), max(1, most // len(labels)))
        chosen |= {own[number * len(own) // count] for number in range(count)}
    return chosen


def _read_all(read: _Reading, todo: Sequence[int], workers: int) -> Iterator[CaseSurvey]:
    # torch's loader keeps the order, and hands errors and interruptions of its processes on.
    subset = torch.utils.data.Subset(read, todo)
    return iter(
        DataLoader(
            subset,
            batch_size=None,
            num_workers=min(workers, len(todo)),
            collate_fn=_unchanged,
            generator=torch.Generator(),
        )
    )


def _unchanged(record: Any) -> Any:
    return record


class _Reading(Dataset):
    """Records of cases by number; each reads one volume at a time."""

    def __init__(self, cases: CaseList, reader: ScanReader, missing: str, pictured: Collection[str]) -> None:
        self.cases = cases
        self.reader = reader
        self.missing = missing
        self.pictured = pictured

    def state(self, number: int) -> str:
        """Return a digest of the files of a case, and of what is asked of them."""
        case = self.cases.cases[number]
        files = [_file_states(source) for source in (*case.images, case.mask)]
        options = [str(sorted(vars(part).items())) for part in (self.reader.nifti, self.reader.dicom)]
        said = [FORMAT, files, case.images, case.mask, case.centre_mm, self.missing, options]
        said += [] if case.label_map is None else [case.label_map, _file_states(case.label_map)]
        return hashlib.sha256(json.dumps(said).encode()).hexdigest()

    def __getitem__(self, number: int) -> CaseSurvey:
        case, start = self.cases.cases[number], time.perf_counter()
        found: dict[str, Any] = {"name": case.name, "state": self.state(number)}
        channels: list[ChannelMeasures | None] = [None] * len(case.images)
        absent = [name for name, source in zip(self.cases.channels, case.images) if not source or not _is_there(source)]
        try:
            self._check_missing(case, absent)
            first: Volume | None = None
            for place, source in enumerate(case.images):
                if source:
                    first = self._add_channel(case, place, source, first, channels, found)
            if all(one is None or one.minimum == one.maximum for one in channels):
                raise RefusedScan(f"every voxel is {channels[0].minimum if channels[0] else 0:g}", kind="constant")
        except Exception as error:  # any error concerns only this case
            found |= {"refused": visible(reason_of(error)), "refused_kind": kind_of(error)}
        return CaseSurvey(**found, channels=tuple(channels), missing=tuple(absent), seconds=time.perf_counter() - start)

    def _check_missing(self, case: LabelledCase, absent: Sequence[str]) -> None:
        lost = [name for name, source in zip(self.cases.channels, case.images) if source and name in absent]
        if lost:
            raise RefusedScan(f"its file is missing: {', '.join(lost)}", kind="unread")
        if absent and (self.missing == "refuse" or len(absent) == len(case.images)):
            raise RefusedScan(f"the channel {', '.join(absent)} is missing: give it", kind="channels")

    def _add_channel(
        self,
        case: LabelledCase,
        place: int,
        source: Source,
        first: Volume | None,
        channels: list[ChannelMeasures | None],
        found: dict[str, Any],
    ) -> Volume:
        """Measure a channel; the first one also shows whether the case can be cropped. Return the first."""
        volume = read_volume(source, self.reader)
        channels[place] = measured = measure(volume)
        if first is not None:
            cover = grid_cover(volume.voxels.shape, volume.affine, first.voxels.shape, first.affine)
            found["cover"] = min(found.get("cover", 1.0), cover)
            if cover < LEAST_COVER:
                raise RefusedScan(
                    f"channel {self.cases.channels[place]} covers {100 * cover:.0f} % of the first channel's grid",
                    kind="channels",
                )
            return first
        labels: np.ndarray | None = None
        if case.label_map is not None:
            found["label_map"], labels = measure_label_map(case.label_map, volume, measured.above, self.reader)
        if case.name in self.pictured:
            found["thumbnail"] = base64.b64encode(draw_case(volume, labels)).decode()
        if case.mask is not None:
            item = LoadScansd("mask", self.reader, like="image")({"image": volume.tensor, "mask": case.mask})
            found["mask_mm"] = box_mm(CropScand("image", "mask")(item)["image"])
        if case.centre_mm is not None:
            CropScand("image", "centre")({"image": volume.tensor, "centre": case.centre_mm})
        # Only the grid of the first channel is needed for the others: the voxels are let go.
        grid = np.broadcast_to(np.float32(0), volume.voxels.shape)
        return Volume(grid, volume.affine, grid, volume.spacing_mm, {}, {})


def _files_of(source: Source) -> list[Path]:
    paths = [source] if isinstance(source, str) else source
    return [Path(path if Path(path).exists() else path.partition(SEPARATOR)[0]) for path in paths]


def _is_there(source: Source) -> bool:
    try:
        return all(path.exists() for path in _files_of(source))
    except OSError:  # a name that no file can have
        return False


def _file_states(source: Source | None) -> list[Any]:
    """Return the path, size and time of each file of a scan."""
    states: list[Any] = []
    for path in _files_of(source) if source else ():
        try:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                state = file.stat()
                states.append([str(file), state.st_size, state.st_mtime_ns])
        except OSError:
            states.append([str(path), None, None])
    return states


def _read_known(file: Path | None) -> dict[str, CaseSurvey]:
    """Return the records of an earlier survey; none if there is no file of this format."""
    if file is None or not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {one["name"]: _from_json(one) for one in content["cases"]} if content["format"] == FORMAT else {}
    except (ValueError, KeyError, TypeError):
        return {}  # another program's file, or one of another version: the scans are read again


def _from_json(one: Mapping[str, Any]) -> CaseSurvey:
    channels = tuple(None if channel is None else _tuples(ChannelMeasures, channel) for channel in one["channels"])
    label_map = None if one.get("label_map") is None else _tuples(LabelMapMeasures, one["label_map"])
    return _tuples(CaseSurvey, {**one, "channels": channels, "label_map": label_map})


def _tuples(kind: Callable[..., Any], content: Mapping[str, Any]) -> Any:
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in content.items()})


def _write(file: Path | None, found: Mapping[str, CaseSurvey]) -> None:
    if file is not None:
        with atomic_text(file, aside=False) as stream:
            json.dump({"format": FORMAT, "cases": [asdict(record) for record in found.values()]}, stream)
