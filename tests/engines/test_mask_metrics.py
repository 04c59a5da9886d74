# SPDX-License-Identifier: Apache-2.0
"""The evaluation of masks: each scan on its own grid, structures that are missing, numbers, table and page."""

import csv
import json
from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import Dataset
from monai.engines.utils import IterationEvents
from segmentation_phantoms import AXES, STRUCTURES, phantom, save
from torch.utils.data import DataLoader

from monai_llmboost.data import ScanReader
from monai_llmboost.engines import MaskMetrics
from monai_llmboost.engines.evaluation import cases as evaluated_cases
from monai_llmboost.engines.evaluation.mask_numbers import MeasuredCase, mask_numbers
from monai_llmboost.inference.masks.own_grid import to_own_grid
from monai_llmboost.networks.class_names import ClassNames
from monai_llmboost.tasks import Segmentation, StructureMeasures, TrainingDiverged, bootstrap_draws

NAMES = ["background", *STRUCTURES.values()]
# The grid of the network: half the spacing of the scans along the last axis, and shifted.
PREPARED = np.diag([1.0, 1.0, 0.75, 1.0])
PREPARED[:3, 3] = (-10, 5, 20)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    monkeypatch.setattr(evaluated_cases, "bootstrap_draws", partial(bootstrap_draws, resamples=20))


@pytest.fixture
def network():
    network = torch.nn.Identity()
    network.class_names = ClassNames(3, NAMES)
    return network


def probabilities_of(label):
    """Return sure probabilities on the prepared grid of a label map along R, A and S."""
    classes = np.searchsorted([0, 1, 4], label.repeat(2, axis=2)[:, :, :-1])  # its centres are on those of the scan
    return torch.nn.functional.one_hot(torch.from_numpy(classes), 3).movedim(-1, 0).float()


def evaluate(folder, network, items, masks, names=NAMES, **about):
    """Evaluate masks as a bundle does, and return the rows of the table, the numbers and the page."""

    def step(engine, batch):
        engine.state.output = {"pred": torch.stack([masks[name] for name in batch["case"]])}
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        return engine.state.output

    engine = Engine(step)
    engine.register_events(*IterationEvents)
    handler = MaskMetrics(folder, network, names, [1, 4], ScanReader(), to_own_grid, {"split": "test", **about})
    handler.attach(engine)

    def batches(several):
        names = [item["case"] for item in several]
        return {"case": names, "affine": torch.from_numpy(PREPARED).expand(len(names), 4, 4)}

    engine.run(DataLoader(Dataset(items), batch_size=2, collate_fn=batches))
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "metrics.json").read_text()), (folder / "evaluation.html").read_text()


def test_masks_are_compared_on_the_grid_of_each_scan(tmp_path, network):
    items, masks = [], {}
    for number, axes in enumerate(AXES * 2):
        image, label = phantom(number, second=number != 5)
        for name, volume in (("scan", image), ("label", label)):
            save(volume, tmp_path / f"{name}{number}.nii.gz", axes)
        name = f"<b>{number}"
        paths = {key: str(tmp_path / f"{file}{number}.nii.gz") for key, file in (("image", "scan"), ("label", "label"))}
        items.append({**paths, "case": name, "patient": f"p{number // 2}"})
        masks[name] = probabilities_of(label)
    moved = np.roll(phantom(4)[1], 1, axis=2)  # by one plane of the scan, 1.5 mm
    masks["<b>4"] = probabilities_of(moved)
    gone = phantom(3)[1] * (phantom(3)[1] == 1)
    masks["<b>3"] = probabilities_of(gone)
    rows, numbers, page = evaluate(tmp_path / "eval", network, items, masks)

    task = Segmentation(NAMES)
    assert [row["case"] for row in rows] == [f"<b>{number}" for number in range(6)]
    scores = task.read_scores(rows)
    shifted = 7 / 8
    assert scores[:3] == pytest.approx(np.ones((3, 2))), "in each orientation"
    assert np.allclose(scores[3:], [[1, 0], [shifted, shifted], [1, np.nan]], equal_nan=True)
    assert [rows[number]["hd95_mm_left"] for number in (0, 4)] == ["0", "1.5"]
    assert (rows[3]["hd95_mm_right"], rows[3]["nsd_right"], rows[5]["nsd_right"]) == ("", "0", "")
    assert float(rows[0]["volume_mm3_left"]) == pytest.approx(6 * 8 * 8 * 1.5)
    assert (float(rows[3]["volume_mm3_right"]), float(rows[3]["label_volume_mm3_right"])) == (0, 5 * 8 * 8 * 1.5)

    right = numbers["structures"]["right"]
    counts = {name: right[name] for name in ("cases_with_label", "missed", "found_without_label", "in_neither")}
    assert counts == {"cases_with_label": 5, "missed": 1, "found_without_label": 0, "in_neither": 1}
    assert (right["dice"]["cases"], right["dice"]["undefined"]) == (5, 1)
    assert (right["hd95_mm"]["cases"], right["hd95_mm"]["undefined"]) == (4, 2)
    assert right["dice"]["mean"] == pytest.approx((3 + shifted) / 5)
    assert right["dice"]["median"] == 1
    low, high = right["dice"]["mean_interval_95"]
    assert low < right["dice"]["mean"] < high
    assert numbers["dice"] == pytest.approx((4 + 0.5 + shifted) / 6)
    assert (numbers["cases"], numbers["patients"], numbers["split"], numbers["caveats"]) == (6, 3, "test", [])
    assert page.count('<img src="data:image/webp') == 6
    assert page.index("&lt;b&gt;3") < page.index("&lt;b&gt;4"), "the worst first"
    assert "<b>3" not in page
    assert "found without label" not in page
    assert "missed in 1, in neither in 1" in page


