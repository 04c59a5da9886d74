# SPDX-License-Identifier: Apache-2.0
"""Update the tables in the documentation from the benchmark results; run it after a benchmark."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from report import RESULTS, markdown
from table_of_bits import bits

from monai_llmboost.studies.rounding import rounded
from monai_llmboost.studies.statistics.verdict import without_caveats

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "about"
PAGES = (HERE.parent / "README.md", HERE / "README.md", DOCS / "cost.md", DOCS / "results.md")
SHOWN = {"donor": "LLaMA-7B", "tokens": 344, "batch": 8}
SIDES = {
    "plain": "no booster",
    "ours": "booster, only CLS read",
    "ours, bfloat16 block": "the same, block kept in bfloat16",
    "full way": 'booster, all tokens (pool="mean")',
    "transformers": "the same with `transformers`' layer",
}


def read_results(name: str) -> dict[str, Any]:
    """Read a results file: device, settings, rows."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def select_rows(name: str, **wanted: Any) -> list[dict[str, Any]]:
    """Return the rows of a results file with these values in these columns."""
    return [row for row in read_results(name)["rows"] if all(row[key] == value for key, value in wanted.items())]


def format_times(value: float | None) -> str:
    """Format a ratio, or a dash if it was not measured."""
    return "-" if value is None else f"{value:.2f} x"


def format_mb(value: float | None) -> str:
    """Format a size, or a dash if it was not measured."""
    return "-" if value is None else f"{value:.0f} MB"


def cost() -> str:
    """Show operations, time and memory of each side at the published size."""
    lines = []
    for side, name in SIDES.items():
        (forward,) = select_rows("booster-cpu", **SHOWN, side=side, kind="forward")
        (step,) = select_rows("booster-cpu", **SHOWN, side=side, kind="step")
        operations = [
            f"{row['GFLOP per volume']:.1f} ({format_times(row['operations / plain'])})" for row in (forward, step)
        ]
        ratios = [format_times(row.get("time / plain")) for row in (forward, step)]
        memory = [format_mb(forward.get("weights MB")), format_mb(step.get("peak MB of the batch"))]
        lines.append([name, *operations, *ratios, *memory])
    headings = ["ViT3D of the published size", "GFLOP forward", "GFLOP step", "time forward", "time step"]
    headings += ["weights", "step memory"]
    return (
        f"LLaMA-7B's last layer (202 M weights), {SHOWN['tokens']} tokens, batch {SHOWN['batch']}, float32, "
        f"{read_results('booster-cpu')['device']}. GFLOP per volume; a step is a forward and a backward pass; "
        "times are median ratios to the plain network; step memory is the peak of gradients and activations of the "
        f"batch, without the weights:\n\n{markdown(headings, lines)}"
    )


def growth() -> str:
    """Show what the booster adds as the number of tokens grows."""
    lines: list[list[Any]] = []
    earlier: dict[str, float] = {}
    for tokens in sorted({row["tokens"] for row in select_rows("booster-cpu")}):
        where = {**SHOWN, "tokens": tokens, "kind": "forward"}
        of = {row["side"]: row["GFLOP per volume"] for row in select_rows("booster-cpu", **where)}
        line = [tokens, f"{of['plain']:.0f}"]
        for side in ("ours", "full way"):
            added = of[side] - of["plain"]
            more = ""
            if earlier:
                more = f" ({1e3 * (added - earlier[side]) / (tokens - earlier['tokens']):.3g})"
            line.append(f"{added:.4g}{more}")
        earlier = {side: gflop - of["plain"] for side, gflop in of.items()} | {"tokens": tokens}
        lines.append(line)
    return markdown(["tokens", "plain", "booster adds, only CLS read", "booster adds, all tokens"], lines)


def booster() -> str:
    """Show every timed cell of the benchmark."""
    return _show_booster("booster-cpu")


def booster_on_gpu() -> str:
    """Show the same cells on a GPU, where all sides run in bfloat16."""
    return _show_booster("booster-cuda")


