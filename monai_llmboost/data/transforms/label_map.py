# SPDX-License-Identifier: Apache-2.0
"""Loading of a label map as class numbers on the grid of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_llmboost.data.labelled.label_maps import class_numbers, read_on_grid


class LoadLabelMapd(MapTransform):
    """Load a label map as (1, i, j, k) uint8: 0 for the background, k + 1 for ``values[k]``.

    Args:
        keys: keys of the paths.
        reader: reader of one scan.
        values: values of the structures in the label maps.
        like: key of the loaded image, whose voxels the label map must have; its axes may be turned.
        allow_missing_keys: accept items without some of the keys.

    Raises:
        RefusedScan: from the call: a label map that cannot be read, on another grid, with fractions or other values.

    Example:
        >>> from monai_llmboost.data import ScanReader
        >>> load = LoadLabelMapd("label", ScanReader(), values=[1, 2])
        >>> load({"image": image, "label": "label.nii.gz"})["label"].unique()  # doctest: +SKIP
        tensor([0, 1, 2], dtype=torch.uint8)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        reader: ImageReader,
        values: Sequence[int],
        like: str = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reader = reader
        self.values = [int(value) for value in values]
        self.like = like

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with class numbers instead of paths."""
        loaded = dict(data)
        image: MetaTensor = loaded[self.like]
        for key in self.key_iterator(loaded):
            labels = read_on_grid(data[key], self.reader, image.shape[1:], image.affine.numpy())
            classes = torch.from_numpy(class_numbers(labels, self.values))
            loaded[key] = MetaTensor(classes[None], affine=image.affine)
        return loaded
