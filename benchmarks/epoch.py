# SPDX-License-Identifier: Apache-2.0
"""Time of an epoch of the bundle's training compared with its steps alone: overhead of data loading and the engine.

The bundle trains with its defaults. After each epoch, the same network and optimizer make the same number of steps on a
prepared batch on the device, so that both are measured at the same load of the machine. The first epoch is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from report import RESULTS, save, show

from monai_llmboost.bundle import bundle_path, job_configs
from monai_llmboost.studies.cost.measure import device_name

BUNDLE = "medmnist3d_rllm_classification"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=["phantom"], help="phantom, MedMNIST3D sets in --dataset-dir")
    parser.add_argument("--dataset-dir", default="~/.medmnist", help="folder of the MedMNIST3D files")
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs; the first is not counted")
    parser.add_argument("--out", type=Path, help="default: results/epoch-DEVICE.json next to this file")
    options = parser.parse_args()
    if options.epochs < 2:
        parser.error(f"--epochs must be at least 2, not {options.epochs}: the first epoch is not counted")
    rows = []
    for dataset in options.datasets:
        with tempfile.TemporaryDirectory() as folder:
            workflow = ConfigWorkflow(
                config_file=[str(file) for file in job_configs(bundle_path(BUNDLE), "train")],
                logging_file=False,
                dataset=dataset,
                dataset_dir=options.dataset_dir,
                epochs=options.epochs,
                patience=0,
                ckpt_dir=folder,
                output_dir=folder,
            )
            workflow.initialize()
            rows.append({"set": dataset, **measure(workflow)})
    device = workflow.parser.get_parsed_content("device")
    out = options.out or RESULTS / f"epoch-{device.type}.json"
    save(out, "an epoch of the bundle and its steps alone", device_name(device), {"epochs": options.epochs - 1}, rows)
    show(out)


def measure(workflow: ConfigWorkflow) -> dict[str, Any]:
    """Train, repeat the steps without a loader after each epoch, and return medians over the epochs."""
    get = workflow.parser.get_parsed_content
    trainer, network, optimizer, loss = get("train#trainer"), get("network"), get("optimizer"), get("loss")
    device, loader = get("device"), get("train#dataloader")
    ready = next(iter(loader))
    start = {"epoch": 0.0, "validation": 0.0}
    seconds: dict[str, list[float]] = {"epoch": [], "steps": [], "validation": []}

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def bare_steps() -> None:
        for index in range(len(loader)):
            size = min(loader.batch_size, len(loader.dataset) - index * loader.batch_size)
            optimizer.zero_grad()
            loss(trainer.inferer(ready["image"][:size], network), ready["label"][:size]).backward()
            optimizer.step()

    @trainer.on(Events.EPOCH_STARTED)
    def _begin(engine: Engine) -> None:
        start["epoch"] = wait()

    @trainer.on(Events.ITERATION_COMPLETED)
    def _end(engine: Engine) -> None:
        if engine.state.iteration % len(loader) == 0:
            seconds["epoch"].append(wait() - start["epoch"])
            weights = {name: value.clone() for name, value in network.state_dict().items()}
            moments = optimizer.state_dict()
            moments = {
                **moments,
                "state": {k: {n: t.clone() for n, t in v.items()} for k, v in moments["state"].items()},
            }
            begin = wait()
            bare_steps()
            seconds["steps"].append(wait() - begin)
            network.load_state_dict(weights)  # undo these steps before training continues
            optimizer.load_state_dict(moments)

    validator = get("validate#evaluator")
    validator.add_event_handler(Events.STARTED, lambda: start.update(validation=wait()))
    validator.add_event_handler(Events.COMPLETED, lambda: seconds["validation"].append(wait() - start["validation"]))
    workflow.run()
    counted = {name: values[1:] for name, values in seconds.items()}
    return {
        "volumes": len(loader.dataset),
        "batch": loader.batch_size,
        "epoch, s": statistics.median(counted["epoch"]),
        "its steps alone, s": statistics.median(counted["steps"]),
        "epoch / steps": statistics.median(a / b for a, b in zip(counted["epoch"], counted["steps"])),
        "validation, s": statistics.median(counted["validation"]),
    }


if __name__ == "__main__":
    main()
