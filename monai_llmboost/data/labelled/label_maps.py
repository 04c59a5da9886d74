# SPDX-License-Identifier: Apache-2.0
"""Label maps: volumes of whole numbers, one for each structure, on the grid of their scan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nibabel
import numpy as np
from monai.data import ImageReader

from monai_llmboost.data.labelled.case import Source
from monai_llmboost.data.labelled.lists.structures import MOST_STRUCTURES, MOST_VALUE
from monai_llmboost.data.scans.reader import ScanReader
from monai_llmboost.data.scans.scan import RefusedScan

# Values that are stored as scaled numbers may miss a whole number by so much.
ROUNDING = 1e-3
# Corners of two grids that differ by less than this part of a voxel are in one place.
SAME_PLACE = 0.05
# Values that are listed in a message.
SHOWN = 5


def read_label_map(source: Source, reader: ImageReader) -> tuple[np.ndarray, np.ndarray]:
    """Read a label map.

    Args:
        source: a scan, as the list names it.
        reader: reader of one scan.

    Returns:
        Whole numbers (i, j, k) int32, and the affine to RAS+ mm (4, 4).

    Raises:
        RefusedScan: the file cannot be read, or its values are not whole numbers from 0 to 65535.

    Example:
        >>> from monai_llmboost.data import ScanReader
        >>> labels, affine = read_label_map("label.nii.gz", ScanReader())  # doctest: +SKIP
        >>> np.unique(labels)  # doctest: +SKIP
        array([0, 1, 2], dtype=int32)
    """
    files: Any = [source] if isinstance(source, str) else list(source)
    reader = reader.for_label_maps() if isinstance(reader, ScanReader) else reader
    try:
        array, meta = reader.get_data(reader.read(files))
    except RefusedScan as error:
        raise RefusedScan(f"label map: {error}", may_pass=error.may_pass, kind=error.kind) from error
    values = np.rint(array)
    off = np.abs(array - values).max(initial=0)
    if off > ROUNDING:
        example = array[np.unravel_index(np.abs(array - values).argmax(), array.shape)]
        raise RefusedScan(
            f"label map: it holds fractions such as {example:g}, so it was interpolated, or it is an image: give whole "
            "numbers, resampled by nearest neighbour",
            kind="label",
        )
    low, high = values.min(initial=0), values.max(initial=0)
    if low < 0 or high > MOST_VALUE:
        raise RefusedScan(
            f"label map: its values are from {low:g} to {high:g}, and labels from 0 to {MOST_VALUE}: is it the label?",
            kind="label",
        )
    return values.astype(np.int32), np.asarray(meta["affine"], dtype=float)


def read_on_grid(source: Source, reader: ImageReader, shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Read a label map on the grid of its image, int32 (i, j, k).

    Its axes may be in another order or direction, as those of a NIfTI label map of a DICOM series mostly are; they are
    turned, which changes no voxel.

    Args:
        source: a scan, as the list names it.
        reader: reader of one scan.
        shape: voxels of the image along (i, j, k).
        affine: its voxels to RAS+ mm (4, 4).

    Raises:
        RefusedScan: the file is no label map, or its voxels are not those of the image.
    """
    labels, own_affine = read_label_map(source, reader)
    try:
        check_same_grid(labels.shape, own_affine, shape, affine)
    except RefusedScan as refusal:  # whose message is of the file as it is
        turned, turned_affine = turn_axes(labels, own_affine, affine)
        try:
            check_same_grid(turned.shape, turned_affine, shape, affine)
        except RefusedScan:
            raise refusal from None
        return turned
    return labels


