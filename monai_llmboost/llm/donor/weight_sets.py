# SPDX-License-Identifier: Apache-2.0
"""Find the sets of weight files in a model's folder or repository, by file name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from monai_llmboost.llm.donor.hub import HubRepository, LocalFolder

Files = LocalFolder | HubRepository
# Usual names of weights, as one file or as shards with an index; safetensors first.
USUAL = ("model.safetensors", "pytorch_model.bin")
NATIVE = "consolidated.safetensors"  # Mistral's name
# A variant such as fp16 is before or after the shard number; transformers has written both.
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
    """Files that together hold a model's weights.

    Args:
        files: names of the files.
        index: name of the index file, which maps tensors to files; empty if there is none.
        variant: variant such as ``"fp16"``; empty for the default weights.
    """

    files: tuple[str, ...]
    index: str = ""
    variant: str = ""

    @property
    def name(self) -> str:
        """Return the name used in messages."""
        if self.index:
            return f"{self.index} ({len(self.files)} files)"
        return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    @property
    def is_safetensors(self) -> bool:
        """Return whether single tensors can be downloaded from the hub."""
        return self.files[0].endswith(".safetensors")

    def read_weight_map(self, files: Files) -> dict[str, str]:
        """Return the name of each tensor with its file.

        Raises:
            ValueError: a file is damaged, or two files without an index have the same tensor.
        """
        if self.index:
            return _read_index(files, self.index)
        found: dict[str, str] = {}
        for file in self.files:
            for name in files.list_tensors(file):
                if name in found:
                    raise ValueError(
                        f"{name} is in {found[name]} and in {file} of {files.donor}, and there is no index: remove the "
                        "outdated files"
                    )
                found[name] = file
        return found

    def read(self, files: Files, weight_map: dict[str, str], is_wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Read the wanted tensors.

        Raises:
            FileNotFoundError: a file in the index is missing.
            ValueError: a file is damaged, or its tensors differ from the index.
        """
        names = [name for name in weight_map if is_wanted(name)]
        tensors: dict[str, Tensor] = {}
        opened = sorted({weight_map[name] for name in names})
        for file in opened:
            tensors.update(files.read_tensors(file, [name for name in names if weight_map[name] == file]))
        for file in opened if self.index else ():
            for name in files.list_tensors(file):
                if is_wanted(name) and weight_map.get(name) != file:
                    indexed = f"in {weight_map[name]}" if name in weight_map else "missing"
                    raise ValueError(
                        f"{name} is in {file} of {files.donor}, but {indexed} in {self.index}: index and weights "
                        "belong to different models, download them again"
                    )
        return tensors


def is_weight_file(name: str) -> bool:
    """Return whether a file name is that of a supported weight file."""
    stems = ("model", "pytorch_model", "consolidated")
    return any(_match(pattern, name, stems) for pattern in (SINGLE, PART)) or GGUF.fullmatch(name) is not None


def find_hugging_face_sets(files: Files) -> list[WeightSet]:
    """Return the sets of weights with names of transformers, safetensors first; the default variant if there is one.

    An index whose files are all missing is used only if there is no other set.

    Raises:
        ValueError: there are several variants and no default weights, or an index is damaged.
    """
    names = files.list_files()
    found = list(_probe_usual(files)) if names is None else _group_files(files, names, ("model", "pytorch_model"))
    present = [one for one in found if names is None or set(one.files) & set(names)]
    return _choose_variant(present or found, files.donor)


def find_native_sets(files: Files) -> list[list[WeightSet]]:
    """Return the sets of weights with names of Meta and Mistral; a model split over files is a list of sets.

    Raises:
        FileNotFoundError: a part is missing.
    """
    names = files.list_files()
    if names is None:
        names = [name for name in (NATIVE, "consolidated.00.pth") if files.has(name)]
    found = [[one] for one in _group_files(files, names, ("consolidated",))]
    parts = sorted(name for name in names if re.fullmatch(r"consolidated\.\d+\.pth", name))
    if [name.split(".")[1] for name in parts] != [f"{number:02d}" for number in range(len(parts))]:
        raise FileNotFoundError(
            f"{files.donor} lacks some of the files from consolidated.00.pth on, it has {parts}: download all of them"
        )
    return found + ([[WeightSet((name,)) for name in parts]] if parts else [])


