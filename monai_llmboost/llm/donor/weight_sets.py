# SPDX-License-Identifier: Apache-2.0
"""Which files of a model's folder or repository hold its weights: every set of them that is there, by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder

Files = LocalFolder | HubRepository
# The usual names of weights, one file or several with an index; safetensors first.
USUAL = ("model.safetensors", "pytorch_model.bin")
NATIVE = "consolidated.safetensors"  # as Mistral names them
# With a variant such as fp16 before or behind the part's number, both of which transformers wrote.
STEM = r"(?P<stem>model|pytorch_model|consolidated)"
SINGLE = re.compile(STEM + r"(?:\.(?P<variant>[A-Za-z]\w*))?\.(?P<kind>safetensors|bin)")
PART = re.compile(
    STEM + r"(?:\.(?P<variant>[A-Za-z]\w*))?-(?P<part>\d+)-of-(?P<of>\d+)(?:\.(?P<after>[A-Za-z]\w*))?"
    r"\.(?P<kind>safetensors|bin)"
)
INDEX = re.compile(STEM + r"\.(?P<kind>safetensors|bin)\.index(?:\.(?P<variant>\w+))?\.json")
GGUF = re.compile(r"(?!mmproj|imatrix)(?P<stem>.+?)(?:-(?P<part>\d{5})-of-(?P<of>\d{5}))?\.gguf", re.IGNORECASE)


@dataclass(frozen=True)
class WeightSet:
    """Files that hold a model's weights together.

    Args:
        files: their names.
        index: the file that says which tensor is in which, if there is one.
        variant: such as ``"fp16"``; empty for the plain weights.
    """

    files: tuple[str, ...]
    index: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.index:
            return f"{self.index} ({len(self.files)} files)"
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    @property
    def is_safetensors(self) -> bool:
        """Whether a part of a file can be had from the hub."""
        return self.files[0].endswith(".safetensors")

    def weight_map(self, files: Files) -> dict[str, str]:
        """Return every tensor's name and the file that holds it.

        Raises:
            ValueError: a damaged file, or without an index one name in two of them.
        """
        if self.index:
            return _read_index(files, self.index)
        found: dict[str, str] = {}
        for file in self.files:
            for name in files.list_tensors(file):
                if name in found:
                    raise ValueError(
                        f"{name} is in {found[name]} and in {file} of {files.donor}, and no index says which counts: "
                        "remove what is out of date"
                    )
                found[name] = file
        return found

    def read(self, files: Files, weight_map: dict[str, str], is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return the tensors whose names are wanted.

        Raises:
            FileNotFoundError: a file that the index names is not there.
            ValueError: one is damaged, or holds other tensors than the index says.
        """
        names = [name for name in weight_map if is_wanted(name)]
        tensors: dict[str, Tensor] = {}
        opened = sorted({weight_map[name] for name in names})
        for file in opened:
            tensors.update(files.read_tensors(file, [name for name in names if weight_map[name] == file]))
        for file in opened if self.index else ():
            for name in files.list_tensors(file):
                if is_wanted(name) and weight_map.get(name) != file:
                    says = f"says in {weight_map[name]}" if name in weight_map else "does not have it"
                    raise ValueError(
                        f"{name} is in {file} of {files.donor}, {self.index} {says}: index and weights are not of one "
                        "model, download them again"
                    )
        return tensors


def is_weight_file(name: str) -> bool:
    """Whether a file is weights by its name, as they are read."""
    stems = ("model", "pytorch_model", "consolidated")
    return any(_match(pattern, name, stems) for pattern in (SINGLE, PART)) or GGUF.fullmatch(name) is not None


def find_hugging_face_sets(files: Files) -> list[WeightSet]:
    """Return the sets of weights as transformers names them, safetensors first; of one variant, the plain one if there.

    An index whose files are all missing counts only if there is nothing else.

    Raises:
        ValueError: there are several variants and no plain weights, or an index is damaged.
    """
    names = files.list_files()
    found = list(_probe_usual(files)) if names is None else _group_files(files, names, ("model", "pytorch_model"))
    alive = [one for one in found if names is None or set(one.files) & set(names)]
    return _choose_variant(alive or found, files.donor)


def find_native_sets(files: Files) -> list[list[WeightSet]]:
    """Return the sets of weights as Meta and Mistral name them; each is several where the model is split over files.

    Raises:
        FileNotFoundError: a part is missing.
    """
    names = files.list_files()
    if names is None:
        names = [name for name in (NATIVE, "consolidated.00.pth") if files.has(name)]
    found = [[one] for one in _group_files(files, names, ("consolidated",))]
    parts = sorted(name for name in names if re.fullmatch(r"consolidated\.\d+\.pth", name))
    if [name.split(".")[1] for name in parts] != [f"{number:02d}" for number in range(len(parts))]:
        raise FileNotFoundError(f"expected all parts from consolidated.00.pth on, found {parts}")
    return found + ([[WeightSet((name,)) for name in parts]] if parts else [])


