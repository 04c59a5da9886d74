# SPDX-License-Identifier: Apache-2.0
"""Patches of a scan for the training of a segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import RandCropByLabelClassesd

# Least weight of the background and of the structures, so that a label map with only one of them gives a patch too.
LEAST = 1e-6


class CropPatchd(RandCropByLabelClassesd):
    """Crop a patch around a random voxel: of a structure with a given probability, else of the background.

    All structures that a label map has are equally likely, whatever their volumes. MONAI's transform has the same
    shares for all label maps, so that those with few structures would give more of the background.

    Args:
        keys: keys of volumes (channels, i, j, k), each side of which is that of the patch or longer.
        label_key: key of the class numbers (1, i, j, k), 0 for the background.
        patch_size: voxels of the patch along (i, j, k).
        num_classes: number of classes, with the background.
        foreground_share: probability of a structure, in label maps that have one.
        allow_missing_keys: accept items without some of the keys.

    Example:
        >>> import torch
        >>> labels = torch.zeros(1, 9, 9, 9)
        >>> labels[:, 4, 4, 4] = 2
        >>> crop = CropPatchd("label", "label", patch_size=[3, 3, 3], num_classes=4, foreground_share=1.0)
        >>> crop({"label": labels})[0]["label"].max().item()
        2.0
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        patch_size: Sequence[int],
        num_classes: int,
        foreground_share: float,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(
            keys, label_key, patch_size, num_classes=num_classes, allow_missing_keys=allow_missing_keys, warn=False
        )
        self.num_classes = num_classes
        self.foreground_share = foreground_share

    def randomize(self, label: torch.Tensor, indices: Any = None, image: torch.Tensor | None = None) -> None:
        """Choose the centre of the patch."""
        there = torch.bincount(torch.as_tensor(label).to(torch.uint8).flatten(), minlength=self.num_classes)[1:] > 0
        each = max(self.foreground_share, LEAST) / max(int(there.sum()), 1)
        self.cropper.ratios = [max(1 - self.foreground_share, LEAST), *(each * there.double()).tolist()]
        super().randomize(label, indices, image)
