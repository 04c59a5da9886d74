# SPDX-License-Identifier: Apache-2.0
"""A MONAI data set of labelled scans that are prepared once and kept, in memory or on disk."""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import monai
from monai.data import CacheDataset, Dataset, MetaTensor, PersistentDataset
from monai.transforms import Compose
from torch import Tensor

import monai_llmboost
from monai_llmboost.arguments import check_choice
from monai_llmboost.data.memory import available_memory
from monai_llmboost.data.scans.scan import RefusedScan
from monai_llmboost.data.steps import list_voxel_steps, settings_to_text

logger = logging.getLogger("monai_llmboost")
CACHES = ("memory", "disk", "shared", "none")
# Part of the available memory that prepared scans may take.
PART_OF_MEMORY = 0.6
THREADS = 4


class LabelledScanDataset(Dataset):
    """Labelled scans, prepared by deterministic transforms and kept by MONAI's ``CacheDataset``/``PersistentDataset``.

    Scans are prepared when the first one is asked for. As many are kept in memory as fit into 60 % of what is
    free.

    Args:
        data: items with ``"image"`` (paths), ``"label"`` and ``"case"``, such as of
            :meth:`monai_llmboost.data.LabelledScans.items`.
        transform: deterministic transforms of an item; random ones belong to the loader, which applies them to batches.
        split: the split, for messages and checks.
        division: how the cases were divided, as text that is stored with the trained weights.
        cache: ``"memory"``, ``"disk"`` (in ``cache_dir``; a changed file or transform is prepared again), ``"shared"``
            (prepared on disk, by the first of several processes, and kept in the memory of each) or ``"none"``.
        cache_dir: folder of ``"disk"`` and ``"shared"``.
        progress: whether to show a progress bar, on a terminal.

    Raises:
        ValueError: an unknown cache, or one on disk without a folder; from an item, a scan that cannot be read
            correctly, with the name of its case.

    Example:
        >>> data = LabelledScanDataset(scans.items("train"), preprocessing, "train")  # doctest: +SKIP
        >>> data[0]["image"].shape  # doctest: +SKIP
        torch.Size([1, 64, 64, 64])
    """

    # Which cases of a list are test cases may depend on the other cases, and on who edited it.
    has_official_test = False
    advice = "the list and the options of the training, or train again"

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable,
        split: str = "",
        division: str = "",
        cache: str = "memory",
        cache_dir: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        check_choice("cache", cache, CACHES)
        if random := list_voxel_steps(transform, random=True):
            raise ValueError(
                f"{random[0].name} is random, and would be kept: give it to the loader, which applies it in each epoch"
            )
        if cache in ("disk", "shared") and not cache_dir:
            raise ValueError("the cache on disk has no folder: give --cache_dir")
        super().__init__(data, transform)
        self.split = split
        self.division = division
        self.cache = cache
        self.cache_dir = cache_dir
        self.progress = progress and sys.stderr.isatty()
        self._kept: Dataset | None = None
        # Before any use: some of MONAI's transforms keep what they did last among their settings.
        self._steps = f"monai {monai.__version__}, {monai_llmboost.__version__}: {settings_to_text(transform)}"

    @property
    def cases(self) -> list[str]:
        """The names of the cases."""
        return [str(item.get("case", number)) for number, item in enumerate(self.data)]

    def prepare(self) -> Dataset:
        """Prepare the scans to be kept; a second call returns the same."""
        if self._kept is None:
            self._kept = self._make()
        return self._kept

    def __getitem__(self, index: Any) -> Any:
        """Return a prepared item."""
        return self.prepare()[index]

    def _make(self) -> Dataset:
        source: Any = self.data
        transform: Callable = _Prepare(self.transform)
        if self.cache in ("disk", "shared"):
            kept = _DiskCache(source, transform, self.cache_dir, partial(_item_digest, self._steps), track_meta=True)
            if self.cache == "disk":
                return kept
            source, transform = kept, Compose()
        if self.cache == "none" or not len(source):
            return Dataset(source, transform)
        # Scans that are segmented have different sizes: the largest of some stands for all.
        some = sorted({0, len(self.data) // 2, len(self.data) - 1})
        size = max(_bytes_of(transform(source[number])) for number in some)
        memory = PART_OF_MEMORY * available_memory() / idist.get_nproc_per_node()
        fit = math.floor(memory / max(size, 1))
        count = min(len(self.data), fit)
        if count < len(self.data):
            logger.warning(
                f"{count} of {len(self.data)} prepared {self.split} scans fit into memory, the others are prepared "
                "in each epoch: give --cache disk, or a smaller --image_shape"
            )
        threads = min(THREADS, os.cpu_count() or 1)
        return CacheDataset(
            source, transform, cache_num=count, num_workers=threads, progress=self.progress, copy_cache=False
        )


def _bytes_of(item: Mapping[str, Any]) -> int:
    return sum(value.numel() * value.element_size() for value in item.values() if isinstance(value, Tensor))


class _Prepare(Compose):
    """The transforms of an item, whose error names its case, as one step, into which MONAI's caches do not look.

    Of the metadata only the affine is kept: the rest is large, and cannot be loaded without pickle.
    """

    def __init__(self, transform: Callable) -> None:
        super().__init__()
        self.whole = transform

    def __call__(self, input_: Any, *_: Any, **__: Any) -> dict[str, Any]:  # type: ignore[override]  # as Compose's
        try:
            return {key: _plain_volume(value) for key, value in self.whole(dict(input_)).items()}
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None and not isinstance(cause, RefusedScan):
                cause = cause.__cause__
            raise ValueError(
                f"the case {input_.get('case', input_.get('image'))} cannot be used: "
                f"{str(cause) or type(cause).__name__}; inspect again, which leaves it out, or correct it"
            ) from error


class _DiskCache(PersistentDataset):
    """MONAI's cache on disk, which also prepares a scan again whose file was cut short."""

    def _cachecheck(self, item_transformed: Any) -> Any:
        try:
            return super()._cachecheck(item_transformed)
        except (RuntimeError, EOFError):  # of the kept file: an error of the transforms is a ValueError
            Path(str(self.cache_dir), f"{self.hash_func(item_transformed).decode()}.pt").unlink(missing_ok=True)
            return super()._cachecheck(item_transformed)


def _plain_volume(value: Any) -> Any:
    return MetaTensor(value.as_tensor().contiguous(), affine=value.affine) if isinstance(value, MetaTensor) else value


def _item_digest(transforms: str, item: Mapping[str, Any]) -> bytes:
    """Return a digest of an item, of the size and time of its files, and of the transforms."""
    files = [[path, *_state(path)] for path in _paths([item.get(key) for key in ("image", "mask", "label")])]
    return hashlib.sha256(json.dumps([dict(item), files, transforms], default=str).encode()).hexdigest().encode()


def _paths(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [path for one in value for path in _paths(one)]
    return [str(value).partition("::")[0]] if value and not isinstance(value, int) else []


def _state(path: str) -> list[Any]:
    """Return the size and time of a file, or of all files in a folder."""
    where = Path(path)
    files = sorted(where.rglob("*")) if where.is_dir() else [where]
    if where.suffix in (".hdr", ".img"):
        files = sorted(where.parent.glob(f"{glob.escape(where.stem)}.*"))
    return [[str(file), (state := file.stat()).st_size, state.st_mtime_ns] for file in files if file.exists()]