def find_gguf_files(files: Files, chosen: str = "") -> list[str]:
    """Return the GGUF file of a model, or its parts in their order; none if there is none.

    Args:
        files: the model.
        chosen: the file, or the first part, if one was asked for.

    Raises:
        ValueError: there are several and none was asked for.
        FileNotFoundError: a part is missing.
    """
    models: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in [chosen] if files.list_files() is None and chosen else files.list_files() or []:
        if found := GGUF.fullmatch(name):
            models[found["stem"], found["of"] or ""][int(found["part"] or 1)] = name
    wanted = [key for key, parts in models.items() if not chosen or chosen in parts.values()]
    if len(wanted) > 1:
        firsts = sorted(min(models[key].items())[1] for key in wanted)
        raise ValueError(
            f"{files.donor} holds several GGUF files: give one of them, {', '.join(firsts[:8])}"
            f"{' ...' if len(firsts) > 8 else ''}, as {files.path_of(firsts[0])}"
        )
    if not wanted:
        return []
    parts = models[wanted[0]]
    number = int(wanted[0][1] or 1)
    if sorted(parts) != list(range(1, number + 1)):
        raise FileNotFoundError(f"expected {number} parts of {wanted[0][0]}, found {sorted(parts.values())}")
    return [parts[part] for part in sorted(parts)]


def _group_files(files: Files, names: Iterable[str], stems: tuple[str, ...]) -> list[WeightSet]:
    """Return the sets that names of files make, with an index first, then one file, then parts without an index."""
    indexed, single = [], []
    parts: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in sorted(names):
        if (match := _match(INDEX, name, stems)) is not None:
            content = _read_index(files, name)
            indexed.append(WeightSet(tuple(sorted(set(content.values()))), name, match["variant"] or ""))
        elif (match := _match(PART, name, stems)) is not None:
            variant = match["variant"] or match["after"] or ""
            parts[match["stem"], match["kind"], variant, match["of"]].append(name)
        elif (match := _match(SINGLE, name, stems)) is not None:
            single.append(WeightSet((name,), variant=match["variant"] or ""))
    whole: list[WeightSet] = []
    torn: list[WeightSet] = []
    for (_, _, variant, number), group in parts.items():
        if not any(set(group) & set(one.files) for one in indexed):
            (whole if len(group) == int(number) else torn).append(WeightSet(tuple(group), variant=variant))
    found = [one for one in [*indexed, *single, *whole] if one.files]
    if torn and not any(set(one.files) & set(names) for one in found):  # else it is what is left of an older save
        raise FileNotFoundError(
            f"expected {' or '.join(USUAL)} in {files.donor}, found parts of them, not all and without an index "
            f"({torn[0].name}): download the weights again"
        )
    return sorted(found, key=lambda one: not one.is_safetensors)


def _match(pattern: re.Pattern[str], name: str, stems: tuple[str, ...]) -> re.Match[str] | None:
    """Return the match of a name with one of these stems, and with the suffix that goes with it."""
    match = pattern.fullmatch(name)
    if match is None or match["stem"] not in stems or (match["kind"] == "bin") != (match["stem"] == "pytorch_model"):
        return None
    return match


def _probe_usual(files: Files) -> Iterator[WeightSet]:
    """Yield the first usual set of a repository that does not list its files."""
    for whole in USUAL:
        index = f"{whole}.index.json"
        if files.read_json(index) is not None:
            yield WeightSet(tuple(sorted(set(_read_index(files, index).values()))), index)
            return
        if files.has(whole):
            yield WeightSet((whole,))
            return


def _choose_variant(sets: list[WeightSet], donor: str) -> list[WeightSet]:
    plain = [one for one in sets if not one.variant]
    if plain:
        return plain
    variants = sorted({one.variant for one in sets})
    if len(variants) > 1:
        raise ValueError(
            f"{donor} holds the variants {', '.join(variants)} of its weights ({', '.join(one.name for one in sets)}) "
            "and no plain ones: give a folder with one of them"
        )
    return sets


def _read_index(files: Files, name: str) -> dict[str, str]:
    weight_map = (files.read_json(name) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"expected a weight_map of file names in {name}: download it again")
    for file in set(weight_map.values()):
        files.check_name(file)
    return weight_map
