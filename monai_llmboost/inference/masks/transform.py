# SPDX-License-Identifier: Apache-2.0
"""Transform from class probabilities to a label map on the scan's own grid, for MONAI's postprocessing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends

from monai_llmboost.inference.masks.own_grid import to_own_grid


class ToOwnGridd(MapTransform):
    """Replace class probabilities (classes, S0, S1, S2) by a label map (1, i, j, k) on the grid that the scan had.

    Args:
        keys: keys of the probabilities, such as ``"pred"``.
        like: key of the network's input, which knows its geometry and that of the scan.
        label_values: the value of each structure in the label map; ``None``: 1, 2, ...
        allow_missing_keys: accept items without some of the keys.

    Raises:
        ValueError: from the call: the input keeps no geometry; another number of structures.

    Example:
        >>> image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"original_affine": np.eye(4), "spatial_shape": [3, 2, 2]})
        >>> item = {"image": image, "pred": torch.tensor([0.2, 0.8]).view(2, 1, 1, 1).expand(2, 2, 2, 2)}
        >>> ToOwnGridd("pred", label_values=[7])(item)["pred"][0, :, 0, 0].tolist()
        [7, 7, 0]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (as in every transform of MONAI)

    def __init__(
        self,
        keys: KeysCollection,
        like: str = "image",
        label_values: Sequence[int] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.like = like
        self.label_values = label_values

    def __call__(self, data: Mapping[Any, Any]) -> dict[Any, Any]:
        """Return the item with label maps."""
        mapped = dict(data)
        image = data[self.like]
        meta = getattr(image, "meta", {})
        if not {"original_affine", "spatial_shape"} <= meta.keys():
            raise ValueError(f"{self.like!r} does not know the grid of its scan: load it with LoadScansd")
        own_affine = np.asarray(meta["original_affine"], dtype=np.float64)
        for key in self.key_iterator(mapped):
            values = [0, *(self.label_values or range(1, len(data[key])))]
            if len(values) != len(data[key]):
                raise ValueError(
                    f"{len(values) - 1} label values for {len(data[key]) - 1} structures: give one for each"
                )
            shape = [int(size) for size in meta["spatial_shape"]][:3]
            classes = to_own_grid(data[key], image.affine, shape, own_affine)
            labels = torch.tensor(values, dtype=torch.int32)[torch.from_numpy(classes).int()]
            mapped[key] = MetaTensor(labels[None], meta={**meta, "affine": torch.from_numpy(own_affine)})
        return mapped
