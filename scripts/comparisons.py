"""Run the studies of other methods beside RAM and under it, piece by piece, and write its page.

    python scripts/comparisons.py runs/comparisons [--studies demo] [--methods plain,augmix] [--workers 1]
    python scripts/comparisons.py runs/comparisons --cost [--studies demo] [--methods augmix]
    python scripts/comparisons.py runs/comparisons --page

A piece is a method of a study, with what is done after its training (``temperature`` and ``ensemble`` are of plain's
networks): a study folder of its own, seed by seed. Any call can be killed and goes on where it stopped; calls on
different methods can run at once, a process each. The rows that the page needs are kept in ``docs/comparisons/``, which
is committed, with how each training was made; trainings whose rows are kept are not run again, but for a change of a
study's settings (``evaluate.bootstrap`` aside: the page has no intervals over images). ``--cost`` times training steps
of every method, on a machine that should be quiet. ``--page`` runs nothing: it keeps what is finished, and writes the
page from what is kept, however little. What the page says is in ``comparisons_page.py``. ``--changes`` and ``--docs``
are for a trial: settings of all studies, and another place.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import markers
from claims import needed, record_of, same
from claims_page import how_text
from comparisons_page import Comparison, Progress, gains, page, picture_name
from comparisons_picture import draw

from anchored.cli import main as cli
from anchored.cli.parser import parse_arguments
from anchored.cli.verbs import VERBS
from anchored.config.methods import PLAIN, after_training
from anchored.config.recipe import AfterCell, Cell, Recipe, canonical
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, read_rows, write_rows
from anchored.study import provenance
from anchored.study.jobs import Job
from anchored.study.progress import quiet
from anchored.training import fit

MARKER = "scripts/comparisons.py"
DOCS, PAGE = Path(__file__).parent.parent / "docs", "explanation/comparisons.md"
# of the demo's, those that lead under corruption, and what is done after training
LEADING = ("plain", "augmix", "trivial_augment", "pixmix", "mixup", "regmixup", "temperature", "ensemble")
ROUNDS, TIMED = 3, ("--train.epochs", "2", "--train.checkpoint_minutes", "60")


@dataclass(frozen=True)
class Plan:
    """A study: its title, the words of its command without folder, seeds and methods, and which methods it has."""

    title: str
    words: tuple[str, ...]
    some: tuple[str, ...] = ()  # of the methods of its recipe; by default all
    timed: float = 0.3  # share of the images whose steps are timed: some 3,000

    @property
    def methods(self) -> tuple[str, ...]:
        """Its methods, as ``grid.methods`` has them."""
        return self.some or _recipe(self.words).grid.methods

    def command(self, methods: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[str]:
        """The words of a command that runs some methods and seeds of it, by default all."""
        only = ["--grid.seeds", str(list(seeds))] if seeds else []
        return ["study", *self.words, "--grid.methods", f"[{', '.join(methods or self.methods)}]", *only]

    def recipe(self, methods: Sequence[str] = (), seeds: Sequence[int] = ()) -> Recipe:
        """The recipe of that command."""
        whole = _recipe(self.words)
        grid = replace(whole.grid, methods=tuple(methods or self.methods), seeds=tuple(seeds) or whole.grid.seeds)
        return replace(whole, grid=grid).check()

    def pieces(self) -> dict[str, tuple[str, ...]]:
        """Names of its pieces, each a method that is trained -> the methods that are measured there."""
        found: dict[str, tuple[str, ...]] = {}
        for method in self.methods:
            of = after_training(method)[1]
            found[of] = (*found.get(of, ()), method)
        return found


@lru_cache
def _recipe(words: tuple[str, ...]) -> Recipe:
    recipe: Recipe = parse_arguments("study", VERBS["study"], list(words))["recipe"]
    return recipe


STUDIES = {
    "demo": Plan("Embedded part of Fashion-MNIST, ResNet-8", ("compare-demo",)),
    "convnext": Plan("Embedded part of Fashion-MNIST, a ConvNeXt without batch norm", ("compare-convnext",)),
    "full": Plan(
        "Full Fashion-MNIST, ResNet-8, with the methods that lead under corruption above",
        (
            *("compare-demo", "--data.train", "fashion-mnist", "--train.epochs", "4"),
            *("--evaluate.ood", "[digits, textures, photos, gaussian-noise, uniform-noise, blobs]"),
            *("--evaluate.adaptation", "[digits]", "--evaluate.severities", "[3]"),
            *("--evaluate.bootstrap", "100"),  # the least: intervals are over seeds
        ),
        LEADING,
        timed=0.05,
    ),
}


# --- What is kept -----------------------------------------------------------------------------------------------------


def alike(told: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether resolved settings say the same as a recipe, what methods stand for included."""
    grid = told.get("grid", {})
    own = json.loads(canonical(recipe))["grid"]
    return same(told, recipe) and all(grid.get(key) == own.get(key) for key in ("per_method", "members"))


