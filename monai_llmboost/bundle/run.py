# SPDX-License-Identifier: Apache-2.0
"""Running a job of a bundle as `python -m monai.bundle run` does, with earlier and clearer errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_llmboost.bundle.content import merged, read_config
from monai_llmboost.bundle.contract import CONFIGS, LOGGING, METADATA, TRAINED, Option
from monai_llmboost.bundle.effect import check_amp, option_without_effect
from monai_llmboost.bundle.errors import root_cause
from monai_llmboost.bundle.find import arms_of, bundle_path, job_configs, split_network
from monai_llmboost.bundle.options import MONAI_OPTIONS, Rules, check_options
from monai_llmboost.bundle.trained_options import job_files
from monai_llmboost.bundle.words import config_values


def run_bundle(
    name: str | Path,
    job: str,
    arm: str | None = None,
    logging_file: str | bool | None = None,
    overlays: Sequence[str] = (),
    **overrides: Any,
) -> None:
    """Run one job of a bundle, as ``python -m monai.bundle run`` would.

    Args:
        name: a bundle's folder, or the name of a bundle in this package.
        job: ``"train"``, ``"evaluate"`` or ``"inference"``.
        arm: overlay in ``configs/arms``, such as ``"none"``, or an arm of an overlay; ``None`` for none.
        logging_file: as in MONAI; ``None`` is the bundle's own file, ``False`` does not configure logging.
        overlays: further configs of the bundle, or overlays of this package for any bundle, such as ``"boost"``; they
            override the others.
        overrides: config keys and their values; ``bundle_root`` defaults to the bundle's folder, or to the working
            directory for a bundle of the package. ``network`` may also name an overlay in ``configs/networks``.

    Raises:
        ValueError: an unknown job, arm, network or key (MONAI silently accepts unknown keys), or an option that the job
            does not use.
        The original error is raised instead of MONAI's "Failed to instantiate ...".
    """
    arguments = monai_arguments(name, job, arm, logging_file, overlays, **overrides)
    check_job_effect(name, job, [arm], overrides, overlays)
    from monai.bundle import run as monai_run  # takes seconds; a misspelt option is reported without it

    try:
        monai_run(**arguments)
    except RuntimeError as error:
        raise root_cause(error) from error


def check_job_effect(
    name: str | Path, job: str, arms: Sequence[str | None], options: Mapping[str, Any], overlays: Sequence[str] = ()
) -> None:
    """Refuse options that a job uses with none of the arms; an evaluation may repeat the options of its training.

    Raises:
        ValueError: an option without effect; the message names the arms that use it.
    """
    folder = bundle_path(name)
    network, options = split_network(folder, options)
    jobs = ["train", "evaluate"] if job == "evaluate" else [job]
    trained = job_files(name, job, arms[0], network, options, overlays).trained
    record = [] if trained is None else [trained.file]

    def unused(*tried: str | None) -> str | None:
        configs = [[*job_configs(folder, each, arm, network, overlays), *record] for arm in tried for each in jobs]
        return option_without_effect(configs, options, MONAI_OPTIONS)

    given = unused(*arms)
    if given is None:
        return
    options = {given: options[given]}
    useful = [arm for arm in arms_of(folder, overlays) if unused(arm) is None]
    where = " or ".join(f"the arm {arm}" for arm in arms if arm) or "these options"
    where += f" and the network {network}" if network else ""
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
    """Return the arguments of ``monai.bundle.run`` and ``create_workflow`` for a job; see :func:`run_bundle`.

    ``overlays`` are further configs, such as ``"multi_gpu_inference.json"``, which override the others.
    Text, such as a path, reaches the configs unchanged; see :func:`monai_llmboost.bundle.config_values`.
    """
    bundle = bundle_path(name)
    network, overrides = split_network(bundle, overrides)
    files = job_files(name, job, arm, network, overrides, overlays)
    configs = files.configs
    check_options(configs, overrides)
    check_amp(configs, overrides)
    overrides = files.with_options_of_training(overrides)
    read_config(bundle / CONFIGS / METADATA)  # MONAI's own error would not name the file
    if Path(name).is_dir():
        overrides.setdefault(Option.BUNDLE_ROOT, str(bundle))
    folder = bundle / CONFIGS
    log: Any = str(folder / LOGGING) if logging_file is None else logging_file
    return {
        "config_file": [str(file) for file in configs],
        "meta_file": str(folder / METADATA),
        "logging_file": log,
        "workflow_type": "infer" if job == "inference" else "train",
        **config_values(merged(configs), overrides, Rules(folder).texts),
        **({TRAINED: {"arm": arm, "network": network}} if job == "train" else {}),
    }
