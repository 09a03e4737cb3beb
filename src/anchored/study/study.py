"""A grid of cells: what is done, what is left, and one folder with results and report."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anchored.config.recipe import Cell, GivenCell, Recipe, canonical
from anchored.config.settings import Evaluation, Grid
from anchored.config.trust import refuse_code
from anchored.data.catalog.names import refuse_inside, resolve_name
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError
from anchored.evaluation import holdout, suites
from anchored.evaluation.after_training import check_after
from anchored.evaluation.evaluator import evaluator_of
from anchored.evaluation.given_models import TEST, check_given
from anchored.method.collectives import from_rank_zero
from anchored.report import page as report
from anchored.store import files, layout
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import read_rows, rows_text
from anchored.study import jobs, provenance
from anchored.study.jobs import Job
from anchored.study.progress import Display
from anchored.study.workers import Workload, run_here, run_in_processes, run_on_ray
from anchored.training.machine import refuse_unfit_machine
from anchored.training.preconditions import check_trainings, claim_run


def study(
    recipe: Recipe,
    path: Path,
    console: Console,
    root: Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
) -> Path:
    """Run what is left of a study, write its results and report, and return the report's path.

    Finished cells are skipped and an unfinished training continues from its checkpoint, so after a kill the same
    command continues; several such commands on one folder share the work. A cell that fails does not stop the others.
    Several ranks run it together: all train, rank 0 writes.

    Args:
        recipe: the grid, and how its cells are trained and measured.
        path: the study's folder.
        console: where progress is shown.
        root: folder of the data sets.
        workers: processes that work at once; by default this one, or as many as the Ray cluster has room for.
        ray: address of a Ray cluster whose processes work instead.

    Raises:
        UserError: the folder belongs to another study, data are missing (before any training), the cluster cannot be
            used, or cells failed (after all others, whose results are written).
    """
    folder = StudyFolder(path)
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more")
    if ray is None:
        refuse_unfit_machine(recipe.cells())
    recipe, left = from_rank_zero(lambda: _begin(folder, recipe, console, root))
    with Display(console, {cell.name: cell.label for cell in left}) as display:
        workload = Workload(folder, recipe, left, display, root)
        if ray is not None:
            run_on_ray(workload, ray, workers)
        elif workers and min(workers, len(left)) > 1:
            run_in_processes(workload, workers)
        else:
            run_here(workload)
    from_rank_zero(lambda: _finish(folder, recipe, root))
    return folder.report_file


def _begin(folder: StudyFolder, recipe: Recipe, console: Console, root: Path | None) -> tuple[Recipe, list[Job]]:
    """Check the recipe and claim the folder: the recipe, bound to its own images, and the cells that are left."""
    recipe = prepare(recipe, folder, root)
    claim_folder(folder, recipe)
    cells = recipe.jobs()
    left = [cell for cell in cells if not jobs.is_done(folder.run(cell.name), cell, recipe)]
    if len(left) < len(cells):
        console.print(f"{len(cells) - len(left)} of {len(cells)} trainings are done already and kept.")
    for run in (folder.run(cell.name) for cell in left):  # failed in an earlier run, or measured with other settings
        if (state := jobs.read_state(run)) and state.ended:
            run.state_file.unlink(missing_ok=True)
    return recipe, left


def _finish(folder: StudyFolder, recipe: Recipe, root: Path | None) -> None:
    """Write the results and the report of all cells that are done; ``UserError`` where cells are not."""
    cells = recipe.jobs()
    with finishing(folder, recipe):
        done = [run for cell in cells if jobs.is_done(run := folder.run(cell.name), cell, recipe)]
        for run in done:
            with files.locked(run.lock_file) as free:
                if free:
                    jobs.sweep(run)
        write_results(folder, recipe, done)
        if done:
            run, cell = next((run, cell) for cell in reversed(cells) if (run := folder.run(cell.name)) in done)
            suites.save_examples(folder, jobs.evaluator(run, cell, recipe.evaluate, root=root))
            report.write(folder)
    _refuse_failures(folder, cells, done)


@contextlib.contextmanager
def finishing(folder: StudyFolder, recipe: Recipe) -> Iterator[None]:
    """Hold the lock of a study's own files; ``UserError`` where another one has claimed the folder meanwhile."""
    with files.locked(folder.lock_file, wait=True):
        _refuse_other_settings(folder, recipe)
        for place in (folder.path, folder.tables, folder.figures):
            files.remove_unfinished(place, recursive=False)
        yield


