# SPDX-License-Identifier: Apache-2.0
"""The tables of trainings and studies."""

from __future__ import annotations

import json
from typing import Any

from read_results import format_times, read_results, select_rows
from report import RESULTS, markdown

from monai_llmboost.studies.rounding import rounded
from monai_llmboost.studies.statistics.verdict import without_caveats


def own_scans() -> str:
    """Show time and memory of training on labelled scans."""
    (row,) = select_rows("own-scans-cpu")
    seconds = [f"{row[key]:.0f} s" for key in ("inspection, s", "preparation, s", "epoch, s", "its steps alone, s")]
    memory = [f"{row[key] / 1000:.1f} GB" for key in ("memory by the plan, MB", "peak of training, MB")]
    numbers = [row["scans"], row["voxels"], row["input"], *seconds, format_times(row["epoch / steps"]), *memory]
    return markdown(
        ["scans", "voxels", "input", "inspection", "preparation", "epoch", "steps alone", "epoch / steps",
         "memory by the plan", "peak"],
        [numbers],
    )  # fmt: skip


def read_study(name: str) -> dict[str, Any]:
    """Read the results of a study: plan, device, command, data sets."""
    return json.loads((RESULTS / name / "results.json").read_text())


def format_difference(found: dict[str, Any]) -> str:
    """Format the difference of a comparison with its interval over seeds and cases."""
    low, high = map(rounded, found["intervals"]["both"])
    return f"{'+' if found['difference'] > 0 else ''}{rounded(found['difference'])} [{low}, {high}]"


def select_comparison(data: dict[str, Any], arm: str, reference: str) -> dict[str, Any]:
    """Return the comparison of two arms by AUC."""
    (found,) = (
        each
        for each in data["comparisons"]
        if (each["metric"], each["arm"], each["reference"]) == ("auc", arm, reference)
    )
    return found


def format_in_use(measures: dict[str, Any] | None) -> list[str]:
    """Format what block and booster add to their tokens after training, in percent; empty where there is none."""
    names = ("block_adds", "booster_adds")
    return [f"{100 * measures[name]['mean']:.0f} %" if measures and name in measures else "" for name in names]


def study_in_full(name: str) -> str:
    """Show a study: for each set a table of arms and floors, then a sentence for each comparison."""
    result, parts = read_study(name), []
    for dataset, data in result["datasets"].items():
        lines = []
        for arm, found in data["arms"].items():
            if found["auc"] is None:
                continue
            cells = ["{mean:.3f} \u00b1 {sd:.3f}".format(**found[metric]) for metric in ("auc", "acc")]
            interval = "[{:.3f}, {:.3f}]".format(*found["auc"]["interval"])
            lines.append([arm, cells[0], interval, cells[1], *format_in_use(data["diagnostics"].get(arm))])
        table = markdown(["arm", "AUC", "95 % interval", "ACC", "block adds", "booster adds"], lines)
        patients = data["cases"].get("test_patients")
        cases = f"{data['cases']['train']} training and {data['cases']['test']} test cases"
        cases += f" of {patients} patients" if patients else ""
        parts.append(f"**{dataset}**, {cases}:\n\n{table}\n\n{list_verdicts(data, 'auc')}")
    return (
        f"{result['study']['seeds']} seeds, mean \u00b1 standard deviation over the seeds, intervals over seeds and "
        f"cases; {result['device']}. `{result['command']}`\n\n" + "\n\n".join(parts)
    )


def list_verdicts(data: dict[str, Any], metric: str) -> str:
    """List what restricts a study of a data set, and a sentence for each comparison by a metric."""
    sentences = [*data["caveats"], *filter(None, [data["floors"]["shortcut"]])]
    own = (each["verdict"] for each in data["comparisons"] if each["metric"] == metric)
    sentences += [without_caveats(verdict, data["caveats"]) for verdict in own]
    return "\n".join(f"- {sentence}" for sentence in sentences)


def study() -> str:
    """Show the study of the arms."""
    return study_in_full("study")