def turn_axes(volume: np.ndarray, affine: np.ndarray, like_affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a volume whose axes are in the order and direction that fits another affine best, and its affine.

    Args:
        volume: (i, j, k).
        affine: (4, 4), its voxels to RAS+ mm.
        like_affine: (4, 4), the other affine.

    Example:
        >>> turned, affine = turn_axes(np.arange(3).reshape(3, 1, 1), np.diag([-1.0, 1, 1, 1]), np.eye(4))
        >>> turned.ravel().tolist(), affine[0].tolist()
        ([2, 1, 0], [1.0, 0.0, 0.0, -2.0])
    """
    own, other = (nibabel.orientations.io_orientation(each) for each in (affine, like_affine))
    turn = nibabel.orientations.ornt_transform(own, other)
    turned = nibabel.orientations.apply_orientation(volume, turn)
    return turned, affine @ nibabel.orientations.inv_ornt_aff(turn, volume.shape)


def check_same_grid(shape: Sequence[int], affine: np.ndarray, onto: Sequence[int], onto_affine: np.ndarray) -> None:
    """Check that a label map is on the grid of its image, voxel by voxel.

    Args:
        shape: voxels of the label map along (i, j, k).
        affine: its voxels to RAS+ mm (4, 4).
        onto: voxels of the image.
        onto_affine: its voxels to RAS+ mm.

    Raises:
        RefusedScan: another grid.

    Example:
        >>> check_same_grid((4, 4, 4), np.eye(4), (4, 4, 5), np.eye(4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        monai_llmboost.data.scans.scan.RefusedScan: label map: it has 4 x 4 x 4 voxels, and its image ...
    """
    if tuple(shape) != tuple(onto):
        label, image = (" x ".join(str(int(side)) for side in sides) for sides in (shape, onto))
        raise RefusedScan(
            f"label map: it has {label} voxels, and its image {image}: is it the label of another scan? Resample it to "
            "the image by nearest neighbour if not",
            kind="label",
        )
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in shape], indexing="ij")).reshape(3, -1)
    points = np.concatenate([corners, np.ones((1, corners.shape[1]))])
    apart = np.linalg.norm(((affine - onto_affine) @ points)[:3], axis=0).max()
    if apart > SAME_PLACE * np.linalg.norm(np.asarray(onto_affine)[:3, :3], axis=0).min():
        label, image = ("".join(nibabel.orientations.aff2axcodes(each)) for each in (affine, onto_affine))
        other = f" (axes {label}, and the image's {image})" if label != image else ""
        raise RefusedScan(
            f"label map: its header puts it up to {apart:.3g} mm away from its image{other}: copy the image's "
            "affine if the voxels correspond, or resample it by nearest neighbour",
            kind="label",
        )


def class_numbers(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return the numbers of classes, uint8: 0 for the background, k + 1 for ``values[k]``.

    Args:
        labels: whole numbers, at least 0.
        values: the values of the structures.

    Raises:
        RefusedScan: another value.

    Example:
        >>> class_numbers(np.array([0, 4, 1]), [1, 4]).tolist()
        [0, 2, 1]
    """
    order = np.array([0, *values])
    table = np.full(max(int(labels.max(initial=0)), int(order.max())) + 1, 255, dtype=np.uint8)
    table[order] = np.arange(len(order))
    classes = table[labels]
    if (unknown := classes == 255).any():
        found, counts = np.unique(labels[unknown], return_counts=True)
        shown = ", ".join(f"{value} ({count} voxels)" for value, count in zip(found[:SHOWN], counts))
        raise RefusedScan(
            f"label map: it has the value {shown}, and the structures are {', '.join(map(str, values))}: correct it, "
            "or add the value to --structures",
            kind="label",
        )
    return classes


def label_values(classes: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Return the values of a label map from the numbers of classes, uint8, or uint16 for values above 255.

    Example:
        >>> label_values(np.array([0, 2, 1]), [1, 4]).tolist()
        [0, 4, 1]
    """
    table = np.array([0, *values], dtype=np.uint8 if max(values, default=0) < 256 else np.uint16)
    return table[classes]


def check_structures(structures: dict[Any, Any]) -> dict[int, str]:
    """Return the names of structures by their values.

    Raises:
        ValueError: values that are not different whole numbers from 1; names that are not different texts.

    Example:
        >>> check_structures({"1": "anterior", "2": "posterior"})
        {1: 'anterior', 2: 'posterior'}
    """
    example = "give {1: 'liver', 2: 'tumour'}, say"
    if not isinstance(structures, dict) or not structures:
        raise ValueError(f"structures must name the values of the label maps, not {structures!r}: {example}")
    found: dict[int, str] = {}
    for key, name in structures.items():
        text = str(key).strip()
        if not text.isdecimal() or not 0 < int(text) <= MOST_VALUE or int(text) in found:
            raise ValueError(
                f"structures has the value {key!r}; values are different whole numbers from 1 to {MOST_VALUE}: "
                f"{example}"
            )
        if not isinstance(name, str) or not name.strip() or name.strip() in (*found.values(), "background"):
            raise ValueError(
                f"structures has the name {name!r} of the value {key}; each name is another text: {example}"
            )
        found[int(text)] = name.strip()
    if len(found) > MOST_STRUCTURES:
        raise ValueError(f"{len(found)} structures are more than {MOST_STRUCTURES}: {example}")
    return found
