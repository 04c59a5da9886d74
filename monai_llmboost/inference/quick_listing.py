# SPDX-License-Identifier: Apache-2.0
"""The cases of a bundle's ``inference.json`` for a dry run, in a second: the configs are read without MONAI.

Where the configs hold anything that could change the list, and that is not read here, MONAI's parser is used instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, set_at, value_at
from monai_llmboost.bundle.effect import reached_from
from monai_llmboost.bundle.plain_items import Component, NotPlainError, PlainItems
from monai_llmboost.data.labelled.lists.rows import Columns
from monai_llmboost.data.scans.scan import Scan, check_size, check_volume_index, choose_volume
from monai_llmboost.inference.case_search import CaseSearch, FoundCases

# The arguments of `monai.bundle.create_workflow` that are no keys of configs.
WORKFLOW = ("config_file", "meta_file", "logging_file", "workflow_type", "tracking", "save_execute_config")
# What our bundles import and run first; other statements might register a reader.
FIRST = ("$import os", "$@processes", "$monai.utils.set_determinism(seed=0)")
CASES = ("monai_llmboost.inference.ScanCases", "monai_llmboost.inference.cases.ScanCases")
READER, CHECK, COLUMNS = (
    f"monai_llmboost.data.{name}" for name in ("ScanReader", "CheckVolumed", "Columns")
)  # fmt: skip
# Transforms that refuse no scan by its header, as CheckVolumed does.
OTHER_TRANSFORMS = {
    "EnsureChannelFirstd", "LoadImaged", "Orientationd", "ResizeWithPadOrCropd", "Resized", "ScaleIntensityRanged",
    "SpatialPadd", "Spacingd",
    *(
        f"monai_llmboost.data.{name}" for name in (
            "CropScand", "EmbedScand", "LoadScansd", "OrientScand", "ResampleLabelsd", "ResampleScand",
            "ScaleScand", "WarnIfUnusuald",
        )
    ),
}  # fmt: skip


def list_cases(arguments: Mapping[str, Any], options: Collection[str]) -> FoundCases:
    """Search for the cases of an inference.

    Transforms are not created, so their options are not checked, except where an option of the command changes one.

    Args:
        arguments: as :func:`monai_llmboost.bundle.monai_arguments` returns them.
        options: keys of the options of the command.

    Raises:
        NotPlainError: the list depends on something that only MONAI's parser knows.
        ValueError, OSError: as :class:`monai_llmboost.inference.ScanCases`.
    """
    content = merged(map(Path, arguments["config_file"]))
    for key, value in arguments.items():
        if key not in WORKFLOW:
            set_at(content, key.replace("::", "#"), value)
    if not all(first in FIRST for key in ("imports", "initialize") for first in content.get(key) or ()):
        raise NotPlainError("the configs run statements of their own first")
    _check_options(content, options)
    items = PlainItems(content)
    cases = _component(items.value("cases"), *CASES)
    cases.check_arguments(
        "where", "transform", "image_shape", "reader", "follow_links", "leave_out", "salt", "only", "columns",
        "channels", "any_size", "num_workers",
    )  # fmt: skip
    channels = cases.argument("channels") or cases.argument("image_shape")[0]
    search = CaseSearch(
        cases.argument("where"),
        channels,
        cases.argument("follow_links", False),
        cases.argument("leave_out", ()),
        cases.argument("salt"),
        cases.argument("only"),
        _columns(cases.argument("columns")),
        cases.argument("num_workers", 0),
    )
    return search.run(_header_check(cases.argument("reader")), _shape_check(cases.argument("transform")))


def _check_options(content: Mapping[str, Any], options: Collection[str]) -> None:
    """Check that no option changes the transforms, which check their options when they are created."""
    transform = value_at(content, "cases#transform")
    if not isinstance(transform, str) or not transform.startswith("@"):
        raise NotPlainError("the transforms of the cases are no reference")
    reached = reached_from(content, [transform[1:].replace("::", "#")])
    for key in (option.replace("::", "#") for option in options):
        if any(f"{key}#".startswith(f"{one}#") or f"{one}#".startswith(f"{key}#") for one in reached):
            raise NotPlainError(f"--{key} is an option of the transforms")


def _component(value: Any, *targets: str) -> Component:
    if not isinstance(value, Component) or value.target not in targets:
        raise NotPlainError(f"this is none of {', '.join(targets)}")
    return value


def _columns(value: Any) -> Columns | None:
    if value is None:
        return None
    component = _component(value, COLUMNS)
    component.check_arguments(*(names := ("image", "mask", "case")))
    return Columns(**{name: component.argument(name, getattr(Columns, name)) for name in names})


def _header_check(value: Any) -> Callable[[Scan], None]:
    """Return the check of a scan's header by the reader, see ``ScanReader.check_header``."""
    reader = _component(value, READER)
    reader.check_arguments("volume", "max_voxels", "min_slices", "gantry_tilt")
    if reader.argument("min_slices", 2) != 2 or reader.argument("gantry_tilt", "resample") not in ("resample", "shear"):
        raise NotPlainError("the reader reads the headers of each DICOM series again")
    volume = reader.argument("volume")
    check_volume_index(volume)

    def check(scan: Scan) -> None:
        choose_volume(volume, scan.shape)

    return check


def _shape_check(value: Any) -> Callable[[Sequence[int]], None] | None:
    """Return the check of a scan's shape by the first transform that has one, see ``CheckVolumed.check_shape``."""
    transforms = _component(value, "Compose", "monai.transforms.Compose").argument("transforms")
    if not isinstance(transforms, (list, tuple)):
        raise NotPlainError("the transforms are no list")
    known = [_component(one, CHECK, *OTHER_TRANSFORMS) for one in transforms]
    check = next((one for one in known if one.target == CHECK), None)
    if check is None:
        return None
    given = check.argument("min_size", 2)
    least = [int(size) for size in (given if isinstance(given, (list, tuple)) else [given] * 3)]
    return lambda shape: check_size(shape, least)
