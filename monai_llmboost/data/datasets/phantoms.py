# SPDX-License-Identifier: Apache-2.0
"""Phantoms: seeded synthetic volumes in the format of a MedMNIST3D set, for runs without a download.

The two classes are bodies of equal volume, a hollow shell and a ring, with random position and rotation, in noise.
Neither brightness nor a single slice distinguishes them, because a section of either can be a bright circle around a
dark centre. The classes differ in 3D shape.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation
from tqdm import tqdm

from monai_llmboost.arguments import check_choice, check_whole

PHANTOM_CLASSES = ["shell", "ring"]
PHANTOM_CASES = {"train": 480, "val": 120, "test": 240}
# Lengths in voxels of a 28-voxel cube; each body has a volume of 908 voxels.
SHELL_OUTER, SHELL_INNER = 7.2, 5.39
RING_MAJOR, RING_MINOR = 6.5, 2.66
LARGEST_SHIFT = 3.0
SCALES = (0.85, 1.1)
BACKGROUND, CONTRAST, NOISE = 60.0, 90.0, 40.0
MIN_SIZE = 8


def _get_depth(label: int, u: np.ndarray) -> np.ndarray:
    """Return the depth of points ``u`` (3, ...) inside a body at the origin, in voxels; negative outside."""
    x, y, z = u
    if PHANTOM_CLASSES[label] == "shell":
        radius = np.sqrt(x**2 + y**2 + z**2)
        return np.minimum(SHELL_OUTER - radius, radius - SHELL_INNER)
    return RING_MINOR - np.hypot(np.hypot(x, y) - RING_MAJOR, z)


def phantom_arrays(split: str, size: int = 28, cases: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Make volumes (cases, size, size, size) uint8 and labels (cases,) int64; every call returns the same.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; each has different random numbers.
        size: voxels along each axis.
        cases: number of volumes, with alternating classes; ``None`` is 480, 120 or 240 by the split.

    Raises:
        ValueError: an unknown split or a size below 8.

    Example:
        >>> images, labels = phantom_arrays("test", size=8, cases=2)
        >>> images.shape, labels.tolist()
        ((2, 8, 8, 8), [0, 1])
    """
    check_choice("split", split, PHANTOM_CASES)
    check_whole("size", size, MIN_SIZE, advice="phantoms have at least 8 voxels along each axis")
    number = PHANTOM_CASES[split] if cases is None else cases
    random = np.random.default_rng([list(PHANTOM_CASES).index(split), size])
    per_voxel = 28 / size
    axis = (np.arange(size) - (size - 1) / 2) * per_voxel
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))  # (3, size, size, size)
    labels = np.arange(number) % len(PHANTOM_CLASSES)
    images = np.empty((number, size, size, size), dtype=np.uint8)
    for index in tqdm(range(number), desc=f"phantoms ({split})", delay=2, leave=False):
        rotation = Rotation.from_quat(random.normal(size=4)).as_matrix()
        shift = random.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, size=(3, 1, 1, 1))
        scale = random.uniform(*SCALES)
        depth = _get_depth(labels[index], np.einsum("ij,jxyz->ixyz", rotation, grid - shift) / scale)
        body = np.clip(depth * scale / per_voxel + 0.5, 0, 1)  # an edge of one voxel
        noisy = BACKGROUND + CONTRAST * body + NOISE * random.normal(size=body.shape)
        images[index] = np.clip(noisy, 0, 255).astype(np.uint8)
    return images, labels.astype(np.int64)
