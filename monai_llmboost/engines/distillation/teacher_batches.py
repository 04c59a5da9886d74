# SPDX-License-Identifier: Apache-2.0
"""Batches of a training with what the teacher makes of them, which is computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.engines import PrepareBatch, default_prepare_batch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from monai_llmboost.arguments import check_choice
from monai_llmboost.artifacts.digests import tensors_digest
from monai_llmboost.artifacts.files import atomic_path
from monai_llmboost.bundle.contract import IMAGE
from monai_llmboost.data.labels import CASE
from monai_llmboost.engines.distillation.teacher import Teacher

FILE = "teacher-{}.safetensors"


class TeacherBatches(PrepareBatch):
    """Adds the teacher's features and logits to each batch of a trainer, as arguments of its network.

    An "augmented" teacher sees each batch as the student does, and runs in every step. A "plain" one sees each case
    once, without augmentation, and what it makes of it is kept: on disk if there is a ``cache_dir``, from where it is
    read as needed. The file is named by a digest of the teacher's weights and of the images that it saw, so that
    another teacher, other cases or another preprocessing never find it.

    Args:
        teacher: the teacher.
        sees: ``"plain"`` or ``"augmented"``; ``None``: plain if there is a loader.
        loader: for a plain teacher, batches with ``"image"`` and ``"case"`` of all training cases, not augmented.
        cache_dir: folder of the files; ``None`` keeps what the teacher makes in memory.
        progress: show a progress bar while the teacher runs.

    Raises:
        ValueError: an unknown way to see, a plain teacher without a loader, or a file in the place of the folder; in a
            batch, a case that ``loader`` does not have, or a cached file of another teacher.

    Example:
        >>> from monai.networks.nets import resnet10
        >>> volumes = torch.rand(2, 1, 32, 32, 32)
        >>> batch = {"image": volumes, "label": torch.tensor([0, 1]), "case": ["a", "b"]}
        >>> teacher = Teacher([resnet10(spatial_dims=3, n_input_channels=1, num_classes=2)], volumes)
        >>> image, label, taught, _ = TeacherBatches(teacher, loader=[batch])(batch, "cpu")
        >>> [len(part) for part in taught]
        [2, 2]
    """

    def __init__(
        self,
        teacher: Teacher,
        sees: str | None = None,
        loader: Iterable[Mapping[str, Any]] | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> None:
        if sees is not None:
            check_choice("teacher_sees", sees, ("plain", "augmented"))
        if sees == "plain" and loader is None:
            raise ValueError(
                "a teacher that sees plain volumes needs a loader of them, which a training on patches has not: choose "
                "teacher_sees augmented"
            )
        self.teacher = teacher
        self.loader = None if sees == "augmented" else loader
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        if self.cache_dir is not None and self.loader is not None:
            for folder in (self.cache_dir, *self.cache_dir.parents):
                if folder.exists() and not folder.is_dir():
                    raise ValueError(f"teacher_cache {cache_dir} cannot be a folder, {folder} is a file: give another")
        self.progress = progress
        self._rows: dict[str, int] = {}
        self._kept: dict[str, Tensor] = {}

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **named: Any,
    ) -> tuple[Any, ...]:
        """Return the images, the labels and the teacher's features and logits of a batch."""
        image, label = default_prepare_batch(dict(batchdata), device, non_blocking, **named)
        if self.loader is None:
            return image, label, tuple(self.teacher(image).tensors()), {}
        if not self._kept:
            with torch.random.fork_rng():  # a loader may draw numbers, and training goes on as without it
                self._kept = self._prepare(self.loader)
        if missing := [case for case in batchdata[CASE] if case not in self._rows]:
            raise ValueError(f"the teacher has not seen the case {missing[0]!r}: give it all the training cases")
        rows = torch.tensor([self._rows[case] for case in batchdata[CASE]])
        return image, label, tuple(part[rows].to(image.device, non_blocking=True) for part in self._kept.values()), {}

    def _prepare(self, loader: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return what the teacher makes of all cases, from the file if there is one."""
        if self.cache_dir is None:
            return self._read_cases(loader)
        key = self._key(loader)
        file = self.cache_dir / FILE.format(key[:16])
        if idist.get_rank() == 0 and not file.is_file():
            taught = self._read_cases(loader)
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(file) as path:
                save_file(taught, path, {"key": key, "cases": json.dumps(list(self._rows))})
        idist.barrier()
        return self._load(file, key)

    def _key(self, loader: Iterable[Mapping[str, Any]]) -> str:
        """Return the digest of the teacher's weights, and of the cases and their images."""
        stages = [stages.names for stages in self.teacher.stages]
        digest = hashlib.sha256(f"{self.teacher.digest} {self.teacher.combine} {stages or ''}".rstrip().encode())
        for names, images in self._cases(loader, "cases of the teacher"):
            digest.update(f"{json.dumps(names)} {tensors_digest({IMAGE: images})}".encode())
        return digest.hexdigest()

    def _read_cases(self, loader: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
        device = next(self.teacher.parameters()).device
        found: list[list[Tensor]] = []
        self._rows = {}
        for names, images in self._cases(loader, "teacher"):
            found.append([part.cpu() for part in self.teacher(images.to(device)).tensors()])
            self._rows |= {name: len(self._rows) + row for row, name in enumerate(names)}
        return {name: torch.cat(parts).contiguous() for name, parts in zip(self._names(), zip(*found))}

    def _names(self) -> list[str]:
        """Return names of what the teacher makes of a batch, in the order of the tensors."""
        return ["features", "logits", *(f"stage{number}" for number in range(self.teacher.num_stages))]

    def _cases(self, loader: Iterable[Mapping[str, Any]], what: str) -> Iterator[tuple[list[str], Tensor]]:
        """Yield names and images of cases in batches, each case once: a training with few labels repeats them.

        Raises:
            ValueError: two images with one name.
        """
        seen: dict[str, str] = {}
        for batch in tqdm(loader, what, disable=None if self.progress else True, leave=False):
            new = []
            for row, (name, image) in enumerate(zip(map(str, batch[CASE]), batch[IMAGE])):
                digest = tensors_digest({IMAGE: image})
                if name not in seen:
                    new.append(row)
                if seen.setdefault(name, digest) != digest:
                    raise ValueError(f"two cases of the teacher have the name {name!r}: give each case its own")
            if new:
                yield [str(batch[CASE][row]) for row in new], batch[IMAGE][new]

    def _load(self, file: Path, key: str) -> dict[str, Tensor]:
        """Return what a file holds; its tensors are read when they are used.

        Raises:
            ValueError: the file is damaged, or of another teacher.
        """
        remedy = "remove it, and it is made again"
        try:
            with safe_open(file, "pt") as opened:
                about = opened.metadata() or {}
            kept = load_file(file)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} cannot be read ({error}): {remedy}") from error
        if about.get("key") != key or kept.keys() != {*self._names()}:
            raise ValueError(f"{file} is of another teacher, or of other cases: {remedy}")
        self._rows = {name: row for row, name in enumerate(json.loads(about["cases"]))}
        return {name: kept[name] for name in self._names()}