def kept_rows(recipe: Recipe, kept: StudyFolder) -> list[Row]:
    """The rows that are kept of a piece, if they were made with its settings."""
    if not kept.study_file.exists() or not alike(files.read_json(kept.study_file)["recipe"], recipe):
        return []
    return read_rows(kept.results_file)


def keep(recipe: Recipe, folder: StudyFolder, kept: StudyFolder) -> None:
    """Add the rows of a folder's finished jobs to those that are kept; rows of other settings make way."""
    if not folder.study_file.exists() or not alike(files.read_json(folder.study_file)["recipe"], recipe):
        return
    wanted = {job.name for job in recipe.jobs()}
    runs = [run for run in folder.runs() if run.name in wanted and run.rows_are_intact()]
    new = [row for run in runs for row in read_rows(run.rows_file) if needed(row, recipe.evaluate.score)]
    if not new:
        return
    old = kept_rows(recipe, kept)
    before = files.read_json(kept.study_file)["runs"] if old else {}
    fresh = {row.run for row in new}
    rows = [row for row in old if row.run not in fresh] + new
    write_rows(kept.results_file, sorted(rows, key=lambda row: (row.seed, row.run)))
    own = {run.name: record_of(run) for run in runs}
    files.write_json(kept.study_file, {"recipe": json.loads(canonical(recipe)), "runs": {**before, **own}})


def missing(recipe: Recipe, rows: Iterable[Row]) -> list[Job]:
    """Jobs of which no row is kept."""
    done = {row.run for row in rows}
    return [job for job in recipe.jobs() if job.name not in done]


# --- Running ----------------------------------------------------------------------------------------------------------


def run_piece(plan: Plan, piece: str, folder: StudyFolder, kept: StudyFolder, workers: str) -> None:
    """Run what is left of a piece: seed by seed, so that whole comparisons are kept as they come, then what is made of
    several seeds."""
    methods = plan.pieces()[piece]
    recipe = plan.recipe(methods)
    keep(recipe, folder, kept)
    single = [method for method in methods if after_training(method)[0] != "ensemble"] or [piece]
    for some, seeds in [*((single, [seed]) for seed in recipe.grid.seeds), (methods, [])]:
        left = {job.name for job in missing(recipe, kept_rows(recipe, kept))}
        if left & {job.name for job in plan.recipe(some, seeds).jobs()}:
            words = [*plan.command(some, seeds), "-o", str(folder.path), "--workers", workers]
            if cli.main(words) != 0:
                sys.exit(2)
            keep(recipe, folder, kept)


def measure_cost(plan: Plan, method: str, path: Path) -> None:
    """Time the second epoch, which has hard Δ mining, of a method's kinds of training and of plain's, round after
    round: seconds."""
    words = (*plan.words, *TIMED, "--data.fraction", str(plan.timed))
    recipe = replace(plan, words=words).recipe(tuple(dict.fromkeys((PLAIN, method))))
    cells = [cell for cell in recipe.cells() if cell.seed == recipe.grid.seeds[0]]
    quiet()
    seconds: dict[str, list[float]] = {kind_of(cell): [] for cell in cells}
    for number in range(ROUNDS):
        for cell in cells:
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder) / cell.name)
                fit.train(run, cell)
                last = list(csv.DictReader(run.log_file.read_text(encoding="utf-8").splitlines()))[-1]
            seconds[kind_of(cell)].append(float(last["seconds"]))
            print(f"round {number + 1} of {ROUNDS}: {cell.label}: {float(last['seconds']):.2f} s", flush=True)
    files.write_json(path, {"made": provenance.provenance(), "seconds": seconds})


def kind_of(cell: Cell) -> str:
    """A training's name without its seed."""
    return cell.name.rpartition("-seed")[0]


# --- The page ---------------------------------------------------------------------------------------------------------


