# SPDX-License-Identifier: Apache-2.0
"""Small pictures of the network's input for the rows of the report."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from torch import Tensor

from monai_llmboost.artifacts.planes import grey_window, planes

HEIGHT_PX, GAP_PX = 84, 2


def thumbnail(image: Tensor) -> bytes:
    """Return a PNG of the three middle planes of a network's input image, side by side, 84 pixels high.

    The image is in RAS orientation; its first channel is drawn, with voxels as cubes.

    Args:
        image: (channels, S0, S1, S2).

    Example:
        >>> import torch
        >>> Image.open(io.BytesIO(thumbnail(torch.rand(1, 28, 28, 28)))).size
        (256, 84)
    """
    volume = image[0].detach().cpu().float().numpy()
    low, high = grey_window(volume)
    parts = []
    for plane in planes(volume, np.eye(4), tuple(n // 2 for n in volume.shape)):
        rows, columns = plane.pixels.shape
        size = max(1, round(HEIGHT_PX * columns / rows)), HEIGHT_PX
        grey = np.clip((plane.pixels - low) / (high - low), 0, 1) * 255
        whole = size[0] % columns == 0 and size[1] % rows == 0  # voxels as squares, which also compress best
        method = Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR
        parts.append(Image.fromarray(grey.astype(np.uint8)).resize(size, method))
    picture = Image.new("L", (sum(part.width for part in parts) + GAP_PX * (len(parts) - 1), HEIGHT_PX))
    left = 0
    for part in parts:
        picture.paste(part, (left, 0))
        left += part.width + GAP_PX
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()