def write_results(folder: StudyFolder, recipe: Recipe, done: Sequence[Run]) -> None:
    """Write the rows of all runs, then the recipe that they are of and the files' hashes; while ``finishing``."""
    texts = {folder.results_file: rows_text(row for run in done for row in read_rows(run.rows_file))}
    if recipe.choose:
        chosen_on = [file for run in done if (file := run.validation.rows_file).exists()]  # of trainings alone
        texts[folder.validation_file] = rows_text(row for file in chosen_on for row in read_rows(file))
    if recipe.references.count:
        measured = [file for run in done if (file := run.references.rows_file).exists()]  # not of given models
        texts[folder.references_file] = rows_text(row for file in measured for row in read_rows(file))
    for file, text in texts.items():
        files.write_text(file, text)
    hashes = {file.name: files.text_digest(text) for file, text in texts.items()}
    files.write_json(folder.record_file, {"recipe": json.loads(canonical(recipe)), "files": hashes})


def _refuse_other_settings(folder: StudyFolder, recipe: Recipe) -> None:
    """``UserError`` where a study with other settings has claimed the folder meanwhile: its rows are not dropped."""
    there = _claimed(folder)
    if there is None:
        raise UserError(f"{folder.path} was removed meanwhile: the same command begins it again")
    if difference := layout.recipe_difference(there, json.loads(canonical(recipe))):
        raise UserError(
            f"another study began in {folder.path} meanwhile ({difference}), and its results are kept: run this one "
            "again after it, or in another folder"
        )


def _refuse_failures(folder: StudyFolder, cells: Sequence[Job], done: Sequence[Run]) -> None:
    states = [(cell, jobs.read_state(folder.run(cell.name))) for cell in cells]
    failed = [(cell, state.error) for cell, state in states if state and state.phase == "failed"]
    left = [cell for cell in cells if folder.run(cell.name) not in done]
    if left and not failed:
        raise UserError(
            f"{len(left)} of {len(cells)} trainings are not done ({left[0].label}): somebody, or another study, "
            f"changed {folder.run(left[0].name).path} meanwhile; the same command does the rest"
        )
    if not failed:
        return
    cell, error = failed[0]
    first = error if cell.label in error else f"{cell.label}: {error}"
    more = f" (and {len(failed) - 1} more, see --status)" if len(failed) > 1 else ""
    others = f"; the others are in {folder.report_file}" if len(failed) < len(cells) else ""
    raise UserError(f"{len(failed)} of {len(cells)} trainings failed: {first}{more}{others}")


def status(path: Path) -> Table:
    """A table of a study's cells: done, running, failed or left, with their times. ``UserError`` if there is none."""
    folder = StudyFolder(path)
    if not folder.study_file.exists():
        raise UserError(f"no study has begun in {path}: start it without --status, or name its folder with -o")
    try:
        recipe = Recipe.parse(_read_study(folder)["recipe"])
    except UserError as error:
        raise UserError(f"{folder.study_file}: {error}") from error
    table = Table(box=None, pad_edge=False)
    for heading in ("training", "state", "share", "time", ""):
        table.add_column(heading, justify="right" if heading in ("share", "time") else "left")
    for cell in recipe.jobs():
        run = folder.run(cell.name)
        table.add_row(cell.label, *_status_columns(run, jobs.is_done(run, cell, recipe)))
    return table