def comparison_of(plan: Plan, kept: Path) -> Comparison:
    """What is kept of a study, and what is not there yet."""
    rows, runs, progress = list[Row](), dict[str, Any](), list[Progress]()
    for piece, methods in plan.pieces().items():
        recipe, folder = plan.recipe(methods), StudyFolder(kept / piece)
        found = kept_rows(recipe, folder)
        rows += found
        runs |= files.read_json(folder.study_file)["runs"] if found else {}
        done = {row.run for row in found}
        for method in methods:
            jobs = [job for job in recipe.jobs() if isinstance(job, (Cell, AfterCell)) and method_of(job) == method]
            left = [job.label for job in jobs if job.name not in done]
            progress.append(Progress(method, len(jobs) - len(left), len(jobs), tuple(left)))
    recipe = plan.recipe()
    costs, passes, how = costs_of(recipe, kept)
    command = " ".join(shlex.quote(word) for word in ["anchored", *plan.command()])
    return Comparison(plan.title, command, recipe.grid.seeds, tuple(rows), runs, tuple(progress), costs, passes, how)


def method_of(job: Cell | AfterCell) -> str:
    """A job's method as ``grid.methods`` has it."""
    return job.method or PLAIN


def costs_of(recipe: Recipe, kept: Path) -> tuple[dict[str, float], dict[str, int], str]:
    """Job -> training time over that of plain standard training, of all networks that it takes; passes an image; and
    how the first was measured."""
    plain = kind_of(
        replace(next(recipe.cells()), protocol="standard", mask_probability=0.0, tail_weight=0.0, method="")
    )
    told = [files.read_json(path) for path in sorted(kept.glob("*/cost.json"))]
    ratios: dict[str, list[float]] = {}  # of plain's kinds, which every method's rounds have, those of all methods
    for each in told:
        for kind, seconds in each["seconds"].items():
            ratios.setdefault(kind, []).extend(a / b for a, b in zip(seconds, each["seconds"][plain], strict=True))
    costs, passes = dict[str, float](), dict[str, int]()
    for job in recipe.jobs():
        if not isinstance(job, (Cell, AfterCell)):
            continue
        cells = [job] if isinstance(job, Cell) else job.members
        way = after_training(job.method)[0]
        passes[job.name] = {"ensemble": len(cells), "mc_dropout": recipe.evaluate.dropout_passes}.get(way, 1)
        if kind_of(cells[0]) in ratios:
            costs[job.name] = len(cells) * statistics.median(ratios[kind_of(cells[0])])
    rounds = [each["seconds"][plain] for each in told]
    apart = max((abs(s / statistics.median(seconds) - 1) for seconds in rounds for s in seconds), default=0.0)
    how = how_text((each["made"] for each in told), "pieces")
    return costs, passes, how and f"plain's own rounds lie up to {100 * apart:.0f} % from their median; {how}"


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", default="demo", help=f"of {', '.join(STUDIES)}, separated by commas; default demo")
    parser.add_argument("--methods", default="", help="trained methods, separated by commas; default all")
    parser.add_argument("--workers", default="1", help="trainings at once")
    parser.add_argument("--cost", action="store_true", help="time training steps instead")
    parser.add_argument("--page", action="store_true", help="run nothing: keep what is finished, and write the page")
    parser.add_argument("--changes", default="", help="settings of all studies, for a trial")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where rows and page are kept")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run pieces, keep their rows, write the page."""
    options = options_of(words)
    changes = tuple(shlex.split(options.changes))
    plans = {key: replace(plan, words=(*plan.words, *changes)) for key, plan in STUDIES.items()}
    kept = options.docs / "comparisons"
    for key in options.studies.split(","):
        plan, asked = plans[key], options.methods.split(",") if options.methods else []
        if unknown := set(asked) - set(plan.pieces()):
            sys.exit(f"{key} has no piece {', '.join(sorted(unknown))}: there are {', '.join(plan.pieces())}")
        for piece in asked or plan.pieces():
            folder, place = StudyFolder(options.folder / key / piece), StudyFolder(kept / key / piece)
            if options.cost:
                measure_cost(plan, piece, place.path / "cost.json")
            elif options.page:
                keep(plan.recipe(plan.pieces()[piece]), folder, place)
            else:
                run_piece(plan, piece, folder, place, options.workers)
    studies = {key: comparison_of(plan, kept / key) for key, plan in plans.items()}
    for key, study in studies.items():
        if study.best:
            files.write_bytes(options.docs / "assets" / picture_name(key), draw(study))
    files.write_text(options.docs / PAGE, page(studies))
    if options.docs == DOCS:
        markers.write(DOCS.parent / "README.md", MARKER, gains(studies["demo"]))
    print(options.docs / PAGE)


if __name__ == "__main__":
    main()