def find_gguf_files(files: Files, chosen: str = "") -> list[str]:
    """Return the GGUF file of a model, or its parts in order; empty if there is none.

    Args:
        files: files of the model.
        chosen: name of the file, or of one of its parts; empty to choose the only one.

    Raises:
        ValueError: there are several files, and ``chosen`` is empty.
        FileNotFoundError: a part is missing.
    """
    names = files.list_files()
    models = _group_gguf_files([chosen] if names is None and chosen else names or [])
    wanted = [key for key, parts in models.items() if not chosen or chosen in parts.values()]
    if len(wanted) > 1:
        firsts = sorted(min(models[key].items())[1] for key in wanted)
        raise ValueError(
            f"{files.donor} has several GGUF files: give one of them, {', '.join(firsts[:8])}"
            f"{' ...' if len(firsts) > 8 else ''}, as {files.path_of(firsts[0])}"
        )
    if not wanted:
        return []
    parts = models[wanted[0]]
    number = int(wanted[0][1] or 1)
    if sorted(parts) != list(range(1, number + 1)):
        raise FileNotFoundError(
            f"{wanted[0][0]} has {number} parts, but only {sorted(parts.values())} are there: download all of them"
        )
    return [parts[part] for part in sorted(parts)]


def _group_gguf_files(names: Iterable[str]) -> dict[tuple[str, str], dict[int, str]]:
    """Group the names of GGUF files by model, as (stem, number of parts as text) -> part -> name."""
    models: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for name in names:
        if found := GGUF.fullmatch(name):
            models[found["stem"], found["of"] or ""][int(found["part"] or 1)] = name
    return models


def _group_files(files: Files, names: Iterable[str], stems: tuple[str, ...]) -> list[WeightSet]:
    """Group file names into sets: first those with an index, then single files, then shards without an index."""
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
    complete, incomplete = _separate_shards(parts, indexed)
    found = [one for one in [*indexed, *single, *complete] if one.files]
    if incomplete and not any(
        set(one.files) & set(names) for one in found
    ):  # otherwise they are left over from an older save
        raise FileNotFoundError(
            f"{files.donor} has only some shards of {' or '.join(USUAL)}, without an index ({incomplete[0].name}): "
            "download the weights again"
        )
    return sorted(found, key=lambda one: not one.is_safetensors)


def _separate_shards(
    parts: Mapping[tuple[str, ...], list[str]], indexed: list[WeightSet]
) -> tuple[list[WeightSet], list[WeightSet]]:
    """Return the complete and the incomplete sets of shards that are in no index."""
    complete: list[WeightSet] = []
    incomplete: list[WeightSet] = []
    for (_, _, variant, number), group in parts.items():
        if not any(set(group) & set(one.files) for one in indexed):
            (complete if len(group) == int(number) else incomplete).append(WeightSet(tuple(group), variant=variant))
    return complete, incomplete


def _match(pattern: re.Pattern[str], name: str, stems: tuple[str, ...]) -> re.Match[str] | None:
    """Return the match of a name that has one of these stems and the suffix that belongs to it."""
    match = pattern.fullmatch(name)
    if match is None or match["stem"] not in stems or (match["kind"] == "bin") != (match["stem"] == "pytorch_model"):
        return None
    return match


def _probe_usual(files: Files) -> Iterator[WeightSet]:
    """Yield the first set with a usual name, in a repository that does not list its files."""
    for whole in USUAL:
        index = f"{whole}.index.json"
        if files.read_json(index) is not None:
            yield WeightSet(tuple(sorted(set(_read_index(files, index).values()))), index)
            return
        if files.has(whole):
            yield WeightSet((whole,))
            return


def _choose_variant(sets: list[WeightSet], donor: str) -> list[WeightSet]:
    default = [one for one in sets if not one.variant]
    if default:
        return default
    variants = sorted({one.variant for one in sets})
    if len(variants) > 1:
        raise ValueError(
            f"{donor} has the variants {', '.join(variants)} of its weights ({', '.join(one.name for one in sets)}) "
            "and no default ones: give a folder with one of them"
        )
    return sets


def _read_index(files: Files, name: str) -> dict[str, str]:
    weight_map = (files.read_json(name) or {}).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ValueError(f"{name} has no weight_map of file names: download it again")
    for file in set(weight_map.values()):
        files.check_name(file)
    return weight_map