def hippocampus() -> str:
    """Show the study of the segmentation of the hippocampus: mean Dice, and medians with the public figures."""
    result, dice, lines = read_study("hippocampus"), read_results("hippocampus/dice")["rows"], []
    (data,) = result["datasets"].values()
    structures = {row["structure"]: row["public median"] for row in dice}
    for arm, found in data["arms"].items():
        spread = "" if found["dice"]["sd"] is None else f" \u00b1 {found['dice']['sd']:.3f}"
        line = [arm, f"{found['dice']['mean']:.3f}{spread}", "[{:.3f}, {:.3f}]".format(*found["dice"]["interval"])]
        for structure in structures:
            own = [row["median Dice"] for row in dice if (row["arm"], row["structure"]) == (arm, structure)]
            line.append(", ".join(f"{value:.3f}" for value in own))
        lines.append([*line, *format_in_use(data["diagnostics"].get(arm))])
    public = [f"{value:.3f}" for value in structures.values()]
    lines.append(["a public U-Net, 26 other cases", "", "", *public, "", ""])
    headings = ["arm", "mean Dice", "95 % interval", *(f"median {one}" for one in structures)]
    cases = f"{data['cases']['train']} training and {data['cases']['test']} test cases"
    return (
        f"{cases}, seeds: {result['study']['seeds']} (medians of each), {result['device']}. `{result['command']}`\n\n"
        f"{markdown([*headings, 'block adds', 'booster adds'], lines)}\n\n{list_verdicts(data, 'dice')}"
    )


def hippocampus_students() -> str:
    """Show the study of distillation on the hippocampus."""
    result, dice, lines = read_study("hippocampus-students"), read_results("hippocampus-students/dice")["rows"], []
    teacher = read_study("hippocampus")["datasets"]["list"]["arms"]["pretrained"]["dice"]["mean"]
    for name, data in result["datasets"].items():
        for arm, found in data["arms"].items():
            spread = "" if found["dice"]["sd"] is None else f" \u00b1 {found['dice']['sd']:.3f}"
            interval = "[{:.3f}, {:.3f}]".format(*found["dice"]["interval"])
            line = [name, arm, f"{found['dice']['mean']:.3f}{spread}", interval]
            for structure in dict.fromkeys(row["structure"] for row in dice):
                own = [row for row in dice if (row["arm"], row["structure"]) == (arm, structure)]
                line.append(", ".join(f"{row['median Dice']:.3f}" for row in own))
            lines.append(line)
    headings = ["set", "student", "mean Dice", "95 % interval", "median Anterior", "median Posterior"]
    sentences = "\n".join(list_verdicts(data, "dice") for data in result["datasets"].values())
    return (
        f"{result['study']['seeds']} seeds (medians of each), {result['device']}; the teacher has a mean Dice of "
        f"{teacher:.3f}. `{result['command']}`\n\n{markdown(headings, lines)}\n\n{sentences}"
    )


def verdicts() -> str:
    """Show the study in short, one line for each data set."""
    result, lines = read_study("study"), []
    for name, data in result["datasets"].items():
        means = {arm: found["auc"]["mean"] for arm, found in data["arms"].items()}
        best = max((arm for arm in means if arm.startswith("floor-")), key=means.__getitem__)
        pairs = [format_difference(select_comparison(data, "pretrained", other)) for other in ("none", "random")]
        lines.append([name, f"{means[best]:.3f}", f"{means['none']:.3f}", f"{means['pretrained']:.3f}", *pairs])
    return markdown(["set", "best floor", "plain", "pretrained", "pretrained - plain", "pretrained - random"], lines)


def few_labels() -> str:
    """Show the networks by the fraction of the training labels; all labels are those of the main study."""
    few, lines = read_study("few-labels"), []
    for name in few["study"]["datasets"]:
        sets = {each: data for each, data in few["datasets"].items() if each.startswith(f"{name}, ")}
        for each, data in {**sets, name: read_study("study")["datasets"][name]}.items():
            means = [f"{data['arms'][arm]['auc']['mean']:.3f}" for arm in ("none", "random", "pretrained")]
            pairs = [format_difference(select_comparison(data, "pretrained", other)) for other in ("none", "random")]
            lines.append([each, *means, *pairs])
    headings = ["set", "plain", "random", "pretrained", "pretrained - plain", "pretrained - random"]
    return f"{few['study']['seeds']} seeds, {few['device']}. `{few['command']}`\n\n{markdown(headings, lines)}"


def donors() -> str:
    """Show the blocks of several donors, and how much they were in use."""
    result, lines = read_study("donors"), []
    for name, data in result["datasets"].items():
        for arm, measures in data["diagnostics"].items():
            found = data["arms"][arm]["auc"]
            line = [name, arm, f"{found['mean']:.3f} \u00b1 {found['sd']:.3f}"]
            line.append("" if arm == "none" else format_difference(select_comparison(data, arm, "none")))
            lines.append([*line, *format_in_use(measures)])
    headings = ["set", "arm", "AUC", "minus plain", "block adds", "booster adds"]
    return f"{result['study']['seeds']} seeds, {result['device']}. `{result['command']}`\n\n{markdown(headings, lines)}"


