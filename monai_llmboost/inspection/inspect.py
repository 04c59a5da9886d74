# SPDX-License-Identifier: Apache-2.0
"""The inspection of a labelled list: read, survey, divide, check, plan, and write the results."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_llmboost.bundle import copy_bundle
from monai_llmboost.bundle.content import read_config
from monai_llmboost.bundle.contract import CONFIGS, EVAL, METADATA, PLAN, TRAIN_CONFIG
from monai_llmboost.data import ScanReader
from monai_llmboost.data.labelled import SPLITS, CaseList, Columns, Division, LabelledCase, read_cases
from monai_llmboost.data.labelled.case import BUNDLES
from monai_llmboost.inspection.checks import Findings, check_cases
from monai_llmboost.inspection.plans.derive import derive_plan
from monai_llmboost.inspection.plans.extent import CPU_VOXELS, GPU_VOXELS
from monai_llmboost.inspection.plans.lines import ScanPlan, write_plan
from monai_llmboost.inspection.structures import Structure, measure_structures, name_structures, refuse_unknown
from monai_llmboost.inspection.survey import CaseSurvey, survey_cases

# The folder of the results below a bundle's folder of results, and their files.
FOLDER, PAGE, SURVEY = "inspection", "inspection.html", "survey.json"
# With fewer scans, processes take longer to start than to read.
FEW_SCANS, MOST_WORKERS = 16, 4
# The keys of the config from which a division is made.
DIVISION = {"folds": "folds", "fold": "fold", "test_fraction": "test_fraction", "split_seed": "seed"}
MISSING_CHANNELS, STRUCTURES = "missing_channels", "structures"
# The keys of the config that are options of the reader.
READER = ("volume", "min_slices", "gantry_tilt")


@dataclass(frozen=True)
class Inspection:
    """What an inspection found.

    Args:
        cases: the list.
        survey: a record for each of its cases.
        divided: the cases that can be used, with their splits; empty if they cannot be divided.
        division: how they were divided, as text.
        findings: errors, warnings and notes.
        plan: the plan; ``None`` while there are errors.
        structures: the structures of a list for segmentation, with their volumes.
        page: the page that was written.
        plan_file: the plan that was written; ``None`` if there is none.
    """

    cases: CaseList
    survey: Sequence[CaseSurvey]
    divided: Sequence[LabelledCase]
    division: str
    findings: Findings
    plan: ScanPlan | None
    page: Path
    plan_file: Path | None
    structures: Sequence[Structure] = ()

    @property
    def refused(self) -> list[CaseSurvey]:
        """The cases that cannot be used."""
        return [record for record in self.survey if record.refused]

    def count(self) -> dict[str, Counter[str]]:
        """Return the number of usable cases of each class, or with each structure, by split."""
        counted: dict[str, Counter[str]] = {}
        for split in SPLITS:
            names = [case.name for case in self.divided if case.split == split]
            if names and self.cases.is_segmentation:
                counted[split] = Counter(
                    {one.name: sum(name in one.volumes_mm3 for name in names) for one in self.structures}
                )
            elif names:
                counted[split] = Counter(case.label for case in self.divided if case.split == split)
        return counted


def inspect_list(
    data: str | Path,
    output: Path | None = None,
    bundle: Path | None = None,
    given: Mapping[str, Any] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Inspection:
    """Inspect a labelled list, and write the page, the survey and, if there are no errors, the plan.

    Args:
        data: the list, see :func:`monai_llmboost.data.labelled.read_cases`.
        output: folder for the results; with ``bundle``, its folder ``eval/inspection`` by default.
        bundle: folder to train in, which gets ``configs/plan.json``; if it does not exist, a copy of the bundle
            ``scans_classification``, or for a list of label maps ``scans_segmentation``.
        given: values of the plan by key, which are not derived, such as ``label_column``, ``folds`` or ``spacing_mm``.
        workers: processes that read scans; ``None`` chooses.
        progress: whether to show a progress bar on a terminal.

    Raises:
        FileNotFoundError, ValueError: no list, or no labelled list; a folder that is no bundle.

    Example:
        >>> inspect_list("scans.csv", bundle=Path("mine")).findings.errors  # doctest: +SKIP
        ()
    """
    chosen = dict(given or {})
    cases = read_cases(data, Columns.of(chosen))
    for key in ("mask_column", "positive_class") if cases.is_segmentation else (STRUCTURES,):
        if key in chosen:
            labels = "label maps" if cases.is_segmentation else "classes"
            raise ValueError(f"{key} has no effect, because the labels of {data} are {labels}: leave it out")
    plan_file = None if bundle is None else _prepare_bundle(bundle, cases)
    folder = output or (Path(FOLDER) if bundle is None else bundle / EVAL / FOLDER)
    if workers is None:
        workers = 0 if len(cases.cases) < FEW_SCANS else min(MOST_WORKERS, os.cpu_count() or 1)
    survey = survey_cases(
        cases,
        folder / SURVEY,
        ScanReader(**{key: chosen[key] for key in READER if key in chosen}),
        missing=chosen.get(MISSING_CHANNELS, "refuse"),
        workers=workers,
        progress=progress,
    )
    named: dict[int, str] = {}
    if cases.is_segmentation:
        named, _ = name_structures(cases, survey, chosen.get(STRUCTURES))
        survey = refuse_unknown(survey, named)
    plan = None if cases.errors else _derive(cases, survey, chosen)
    divided, division, problem = _divide(cases, survey, plan.values if plan else chosen)
    structures = measure_structures(named, survey)
    findings = check_cases(cases, survey, divided, structures)
    if problem and not cases.errors:
        findings = Findings(
            (*findings.errors, problem), findings.warnings, findings.notes, findings.duplicates, findings.shortcuts
        )
    if findings.errors:
        plan = None
    if plan is not None:
        plan_file = plan_file or folder / PLAN
        write_plan(plan, plan_file)
    found = Inspection(
        cases, survey, divided, division, findings, plan, folder / PAGE, plan_file if plan is not None else None,
        structures,
    )  # fmt: skip
    from monai_llmboost.inspection.page.report import write_inspection_page  # matplotlib takes a second

    write_inspection_page(found, found.page)
    return found


def _prepare_bundle(bundle: Path, cases: CaseList) -> Path:
    """Return where the plan of a bundle belongs; a folder that does not exist becomes a copy of ours."""
    name = BUNDLES[cases.is_segmentation]
    if not bundle.exists():
        copy_bundle(name, bundle)
    if not (bundle / CONFIGS / METADATA).is_file():
        raise ValueError(
            f"{bundle} is no bundle, it has no {CONFIGS}/{METADATA}: give a folder that does not exist yet, or a copy "
            f"of the bundle {name}"
        )
    config = bundle / CONFIGS / TRAIN_CONFIG
    if config.is_file() and (STRUCTURES in read_config(config)) != cases.is_segmentation:
        kinds = ("classes", "label maps") if cases.is_segmentation else ("label maps", "classes")
        raise ValueError(
            f"{bundle} is a bundle for scans with {kinds[0]}, and the labels of {cases.path} are {kinds[1]}: give "
            f"--bundle a folder that does not exist yet, or a copy of the bundle {name}"
        )
    return bundle / CONFIGS / PLAN


def _derive(cases: CaseList, survey: Sequence[CaseSurvey], given: Mapping[str, Any]) -> ScanPlan | None:
    """Return the plan from the cases that are neither test nor the list's validation; ``None`` if there is none."""
    refused = {record.name for record in survey if record.refused}
    usable = [case for case in cases.cases if case.name not in refused]
    most = GPU_VOXELS if torch.cuda.is_available() else CPU_VOXELS
    training = [case for case in usable if case.split in ("train", "")]
    if not training:
        return None
    plan = derive_plan(cases, survey, training, given, most)
    if plan.values["test_fraction"]:
        try:
            aside, _ = Division(test_fraction=plan.values["test_fraction"], seed=given.get("split_seed", 0)).divide(
                usable
            )
        except ValueError:
            return plan  # said when the cases are divided
        test = {case.name for case in aside if case.split == "test"}
        plan = derive_plan(cases, survey, [case for case in training if case.name not in test], given, most)
    return plan


def _divide(
    cases: CaseList, survey: Sequence[CaseSurvey], values: Mapping[str, Any]
) -> tuple[list[LabelledCase], str, str]:
    """Return the usable cases with their splits, how they were divided, and why they cannot be."""
    unusable = {record.name for record in survey if record.refused} | set(values.get("leave_out", ()))
    usable = [case for case in cases.cases if case.name not in unusable and (case.label or case.label_map)]
    if not usable:
        return [], "", "no case can be used: correct the scans, see the reasons of their refusals"
    try:
        options = {name: values[key] for key, name in DIVISION.items() if key in values}
        divided, text = Division(**options).divide(usable)
    except ValueError as error:
        return [], "", f"the cases cannot be divided: {error}"
    return divided, text, ""
