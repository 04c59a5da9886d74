# SPDX-License-Identifier: Apache-2.0
"""Small scans with label maps of two boxes, on grids of several orientations, as a CSV list."""

import nibabel
import numpy as np

STRUCTURES = {"1": "left", "4": "right"}
# Directions of the voxel axes of the cases, in turn.
AXES = ("RAS", "LPS", "SRA")
SHAPE, SPACING_MM = (20, 18, 16), (1.0, 1.0, 1.5)


def phantom(seed, second=True):
    """Return an image and a label map along R, A and S: a bright box of value 1 and a brighter one of value 4."""
    random = np.random.default_rng(seed)
    label = np.zeros(SHAPE, np.uint8)
    at = random.integers(-1, 2, size=3)
    label[3 + at[0] : 9 + at[0], 5 + at[1] : 13 + at[1], 4 + at[2] : 12 + at[2]] = 1
    if second:
        label[11 + at[0] : 16 + at[0], 5 + at[1] : 13 + at[1], 4 + at[2] : 12 + at[2]] = 4
    image = 100.0 * label + 10 * random.normal(size=SHAPE)
    return image.astype(np.float32), label


def save(volume, path, axes):
    """Save a volume along R, A and S with other voxel axes, in the same place."""
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = (-10, 5, 20)
    as_given = nibabel.Nifti1Image(volume, affine)
    turned = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
    )
    nibabel.save(as_given.as_reoriented(turned), path)


def write_list(folder, train=4, val=2, test=4, absent=()):
    """Write scans, label maps and a list, and return its path; test cases ``absent`` lack the second structure."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["case,image,label,split,group"]
    for number, split in enumerate(["train"] * train + ["val"] * val + ["test"] * test):
        image, label = phantom(number, second=not (split == "test" and number - train - val in absent))
        for name, volume in (("scan", image), ("label", label)):
            save(volume, folder / f"{name}{number}.nii.gz", AXES[number % 3])
        rows.append(f"case{number},scan{number}.nii.gz,label{number}.nii.gz,{split},patient{number // 2}")
    path = folder / "list.csv"
    path.write_text("\n".join(rows) + "\n")
    return path