def test_what_an_evaluation_refuses(tmp_path, network):
    image, label = phantom(0)
    for name, volume in (("scan", image), ("label", label)):
        save(volume, tmp_path / f"{name}.nii.gz", "RAS")
    item = {"image": str(tmp_path / "scan.nii.gz"), "label": str(tmp_path / "label.nii.gz"), "case": "a"}
    masks = {"a": probabilities_of(label)}
    with pytest.raises(ValueError, match="the checkpoint was trained for the classes"):
        evaluate(tmp_path, network, [item], masks, names=["background", "left", "other"])
    with pytest.raises(TrainingDiverged, match="the probabilities of the case a are not finite"):
        evaluate(tmp_path, network, [item], {"a": masks["a"] * torch.nan})
    with pytest.raises(ValueError, match="nsd_tolerance_mm must be above 0, not 0"):
        MaskMetrics(tmp_path, network, NAMES, [1, 4], ScanReader(), to_own_grid, {}, nsd_tolerance_mm=0)
    *_, numbers, page = evaluate(tmp_path, network, [item], masks, split="val")
    assert numbers["caveats"] == ["The epoch was chosen on these cases, so the numbers are optimistic."]
    assert numbers["caveats"][0] in page


def test_a_structure_that_no_case_has():
    task = Segmentation(["background", "a", "b"])
    nowhere = StructureMeasures(np.nan, np.nan, np.nan, 0.0, 0.0)
    cases = [MeasuredCase(name, [StructureMeasures(0.5, 1.0, 0.5, 8.0, 8.0), nowhere]) for name in "xyz"]
    numbers = mask_numbers(cases, task)
    assert numbers["structures"]["b"]["dice"] == {"cases": 0, "undefined": 3}
    assert numbers["dice"] == 0.5
    assert cases[0].row(task)["dice_b"] == ""
    empty = mask_numbers([MeasuredCase("x", [nowhere, nowhere])], task)
    assert empty["dice"] is None
    json.dumps({**numbers, **empty}, allow_nan=False)


def test_the_numbers_on_a_terminal(tmp_path, capsys):
    from monai_llmboost.command_line import training

    nowhere = StructureMeasures(np.nan, np.nan, np.nan, 0.0, 0.0)
    found = StructureMeasures(0.5, 2.0, 0.75, 8.0, 9.0)
    numbers = mask_numbers([MeasuredCase("x", [found, nowhere])] * 2, Segmentation(["background", "[b]", "c"]))
    (tmp_path / "metrics.json").write_text(json.dumps({**numbers, "split": "test"}))
    training._show_metrics(tmp_path)
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "[b] Dice 0.500 0.500 to 0.500 0.500 2" in lines
    assert "HD95, mm 2.00 2.00 to 2.00 2.00 2" in lines
    assert "c Dice – – 0, 2 undefined" in lines
    assert "median dice 0.500 0.500 to 0.500" in lines
