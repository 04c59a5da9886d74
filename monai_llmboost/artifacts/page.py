# SPDX-License-Identifier: Apache-2.0
"""The head and the theme of all pages, light and dark, and escapes for characters that a reader would not see."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

HERE = Path(__file__).parent


def style_of(page: Path) -> Markup:
    """Return the style sheet of all pages, followed by ``report.css`` in the folder ``page``."""
    return Markup("".join(file.read_text(encoding="utf-8") for file in (HERE / "page.css", page / "report.css")))


def template_folders(page: Path) -> list[Path]:
    """Return the folders of the templates of a page: its own, and that of ``head.html``."""
    return [page, HERE]


def visible(text: str) -> str:
    """Return text with escapes for characters that are not seen: controls, marks of direction, lone surrogates."""
    if text.isprintable():  # nearly always; pictures in base64 are long
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int) -> str:
    """Return text of at most ``length`` characters; the middle is cut because names differ at their ends."""
    if len(text) <= length:
        return text
    return f"{text[: (length - 1) // 2]}…{text[len(text) - length // 2 :]}"
