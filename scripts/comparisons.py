"""Run the studies of other methods beside RAM and under it, keep their rows, and write docs/comparisons.md.

    python scripts/comparisons.py runs/comparisons [--workers 2] [--studies demo] [--page]

Runs the studies named below into folders of their own (days on two cores; the same command goes on where it stopped)
and keeps the rows that the page needs in ``docs/comparisons/``, which is committed, with how each training was made.
Trainings whose rows are kept already are not run again: after a change of a study's settings all are. ``--page`` runs
nothing: it keeps what is finished, and writes the page from what is kept. What it says is in ``comparisons_page.py``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import needed, same
from comparisons_page import Comparison, page

from anchored.cli import main as cli
from anchored.cli.parser import parse_arguments
from anchored.cli.verbs import VERBS
from anchored.config.recipe import Recipe, canonical
from anchored.report import narrative
from anchored.report.comparison import Summary
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, read_rows, write_rows

DOCS = Path(__file__).parent.parent / "docs"
LEADING = "[plain, augmix, pixmix, trivial_augment, regmixup, sam]"

STUDIES: dict[str, tuple[str, list[str]]] = {
    "demo": ("Embedded part of Fashion-MNIST, ResNet-8", ["compare-demo"]),
    "full": (
        "Full Fashion-MNIST, ResNet-8, six methods",
        [
            *("compare-demo", "--data.train", "fashion-mnist", "--train.epochs", "4", "--grid.methods", LEADING),
            *("--evaluate.ood", "[digits, textures, photos, gaussian-noise, uniform-noise, blobs]"),
            *("--evaluate.adaptation", "[digits]", "--evaluate.severities", "[3]"),
        ],
    ),
}
"""Name -> title and the words of its command, without folder and seeds."""


def recipe_of(key: str) -> Recipe:
    """A study's recipe, as the command would have it."""
    recipe: Recipe = parse_arguments("study", VERBS["study"], STUDIES[key][1])["recipe"]
    return recipe


def alike(told: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether resolved settings say the same as a recipe, what methods stand for included."""
    own = told.get("grid", {}).get("per_method", {})
    return same(told, recipe) and own == json.loads(canonical(recipe))["grid"]["per_method"]


def kept_rows(key: str, kept: StudyFolder) -> list[Row]:
    """The rows that are kept of a study, if they were made with its settings."""
    if not kept.study_file.exists() or not alike(files.read_json(kept.study_file)["recipe"], recipe_of(key)):
        return []
    return read_rows(kept.results_file)


def keep(key: str, folder: StudyFolder, kept: StudyFolder) -> None:
    """Add the rows of a folder's finished trainings to those that are kept; rows of other settings make way."""
    recipe = recipe_of(key)
    if not folder.study_file.exists() or not alike(files.read_json(folder.study_file)["recipe"], recipe):
        return
    wanted = {cell.name for cell in recipe.cells()}
    found = (
        row
        for run in folder.runs()
        if run.name in wanted and run.rows_file.exists()
        for row in read_rows(run.rows_file)
    )
    new = [row for row in found if needed(row, recipe.evaluate.score)]
    if not new:
        return
    study, old = files.read_json(folder.study_file), kept_rows(key, kept)
    before = files.read_json(kept.study_file) if old else {}
    fresh = {row.run for row in new}
    rows = [row for row in old if row.run not in fresh] + new
    write_rows(kept.results_file, sorted(rows, key=lambda row: (row.seed, row.run)))
    made = {name: value for name, value in study["made"].items() if name != "command"}
    spent = narrative.training_seconds(Summary(folder, study["recipe"], {}, tuple(new)))
    told = {
        "runs": {**dict.fromkeys(sorted(fresh), made), **before.get("runs", {})},
        "seconds": {**before.get("seconds", {}), **{name: round(value, 1) for name, value in spent.items()}},
    }
    files.write_json(kept.study_file, {"recipe": json.loads(canonical(recipe)), **told})


def missing_seeds(key: str, rows: Sequence[Row]) -> list[int]:
    """Seeds of which a training has no row."""
    done = {row.run for row in rows}
    return sorted({cell.seed for cell in recipe_of(key).cells() if cell.name not in done})


def comparison_of(key: str, kept: StudyFolder) -> Comparison | None:
    """What is kept of a study; None where there is nothing."""
    rows = kept_rows(key, kept)
    if not rows:
        return None
    told, (title, words) = files.read_json(kept.study_file), STUDIES[key]
    command = " ".join(["study", *words])
    return Comparison(title, command, tuple(rows), told["seconds"], told["runs"], missing_seeds(key, rows))


def main() -> None:
    """Run the studies, keep their rows, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", default="demo", help=f"of {', '.join(STUDIES)}, separated by commas; default demo")
    parser.add_argument("--workers", default="1", help="trainings at once")
    parser.add_argument("--page", action="store_true", help="run nothing: keep what is finished, and write the page")
    options = parser.parse_args()
    for key in options.studies.split(","):
        folder, kept = StudyFolder(options.folder / key), StudyFolder(DOCS / "comparisons" / key)
        for seed in [] if options.page else missing_seeds(key, kept_rows(key, kept)):
            # Seed by seed, so that whole comparisons are kept as they come.
            words = [*STUDIES[key][1], "--grid.seeds", f"[{seed}]"]
            if cli.main(["study", *words, "-o", str(folder.path), "--workers", options.workers]) != 0:
                sys.exit(2)
            keep(key, folder, kept)
        keep(key, folder, kept)
    found = {key: each for key in STUDIES if (each := comparison_of(key, StudyFolder(DOCS / "comparisons" / key)))}
    if found:
        files.write_text(DOCS / "comparisons.md", page(found))
        print(DOCS / "comparisons.md")


if __name__ == "__main__":
    main()
