# SPDX-License-Identifier: Apache-2.0
"""No step of a training asks a device for a value, because the processor would wait there for a GPU each time."""

import csv
import re
import traceback
from collections import Counter
from contextlib import contextmanager

import nibabel
import numpy as np
import pytest
import segmentation_phantoms
import torch
from conftest import BUNDLE, SMALL
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from monai_llmboost.bundle import run_bundle

pytestmark = [
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
aten = torch.ops.aten
# Operations whose result, or its size, the processor must know.
ASKING = {
    aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default,
    aten._unique2.default,
}  # fmt: skip
# Copies to the processor; on a CPU they are no operations.
COPYING = ("cpu", "numpy", "tolist", "__array__")
OPTIONS = {
    "device": torch.device("cpu"),
    "epochs": 2,
    "train_handlers#progress#disable": False,  # the bar is drawn also where nobody looks
    "optimizer#fused": True,  # else AdamW on a CPU reads its counters of steps, which lie on the CPU also for a GPU
}
# MONAI's loss lists the numbers of the axes.
AXES = re.compile(r"tolist in .*/monai/losses/dice\.py")
# Reading data is work of the processor.
ON_THE_CPU = ("/monai_llmboost/data/", "/monai/data/dataset.py", "/torch/utils/data/")


class Reads(TorchDispatchMode):
    """Counts the reads of values, by operation and place."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in ASKING:
            self.note(function)
        return function(*args, **(kwargs or {}))

    def note(self, what):
        frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        if not any(part in frame.filename for frame in frames for part in ON_THE_CPU):
            ours = [frame for frame in frames if "monai" in frame.filename or "ignite" in frame.filename]
            self.places[f"{what} in {ours[-1].filename}, line {ours[-1].lineno}" if ours else str(what)] += 1


@contextmanager
def counted(monkeypatch):
    reads = Reads()

    def noting(name, method):
        def noted(self, *args, **kwargs):
            reads.note(name)
            return method(self, *args, **kwargs)

        return noted

    with monkeypatch.context() as patch, reads:
        for name in COPYING:
            patch.setattr(Tensor, name, noting(name, getattr(Tensor, name)))
        yield reads.places


def medmnist(folder, monkeypatch):
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", {"train": 24, "val": 8, "test": 8})
    return BUNDLE, {**SMALL, "size": 8, "patch_size": 4}


def classification(folder, monkeypatch):
    rows = [["image", "label", "split"]]
    for number in range(32):
        volume = np.random.default_rng(number).normal(100 + 50 * (number % 2), 10, (18, 17, 16))
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)), folder / f"{number}.nii.gz")
        rows.append([f"{number}.nii.gz", "ab"[number % 2], "train" if number < 24 else "val"])
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return "scans_classification", {"data": str(folder / "list.csv"), "image_shape": [1, 34, 18, 18], "hidden_size": 16}


def segmentation(folder, monkeypatch):
    path = segmentation_phantoms.write_list(folder, train=8, val=2, test=0)
    options = {"data": str(path), "image_shape": [1, 16, 16, 16], "filters": 4, "validate#inferer#inferer#windows": 4}
    return "scans_segmentation", {**options, "structures": segmentation_phantoms.STRUCTURES}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bundle", [medmnist, classification, segmentation])
def test_a_step_reads_no_value(bundle, precision, tmp_path, monkeypatch):
    """The same cases in twice as many steps: the same reads."""
    name, options = bundle(tmp_path, monkeypatch)
    found = []
    for batch_size in (4, 2):
        folder = str(tmp_path / str(batch_size))
        with counted(monkeypatch) as places:
            job = {**options, **OPTIONS, "batch_size": batch_size, "precision": precision}
            run_bundle(name, "train", None, logging_file=False, **job, ckpt_dir=folder, output_dir=folder)
        found.append(places)
    assert found[0], "each epoch reads its losses, once"
    more = {place: count for place, count in (found[1] - found[0]).items() if not AXES.search(place)}
    assert not more
