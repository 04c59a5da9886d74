# SPDX-License-Identifier: Apache-2.0
"""Check that the benchmarks run and their sides do the same work; their speed is not tested."""

import importlib
import json
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from conftest import ROOT
from processes import FORKS, run_python

pytestmark = pytest.mark.filterwarnings("ignore")  # of MONAI, Ignite and torch, as their users suppress them


def rows_of(name, out, *words):
    done = run_python([sys.executable, "-W", "ignore", ROOT / "benchmarks" / f"{name}.py", "--out", out, *words])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("|") > 20, "the table is shown"
    return json.loads(out.read_text())["rows"]


@pytest.fixture
def rows_here(monkeypatch, capsys):
    """Run a benchmark in this process, with other sizes, or measuring in processes that have imported all already."""

    def run(name, out, *words, **sizes):
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *words])
        benchmark = importlib.import_module(name)
        processes = {"subprocess": SimpleNamespace(run=run_python), "get_context": lambda _: FORKS, "signal": Mock()}
        for changed, value in (processes | sizes).items():
            monkeypatch.setattr(benchmark, changed, value, raising=False)
        benchmark.main()
        assert capsys.readouterr().out.count("|") > 20, "the table is shown"
        return json.loads(out.read_text())["rows"]

    return run


def test_booster_is_resumed(rows_here, tmp_path):
    words = ["--donors", "SmolLM-135M", "--sizes", "8", "--rounds", "1", "--device", "cpu"]
    out = tmp_path / "booster.json"
    sizes = {
        "NETWORK": {"in_channels": 1, "num_classes": 2, "patch_size": 4, "hidden_size": 64, "mlp_dim": 64},
        "LAYERS": {"num_layers": 1, "num_heads": 2, "head_size": 8},
    }
    (first, *_) = rows_here("booster", out, *words, "--batches", "1", **sizes)
    rows = rows_here("booster", out, *words, "--batches", "1", "2", **sizes)
    assert rows[0] == first, "measured once"
    assert {(row["batch"], row["kind"]) for row in rows} == {(b, k) for b in (1, 2) for k in ("forward", "step")}
    assert all(row["ms per volume"] > 0 for row in rows)
    sides = {row["side"]: row for row in rows if row["batch"] == 2 and row["kind"] == "forward"}
    # F_E is folded into queries, keys and values where this needs fewer operations.
    assert sides["full way"]["GFLOP per volume"] <= sides["transformers"]["GFLOP per volume"]
    assert sides["plain"]["GFLOP per volume"] < sides["ours"]["GFLOP per volume"]
    assert sides["ours, bfloat16 block"]["weights MB"] < sides["ours"]["weights MB"]


def test_startup_loads_the_same_weights(rows_here, llama_folder, tmp_path):
    words = ["--model", str(llama_folder), "--rounds", "1", "--dtypes", "bfloat16"]
    rows = rows_here("startup", tmp_path / "startup.json", *words)
    assert [row["dtype"] for row in rows] == ["bfloat16"] * 3
    assert [row["side"] for row in rows] == ["AutoModel.from_pretrained", "read_layers", "load_block"]


def test_short_commands(rows_here, tmp_path):
    words = ["--rounds", "1", "--commands", "donors", "run tran"]
    rows = rows_here("commands", tmp_path / "commands.json", *words, IMPORTS={"python": "pass"}, subprocess=subprocess)
    assert [row["command"] for row in rows] == ["python", "monai-llmboost donors", "monai-llmboost run tran"]
    assert all(row["seconds"] == row["least"] == row["most"] > 0 for row in rows)


def test_auc_of_few_bits(rows_here, monkeypatch, tmp_path):
    cases = {"train": 32, "val": 20, "test": 20}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
    words = [
        "--dataset",
        "phantom",
        "--bits",
        "16",
        "8",
        "4",
        "--epochs",
        "1",
        "--seeds",
        "1",
        "--folder",
        str(tmp_path),
    ]
    rows = rows_here("bits_accuracy", tmp_path / "bits.json", *words)
    assert [row["bits"] for row in rows] == [16, 8, 4]
    assert rows[0]["error of the output"] == 0 < rows[1]["error of the output"] < rows[2]["error of the output"]
    assert all(0 <= row["test AUC"] <= 1 for row in rows)


