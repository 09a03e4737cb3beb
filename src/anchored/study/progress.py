"""The progress of a study: a bar with the time left on a terminal, one line a phase elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from anchored.store.terminal import progress_bar

if TYPE_CHECKING:
    from anchored.study.jobs import State

TRAINING_SHARE = 0.75  # of a cell's time, until one cell has been timed


def quiet() -> None:
    """Leave the terminal to our own display: no tips, no notes on devices, no deprecations inside Lightning."""
    logging.disable(logging.INFO)  # Lightning sets its own level when it is imported, later
    warnings.filterwarnings("ignore", message=".*LeafSpec")
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")


class Display:
    """Shows the states of cells. ``labels``: the cells that are worked on, name -> how they are called."""

    def __init__(self, console: Console, labels: Mapping[str, str]) -> None:
        self.console, self.labels = console, labels
        self.states: dict[str, State] = {}
        what = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        self._bar = progress_bar(
            console, TextColumn("{task.description}", markup=False, table_column=what), BarColumn(bar_width=16),
            TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)), expand=True,
        )  # fmt: skip

    def __enter__(self) -> Display:
        self._bar.start()
        self._task = self._bar.add_task("", total=len(self.labels), left="")
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def show(self, name: str, state: State) -> None:
        """Show a cell's state; phases that it finished and its failure stay on the screen as lines."""
        before = self.states.get(name)
        self.states[name] = state
        place = f"[{list(self.labels).index(name) + 1}/{len(self.labels)}] {self.labels[name]}"
        if state.phase == "failed" and (before is None or before.phase != "failed"):
            self.console.print(f"{place}: failed: {state.error}", highlight=False, markup=False)
        if not self.console.is_terminal:
            for phase in state.seconds.keys() - (before.seconds.keys() if before else set()):
                left = f", about {self._left()}" if self._left() else ""
                took = f"{phase} took {state.seconds[phase]:.0f} s"
                self.console.print(f"{place}: {took}{left}", highlight=False, markup=False)
        running = [each for each in self.states.values() if each.phase in ("training", "evaluating")]
        what = f"{place}: {state.what}" if len(running) < 2 else f"{len(running)} at once; {place}: {state.what}"
        self._bar.update(self._task, completed=self._done(), description=what, left=self._left())

    def _done(self) -> float:
        return sum(self._share(state) for state in self.states.values())

    def _share(self, state: State) -> float:
        spent = {"training": 0.0, "evaluating": 0.0}
        for each in self.states.values():
            for phase, seconds in each.seconds.items():
                spent[phase] += seconds
        known = all(spent.values())
        training = spent["training"] / sum(spent.values()) if known else TRAINING_SHARE
        if state.phase == "training":
            return training * (1.0 if "training" in state.seconds else state.share)
        return training + (1 - training) * state.share if state.phase == "evaluating" else 1.0

    def _left(self) -> str:
        spent, done = time.monotonic() - self._began, self._done()
        if done >= len(self.labels) or done < 0.02 or spent < 2:
            return ""
        minutes, seconds = divmod(int(spent / done * (len(self.labels) - done)), 60)
        return f"{minutes} min {seconds:02d} s left"