def feature_map() -> str:
    """Show boosters on the last feature map next to those on the pooled vector, which are of the main study."""
    result, lines = read_study("feature-map"), []
    for name in result["study"]["datasets"]:
        for place, found in (("vector", read_study("study")), ("map", result)):
            data = found["datasets"][name]
            means = [f"{data['arms'][arm]['auc']['mean']:.3f}" for arm in ("none", "mlp", "random", "pretrained")]
            pairs = [format_difference(select_comparison(data, "pretrained", other)) for other in ("none", "random")]
            lines.append([name, place, *means, *pairs, *format_in_use(data["diagnostics"]["pretrained"])])
    headings = [
        "set",
        "booster on the",
        "plain",
        "mlp",
        "random",
        "pretrained",
        "pretrained - plain",
        "pretrained - random",
    ]
    table = markdown([*headings, "block adds", "booster adds"], lines)
    return f"{result['study']['seeds']} seeds, {result['device']}. `{result['command']}`\n\n{table}"


def distillation() -> str:
    """Show students alone and with a teacher, by the fraction of the training labels, after their teachers."""
    folders = sorted((RESULTS / "distillation").iterdir())
    studies = {each.name: read_study(f"distillation/{each.name}") for each in folders}
    teachers, lines = studies.pop("teachers"), []
    taught = [arm for arm in max((result["study"]["arms"] for result in studies.values()), key=len) if arm != "scratch"]
    for name, result in studies.items():
        (own,) = result["study"]["datasets"]
        teacher = teachers["datasets"][own]["arms"]["pretrained"]["auc"]["runs"]
        for each, data in result["datasets"].items():
            means = {arm: f"{found['auc']['mean']:.3f}" for arm, found in data["arms"].items()}
            floor = max((value for arm, value in means.items() if arm.startswith("floor-")), default="")
            pairs = [
                format_difference(select_comparison(data, arm, "scratch")) if arm in means else "" for arm in taught
            ]
            kind = name.removeprefix(f"{own}-")
            lines.append([each, kind, f"{min(teacher):.3f} to {max(teacher):.3f}", floor, means["scratch"], *pairs])
    headings = ["set", "teacher", "AUC of the teachers", "best floor", "scratch"]
    headings += [f"{arm} - scratch" for arm in taught]
    first = next(iter(studies.values()))
    return (
        f"{first['study']['seeds']} seeds, {first['device']}. The first set, and the others with theirs: "
        f"`{first['command']}`\n\n{markdown(headings, lines)}"
    )


def strong() -> str:
    """Show the plain networks with the strong preset and the official convolutional one."""
    results = {"ViT3D": read_results("strong-cpu"), "ResNet3D": read_results("strong-resnet-cpu")}
    lines: dict[str, list[str]] = {}
    for result in results.values():
        for row in result["rows"]:
            line = lines.setdefault(row["set"], [row["set"], f"{row['ResNet-18 (3D), official']:.3f}"])
            line.append(f"{row['AUC']:.3f} \u00b1 {row['sd of folds']:.3f}")
    headings = ["set", "ResNet-18 (3D), official, test", *(f"plain {name}, validation" for name in results)]
    settings, device = results["ViT3D"]["settings"], results["ViT3D"]["device"]
    return (
        f"AUC, mean \u00b1 standard deviation of {settings['folds']} folds, {device}:\n\n"
        f"{markdown(headings, list(lines.values()))}"
    )


def first_epochs() -> str:
    """Show the AUC of boosted networks minus the plain one after a few epochs."""
    result = read_results("first-epochs-cpu")
    headings = ["arm", "start", "AUC", "minus the plain network", "95 % interval", "worst seed"]
    lines = []
    for row in result["rows"]:
        line = [row["arm"], row["start"], f"{row['AUC']:.3f}"]
        if "difference" in row:
            low, high = row["interval"]
            line += [f"{row['difference']:+.3f}", f"[{low:.3f}, {high:.3f}]", f"{row['worst']:+.3f}"]
        lines.append(line + [""] * (len(headings) - len(line)))
    settings = result["settings"]
    return (
        f"Phantoms, {settings['epochs']} epochs, mean of {settings['seeds']} paired seeds, {result['device']}:\n\n"
        f"{markdown(headings, lines)}"
    )


TABLES = (
    own_scans,
    study,
    hippocampus,
    verdicts,
    few_labels,
    donors,
    feature_map,
    distillation,
    hippocampus_students,
    strong,
    first_epochs,
)
