# SPDX-License-Identifier: Apache-2.0
"""The command distil."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from monai_llmboost.arguments import check_choice
from monai_llmboost.bundle import Option, bundle_path, job_configs, merged, uses_key
from monai_llmboost.bundle.contract import MODELS
from monai_llmboost.command_line.bundle_help import DEFAULTS
from monai_llmboost.command_line.bundles import Overlay
from monai_llmboost.command_line.options import split_options
from monai_llmboost.command_line.scan_plan import Data
from monai_llmboost.command_line.training import Folder, prepare_data, run_job

OVERLAY = "distil"
# Key under "train" of the loader of the training cases without augmentation; null for a training on patches.
UNAUGMENTED = "unaugmented"
METHODS = (
    "logit, feature, rd (reprogramming distillation) or drd (the same at several stages); without a teacher booster, "
    "in training only, or scratch"
)


def distil(
    context: typer.Context,
    bundle: Folder,
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder in which the teacher was trained, such as of a bundle or a run of a study; several of them, "
            "each with its own --teacher, are an ensemble."
        ),
    ] = None,
    student: Annotated[
        str | None, typer.Option(help="The network to train, one of the bundle such as resnet; default: its own.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"{METHODS}.")] = "logit",
    data: Data = None,
    overlay: Overlay = None,
) -> None:
    """Train a light student with a trained teacher, or with a booster in training only.

    The student has no booster and needs no teacher afterwards: evaluate,
    predict and study use its folder as any other. The teacher was trained for
    the same classes and on volumes of the same preprocessing; its test cases
    must not be among those of the student's training. An interrupted training
    is resumed with --resume True. Further options are listed below, and the
    method's own are --distil_weight, --temperature (logit), --teacher_stages
    and --student_stages (drd) and --teacher_sees (plain: each case once; or
    augmented: each batch as the student sees it, as always with patches); of
    an ensemble --ensemble (concatenate or mean: its features); of the method
    booster --block, --at, --booster_dropout and --booster_decay.
    """
    overlays = [*(overlay or ()), OVERLAY]
    if data is None or Path(bundle).exists():
        _check_teacher(bundle, method, teacher, overlays)
    else:  # it will be made from the data
        _check_teacher(DEFAULTS[OVERLAY], method, teacher, [OVERLAY])
    if teacher:
        options = split_options(context.args)[0]
        _check_ensemble(teacher, options.get(Option.ENSEMBLE))
        _check_places(bundle, teacher, options.get(Option.CKPT_DIR))
    prepare_data(data, bundle, context.args, overlays)
    given: dict[str, Any] = {}
    if teacher:
        given[Option.TEACHER] = teacher[0] if len(teacher) == 1 else teacher
    run_job(context, "train", bundle, method, student, overlays, given)


def _check_teacher(bundle: str, method: str, teacher: list[str] | None, overlays: list[str]) -> None:
    """Refuse a method without its teacher, a teacher without effect, and a bundle without cases for the teacher."""
    configs = job_configs(bundle_path(bundle), "train", method, overlays=overlays)
    if not uses_key(configs, Option.TEACHER):
        if teacher:
            raise ValueError(f"the method {method} has no teacher: leave out --teacher, or choose another --method")
        return
    if not teacher:
        raise ValueError(f"the method {method} has a teacher: give --teacher the folder of a training")
    if UNAUGMENTED not in merged(configs)["train"]:
        raise ValueError(
            f"the bundle {bundle} has no train#{UNAUGMENTED}, the training cases as the teacher sees them: take a copy "
            "of a bundle of this version"
        )


def _check_ensemble(teacher: list[str], ensemble: str | None) -> None:
    if ensemble is None:
        return
    check_choice(Option.ENSEMBLE, ensemble, ("concatenate", "mean"))
    if len(teacher) < 2:
        raise ValueError("--ensemble is for several teachers: leave it out, or give more, each with its own --teacher")


def _check_places(bundle: str, teacher: list[str], ckpt_dir: str | None) -> None:
    """Refuse to train a student in the folder of its teacher, which would take the place of the teacher."""
    own = Path(ckpt_dir or Path(bundle, MODELS)).resolve()
    for folder in map(Path, teacher):
        if own in (folder.resolve(), (folder / MODELS).resolve()) and folder.is_dir():
            raise ValueError(
                f"the teacher {folder} is in the folder of its student, {own}, which would take its place: give "
                "--bundle another copy of the bundle"
            )