def _status_columns(run: Run, done: bool) -> tuple[str, str, str, Text]:
    """A cell's state, share of the phase, time, and what is being done or its error."""
    state, running = jobs.read_state(run), not jobs.is_free(run)
    if state is None:
        return ("done" if done else "left"), "", "", Text("")
    word = "done" if done else state.phase if running or state.phase == "failed" else "left"
    seconds = sum(state.seconds.values())
    activity = state.error or (f"{state.what}, {state.worker}" if running else "")
    return word, f"{100 * state.share:.0f} %" if running else "", f"{seconds:.0f} s" if seconds else "", Text(activity)


def train_one(recipe: Recipe, run: Run, console: Console, root: Path | None = None) -> None:
    """Train the one cell of a recipe into a folder of its own, with the recipe beside it."""
    from anchored.training.fit import train  # on first use: Lightning takes longer to import than torch

    refuse_unfit_machine(recipe.cells())
    recipe = from_rank_zero(lambda: _begin_one(recipe, run, root))
    (cell,) = recipe.cells()
    with _locked_and_shown(run, cell, console) as writer, writer.phase("training"):
        train(run, cell, writer.update, root)


def sets_used(recipe: Recipe) -> list[tuple[str, str]]:
    """The sets that a recipe reads, but for archives of corrupted images, each with what it is for."""
    settings = recipe.evaluate
    uses = [(recipe.data.train, "training")]
    uses += [(name, "out-of-distribution") for name in settings.ood]
    uses += [(name, "shifted images") for name in settings.shifted]
    uses += [(name, "adaptation") for name in settings.adaptation]
    uses += [(settings.held_out, "decisions")] if settings.held_out else []
    uses += [(recipe.anchoring.reference_images, "references")] if recipe.anchoring.reference_images else []
    uses += [(name, "outliers to learn from") for name in recipe.outliers if name not in OUTLIERS]
    if recipe.choose:
        chosen = holdout.settings_of(recipe)
        others = [name for name in (*chosen.ood, *chosen.adaptation) if name not in OUTLIERS]
        uses += [(name, f"choosing {recipe.choose}") for name in others if name not in settings.adaptation]
    return uses


def _checked(recipe: Recipe, results: Path, root: Path | None) -> Recipe:
    """The recipe, bound to its own images; ``UserError`` for what no training into ``results`` could begin with."""
    refuse_inside(results, (name for name, _ in sets_used(recipe)))
    recipe = suites.check_recipe(recipe, root)
    holdout.check_training_outliers(recipe, root)
    check_trainings(recipe, root)
    return recipe


def _begin_one(recipe: Recipe, run: Run, root: Path | None) -> Recipe:
    recipe = _checked(recipe, run.path, root)
    (cell,) = recipe.cells()
    claim_run(run, cell)
    files.write_json(run.recipe_file, json.loads(canonical(recipe)))
    return recipe


def evaluate_one(
    run: Run, settings: Evaluation, console: Console, root: Path | None = None, network: str | None = None
) -> None:
    """Measure one trained run; ``network`` names its network again where that is code to be imported."""
    cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
    refuse_code(cell.network, (network or "",), where=str(run.cell_file))
    recipe = Recipe(data=cell.data, grid=Grid(networks=(cell.network,)), evaluate=settings)
    settings = from_rank_zero(lambda: suites.check_recipe(recipe, root)).evaluate
    with _locked_and_shown(run, cell, console) as writer, writer.phase("evaluating"):
        suites.measure(evaluator_of(run, cell, settings, writer.update, root))


