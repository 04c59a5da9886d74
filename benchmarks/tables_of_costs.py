# SPDX-License-Identifier: Apache-2.0
"""The tables of operations, times and memory."""

from __future__ import annotations

import re
from statistics import mean, stdev
from typing import Any

from read_results import format_mb, format_times, read_results, select_rows
from report import markdown

SHOWN = {"donor": "LLaMA-7B", "tokens": 344, "batch": 8}
SIDES = {
    "plain": "no booster",
    "ours": "booster, only CLS read",
    "ours, bfloat16 block": "the same, block kept in bfloat16",
    "full way": 'booster, all tokens (pool="mean")',
    "transformers": "the same with `transformers`' layer",
}


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


def precision() -> str:
    """Show times in float32 and bfloat16."""
    result = read_results("precision-time-cpu")
    lines = [
        [row["network"], row["side"], *[format_times(row[f"{kind} ratio"]) for kind in ("forward", "step")]]
        for row in result["rows"]
    ]
    return (
        f"{result['device']}, medians of {result['settings']['rounds']} rounds, relative to the first row of each "
        f"network; a step is a forward and a backward pass:\n\n"
        f"{markdown(['network', '', 'time forward', 'time step'], lines)}"
    )


def precision_of_results() -> str:
    """Show what bfloat16 changes in the results of a training."""
    result = read_results("precision-accuracy-cpu")
    lines = []
    for trained_in in ("float32", "bfloat16"):
        rows = [row for row in result["rows"] if row["trained in"] == trained_in]
        scores = [[row[f"test AUC in {name}"] for row in rows] for name in ("float32", "bfloat16")]
        cells = [f"{mean(values):.3f} ± {stdev(values):.3f}" for values in scores]
        differ = [f"{max(abs(one - other) for one, other in zip(*scores)):.4f}"]
        differ += [f"{mean(row['probabilities differ, mean'] for row in rows):.4f}"]
        differ += [f"{max(row['probabilities differ, most'] for row in rows):.3f}"]
        lines.append([trained_in, *cells, *differ])
    settings = result["settings"]
    headings = ["trained in", "AUC in float32", "AUC in bfloat16", "AUC differs, most", "probability differs, mean"]
    return (
        f"ViT3D with the block of this package on {settings['dataset']}, {settings['epochs']} epochs, "
        f"{settings['seeds']} seeds (mean ± standard deviation), test split, {result['device']}:\n\n"
        f"{markdown([*headings, 'most'], lines)}"
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


TABLES = (
    cost,
    growth,
    booster,
    booster_on_gpu,
    precision,
    precision_of_results,
    published,
    startup,
    epoch,
    inference,
    model_types,
    boosted_networks,
    dense,
)
