# SPDX-License-Identifier: Apache-2.0
"""AUC after a few epochs, of boosted networks minus the plain one: a booster should not begin by hurting.

The bundle trains its default network on phantoms. Each seed has its own training phantoms and initial weights, the same
for every arm; none of them are those of the bundle's phantoms. All are evaluated, after the last epoch, on one set of
phantoms that no training uses. Finished rows are kept in ``--out``, so an interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, save, show
from scipy import stats
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from monai_llmboost.bundle import BundleJob, monai_arguments
from monai_llmboost.data import phantom_arrays
from monai_llmboost.studies.cost.measure import device_name

BUNDLE = "medmnist3d_rllm_classification"
ARMS = ("none", "mlp", "random", "pretrained", "lora", "pretrained-trained")
PUBLISHED = ("mlp", "pretrained")  # arms that are trained with the published start, too
STARTS = {"plain": {}, "published": {"start": "published", "booster_lr_factor": 1.0, "h_scale": "published"}}
# Phantoms of the bundle's test split come first; then the evaluated ones; then those of each seed.
BUNDLES, EVALUATED, TRAINING = 240, 400, 480
SEED = 100  # far from the seeds with which the defaults were chosen


def train(arm: str, start: str, seed: int, epochs: int, phantoms: np.ndarray, first: int) -> float:
    """Train an arm on the training phantoms from ``first`` on, and return its AUC."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"ckpt_dir": folder, "output_dir": folder}
        own = {"seed": SEED + seed, "block_seed": SEED + seed, "epochs": epochs, "patience": 0}
        options = {**places, **own, **options_of(arm, start)}
        job = BundleJob.open(monai_arguments(BUNDLE, "train", arm, False, **options))
        job.training_data.images[:] = phantoms[first : first + TRAINING]  # labels alternate in both
        job.run()
        job.finalize()
    images = torch.from_numpy(phantoms[BUNDLES : BUNDLES + EVALUATED, None]).float().to(job.device) / 255
    with torch.inference_mode():
        logits = torch.cat([job.network.eval()(batch) for batch in images.split(100)])
    return float(roc_auc_score(np.arange(EVALUATED) % 2, (logits[:, 1] - logits[:, 0]).cpu()))


def options_of(arm: str, start: str) -> dict[str, Any]:
    """Return the options of a start; the arm mlp has no block whose tokens could be scaled."""
    if arm == "none":
        return {}
    return {name: value for name, value in STARTS[start].items() if (arm, name) != ("mlp", "h_scale")}


def main() -> None:
    """Train, compare with the plain network of the same seed, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=5, help="from 2")
    parser.add_argument("--out", type=Path, default=RESULTS / "first-epochs-cpu.json", help="the JSON file to write")
    options = parser.parse_args()
    settings = {"epochs": options.epochs, "seeds": options.seeds}
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    rows = known["rows"] if known.get("settings") == settings else []
    wanted = [("none", "")] + [(arm, "plain") for arm in ARMS[1:]] + [(arm, "published") for arm in PUBLISHED]
    phantoms, _ = phantom_arrays("test", cases=BUNDLES + EVALUATED + options.seeds * TRAINING)
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for arm, start in tqdm([each for each in wanted if each not in [(row["arm"], row["start"]) for row in rows]]):
        found = [
            train(arm, start, seed, options.epochs, phantoms, BUNDLES + EVALUATED + seed * TRAINING)
            for seed in range(options.seeds)
        ]
        rows.append(row_of(arm, start, found, rows[0]["runs"] if rows else found))
        save(options.out, "AUC on phantoms after a few epochs", device, settings, rows)
    show(options.out)


def row_of(arm: str, start: str, found: list[float], plain: list[float]) -> dict[str, Any]:
    """Return the row of an arm: its AUC, and the paired difference to the plain network with its 95 % interval."""
    differences = [one - other for one, other in zip(found, plain)]
    half = stats.t.ppf(0.975, len(found) - 1) * statistics.stdev(differences) / len(found) ** 0.5
    mean = statistics.mean(differences)
    row = {"arm": arm, "start": start, "AUC": statistics.mean(found), "runs": [round(one, 4) for one in found]}
    if start:
        row |= {"difference": mean, "interval": [mean - half, mean + half], "worst": min(differences)}
    return row


if __name__ == "__main__":
    main()
