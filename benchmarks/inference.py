# SPDX-License-Identifier: Apache-2.0
"""Prediction of a folder of volumes: `monai-llmboost predict` and the same network in a plain MONAI pipeline.

Phantoms as .nii.gz, 64 voxels along each axis, go through the bundle's network with random weights in three ways:

- ``predict``: the command with its defaults: it finds the files, checks each one, and writes a journal per batch,
  tables, provenance and a page with small pictures;
- ``predict --no-report``: the same without the page;
- ``plain MONAI``: LoadImaged with NibabelReader and the same transforms, DataLoader, SupervisedEvaluator and
  ClassificationSaver.

Each measurement is a fresh process, sides in turn, round by round; the first round is not counted. Seconds run from
before the imports to the end. Nothing is written unless all sides give the same probabilities. The peak resident memory
of the process is measured for two numbers of volumes, to see its growth.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

BUNDLE = "medmnist3d_rllm_classification"
SIZE = 64
LARGEST_DIFFERENCE = 1e-5


def make_volumes(folder: Path, numbers: list[int]) -> dict[int, Path]:
    """Make a folder for each number of volumes; the files are hard links to the same volumes."""
    import nibabel
    import numpy as np

    from monai_llmboost.data import phantom_arrays

    folders = {number: folder / f"{number}" for number in numbers}
    for path in folders.values():
        path.mkdir()
    images, _ = phantom_arrays("test", SIZE, max(numbers))
    for index, image in enumerate(images):
        file = folder / f"{index:05d}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), file)
        for number, path in folders.items():
            if index < number:
                os.link(file, path / file.name)
    return folders


def make_bundle(folder: Path) -> None:
    """Copy the bundle, with random weights in place of trained ones."""
    import torch

    from monai_llmboost.bundle import copy_bundle

    copy_bundle(BUNDLE, folder)
    torch.manual_seed(0)
    network = get_component(folder, "network_def")
    (folder / "models").mkdir(exist_ok=True)
    torch.save(network.state_dict(), folder / "models" / "model.pt")


def get_component(bundle: Path, key: str) -> Any:
    """Return an object from the bundle's inference config."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    return parser.get_parsed_content(key)


def run_predict(bundle: Path, volumes: Path, output: Path, batch: int, *options: str) -> None:
    """Run the command in this process."""
    places = ["--bundle", str(bundle), "--input", str(volumes), "--output", str(output)]
    sys.argv = ["monai-llmboost", "predict", *places, "--workers", "0", "--batch-size", str(batch), *options]
    with contextlib.suppress(SystemExit):  # its table shows whether it succeeded
        runpy.run_module("monai_llmboost", run_name="__main__")


def run_predict_without_report(bundle: Path, volumes: Path, output: Path, batch: int) -> None:
    """Run the command without writing a page."""
    run_predict(bundle, volumes, output, batch, "--no-report")


def run_plain_monai(bundle: Path, volumes: Path, output: Path, batch: int) -> None:
    """Predict with MONAI alone."""
    import torch
    from monai.data import DataLoader, Dataset
    from monai.engines import SupervisedEvaluator
    from monai.handlers import ClassificationSaver
    from monai.transforms import (
        Activationsd,
        Compose,
        EnsureChannelFirstd,
        LoadImaged,
        Orientationd,
        Resized,
        ScaleIntensityRanged,
    )

    network = get_component(bundle, "network_def")
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True))
    transform = Compose(
        [
            LoadImaged("image", reader="NibabelReader"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Resized("image", [get_component(bundle, "size")] * 3, mode="trilinear"),
            ScaleIntensityRanged("image", 0, 255, 0.0, 1.0, clip=True),
        ]
    )
    files = [{"image": str(path)} for path in sorted(volumes.iterdir())]
    SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(files, transform), batch_size=batch),
        network=network,
        postprocessing=Activationsd("pred", softmax=True, dim=-1),
        val_handlers=[
            ClassificationSaver(
                str(output),
                batch_transform=lambda data: [item["image"].meta for item in data],
                output_transform=lambda data: [item["pred"] for item in data],
            )
        ],
    ).run()


SIDES = {"predict": run_predict, "predict --no-report": run_predict_without_report, "plain MONAI": run_plain_monai}


def read_probabilities(output: Path) -> dict[str, list[float]]:
    """Read the probabilities of each volume, by file name, from either kind of table."""
    (table,) = output.glob("predictions.csv")
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    if rows[0][0] == "case":
        columns = [index for index, name in enumerate(rows[0]) if name.startswith("p_")]
        return {row[0]: [float(row[index]) for index in columns] for row in rows[1:]}
    return {Path(row[0]).name: [float(value) for value in row[1:]] for row in rows}