def test_bits_of_block_files(rows_here, tmp_path):
    from monai_llmboost.llm import BlockGeometry

    small = {"RANDOM": BlockGeometry(64, 128, 4, 2, 16), "VOLUMES": 2, "NETWORKS": 1}
    rows = rows_here("bits", tmp_path / "bits.json", "--bits", "8", "4", "--large-bits", "4", **small)
    assert next(row["way"] for row in rows if row["donor"].startswith("tiny")) == "as in the model"
    of = {row["way"]: row for row in rows if row["donor"].startswith("tiny") and row["set by"] == 4}
    assert len(of) == 4 and all(0 < row["error of the output"] < 0.1 for row in of.values())
    for way in ("smaller groups", "one bit more"):
        assert of["uniform"]["MB"] < of[way]["MB"] <= of["salient channels"]["MB"]
    assert len([row for row in rows if row["donor"].startswith("random")]) == 1 + 4


def test_epoch_of_the_bundle(rows_here, monkeypatch, tmp_path):
    cases = {"train": 96, "val": 20, "test": 20}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
    (row,) = rows_here("epoch", tmp_path / "epoch.json", "--epochs", "2")
    assert (row["set"], row["volumes"], row["batch"]) == ("phantom", 96, 32)
    assert row["epoch / steps"] > 0


def test_training_on_own_scans(tmp_path):
    (row,) = rows_of("own_scans", tmp_path / "own.json", "--scans", "24", "--size", "24", "--epochs", "2")
    assert (row["scans"], row["voxels"], row["input"]) == (24, "24^3", "1 x 24 x 24 x 24")
    # The peak of a process includes that of the tests that started it, so it is not compared here.
    assert row["memory by the plan, MB"] > 1000 and row["epoch / steps"] > 0


def test_inference_by_command_and_in_plain_monai(rows_here, tmp_path):
    rows = rows_here("inference", tmp_path / "inference.json", "--few", "2", "--many", "4", "--rounds", "1")
    assert [row["volumes"] for row in rows] == [2] * 3 + [4] * 3
    assert {row["side"] for row in rows} == {"predict", "predict --no-report", "plain MONAI"}
    assert all(row["difference to plain"] < 1e-5 for row in rows)
    assert all("ms per further volume" in row for row in rows if row["volumes"] == 4)


def test_reading_of_scans(tmp_path):
    words = ["--large", "40", "40", "8", "--slices", "4", "--rounds", "1", "--before", ROOT]
    rows = rows_of("reading", tmp_path / "reading.json", *words)
    nifti = ["monai-llmboost", "monai-llmboost, before", "limit", "plain MONAI"]
    for scan in ("128^3 .nii.gz", "256x256x100 .nii.gz", "large CT .nii.gz"):
        assert [row["side"] for row in rows if row["scan"] == scan] == nifti
    for scan in ("large CT, DICOM", "DICOM series"):
        assert [row["side"] for row in rows if row["scan"] == scan] == [*nifti[:2], "SimpleITK"]
    assert all(row["CPU ms"] > 0 and row["wall ms"] > 0 and row["volume MB"] > 0 for row in rows)


def test_reading_of_large_scans_is_bounded():
    rows = json.loads((ROOT / "benchmarks" / "results" / "reading-cpu.json").read_text())["rows"]
    for row in rows:
        if row["side"] == "monai-llmboost" and row["scan"].startswith("large CT"):
            assert row["volume MB"] > 600 and row["peak / volume"] < 1.6, row["scan"]


def test_each_model_type_has_an_outcome(tmp_path):
    rows = rows_of("model_types", tmp_path / "types.json", "--types", "phi", "mamba", "gemma3")
    assert {row["type"]: row["outcome"] for row in rows} == {"gemma3": "native", "mamba": "refused", "phi": "general"}
    assert all(0 <= row["difference"] < 1e-5 for row in rows if row["outcome"] != "refused")


def test_precisions_in_turn(rows_here, tmp_path):
    others = {"small": (lambda: torch.nn.Conv3d(1, 2, 3), (1, 1, 8, 8, 8))}
    words = ["time", "--rounds", "1", "--networks", "small"]
    rows = rows_here("precision", tmp_path / "times.json", *words, OTHERS=others)
    assert [row["side"] for row in rows] == ["float32", "bfloat16"]
    assert rows[0]["step ratio"] == 1 and all(row["step ms"] > 0 and row["forward ms"] > 0 for row in rows)


