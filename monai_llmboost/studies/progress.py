# SPDX-License-Identifier: Apache-2.0
"""The terminal output of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from monai_llmboost.bundle import Option
from monai_llmboost.studies.halving import saved_epochs
from monai_llmboost.studies.plan import Plan
from monai_llmboost.studies.rates import ChosenRate
from monai_llmboost.studies.results import StudyResults

COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    TaskProgressColumn(),
    TimeElapsedColumn(),
    TextColumn("left:"),
    TimeRemainingColumn(elapsed_when_finished=False),
)


class StudyConsole:
    """Prints the lines of a study, and a progress bar for each stage.

    Example:
        >>> StudyConsole().line("training 1/2 phantom/none/seed0: done")
        training 1/2 phantom/none/seed0: done
    """

    def __init__(self) -> None:
        self.console = Console(soft_wrap=True)

    def line(self, text: str) -> None:
        """Print text unchanged."""
        self.console.print(text, highlight=False, markup=False)

    def bar(self) -> Progress:
        """Return a progress bar that disappears when it is complete."""
        return Progress(*COLUMNS, console=self.console, transient=True)

    def halving(self, plan: Plan) -> None:
        """Print when learning rates are dropped, and how many epochs this saves."""
        saved, search = saved_epochs(plan)
        epochs = " and ".join(map(str, plan.halvings))
        self.line(
            f"the worse half of the learning rates is dropped after {'epochs' if len(plan.halvings) > 1 else 'epoch'} "
            f"{epochs} of {plan.value(Option.EPOCHS)}, which saves at most "
            f"{saved} of the {search} epochs of their choice"
        )

    def rates(self, dataset: str, rates: Mapping[str, ChosenRate]) -> None:
        """Print the learning rate of each arm."""
        for arm, rate in rates.items():
            edge = ", at the edge of the grid: widen it" if rate.at_edge else ""
            lost = "".join(f"; {each:g} diverged" for each in rate.diverged)
            lost += "".join(
                f"; {each:g} dropped after epoch {end.epoch} with {end.validation:.3f}"
                for each, end in (rate.dropped or {}).items()
            )
            self.line(f"{dataset}, {arm}: learning rate {rate.chosen:g}{edge}{lost}")

    def results(self, results: StudyResults, failed: Mapping[str, str], files: Mapping[str, Path]) -> None:
        """Print the verdicts, the failed runs and the paths of the result files."""
        first = next(iter(results.metrics))
        for name, data in results.datasets.items():
            self.console.print(f"\n[bold]{name}[/bold]: {data.cases['test']} test cases")
            for comparison in data.comparisons:
                if comparison.metric == first:
                    self.line(f"  {comparison.verdict}")
            for comparison in data.floors.comparisons:
                if comparison.metric == first:
                    self.line(f"  floor: {comparison.verdict}")
            for sentence in filter(None, (data.floors.shortcut, data.floors.left_out)):
                self.line(f"  {sentence}")
        for name, reason in failed.items():
            self.line(f"failed: {name}: {reason}")
        for what, file in files.items():
            self.line(f"{what}: {file}")