def _show_booster(name: str) -> str:
    cells: dict[tuple, dict[str, dict[str, Any]]] = {}
    for row in select_rows(name):
        cells.setdefault((row["donor"], row["tokens"], row["batch"], row["kind"]), {})[row["side"]] = row
    timed = [side for side in list(SIDES)[1:] if any("time / plain" in row for row in select_rows(name, side=side))]
    lines = []
    for cell, of in cells.items():
        if "time / plain" not in of["plain"]:
            continue
        operations = [format_times(of[side]["operations / plain"]) for side in ("ours", "full way")]
        ratios = [format_times(of[side].get("time / plain")) for side in timed]
        memory = [format_mb(of[side].get("peak MB of the batch")) for side in ("plain", "ours", "full way")]
        milliseconds = f"{of['plain']['ms per volume']:.3g} ms"
        lines.append([*cell, f"{of['plain']['GFLOP per volume']:.0f}", milliseconds, *operations, *ratios, *memory])
    short = {"ours": "time: ours", "ours, bfloat16 block": "bf16", "full way": "full", "transformers": "transformers"}
    headings = ["donor", "tokens", "batch", "", "GFLOP plain", "time plain", "ours", "full"]
    headings += [short[side] for side in timed] + ["memory: plain", "ours", "full"]
    result = read_results(name)
    dtype = result["settings"]["dtype"].removeprefix("torch.")
    return (
        f"{result['device']}, {dtype}, medians of {result['settings']['rounds']} rounds:\n\n{markdown(headings, lines)}"
    )


def published() -> str:
    """Show the published code and ours, with the same weights."""
    result, lines = read_results("published-cpu"), []
    for side in ("published, plain", "published, boosted", "ours, plain", "ours, boosted"):
        (forward,) = select_rows("published-cpu", side=side, kind="forward")
        (step,) = select_rows("published-cpu", side=side, kind="step")
        milliseconds = [f"{row['ms per volume']:.0f} ms" for row in (forward, step)]
        memory = [format_mb(step.get("peak MB of the batch")), format_mb(step["checkpoint MB"])]
        far = step["difference to published"]
        difference = "" if far is None else f"{max(far, forward['difference to published']):.0e}"
        lines.append([side, *milliseconds, *memory, difference])
    headings = ["code, network", "forward", "step", "step memory", "checkpoint", "largest relative difference"]
    settings = result["settings"]
    return (
        f"Mode `{settings['mode']}`, batch {settings['batch']}, float32, {result['device']}; per volume; the "
        f"difference is that of logits and gradients:\n\n{markdown(headings, lines)}"
    )


def startup() -> str:
    """Show the loading of a block from a sharded checkpoint."""
    result, lines = read_results("startup-cpu"), []
    for row in result["rows"]:
        numbers = [f"{row['seconds']:.2f} s", format_mb(row.get("peak MB")), format_mb(row["MB on disk"])]
        lines.append([f"`{row['side']}`", row["dtype"], *numbers])
    settings = result["settings"]
    return (
        f"{settings['model']}, {settings['layers']} layers, bfloat16 in shards, files in the page cache, "
        f"{result['device']}:\n\n{markdown(['by', 'in', 'time', 'peak memory', 'files'], lines)}"
    )


def epoch() -> str:
    """Show an epoch of the bundle and its steps alone, on each device."""
    lines = []
    for name in ("epoch-cpu", "epoch-cuda"):
        for row in select_rows(name):
            seconds = [f"{row[key]:.2f} s" for key in ("epoch, s", "its steps alone, s")]
            numbers = [row["set"], row["volumes"], row["batch"], *seconds, format_times(row["epoch / steps"])]
            lines.append([read_results(name)["device"], *numbers])
    return markdown(["device", "set", "volumes", "batch", "epoch", "steps alone", "epoch / steps"], lines)


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


def inference() -> str:
    """Show the prediction of a folder by the command and by a plain MONAI pipeline."""
    result, lines = read_results("inference-cpu"), []
    settings = result["settings"]
    for row in result["rows"]:
        if "ms per further volume" in row:
            seconds = [
                f"{row['seconds']:.1f} s ({format_times(row['time / plain'])})",
                f"{row['ms per further volume']:.1f} ms",
            ]
            more = row.get("kB per further volume")
            memory = [format_mb(row.get("peak MB")), "-" if more is None else f"{more:.0f} kB"]
            lines.append([f"`{row['side']}`" if "predict" in row["side"] else row["side"], *seconds, *memory])
    volumes = max(row["volumes"] for row in result["rows"])
    return (
        f"{volumes} volumes of {settings['size']}\u00b3, batches of {settings['batch']}, one process that also reads, "
        f"{result['device']}, medians of {settings['rounds']} rounds:\n\n"
        f"{markdown(['by', 'time', 'each additional volume', 'peak memory', 'each additional volume'], lines)}"
    )


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


