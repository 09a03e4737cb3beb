"""A grid of cells: what is done, what is left, and one folder with the answer."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from anchored import evaluate, report, runs, train
from anchored.errors import UserError
from anchored.recipe import Cell, Evaluation, Grid, Recipe, canonical
from anchored.runs import Run, StudyFolder

REDONE = ("name", "grid", "evaluate", "title")  # sections of a recipe that may change between two runs in one folder
TRAINING_SHARE = 0.75  # of a cell's time, until one cell has been timed


def study(recipe: Recipe, path: Path, console: Console, root: Path | None = None) -> Path:
    """Run what is left of a study, write its results and report, and give the report's path.

    Finished cells are skipped and an unfinished training goes on from its last epoch, so after a kill the same command
    continues. Raises ``UserError`` where the folder belongs to another study, or data is missing (before any training).
    """
    folder = StudyFolder(path)
    recipe = evaluate.check(recipe, root)
    bind(folder, recipe)
    cells = list(recipe.cells())
    left = [cell for cell in cells if not _done(folder, cell, recipe)]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} trainings are done already and kept.")
    with Display(console, len(left)) as display:
        for cell in left:
            run = folder.run(cell.name)
            runs.write_json(run.recipe_file, json.loads(canonical(recipe)))
            with display.phase(cell, "training"):
                train.train(run, cell, display.update, root)
            with display.phase(cell, "evaluating"):
                evaluate.evaluate(run, cell, recipe.evaluate, display.update, root)
    rows = [row for cell in cells for row in runs.read_rows(folder.run(cell.name).rows_file)]
    runs.write_rows(folder.results_file, rows)
    evaluate.save_examples(folder, recipe, root)
    return report.write(folder)


def train_one(recipe: Recipe, run: Run, console: Console, root: Path | None = None) -> None:
    """Train the one cell of a recipe into a folder of its own, with the recipe beside it."""
    recipe = evaluate.check(recipe, root)
    (cell,) = recipe.cells()
    train.bind(run, cell)
    runs.write_json(run.recipe_file, json.loads(canonical(recipe)))
    with Display(console, 1) as display, display.phase(cell, "training"):
        train.train(run, cell, display.update, root)


def evaluate_one(run: Run, settings: Evaluation, console: Console, root: Path | None = None) -> None:
    """Measure one trained run."""
    cell = Cell.parse(runs.read_json(run.cell_file), run.cell_file)
    evaluate.check(Recipe(data=cell.data, grid=Grid(networks=(cell.network,)), evaluate=settings), root)
    with Display(console, 1) as display, display.phase(cell, "evaluating"):
        evaluate.evaluate(run, cell, settings, display.update, root)


def bind(folder: StudyFolder, recipe: Recipe) -> None:
    """Claim a folder for a study.

    Its grid may change later, since every cell stands alone, and so may its evaluation, which is then done again.
    """
    settings = json.loads(canonical(recipe))
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    if folder.study_file.exists():
        there = runs.read_json(folder.study_file)
        found = there.get("recipe") if isinstance(there, dict) else None
        if not isinstance(found, dict):
            raise UserError(f"{folder.study_file} does not describe a study: choose another folder with -o")
        changed = runs.difference({**found, **dict.fromkeys(REDONE)}, {**settings, **dict.fromkeys(REDONE)})
        if changed:
            raise UserError(f"{folder.path} holds another study ({changed}): choose another folder with -o")
        started = there.get("made", {}).get("started", started)
    elif folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
        raise UserError(f"{folder.path} is not empty and not a study's folder: choose another with -o")
    runs.write_json(folder.study_file, {"recipe": settings, "made": {"started": started, **made()}})


def made() -> dict[str, str]:
    """How results are made here: versions, revision, machine, command."""
    packages = ("anchored", "torch", "torchvision", "pytorch-lightning", "numpy", "scipy")
    return {
        "command": " ".join(["anchored", *sys.argv[1:]]),
        **{name: metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "revision": _revision(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def _revision() -> str:
    """Git revision of the source tree that runs, with a sign for uncommitted changes; "" for an installed package."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short=12", "HEAD") + (
            " with changes" if git("status", "--porcelain", "-uno") else ""
        )
    return ""


def _done(folder: StudyFolder, cell: Cell, recipe: Recipe) -> bool:
    run = folder.run(cell.name)
    if run.cell_file.exists():
        train.bind(run, cell)
    return run.weights_file.exists() and evaluate.is_evaluated(run, cell, recipe.evaluate)


class Display:
    """Progress of a study: a bar with the time left on a terminal, one line a phase elsewhere."""

    def __init__(self, console: Console, cells: int) -> None:
        self.console, self.cells = console, cells
        self.done = 0.0  # in cells
        self.seconds: dict[str, list[float]] = {"training": [], "evaluating": []}
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=16),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", table_column=Column(no_wrap=True)),
            console=console,
            expand=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Display:
        self._bar.start()
        self._task = self._bar.add_task("", total=self.cells, left="")
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def phase(self, cell: Cell, phase: str) -> Iterator[None]:
        """Training or evaluating one cell."""
        began, self._before, self._share = time.monotonic(), self.done, self._share_of(phase)
        self._label = f"[{int(self.done) + 1}/{self.cells}] {cell.label}"
        self.update(0.0, phase)
        yield
        seconds = time.monotonic() - began
        self.seconds[phase].append(seconds)
        self.done = round(self.done) if phase == "evaluating" else self._before + self._share_of(phase)
        if not self.console.is_terminal:
            left = f", about {self._left()}" if self._left() else ""
            self.console.print(f"{self._label}: {phase} took {seconds:.0f} s{left}", highlight=False)

    def update(self, share: float, what: str) -> None:
        """Show how far the phase is, share in [0, 1]."""
        self.done = self._before + share * self._share
        self._bar.update(self._task, completed=self.done, description=f"{self._label}: {what}", left=self._left())

    def _share_of(self, phase: str) -> float:
        training, evaluating = sum(self.seconds["training"]), sum(self.seconds["evaluating"])
        of_training = training / (training + evaluating) if training and evaluating else TRAINING_SHARE
        return of_training if phase == "training" else 1 - of_training

    def _left(self) -> str:
        spent = time.monotonic() - self._began
        if self.done >= self.cells or self.done < 0.02 or spent < 2:
            return ""
        minutes, seconds = divmod(int(spent / self.done * (self.cells - self.done)), 60)
        return f"{minutes} min {seconds:02d} s left"
