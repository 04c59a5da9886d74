# SPDX-License-Identifier: Apache-2.0
"""Small labelled scans on disk for tests of the inspection."""

import csv
import json

import nibabel
import numpy as np

RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def mr(seed, shape=(14, 16, 12), scale=1.0):
    """Return a volume like MR: noise around an ellipsoid, in units of its own."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    inside = (grid**2).sum(0) < 0.6
    return (scale * (400 * inside + np.random.default_rng(seed).normal(100, 15, shape))).astype(np.float32)


def ct(seed, shape=(20, 20, 10)):
    """Return a volume like CT: a body of about 40 HU in air."""
    volume = np.full(shape, -1000, np.int16)
    body = tuple(slice(n // 4, n - n // 4) for n in shape)
    volume[body] = np.random.default_rng(seed).normal(40, 60, volume[body].shape)
    return volume


def mask(seed, shape=(12, 12, 12)):
    size = 3 + seed % 4
    volume = np.zeros(shape, np.uint8)
    volume[2 : 2 + size, 3 : 3 + size, 4 : 4 + size] = 1
    return volume


def save(path, volume, spacing=(1.0, 1.0, 1.0), affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(volume, np.diag([*spacing, 1.0]) if affine is None else affine), path)
    return path


def write_list(folder, rows, name="scans.csv"):
    """Write a list of rows, each a mapping of columns, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder / name


def make_list(folder, make=mr, count=8, spacing=(1.0, 1.0, 1.0), **columns):
    """Write ``count`` scans of two classes by turns and their list; a column may be a function of the number."""
    rows = []
    for number in range(count):
        save(folder / f"s{number}.nii.gz", make(number), spacing)
        more = {key: value(number) if callable(value) else value for key, value in columns.items()}
        rows.append({"image": f"s{number}.nii.gz", "label": "ab"[number % 2], **more})
    return write_list(folder, rows)


def segmented(seed, shape=(14, 16, 12), values=(1, 2), side=4):
    """Return an image like MR with a cube of each value in its label map, which differs a little by the seed."""
    labels = np.zeros(shape, np.uint8)
    for place, value in enumerate(values):
        labels[2 : 2 + side + seed % 2, 2 + place * side : 2 + (place + 1) * side, 3 : 3 + side] = value
    return mr(seed, shape) + 300 * (labels > 0), labels


def make_label_list(folder, count=8, make=segmented, spacing=(1.0, 1.0, 1.0), labels=None, **columns):
    """Write ``count`` images with label maps and their datalist; a column may be a function of the number."""
    cases = []
    for number in range(count):
        image, label_map = make(number)
        save(folder / "images" / f"s{number}.nii.gz", image, spacing)
        save(folder / "labels" / f"s{number}.nii.gz", label_map, spacing)
        more = {key: value(number) for key, value in columns.items()}
        cases.append({"image": f"images/s{number}.nii.gz", "label": f"labels/s{number}.nii.gz", **more})
    names = {"background": 0, "head": 1, "tail": 2} if labels is None else labels
    (folder / "list.json").write_text(json.dumps({"training": cases, **({"labels": names} if names else {})}))
    return folder / "list.json"