def measure_peak_mb() -> float | None:
    """Return the peak resident memory of this process in MB; Linux only."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((float(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), None)


def measure(side: str, bundle: Path, volumes: Path, batch: int) -> dict[str, Any]:
    """Measure one side in a separate process."""
    with tempfile.TemporaryDirectory() as output:
        words = ["--side", side, "--bundle", str(bundle), "--volumes", str(volumes), "--batch", str(batch)]
        command = [sys.executable, "-W", "ignore", __file__, *words, "--output", output]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(f"{side} failed with exit status {done.returncode}: {done.stderr[-2000:]}")
        memory = json.loads((Path(output) / "memory.json").read_text())
        return {"seconds": seconds, "memory": memory, "probabilities": read_probabilities(Path(output))}


def measure_rows(bundle: Path, volumes: Path, number: int, batch: int, rounds: int) -> list[dict[str, Any]]:
    """Measure all sides in turn, and return one row for each.

    Raises:
        ValueError: the sides differ in their probabilities.
    """
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for round_number in range(rounds + 1):
        for side in SIDES:
            result = measure(side, bundle, volumes, batch)
            print(f"{number} volumes, round {round_number}, {side}: {result['seconds']:.1f} s", file=sys.stderr)
            if round_number:
                results[side].append(result)
    plain = results["plain MONAI"]
    rows = []
    for side, values in results.items():
        a, b = values[0]["probabilities"], plain[0]["probabilities"]
        far = max(abs(p - q) for case in b for p, q in zip(a[case], b[case])) if a.keys() == b.keys() else 1.0
        if len(b) != number or far > LARGEST_DIFFERENCE:
            raise ValueError(f"expected {number} equal results, {side} has {len(a)}, up to {far:.2g} off")
        row = {
            "side": side,
            "volumes": number,
            "seconds": statistics.median(value["seconds"] for value in values),
            "time / plain": statistics.median(x["seconds"] / y["seconds"] for x, y in zip(values, plain)),
            "difference to plain": far,
        }
        if values[0]["memory"] is not None:
            row["peak MB"] = statistics.median(value["memory"] for value in values)
        rows.append(row)
    return rows


def add_growth(rows: list[dict[str, Any]], few: int, many: int) -> None:
    """Add the cost of each additional volume to the rows of many volumes, from the difference to few."""
    by_key = {(row["side"], row["volumes"]): row for row in rows}
    for side in SIDES:
        less, more = by_key[side, few], by_key[side, many]
        more["ms per further volume"] = 1e3 * (more["seconds"] - less["seconds"]) / (many - few)
        if "peak MB" in more:
            more["kB per further volume"] = 1e3 * (more["peak MB"] - less["peak MB"]) / (many - few)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--few", type=int, default=250, help="volumes")
    parser.add_argument("--many", type=int, default=1000, help="volumes")
    parser.add_argument("--batch", type=int, default=8, help="volumes in a batch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the results are medians")
    parser.add_argument("--out", type=Path, help="default: results/inference-cpu.json next to this file")
    for name in ("side", "bundle", "volumes", "output"):  # for the process that measures one side
        parser.add_argument(f"--{name}", type=Path if name != "side" else str, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        warnings.simplefilter("ignore")
        SIDES[options.side](options.bundle, options.volumes, options.output, options.batch)
        (options.output / "memory.json").write_text(json.dumps(measure_peak_mb()))
        return
    if not 0 < options.few < options.many or options.rounds < 1:
        parser.error("--few must be from 1 and below --many, and --rounds from 1")
    import torch
    from report import RESULTS, save, show

    from monai_llmboost.studies.cost.measure import device_name

    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the processes: this benchmark measures the CPU
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="inference-") as temporary:
        bundle = Path(temporary) / "bundle"
        make_bundle(bundle)
        folders = make_volumes(Path(temporary), [options.few, options.many])
        for number, folder in folders.items():
            rows += measure_rows(bundle, folder, number, options.batch, options.rounds)
    add_growth(rows, options.few, options.many)
    out = options.out or RESULTS / "inference-cpu.json"
    settings = {"size": SIZE, "batch": options.batch, "rounds": options.rounds, "workers": 0}
    save(
        out,
        "volumes on disk to predictions, each measurement in a fresh process",
        device_name(torch.device("cpu")),
        settings,
        rows,
    )
    show(out)


if __name__ == "__main__":
    main()