def test_accuracy_of_precisions(rows_here, monkeypatch, tmp_path):
    cases = {"train": 40, "val": 20, "test": 20}
    monkeypatch.setattr("monai_llmboost.data.datasets.phantoms.PHANTOM_CASES", cases)
    words = ["accuracy", "--dataset", "phantom", "--epochs", "1", "--seeds", "1", "--folder", str(tmp_path / "runs")]
    rows = rows_here("precision", tmp_path / "accuracy.json", *words)
    assert [row["trained in"] for row in rows] == ["float32", "bfloat16"]
    assert all(0 < row["probabilities differ, most"] < 0.02 for row in rows)


def test_boosted_networks(tmp_path):
    words = ["--networks", "UNet", "--size", "32", "--rounds", "1"]
    rows = rows_of("boosted_networks", tmp_path / "networks.json", *words)
    assert [(row["block"], row["arm"]) for row in rows] == [
        ("", "none"), ("embedded", "mlp"), ("embedded", "random"), ("LLaMA-7B", "mlp"), ("LLaMA-7B", "random")
    ]  # fmt: skip
    none, mlp, random, _, large = rows
    assert (random["form"], random["tokens"], random["channels"]) == ("map", 8, 256)
    assert none["GFLOP forward"] < mlp["GFLOP forward"] < random["GFLOP forward"] < large["GFLOP forward"]
    assert none["frozen"] == mlp["frozen"] == 0 < random["frozen"] < large["frozen"]
    assert all(row["ms step"] > 0 for row in (none, mlp, random))
    assert "ms step" not in large


def test_a_large_block_at_a_bottleneck_costs_little():
    rows = json.loads((ROOT / "benchmarks" / "results" / "boosted-networks-cpu.json").read_text())["rows"]
    (row,) = (row for row in rows if (row["network"], row["block"], row["arm"]) == ("SwinUNETR", "LLaMA-7B", "random"))
    assert row["frozen"] > 2e8
    assert 1 < row["operations / plain, forward"] < 1.1


def test_on_feature_maps_folded_maps_and_a_stride_cost_less():
    cells = {}
    for row in json.loads((ROOT / "benchmarks" / "results" / "dense-cpu.json").read_text())["rows"]:
        cell = cells.setdefault((row["volume"], row["joint"], row["block"]), {})
        cell[row["side"]] = row["GFLOP forward"]
    assert len(cells) >= 7
    for cell in cells.values():
        assert cell["plain"] < cell["token_stride 2"] < cell["folded"] <= cell["whole block"]
    large = cells["40x56x40", "decoder", "LLaMA-7B"]
    added = {side: gflop - large["plain"] for side, gflop in large.items()}
    assert 0.75 < added["folded"] / added["whole block"] < 0.85


def test_hippocampus_reads_every_run_of_a_study(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("hippocampus")
    for run, shift in (("none/lr0.002/seed0", 0.0), ("pretrained/seed1", 0.1)):
        folder = tmp_path / "runs" / "list" / run / "test"
        folder.mkdir(parents=True)
        lines = [f"case {number},{0.1 * number + shift},0.5" for number in (1, 2, 6)]
        (folder / "predictions.csv").write_text("\n".join(["case,dice_Anterior,dice_Posterior", *lines]))
    rows = benchmark.rows_of(tmp_path)
    assert [(row["arm"], row["seed"], row["structure"]) for row in rows] == [
        ("none", "0", "Anterior"), ("none", "0", "Posterior"), ("pretrained", "1", "Anterior"),
        ("pretrained", "1", "Posterior"),
    ]  # fmt: skip
    assert rows[2]["mean Dice"] == pytest.approx(0.4) and rows[2]["median Dice"] == pytest.approx(0.3)


def test_hippocampus_divides_the_cases_once(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    benchmark = importlib.import_module("hippocampus")
    cases = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in range(260)]
    names = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "modality": {"0": "MRI"}}
    for order in (cases, cases[::-1]):
        (tmp_path / "dataset.json").write_text(json.dumps({**names, "training": order}))
        benchmark.write_list(tmp_path, tmp_path / f"{order[0]['image'][-8]}.json")
    lists = [json.loads(file.read_text()) for file in tmp_path.glob("?.json")]
    assert len(lists) == 2 and lists[0] == lists[1]
    assert [len(lists[0][split]) for split in ("training", "validation", "test")] == [208, 26, 26]
    images = [case["image"] for split in ("training", "validation", "test") for case in lists[0][split]]
    assert len({*images}) == 260 and images[0].startswith(str(tmp_path))
