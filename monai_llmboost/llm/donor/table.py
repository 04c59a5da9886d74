# SPDX-License-Identifier: Apache-2.0
"""The table of suggested donors."""

from __future__ import annotations

from rich import box
from rich.table import Table

from monai_llmboost.llm.donor.known import DONORS

BYTES = 2  # of a weight in bfloat16


def donors_table() -> Table:
    """Return the curated donors as a table."""
    table = Table(
        title="monai-llmboost extract MODEL --layer -1 --out block.safetensors",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        caption="MB: of one layer, at two bytes a weight (some repositories hold four). The licence goes with the "
        "block: read it on the model's card. Gated: accept it there, then `hf auth login`.",
        caption_justify="left",
    )
    for name in ("model", "licence"):
        table.add_column(name, no_wrap=True)
    for name in ("layers", "width", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for donor in DONORS:
        table.add_row(
            donor.repository,
            f"{donor.licence}, gated" if donor.gated else donor.licence,
            str(donor.num_layers),
            str(donor.geometry.width),
            f"{donor.layer_weights * BYTES / 1e6:.0f}",
        )
    return table
