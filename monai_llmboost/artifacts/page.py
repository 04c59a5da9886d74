# SPDX-License-Identifier: Apache-2.0
"""What every page here has in common: colours and letters by day and by night, and text from outside made harmless."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

HERE = Path(__file__).parent


def style_of(page: Path) -> Markup:
    """The styles of all pages, then those of the page whose ``report.css`` lies in the folder ``page``."""
    return Markup("".join(file.read_text(encoding="utf-8") for file in (HERE / "page.css", page / "report.css")))


def visible(text: str) -> str:
    """Text with whatever a reader would not see (controls, marks of direction, lone surrogates) spelt out."""
    if text.isprintable():  # nearly always; pictures in base64 are long
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
