# SPDX-License-Identifier: Apache-2.0
"""Time and memory of training on labelled scans: inspection, preparation, and an epoch compared with its steps alone.

Scans of noise are written as compressed NIfTI files, inspected, and trained on by the plan that follows. As in
``epoch.py``, the same network makes the same number of steps on a prepared batch after each epoch.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from epoch import measure
from monai.bundle import ConfigWorkflow
from report import RESULTS, save, show

from monai_llmboost.bundle import job_configs
from monai_llmboost.inspection import inspect_list
from monai_llmboost.studies.cost.measure import device_name


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=300, help="number of scans")
    parser.add_argument("--size", type=int, default=128, help="voxels along each axis")
    parser.add_argument("--epochs", type=int, default=3, help="number of epochs; the first is not counted")
    parser.add_argument("--out", type=Path, help="default: results/own-scans-DEVICE.json next to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_scans(folder / "scans", options.scans, options.size)

        start = time.perf_counter()
        found = inspect_list(folder / "scans", bundle=folder / "mine")
        inspected, inspection_mb = time.perf_counter() - start, peak_mb()
        workflow = ConfigWorkflow(
            config_file=[str(file) for file in job_configs(folder / "mine", "train")],
            logging_file=False,
            bundle_root=str(folder / "mine"),
            epochs=options.epochs,
        )
        workflow.initialize()
        get = workflow.parser.get_parsed_content
        start = time.perf_counter()
        for name in ("train#dataset", "validate#dataset"):
            get(name).prepare()
        prepared = time.perf_counter() - start
        row = measure(workflow)
        device = get("device")
    plan = json.loads(json.dumps(found.plan.values)) if found.plan else {}
    row = {
        "scans": options.scans,
        "voxels": f"{options.size}^3",
        "input": " x ".join(map(str, plan["image_shape"])),
        "inspection, s": inspected,
        "preparation, s": prepared,
        **{key: value for key, value in row.items() if key != "volumes"},
        "memory by the plan, MB": found.plan.description["peak_mb"] if found.plan else None,
        "peak of inspection, MB": inspection_mb,
        "peak of training, MB": peak_mb(),
    }
    out = options.out or RESULTS / f"own-scans-{device.type}.json"
    save(out, "training on labelled scans", device_name(torch.device(device)), {"epochs": options.epochs - 1}, [row])
    show(out)


def peak_mb() -> float:
    """Return the largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_scans(folder: Path, count: int, size: int) -> None:
    """Write scans of two classes, which differ in their mean, each in a subfolder."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        noise = random.normal(100 + 20 * (number % 2), 20, (size, size, size)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(noise, np.eye(4)), place / f"{number:04d}.nii.gz")


if __name__ == "__main__":
    main()
