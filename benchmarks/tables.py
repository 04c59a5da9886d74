# SPDX-License-Identifier: Apache-2.0
"""Update the tables in the documentation from the benchmark results; run it after a benchmark."""

from __future__ import annotations

import re
from pathlib import Path

import table_of_bits
import table_of_commands
import table_of_reading
import tables_of_costs
import tables_of_studies

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs" / "about"
PAGES = (HERE.parent / "README.md", HERE / "README.md", DOCS / "cost.md", DOCS / "results.md")
OTHERS = (table_of_bits.bits, table_of_bits.bits_of_results, table_of_commands.commands, table_of_reading.reading)
TABLES = {table.__name__: table for table in (*tables_of_costs.TABLES, *OTHERS, *tables_of_studies.TABLES)}


def update_tables(text: str) -> str:
    """Return the page with each table between ``<!-- table: NAME -->`` and ``<!-- end -->`` replaced by a new one."""

    def replace(match: re.Match[str]) -> str:
        return f"{match[1]}\n\n{TABLES[match[2]]()}\n\n<!-- end -->"

    return re.sub(r"(<!-- table: (\w+) -->).*?<!-- end -->", replace, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(update_tables(page.read_text()))
    print(f"updated tables: {', '.join(TABLES)}")