def model_types() -> str:
    """Show which types of language models can be donors."""
    result = read_results("model-types")
    of: dict[str, list[dict[str, Any]]] = {outcome: [] for outcome in ("native", "general", "refused", "not built")}
    for row in result["rows"]:
        of[row["outcome"]].append(row)
    cells = []
    for row in of["general"]:
        passed, _, all_of_it = row["layers"].split()
        some = "" if passed == all_of_it else f" ({row['layers']})"
        difference = "-" if row["difference"] is None else f"{row['difference']:.0e}"
        cells.append(f"{_format_type(row)}{some}: {row['permutation error']:.0e}, {difference}")
    columns = 3
    lines = [(cells[i : i + columns] + [""] * columns)[:columns] for i in range(0, len(cells), columns)]
    reasons = [
        [_format_type(row), row["outcome"], _shorten_reason(row["reason"])] for row in of["refused"] + of["not built"]
    ]
    counts = ", ".join(f"{len(rows)} {outcome}" for outcome, rows in of.items())
    return (
        f"transformers {result['software']['transformers']}: {counts}. "
        f"Native: {', '.join(_format_type(row) for row in of['native'])}.\n\n"
        f"{markdown(['type: permutation error, difference', *[''] * (columns - 1)], lines)}\n\n"
        f"{markdown(['type', 'outcome', 'why'], reasons)}"
    )


def _format_type(row: dict[str, Any]) -> str:
    return f"{row['type']} (as {row['read as']})" if "read as" in row else row["type"]


def _shorten_reason(text: str) -> str:
    """Return the reason of a refusal without the advice."""
    text = re.sub(r"[:;] (choose|read them|correct) .*?(?=$|; (expected|layer))", "", text)
    known = r"expected a layer (of attention over all tokens|that needs tokens only), [\w-]+ layer \d+ "
    return re.sub(rf"{known}|[\w-]+ layer \d+ (?=reads|needs)|\blayer \d+ (?=does|is)", "", text)


def boosted_networks() -> str:
    """Show the operations of MONAI's networks with a booster, by block and joint."""
    result = read_results("boosted-networks-cpu")
    cells: dict[tuple[str, str], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in result["rows"]:
        cells.setdefault((row["network"], row["joint"]), {})[row["block"], row["arm"]] = row
    lines = []
    for (name, joint), of in cells.items():
        boosted, plain = of["embedded", "random"], of["", "none"]
        forward = [
            f"{of[block, arm]['operations / plain, forward']:.3f} x"
            for block in ("embedded", "LLaMA-7B")
            for arm in ("mlp", "random")
        ]
        weights = f"{plain['trained'] / 1e6:.1f} M, {boosted['trained'] / 1e6:.1f} M"
        step = f"{of['LLaMA-7B', 'random']['operations / plain, step']:.3f} x"
        where = f"{joint}, {boosted['form']} of {boosted['tokens']} x {boosted['channels']}"
        lines.append([name, where, weights, f"{plain['GFLOP forward']:.1f}", *forward, step])
    headings = ["network", "joint, tokens x channels", "trained weights: plain, boosted", "GFLOP plain"]
    headings += ["embedded: mlp", "block", "LLaMA-7B: mlp", "block", "block, step"]
    size = result["settings"]["size"]
    return (
        f"Volumes of {size}³, batch 1, operations relative to the plain network's forward pass (last column: to its "
        "step), counted without computing them; `mlp` is the arm without a block. Trained weights are those with the "
        f"embedded block's size:\n\n{markdown(headings, lines)}"
    )


def dense() -> str:
    """Show the cost of a booster on the feature maps of a U-Net, by the way in which all tokens are read."""
    cells: dict[tuple[str, str, str], dict[str, dict[str, Any]]] = {}
    for row in select_rows("dense-cpu"):
        cells.setdefault((row["volume"], row["joint"], row["block"]), {})[row["side"]] = row
    sides = ["whole block", "folded", "token_stride 2"]
    lines = []
    for (volume, joint, block), of in cells.items():
        where = f"{joint}, {of['folded']['tokens']} x {of['folded']['channels']}"
        line = [volume, where, block, f"{of['plain']['GFLOP forward']:.0f}"]
        for kind in ("forward", "step"):
            line += [format_times(of[side][f"operations / plain, {kind}"]) for side in sides]
        lines.append(line)
    headings = ["volume", "joint, tokens x channels", "block", "GFLOP plain"]
    headings += [f"{kind}{side}" for kind in ("", "step: ") for side in sides]
    return (
        "MONAI's DynUNet, batch 1. Operations of a forward pass, and of a step, relative to the plain network's, "
        f"counted without computing them:\n\n{markdown(headings, lines)}"
    )


TABLES = {
    function.__name__: function
    for function in (
        cost,
        growth,
        booster,
        booster_on_gpu,
        published,
        startup,
        epoch,
        own_scans,
        inference,
        study,
        few_labels,
        donors,
        feature_map,
        verdicts,
        strong,
        first_epochs,
        model_types,
        boosted_networks,
        dense,
        bits,
        hippocampus,
    )
}


def update_tables(text: str) -> str:
    """Return the page with each table between ``<!-- table: NAME -->`` and ``<!-- end -->`` replaced by a new one."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{TABLES[match[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(update_tables(page.read_text()))
    print(f"updated tables: {', '.join(TABLES)}")
