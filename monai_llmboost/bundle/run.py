# SPDX-License-Identifier: Apache-2.0
"""Find, copy and run the bundles; running is `python -m monai.bundle run` with its mistakes caught early."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, read_config
from monai_llmboost.bundle.effect import check_amp, option_without_effect
from monai_llmboost.bundle.options import MONAI_OPTIONS, check_options
from monai_llmboost.bundle.words import config_values

# Configs of a job, in the order in which MONAI merges them; the arm's overlay comes behind the first.
JOBS = {"train": ["train.json"], "evaluate": ["train.json", "evaluate.json"], "inference": ["inference.json"]}
ARMS_FOLDER = "arms"
# What MONAI's own wrappers around a failing config item begin with; the cause below them is what went wrong.
WRAPPERS = ("Failed to instantiate", "Failed to evaluate", "applying transform")
# What Python says when a config item, or an option below it, has a key that its class or function does not take.
UNEXPECTED = re.compile(r"([\w.]+?)(?:\.__init__)?\(\) got an unexpected keyword argument ('\w+')")


def bundle_path(name: str | Path) -> Path:
    """The folder of a bundle: a folder as it is, or a name of one that comes with this package.

    Raises:
        FileNotFoundError: there is no such bundle; the message lists those of the package.
    """
    package = Path(__file__).parents[1]
    # In an installed wheel they lie inside the package, in a checkout (and so an editable install) beside it.
    for place in (Path(), package / "bundles", package.parent / "bundles"):
        if (place / name / "configs" / "metadata.json").is_file():
            return place / name
    names = sorted(file.parts[-3] for file in package.parent.glob("**/bundles/*/configs/metadata.json"))
    raise FileNotFoundError(
        f"there is no bundle {str(name)!r}: give a bundle's folder, or one of {', '.join(names) or '(none installed)'}"
    )


def copy_bundle(name: str | Path, to: Path) -> None:
    """Copy a bundle without what was trained in it.

    Raises:
        FileExistsError: ``to`` is there already.
    """
    source = bundle_path(name)
    if to.exists():
        raise FileExistsError(f"{to} is there already: give another folder, or remove it")
    shutil.copytree(source, to, ignore=shutil.ignore_patterns("models", "eval", "__pycache__"))


def job_configs(bundle: Path, job: str, arm: str | None = None) -> list[Path]:
    """The config files of a job, with the overlay of an arm.

    Raises:
        ValueError: an unknown job or arm.
    """
    if job not in JOBS:
        raise ValueError(f"expected a job of {', '.join(JOBS)}, got {job!r}")
    first, *rest = JOBS[job]
    if arm is None:
        overlays = []
    else:
        arms = _arms(bundle)
        if arm not in arms:
            raise ValueError(f"expected an arm of {', '.join(arms)}, got {arm!r}")
        overlays = [f"{ARMS_FOLDER}/{arm}.json"]
    return [bundle / "configs" / name for name in [first, *overlays, *rest]]


def _arms(bundle: Path) -> list[str]:
    return sorted(file.stem for file in (bundle / "configs" / ARMS_FOLDER).glob("*.json"))


def run_bundle(
    name: str | Path, job: str, arm: str | None = None, logging_file: str | bool | None = None, **overrides: Any
) -> None:
    """Run one job of a bundle, as ``python -m monai.bundle run`` would.

    Args:
        name: a bundle's folder, or the name of one that comes with this package.
        job: ``"train"``, ``"evaluate"`` or ``"inference"``.
        arm: overlay of ``configs/arms``, such as ``"none"``; ``None`` for the configs as they are.
        logging_file: as in MONAI; ``None`` is the bundle's own, ``False`` leaves logging alone.
        overrides: config keys and their values; ``bundle_root`` is by default the folder, for a bundle of the package
            the working directory.

    Raises:
        ValueError: an unknown job, arm or key (MONAI itself takes an unknown key without a word).
            Also an option that nothing in the job uses.
        Whatever went wrong below MONAI's "Failed to instantiate ..." is raised itself.
    """
    arguments = monai_arguments(name, job, arm, logging_file, **overrides)
    check_job_effect(name, job, [arm], overrides)
    from monai.bundle import run as monai_run  # takes seconds to import; a misspelt option should not

    try:
        monai_run(**arguments)
    except RuntimeError as error:
        raise root_cause(error) from error


def check_job_effect(
    name: str | Path, job: str, arms: Sequence[str | None], options: Mapping[str, Any], overlays: Iterable[str] = ()
) -> None:
    """Refuse options that a job uses with none of the arms; those of the training that is evaluated may be repeated.

    Raises:
        ValueError: an option without effect; the message names the arms that have a use for it.
    """
    folder = bundle_path(name)
    extra = [folder / "configs" / overlay for overlay in overlays]
    jobs = ["train", "evaluate"] if job == "evaluate" else [job]

    def unused(*tried: str | None) -> str | None:
        configs = [[*job_configs(folder, each, arm), *extra] for arm in tried for each in jobs]
        return option_without_effect(configs, options, MONAI_OPTIONS)

    given = unused(*arms)
    if given is None:
        return
    options = {given: options[given]}
    useful = [arm for arm in _arms(folder) if unused(arm) is None]
    where = " or ".join(f"the arm {arm}" for arm in arms if arm) or "these options"
    raise ValueError(
        f"--{given} has no effect: nothing in {job} with {where} uses it; leave it out"
        + (f", or choose the arm {' or '.join(useful)}" if useful else "")
    )


def monai_arguments(
    name: str | Path,
    job: str,
    arm: str | None = None,
    logging_file: str | bool | None = None,
    overlays: Iterable[str] = (),
    **overrides: Any,
) -> dict[str, Any]:
    """What ``monai.bundle.run`` and ``create_workflow`` take for a job of a bundle; see :func:`run_bundle`.

    ``overlays`` are configs of the bundle to put on top, such as ``"multi_gpu_inference.json"``. Text, such as a path,
    reaches the configs as it is; see :func:`monai_llmboost.bundle.config_values`.
    """
    bundle = bundle_path(name)
    configs = [*job_configs(bundle, job, arm), *(bundle / "configs" / overlay for overlay in overlays)]
    check_options(configs, overrides)
    check_amp(configs, overrides)
    read_config(bundle / "configs" / "metadata.json")  # MONAI's own words for a mistake in it would not name the file
    if Path(name).is_dir():
        overrides.setdefault("bundle_root", str(bundle))
    folder = bundle / "configs"
    log: Any = str(folder / "logging.conf") if logging_file is None else logging_file
    return {
        "config_file": [str(file) for file in configs],
        "meta_file": str(folder / "metadata.json"),
        "logging_file": log,
        "workflow_type": "infer" if job == "inference" else "train",
        **config_values(merged(configs), overrides),
    }


def root_cause(error: BaseException) -> BaseException:
    """What went wrong below the exceptions that MONAI wraps around it."""
    while error.__cause__ is not None and str(error).startswith(WRAPPERS):
        error = error.__cause__
    if isinstance(error, TypeError) and (found := UNEXPECTED.match(str(error))):
        return TypeError(f"expected arguments that {found[1]} takes, got {found[2]}: leave it out, or correct its name")
    return error