def given_recipe(given: dict[str, Any], test: str, settings: Evaluation, title: str = "") -> Recipe:
    """The recipe of a report on one model that was trained elsewhere.

    ``given``: settings of :class:`anchored.config.settings.Given`; ``test``: the labelled images that it is measured
    on. Raises ``UserError`` where there are none, or no model.
    """
    if given.get("model") and not (test or given.get("outputs")):
        raise UserError(f"say on which labelled images {given['model']} is measured: --test DATA")
    if not given.get("outputs") and not given.get("model"):
        raise UserError("say which model is measured on which labelled images (MODEL --test DATA), or --outputs FOLDER")
    source = str(given.get("outputs") or given["model"])
    title = title or Path(source.rpartition(":")[2]).stem or source
    name = re.sub(r"[^A-Za-z0-9_.+-]", "-", title).strip(".-") or "model"
    test = resolve_name(test) if test else TEST
    settings_of = {"networks": [], "given": {title: given}}
    recipe = {"name": name, "title": title, "data": {"train": test}, "grid": settings_of}
    return replace(Recipe.parse(recipe), evaluate=settings).check()


@contextlib.contextmanager
def _locked_and_shown(run: Run, cell: Cell, console: Console) -> Iterator[jobs.StateWriter]:
    """Hold one cell's lock and show its progress; ``UserError`` where another process holds it."""
    with jobs.run_locked(run) as mine, Display(console, {cell.name: cell.label}) as display:
        if not mine:
            raise UserError(f"another process works on {run.path}: wait for it, or choose another folder")
        from_rank_zero(lambda: jobs.sweep(run))
        yield jobs.StateWriter(run, lambda state: display.show(cell.name, state))


def prepare(recipe: Recipe, folder: StudyFolder, root: Path | None = None) -> Recipe:
    """Return the recipe, bound to the content of its own images; ``UserError`` where its study cannot begin in there.

    Nothing is written.
    """
    recipe = _checked(recipe, folder.path, root)
    holdout.check_holdout(recipe, root)
    _refuse_other_study(folder, recipe)
    for cell in recipe.jobs():
        if isinstance(cell, GivenCell):
            check_given(jobs.evaluator(folder.run(cell.name), cell, recipe.evaluate, root=root), cell)
    for after in {(each.first.network, each.method): each for each in recipe.after_cells()}.values():
        check_after(after)
    return recipe


def claim_folder(folder: StudyFolder, recipe: Recipe) -> None:
    """Claim a folder for a study; ``UserError`` where it holds another one, or other files.

    The grid may change later, since every cell stands alone, and so may the evaluation, which is then done again, but
    not while another process works there with the settings as they were.
    """
    settings = json.loads(canonical(recipe))
    made = {"started": provenance.now(), **provenance.provenance()}
    folder.refuse_foreign()
    with files.locked(folder.lock_file, wait=True):
        if (claimed := _refuse_other_study(folder, recipe)) is not None:
            difference = layout.recipe_difference(claimed, settings)
            if difference and not all(jobs.is_free(run) for run in folder.all_runs()):
                raise UserError(
                    f"another process works on {folder.path} with other settings ({difference}): wait for it, or "
                    "choose another folder with -o"
                )
            made = _read_study(folder).get("made", made)
        files.write_json(folder.study_file, {"recipe": settings, "made": made})


def _refuse_other_study(folder: StudyFolder, recipe: Recipe) -> dict[str, Any] | None:
    """``UserError`` where a folder holds another study or other files; else the resolved recipe in it, if any."""
    folder.refuse_foreign()
    claimed, settings = _claimed(folder), json.loads(canonical(recipe))
    if claimed is not None and (difference := layout.study_difference(claimed, settings)):
        raise UserError(f"{folder.path} holds another study ({difference}): choose another folder with -o")
    return claimed


def _claimed(folder: StudyFolder) -> dict[str, Any] | None:
    """The resolved recipe in ``study.json``, or None where there is none."""
    if not folder.study_file.exists():
        return None
    claimed: dict[str, Any] = _read_study(folder)["recipe"]
    with contextlib.suppress(UserError):  # settings that are new since then take their defaults
        claimed = json.loads(canonical(Recipe.parse(claimed)))
    return claimed


def _read_study(folder: StudyFolder) -> dict[str, Any]:
    """The content of ``study.json``; ``UserError`` where it is missing or does not describe a study."""
    content: Any = files.read_json(folder.study_file)
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise UserError(f"{folder.study_file} does not describe a study: choose another folder with -o")
    return content
