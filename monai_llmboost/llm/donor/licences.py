# SPDX-License-Identifier: Apache-2.0
"""The licence of a model: what its card says, or which well-known text its licence file is; nothing is guessed."""

from __future__ import annotations

import re
from pathlib import Path

LONGEST = 200_000  # bytes that are read of a licence file
# A licence by its title and text: what it must begin with, what must follow in this order, and how long it may be in
# characters, with words only, so that a text with terms added to it is not taken for the licence itself.
TEXTS: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    ("Apache-2.0", r"(copyright .{0,200}?)?apache license version 2 0 january 2004", (
        "terms and conditions for use reproduction and distribution", "grant of patent license",
        "end of terms and conditions"), 11_000),
    ("MIT", r".{0,300}?permission is hereby granted free of charge to any person obtaining a copy of this software and "
     r"associated documentation files the software to deal in the software without restriction", (
        "the above copyright notice and this permission notice shall be included",
        "the software is provided as is without warranty of any kind", "dealings in the software"), 1_300),
    ("BSD-3-Clause", r".{0,300}?redistribution and use in source and binary forms with or without modification are "
     r"permitted provided that the following conditions are met", (
        "redistributions of source code must retain", "redistributions in binary form must reproduce",
        "name", "used to endorse or promote products", "possibility of such damage"), 1_800),
    ("BSD-2-Clause", r".{0,300}?redistribution and use in source and binary forms with or without modification are "
     r"permitted provided that the following conditions are met", (
        "redistributions of source code must retain", "redistributions in binary form must reproduce",
        "possibility of such damage"), 1_600),
)  # fmt: skip
# What ends a licence; what stands behind it may be terms that were added.
ENDS = {"MIT": "dealings in the software", "BSD-3-Clause": "of such damage", "BSD-2-Clause": "of such damage"}
NOT_BSD = ("advertising materials", "endorse or promote")  # in one of more clauses
# Creative Commons by the name of the licence, of which the letters after the version's number are the rest.
CREATIVE_COMMONS = re.compile(
    r"(?:creative commons (?:legal code )?)?(?:cc )?attribution(?P<nc> noncommercial)?(?P<nd> noderivatives| noderivs)?"
    r"(?P<sa> sharealike)? (?P<version>[1-4] [05]) (?P<port>international|unported|generic)\b"
)
LLAMA = re.compile(r"(?:meta )?llama (?P<version>[234](?: \d)?) community license agreement\b")
GEMMA = re.compile(r"gemma terms of use\b")


def licence_of_card(path: Path) -> str:
    """Return what the front matter of a model's card says of its licence; empty if nothing."""
    from huggingface_hub import metadata_load

    try:
        card = metadata_load(path) or {}
    except Exception:  # a broken card raises nearly any kind, and is no reason to refuse the weights
        return ""
    names = card.get("license")
    names = [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]
    if names == ["other"] and isinstance(card.get("license_name"), str):
        names = [f"other ({card['license_name']})"]
    return " ".join(", ".join(names).split())


def licence_of_text(path: Path) -> str:
    """Return the name of a well-known licence whose text a file holds, else where to read it, with its first line.

    The SPDX identifier, or, where there is none, what model cards call it, such as ``"llama3.1"``; empty for a file
    without text.
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
    return _known(" ".join(re.findall(r"[a-z0-9]+", text.lower()))) or f"see {path.name}: {first[:80]}"


def _known(words: str) -> str:
    """Return the licence that a text of lower-case words is, empty if none or if it has more to say."""
    if match := LLAMA.match(words):
        return f"llama{match['version'].replace(' ', '.')}"
    if GEMMA.match(words):
        return "gemma"
    if match := CREATIVE_COMMONS.match(words):
        parts = [name for name in ("nc", "nd", "sa") if match[name]]
        return "-".join(["CC-BY", *(part.upper() for part in parts), match["version"].replace(" ", ".")])
    if words.startswith("creative commons legal code cc0 1 0 universal") or words.startswith("cc0 1 0 universal"):
        return "CC0-1.0"
    for name, begin, passages, longest in TEXTS:
        if len(words) <= longest and re.match(begin, words) and _in_order(words, passages):
            if name in ENDS and not words.endswith(ENDS[name]):
                continue
            if (name == "BSD-2-Clause" and any(word in words for word in NOT_BSD)) or (
                name == "BSD-3-Clause" and NOT_BSD[0] in words
            ):
                continue
            return name
    return ""


def _in_order(text: str, passages: tuple[str, ...]) -> bool:
    place = 0
    for passage in passages:
        place = text.find(passage, place)
        if place < 0:
            return False
    return True
