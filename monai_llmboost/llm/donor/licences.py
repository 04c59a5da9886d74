# SPDX-License-Identifier: Apache-2.0
"""Licence of a model: from its card, or from a licence file with a well-known text; nothing is guessed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

LONGEST = 200_000  # bytes read from a licence file
# Licences with a fixed text, compared as lower-case words: start and end of the text, sha256 of the words before the
# end, and a pattern for what may follow. A title and a copyright line may precede it.
TEXTS = {
    "Apache-2.0": (
        "terms and conditions for use reproduction and distribution",
        "end of terms and conditions",
        "30e4fead14bea27559ab87df4b7e795f30238bd249aae20bc792ba6615939d57",
        r"( appendix how to apply the apache license to your work .{1,1200} limitations under the license)?",
    ),
    "MIT": (
        "permission is hereby granted free of charge",
        "dealings in the software",
        "027375b7d5e155ec836f1ebfc61ec3519477cac4ecb2a987208a070b77747ab7",
        "",
    ),
}
LONGEST_TITLE = 300
# The BSD licences name the copyright holder inside the text: passages in their order, and the greatest length without
# title and copyright.
BSD = (
    "redistribution and use in source and binary forms with or without modification are permitted",
    "redistributions of source code must retain",
    "redistributions in binary form must reproduce",
)
THIRD_CLAUSE = (
    "used to endorse or promote products derived from this software without specific prior written permission"
)
BSD_END = "of the possibility of such damage"
LONGEST_BSD = 1_250, 1_450  # with two clauses, with three
# Creative Commons licences by name.
CREATIVE_COMMONS = re.compile(
    r"(?:creative commons (?:legal code )?)?(?:cc )?attribution(?P<nc> noncommercial)?(?P<nd> noderivatives| noderivs)?"
    r"(?P<sa> sharealike)? (?P<version>[1-4] [05]) (?P<port>international|unported|generic)\b"
)
LLAMA = re.compile(r"(?:meta )?llama (?P<version>[234](?: \d)?) community license agreement\b")
GEMMA = re.compile(r"gemma terms of use\b")


def read_card_licence(path: Path) -> str:
    """Return the licence in the front matter of a model card; empty if there is none."""
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(path) or {}
    except Exception:  # a broken card can raise any exception, and does not affect the weights
        return ""
    names = card.get("license")
    names = [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]
    if names == ["other"] and isinstance(card.get("license_name"), str):
        names = [f"other ({card['license_name']})"]
    return " ".join(", ".join(names).split())


def identify_licence(path: Path) -> str:
    """Return the name of the well-known licence in a file, else a reference to the file with its first line.

    The name is the SPDX identifier, or the name used in model cards, such as ``"llama3.1"``. Empty for a file without
    text.
    """
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST).decode("utf-8-sig", errors="replace")
    except OSError:
        return ""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    first = next((line for line in lines if re.search(r"\w", line)), "")
    if not first:
        return ""
    return _match_text(" ".join(re.findall(r"[a-z0-9]+", text.lower()))) or f"see {path.name}: {first[:80]}"


def _match_text(words: str) -> str:
    """Return the licence of a text of lower-case words; empty if unknown, or if the text has additional terms."""
    if match := LLAMA.match(words):
        return f"llama{match['version'].replace(' ', '.')}"
    if GEMMA.match(words):
        return "gemma"
    if match := CREATIVE_COMMONS.match(words):
        parts = [name for name in ("nc", "nd", "sa") if match[name]]
        return "-".join(["CC-BY", *(part.upper() for part in parts), match["version"].replace(" ", ".")])
    if words.startswith("creative commons legal code cc0 1 0 universal") or words.startswith("cc0 1 0 universal"):
        return "CC0-1.0"
    for name, (begin, end, digest, rest) in TEXTS.items():
        first, last = words.find(begin), words.find(end)
        if 0 <= first <= LONGEST_TITLE and hashlib.sha256(words[first:last].encode()).hexdigest() == digest:
            return name if re.fullmatch(rest, words[last + len(end) :]) else ""
    return _match_bsd(words)


def _match_bsd(words: str) -> str:
    first = words.find(BSD[0])
    clauses = 3 if THIRD_CLAUSE in words else 2
    is_bsd = (
        0 <= first <= LONGEST_TITLE
        and len(words) - first <= LONGEST_BSD[clauses - 2]
        and _has_in_order(words, BSD)
        and words.endswith(BSD_END)
        and "advertising materials" not in words  # the four-clause licence
    )
    return f"BSD-{clauses}-Clause" if is_bsd else ""


def _has_in_order(text: str, passages: tuple[str, ...]) -> bool:
    place = 0
    for passage in passages:
        place = text.find(passage, place)
        if place < 0:
            return False
    return True
