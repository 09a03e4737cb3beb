"""A grid of cells: what is done, what is left, and one folder with the answer."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anchored.config.recipe import Cell, Recipe, canonical
from anchored.config.settings import Evaluation, Grid
from anchored.errors import UserError
from anchored.evaluation import holdout, suites
from anchored.report import page as report
from anchored.store import files, layout
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import read_rows, write_rows
from anchored.study import jobs
from anchored.study.progress import Display
from anchored.study.workers import Work, alone, on_cluster, on_this_machine
from anchored.training import fit

REDONE = ("name", "grid", "evaluate", "title", "choose", "validate")
"""Sections of a recipe that may change between two runs in one folder."""


def study(
    recipe: Recipe,
    path: Path,
    console: Console,
    root: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> Path:
    """Run what is left of a study, write its results and report, and give the report's path.

    Finished cells are skipped and an unfinished training goes on from its checkpoint, so after a kill the same command
    continues; several such commands on one folder share the work. ``workers`` processes work at once; with one, the
    default, this process does. ``ray``: the address of a Ray cluster whose processes work instead, by default as many
    as it has room for. A cell that fails does not stop the others. Raises ``UserError`` where the folder belongs to
    another study, data is missing (before any training), the cluster cannot be used, or cells failed (after all others,
    whose results are written).
    """
    folder = StudyFolder(path)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more")
    recipe = suites.check(recipe, root)
    holdout.check(recipe, root)
    bind(folder, recipe)
    every = list(recipe.cells())
    left = [cell for cell in every if not jobs.done(folder.run(cell.name), cell, recipe)]
    if len(left) < len(every):
        console.print(f"{len(every) - len(left)} of {len(every)} trainings are done already and kept.")
    for run in (folder.run(cell.name) for cell in left):  # failed in an earlier run, or measured with other settings
        if (found := jobs.state(run)) and found.ended:
            run.state_file.unlink(missing_ok=True)
    with Display(console, {cell.name: cell.label for cell in left}) as display:
        work = Work(folder, recipe, left, display, root)
        if ray is not None:
            on_cluster(work, ray, workers)
        elif workers and min(workers, len(left)) > 1:
            on_this_machine(work, workers)
        else:
            alone(work)
    with files.locked(folder.lock_file, wait=True):
        _write(folder, recipe, every, root)
    _refuse_failures(folder, every)
    return folder.report_file


def _write(folder: StudyFolder, recipe: Recipe, every: Sequence[Cell], root: Path | None) -> None:
    """The results and the report of all cells that are done; who calls it holds the folder's lock."""
    for place in (folder.path, folder.tables, folder.figures):
        files.remove_unfinished(place, recursive=False)
    whole = [run for cell in every if jobs.done(run := folder.run(cell.name), cell, recipe)]
    write_rows(folder.results_file, [row for run in whole for row in read_rows(run.rows_file)])
    if recipe.choose:
        chosen_on = [row for run in whole for row in read_rows(run.validation.rows_file)]
        write_rows(folder.validation_file, chosen_on)
    if whole:
        suites.save_examples(folder, recipe, root)
        report.write(folder)


def _refuse_failures(folder: StudyFolder, every: Sequence[Cell]) -> None:
    states = [(cell, jobs.state(folder.run(cell.name))) for cell in every]
    failed = [(cell, state.error) for cell, state in states if state and state.phase == "failed"]
    if not failed:
        return
    cell, error = failed[0]
    first = error if cell.label in error else f"{cell.label}: {error}"
    more = f" (and {len(failed) - 1} more, see --status)" if len(failed) > 1 else ""
    kept = f"; the others are in {folder.report_file}" if len(failed) < len(every) else ""
    raise UserError(f"{len(failed)} of {len(every)} trainings failed: {first}{more}{kept}")


