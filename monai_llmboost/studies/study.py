# SPDX-License-Identifier: Apache-2.0
"""A study from its plan to its page: choose learning rates on validation, train, read the test split once, compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_llmboost.artifacts.files import written_whole
from monai_llmboost.studies.collect import chosen_rates, collect
from monai_llmboost.studies.contents import check_contents, contents_of
from monai_llmboost.studies.cost.arms import cost_of_arms
from monai_llmboost.studies.datasets import check_datasets
from monai_llmboost.studies.jobs import Job, on_ray, on_this_machine
from monai_llmboost.studies.one_run import DIVERGED, JUDGED, TRAINED, judge, told, train
from monai_llmboost.studies.page import write_study_report
from monai_llmboost.studies.plan import Plan, Run

ALL_GOOD, SOME_FAILED, NOTHING_DONE = 0, 1, 2
ENGINES = ("local", "ray")
PLAN, COSTS, RESULTS, REPORT = "study.json", "cost.json", "results.json", "report.html"
# In the plan's file: digests of what the configs and the files of weights hold.
CONTENTS = "contents"


def run_study(
    plan: Plan, output: Path, engine: str = "local", jobs: int = 1, address: str | None = None, cost_rounds: int = 5
) -> int:
    """Run a study, or go on with it where it was interrupted; the exit code.

    ``output`` gets ``study.json`` (the plan), ``runs/DATASET/ARM/...`` (a folder for each run, with its log),
    ``cost.json``, ``results.json`` and ``report.html``. What is done is not done again; what failed is tried again,
    unless it diverged. A learning rate that diverges is a result, as long as the arm is left with another.

    Args:
        plan: what is trained and compared.
        output: the study's folder.
        engine: ``"local"``, processes of this machine, or ``"ray"``, a cluster whose machines all see ``output``.
        jobs: runs at once on one machine.
        address: of the Ray cluster; ``None`` starts one here.
        cost_rounds: rounds of timing.

    Returns:
        0 if every run was trained and judged, 1 if some were not, 2 if there is nothing to compare.

    Raises:
        ValueError: a wrong engine or number of jobs; an option without effect; the folder holds another study, or
            another one runs there; a data set with too few test cases.
        FileNotFoundError, ConnectionError: a data set is not there, or cannot be fetched; no Ray at the address.
    """
    if engine not in ENGINES:
        raise ValueError(f"expected an engine of {', '.join(ENGINES)}, got {engine!r}")
    if not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"expected jobs to be a whole number from 1, got {jobs!r}")
    plan.check_effect()
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(output / "lock").acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"expected {output} to be free, but another study runs there: give another --output"
        ) from error
    with held:
        check_datasets(plan)
        _keep(plan, output / PLAN)
        return _Study(plan, output, engine, jobs, address).run(cost_rounds)


def redraw(output: Path) -> Path:
    """Draw the page of a finished study anew.

    Raises:
        FileNotFoundError: there is no ``results.json``.
        ValueError: it is none of a study.
    """
    file = output / RESULTS
    if not file.is_file():
        raise FileNotFoundError(f"expected {RESULTS} in {output}, found none: give the folder of a finished study")
    try:
        write_study_report(json.loads(file.read_text(encoding="utf-8")), output / REPORT)
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"expected the results of a study in {file}, got something else ({error!r})") from error
    return output / REPORT


def _keep(plan: Plan, path: Path) -> None:
    """Write the plan and what its files hold, or see that those that are there are the same."""
    asked, contents = plan.as_dict(), contents_of(plan)
    if not path.exists():
        _write_plan(path, {**asked, CONTENTS: contents})
        return
    begun = told(path.parent, path.name)
    if not isinstance(begun, dict):
        raise ValueError(f"expected the plan of a study in {path}, got something else: give another --output")
    known = begun.pop(CONTENTS, None)  # earlier versions kept none
    for name in sorted(begun.keys() | asked.keys()):
        if begun.get(name) != asked.get(name):
            raise ValueError(
                f"the study in {path.parent} was begun with {name} {begun.get(name)!r}, this one has "
                f"{asked.get(name)!r}: go on with its own options, or give another --output"
            )
    if known is None:
        return
    check_contents(path.parent, known, contents)
    files = {**contents["files"], **known.get("files", {})}
    if files != known.get("files"):  # of a file that was not there before
        _write_plan(path, {**asked, CONTENTS: {**known, "files": files}})


def _write_plan(path: Path, value: Mapping[str, Any]) -> None:
    with written_whole(path, aside=False) as file:
        json.dump(value, file, indent=1)
        file.write("\n")


class _Study:
    def __init__(self, plan: Plan, output: Path, engine: str, jobs: int, address: str | None) -> None:
        self.plan = plan
        self.output = output
        self.folder = output / "runs"
        self.engine = engine
        self.jobs = jobs
        self.address = address
        self.failed: dict[str, str] = {}
        self.console = Console(soft_wrap=True)
        configs = [json.loads(file.read_text()) for file in plan.configs(plan.arms[0])]
        self.epochs = {"epochs": 1, **{k: v for config in configs for k, v in config.items()}, **plan.options}["epochs"]

    def run(self, cost_rounds: int) -> int:
        plan, datasets = self.plan, self.plan.datasets
        self._train("choosing learning rates", [run for dataset in datasets for run in plan.searched(dataset)])
        chosen = {dataset: self._chosen(dataset) for dataset in datasets}
        runs = [
            run
            for dataset in datasets
            for run in plan.runs(dataset, {**dict.fromkeys(plan.arms), **chosen[dataset]})
            if run.arm in chosen[dataset]
        ]
        self._train("training", runs)
        trained = [run for run in runs if told(self.folder / run.name, TRAINED)]
        self._judge(trained)
        judged = [run for run in trained if told(self.folder / run.name, JUDGED)]
        if not judged:
            self.console.print(f"no run was finished: see the logs in {self.folder}", **AS_IT_IS)
            return NOTHING_DONE
        results = collect(plan, self.folder, chosen, self.failed, self._costs(cost_rounds))
        with written_whole(self.output / RESULTS, aside=False) as file:
            json.dump(results, file, indent=1)
            file.write("\n")
        write_study_report(results, self.output / REPORT)
        self._show(results)
        compared = any(data["comparisons"] for data in results["datasets"].values())
        return NOTHING_DONE if not compared else SOME_FAILED if self.failed else ALL_GOOD

    def _train(self, what: str, runs: Sequence[Run]) -> None:
        waiting = []
        for run in runs:
            if diverged := told(self.folder / run.name, DIVERGED):
                self.failed[run.name] = diverged["reason"]
            elif not told(self.folder / run.name, TRAINED):
                waiting.append(run)
        self._do(what, waiting, [Job(run.name, self.folder / run.name, train, self._call(run)) for run in waiting])

    def _judge(self, runs: Sequence[Run]) -> None:
        waiting = [run for run in runs if not told(self.folder / run.name, JUDGED)]
        self._do(JUDGING, waiting, [Job(run.name, self.folder / run.name, judge, self._call(run)) for run in waiting])

    def _call(self, run: Run) -> tuple[Plan, Run, Path]:
        return self.plan, run, self.folder / run.name

    def _do(self, what: str, runs: Sequence[Run], jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        engine: Any = (
            on_ray(jobs, self.jobs, self.address) if self.engine == "ray" else on_this_machine(jobs, self.jobs)
        )
        left = {run.name: run for run in runs}
        # Closed at once when interrupted, which ends the processes.
        with closing(engine), Progress(*COLUMNS, console=self.console, transient=True) as progress:
            bar = progress.add_task(what, total=len(jobs))
            for ended in engine:
                for name, reason in (ended or {}).items():
                    del left[name]
                    self.failed.pop(name, None)  # of an earlier stage
                    if reason:
                        self.failed[name] = reason
                    end = reason or ("done" if what == JUDGING else self._end_of(name))
                    self.console.print(f"{what} {len(jobs) - len(left)}/{len(jobs)} {name}: {end}", **AS_IT_IS)
                begun = sum(self._part_done(name) for name in left) if what != JUDGING else 0
                progress.update(bar, completed=len(jobs) - len(left) + begun)

    def _part_done(self, name: str) -> float:
        """How much of a training is done, by the rows of its table."""
        file = self.folder / name / "learning_curves.csv"
        try:
            rows = file.read_text().count("\n") - 1
        except OSError:
            return 0.0
        return min(0.99, max(0, rows) / self.epochs) if isinstance(self.epochs, int) else 0.0

    def _end_of(self, name: str) -> str:
        end = (told(self.folder / name, TRAINED) or {}).get(self.plan.weights)
        return f"validation AUC {end['validation_auc']:.3f} in epoch {end['epoch']}" if end else "done"

    def _chosen(self, dataset: str) -> dict[str, float | None]:
        rates, searched = chosen_rates(self.plan, self.folder, dataset), self.plan.searched(dataset)
        for run in searched:
            if run.arm in rates and told(self.folder / run.name, DIVERGED):
                self.failed.pop(run.name, None)
        for arm, rate in rates.items() if searched else ():
            edge = ", at the edge of the grid: widen it" if rate["at_edge"] else ""
            lost = "".join(f"; {each:g} diverged" for each in rate["diverged"])
            self.console.print(f"{dataset}, {arm}: learning rate {rate['chosen']:g}{edge}{lost}", highlight=False)
        return {arm: rate["chosen"] for arm, rate in rates.items()}

    def _costs(self, rounds: int) -> dict[str, Any]:
        """Measured once, so that a study that goes on ends with the same numbers."""
        file = self.output / COSTS
        if not file.is_file():
            arms = {arm: self.plan.configs(arm) for arm in self.plan.arms}
            costs = cost_of_arms(arms, {**self.plan.options, "dataset": self.plan.datasets[0]}, rounds)
            with written_whole(file) as out:
                json.dump(costs, out, indent=1)
        return json.loads(file.read_text(encoding="utf-8"))

    def _show(self, results: Mapping[str, Any]) -> None:
        for name, data in results["datasets"].items():
            self.console.print(f"\n[bold]{name}[/bold]: {data['cases']['test']} test cases")
            for sentence in _verdicts(data["comparisons"]):
                self.console.print(f"  {sentence}", **AS_IT_IS)
        for name, reason in self.failed.items():
            self.console.print(f"failed: {name}: {reason}", **AS_IT_IS)
        for what, file in {"results": RESULTS, "to look at": REPORT}.items():
            self.console.print(f"{what}: {self.output / file}", **AS_IT_IS)


def _verdicts(comparisons: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    return (comparison["verdict"] for comparison in comparisons if comparison["metric"] == "auc")


AS_IT_IS: dict[str, Any] = {"highlight": False, "markup": False}
JUDGING = "predicting the test split"
COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TimeElapsedColumn(),
    TextColumn("left:"),
    TimeRemainingColumn(elapsed_when_finished=False),
)