def status(path: Path) -> Table:
    """A table of a study's cells: done, running, failed or left, with their times. ``UserError`` if there is none."""
    folder = StudyFolder(path)
    try:
        recipe = Recipe.parse(_there(folder)["recipe"])
    except UserError as error:
        raise UserError(f"{folder.study_file}: {error}") from error
    table = Table(box=None, pad_edge=False)
    for heading in ("training", "state", "share", "time", ""):
        table.add_column(heading, justify="right" if heading in ("share", "time") else "left")
    for cell in recipe.cells():
        run = folder.run(cell.name)
        found = jobs.state(run)
        running = not jobs.free(run)
        if jobs.done(run, cell, recipe):
            word = "done"
        elif found is None or (found.phase not in ("failed",) and not running):
            word = "left"
        else:
            word = found.phase
        seconds = sum(found.seconds.values()) if found else 0.0
        told = "" if found is None else found.error or (f"{found.what}, {found.worker}" if running else "")
        share = f"{100 * found.share:.0f} %" if found and running else ""
        table.add_row(cell.label, word, share, f"{seconds:.0f} s" if seconds else "", Text(told))
    return table


def train_one(recipe: Recipe, run: Run, console: Console, root: Path | None = None) -> None:
    """Train the one cell of a recipe into a folder of its own, with the recipe beside it."""
    recipe = suites.check(recipe, root)
    (cell,) = recipe.cells()
    fit.bind(run, cell)
    files.write_json(run.recipe_file, json.loads(canonical(recipe)))
    with _single(run, cell, console) as keeper, keeper.phase("training"):
        fit.train(run, cell, keeper.update, root)


def evaluate_one(
    run: Run, settings: Evaluation, console: Console, root: Path | None = None, network: str | None = None
) -> None:
    """Measure one trained run; ``network`` names its network again where that is code to be imported."""
    cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
    if cell.network.startswith("python:") and network != cell.network:
        raise UserError(
            f"{run.cell_file} names the network '{cell.network}', which is code to be imported: if you trust it, add "
            f"--network {cell.network}"
        )
    suites.check(Recipe(data=cell.data, grid=Grid(networks=(cell.network,)), evaluate=settings), root)
    with _single(run, cell, console) as keeper, keeper.phase("evaluating"):
        suites.evaluate(run, cell, settings, keeper.update, root)


@contextlib.contextmanager
def _single(run: Run, cell: Cell, console: Console) -> Iterator[jobs.Keeper]:
    """One cell by itself: held, and shown."""
    with files.locked(run.lock_file) as mine, Display(console, {cell.name: cell.label}) as display:
        if not mine:
            raise UserError(f"another process works on {run.path}: wait for it, or choose another folder")
        yield jobs.Keeper(run, lambda state: display.show(cell.name, state))


def bind(folder: StudyFolder, recipe: Recipe) -> None:
    """Claim a folder for a study.

    Its grid may change later, since every cell stands alone, and so may its evaluation, which is then done again.
    """
    settings = json.loads(canonical(recipe))
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    if folder.study_file.exists():
        there = _there(folder)
        found = there["recipe"]
        with contextlib.suppress(UserError):  # settings that are new since then take their defaults
            found = json.loads(canonical(Recipe.parse(found)))
        changed = layout.first_difference({**found, **dict.fromkeys(REDONE)}, {**settings, **dict.fromkeys(REDONE)})
        if changed:
            raise UserError(f"{folder.path} holds another study ({changed}): choose another folder with -o")
        started = there.get("made", {}).get("started", started)
    elif folder.path.exists() and (not folder.path.is_dir() or any(_not_ours(folder))):
        raise UserError(f"{folder.path} is not empty and not a study's folder: choose another with -o")
    with files.locked(folder.lock_file, wait=True):
        files.write_json(folder.study_file, {"recipe": settings, "made": {"started": started, **made()}})


def _there(folder: StudyFolder) -> dict[str, Any]:
    """What ``study.json`` says; ``UserError`` where it is missing or says something else."""
    there: Any = files.read_json(folder.study_file)
    if not isinstance(there, dict) or not isinstance(there.get("recipe"), dict):
        raise UserError(f"{folder.study_file} does not describe a study: choose another folder with -o")
    return there


def _not_ours(folder: StudyFolder) -> Iterator[Path]:
    """What is in a folder without a study, but for what a kill at its very first write leaves."""
    others = (entry for entry in folder.path.iterdir() if entry != folder.lock_file)
    return (entry for entry in others if not entry.name.endswith(files.UNFINISHED))


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
