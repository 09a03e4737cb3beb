"""Run the studies that the source's claims are looked at with, keep their rows, and write docs/explanation/claims.md.

    python scripts/claims.py runs/claims [--workers 2] [--studies confirm-a,confirm-b] [--page]
    python scripts/claims.py runs/claims --studies gpu --workers 2      on a machine with a GPU

Runs the studies named below into folders of their own (hours; the same command goes on where it stopped) and keeps the
rows that the page needs in ``docs/claims/``, which is committed, with how each training was made. Trainings whose rows
are kept already are not run again: after a change of a study's settings all are. ``--page`` writes the page from the
rows that are kept and those of finished trainings in the folder. What the page says is in ``claims_page.py``; what is
tested, and on which seeds, in ``docs/claims/protocol.md``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from claims_page import Evidence, Study, page

import leaderboard
from anchored.cli import main as cli
from anchored.cli.parser import parse_arguments
from anchored.cli.verbs import VERBS
from anchored.config.recipe import Recipe, canonical
from anchored.report import narrative
from anchored.report.comparison import Summary
from anchored.store import files, layout
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, read_rows, write_rows

DOCS = Path(__file__).parent.parent / "docs"


HELD_OUT = ("--data.validation", "0.1", "--grid.tail_weights", "[0.0]")  # as in demo-alphas: the same images
ONLY_RAM = (*HELD_OUT, "--grid.protocols", "[ram]")
STUDIES = {
    "confirm-a": Study(
        "confirmatory A: 12 epochs",
        "demo-lambdas",
        ("--grid.protocols", "[standard, anchored, ram]"),
        seeds=range(100, 110),
        confirms="A",
    ),
    "confirm-b": Study(
        "confirmatory B: 36 epochs",
        "demo-seeds",
        (*HELD_OUT, "--train.epochs", "36"),
        seeds=range(100, 108),
        confirms="B",
    ),
    "alphas": Study("embedded part of Fashion-MNIST", "demo-alphas", seeds=range(10)),
    "lambdas": Study("embedded part of Fashion-MNIST, along λ", "demo-lambdas", shares="alphas"),
    "lambdas-own": Study(
        "embedded part of Fashion-MNIST, along λ, tail points in a pass of their own",
        "demo-lambdas",
        ("--tail.batch_norm", "own"),
        shares="alphas",
    ),
    "full": Study(
        "full Fashion-MNIST",
        "demo-seeds",
        (
            *("--data.train", "fashion-mnist", *HELD_OUT, "--train.epochs", "4"),
            *("--evaluate.ood", "[digits, textures, photos, gaussian-noise, uniform-noise, blobs]"),
            *("--evaluate.adaptation", "[digits]", "--evaluate.severities", "[3]"),  # seven times the test images
        ),
    ),
    "convnext": Study(
        "embedded part of Fashion-MNIST, a ConvNeXt without batch norm",
        "compare-convnext",
        ("--grid.methods", "[plain]"),
        seeds=range(10, 15),  # those of comparisons.py, which trains the same
    ),
    # 54,000 images × 60 epochs × 20 trainings: see docs/explanation/performance.md for what that takes of a card.
    "gpu": Study(
        "full Fashion-MNIST, ResNet-18, 60 epochs",
        "demo-seeds",
        (
            *("--data.train", "fashion-mnist", "--data.validation", "0.1", "--grid.networks", "[resnet18]"),
            *("--grid.tail_weights", "[0.0, 0.1]", "--train.epochs", "60", "--train.batch_size", "512"),
            *("--train.learning_rate", "0.4", "--train.accelerator", "gpu", "--train.precision", "bf16-mixed"),
            *("--train.deterministic", "false", "--evaluate.batch_size", "1000", "--evaluate.severities", "[3]"),
            *("--evaluate.ood", "[digits, textures, photos, gaussian-noise, uniform-noise, blobs]"),
            *("--evaluate.adaptation", "[digits]"),
        ),
        gpu=True,
    ),
    "longer": Study(
        "embedded part of Fashion-MNIST, trained three times as long",
        "demo-seeds",
        (*HELD_OUT, "--train.epochs", "36"),
        why="too short?",
    ),
    "image-masks": Study(
        "masks per image", "demo-seeds", (*ONLY_RAM, "--anchoring.mask_unit", "image"), why="whole-batch masks?"
    ),
    "uniform-target": Study(
        "uniform target", "demo-seeds", (*ONLY_RAM, "--anchoring.masked_target", "uniform"), why="the label as target?"
    ),
    "published-statistics": Study(
        "batch norm's statistics as published",
        "demo-seeds",
        (*ONLY_RAM, "--anchoring.batch_norm", "all"),
        why="statistics from unmasked pairs?",
    ),
}

# --- The studies ------------------------------------------------------------------------------------------------------


def command_of(key: str, seeds: Sequence[int] = ()) -> list[str]:
    """The words of a study's command, without its folder; for all seeds, or some."""
    study = STUDIES[key]
    return ["study", study.recipe, *study.changes, "--grid.seeds", str(list(seeds or study.seeds))]


def recipe_of(key: str) -> Recipe:
    """A study's recipe, as the command would have it."""
    recipe: Recipe = parse_arguments("study", VERBS["study"], command_of(key)[1:])["recipe"]
    return recipe


def same(settings: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether resolved settings say the same as a recipe, but for which trainings there are: each stands alone."""
    try:
        found = json.loads(canonical(Recipe.parse(dict(settings))))  # settings that are new since then: their defaults
    except (TypeError, AttributeError):
        return False
    wanted = json.loads(canonical(recipe))
    for each in (found, wanted):  # what decides no value of the rows that are kept
        each.update(dict.fromkeys(("name", "title", "grid", "choose", "validate")))
        each["evaluate"].update(dict.fromkeys(("held_out", "false_alarms", "coverage", "error", "bootstrap")))
    return not layout.first_difference(found, wanted)


def needed(row: Row, score: str) -> bool:
    """Whether the page is made from a row."""
    if row.metric == "auroc":
        return row.score == score
    if row.metric == "linear_probe_accuracy":
        return row.dataset == "mean"
    if row.metric not in ("accuracy", "smooth_ece", "smooth_ece_old"):
        return False
    clean = row.dataset == row.trained_on and row.metric == "accuracy"
    return clean or (row.corruption, row.severity) == ("mean", None) or row.corruption == "saturate"


def keep(key: str, folder: StudyFolder, kept: StudyFolder) -> None:
    """Add the rows of a folder's finished trainings to those that are kept; rows of other settings make way."""
    recipe = recipe_of(key)
    if not folder.study_file.exists() or not same(files.read_json(folder.study_file)["recipe"], recipe):
        return
    names = {cell.name for cell in recipe.cells()}
    trained = [run for run in folder.runs() if run.name in names]
    new = [row for run in trained for row in read_rows(run.rows_file) if needed(row, recipe.evaluate.score)]
    if not new:
        return
    study, old = files.read_json(folder.study_file), kept_rows(key, kept)
    before = files.read_json(kept.study_file) if old else {}
    fresh = {row.run for row in new}
    rows = sorted([row for row in old if row.run not in fresh] + new, key=lambda row: (row.seed, row.run))
    write_rows(kept.results_file, rows)
    made = {name: value for name, value in study["made"].items() if name != "command"}
    own = {run.name: record for run in trained if run.name in fresh and (record := record_of(run))}
    # What is known of a training stays: a later command on other trainings says nothing of it, its own record does.
    runs = {**dict.fromkeys(sorted(fresh), made), **before.get("runs", {}), **own}
    spent = narrative.training_seconds(Summary(folder, study["recipe"], {}, tuple(new)))
    seconds = {**before.get("seconds", {}), **{name: round(value, 1) for name, value in spent.items()}}
    told = {"made": before.get("made", {}), "runs": runs, "seconds": dict(sorted(seconds.items()))}
    files.write_json(kept.study_file, {"recipe": json.loads(canonical(recipe)), **told})


def record_of(run: Run) -> dict[str, str]:
    """How a training and its measuring were made, by the run's own record; values that changed underway, in order."""
    entries = [entry for entries in run.records().values() for entry in entries]
    keys = dict.fromkeys(key for entry in entries for key in entry if key != "command")
    return {key: " then ".join(dict.fromkeys(entry[key] for entry in entries if key in entry)) for key in keys}


def kept_rows(key: str, kept: StudyFolder) -> list[Row]:
    """The rows that are kept of a study, if they were made with its settings."""
    if not kept.study_file.exists() or not same(files.read_json(kept.study_file)["recipe"], recipe_of(key)):
        return []
    return read_rows(kept.results_file)


def missing_seeds(key: str, done: set[str]) -> list[int]:
    """Seeds of which a training is not among the names ``done``."""
    return sorted({cell.seed for cell in recipe_of(key).cells() if cell.name not in done})


def evidence_of(key: str, docs: Path) -> Evidence | None:
    """What is kept of a study, with the rows of those that it shares; None where there is nothing."""
    study, kept = STUDIES[key], StudyFolder(docs / "claims" / key)
    own = kept_rows(key, kept)
    if not own:
        return None
    shared: list[Row] = []
    if study.shares:
        names = {cell.name for cell in recipe_of(key).cells()} - {row.run for row in own}
        rows = kept_rows(study.shares, StudyFolder(docs / "claims" / study.shares))
        shared = [row for row in rows if row.run in names]
    told = files.read_json(kept.study_file)
    return Evidence(
        study,
        shlex.join(command_of(key)),
        (*own, *shared),
        frozenset(row.run for row in shared),
        told.get("made", {}),
        told.get("runs", {}),
        told.get("seconds", {}),
        missing_seeds(key, {row.run for row in (*own, *shared)}),
    )


def run(key: str, folder: StudyFolder, docs: Path, workers: str) -> None:
    """Run the trainings of a study that no kept row is of, and keep theirs."""
    kept, base = StudyFolder(docs / "claims" / key), STUDIES[key].shares
    done = {row.run for row in kept_rows(key, kept)}
    # Without the term of hard Δ mining its settings decide nothing.
    if base and same(json.loads(canonical(replace(recipe_of(base), tail=recipe_of(key).tail))), recipe_of(key)):
        done |= {row.run for row in kept_rows(base, StudyFolder(docs / "claims" / base))}
    left = missing_seeds(key, done)
    if left:
        ways = [cell for cell in recipe_of(key).cells() if cell.name not in done]
        command = command_of(key, left)
        if all(cell.tail_weight for cell in ways):  # along λ: the others are shared
            weights = sorted({cell.tail_weight for cell in ways})
            command += ["--grid.protocols", "[ram]", "--grid.tail_weights", str(weights)]
        if cli.main([*command, "-o", str(folder.path), "--workers", workers]) != 0:
            sys.exit(2)
    keep(key, folder, kept)


def main() -> None:
    """Run the studies, keep their rows, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", help="names, separated by commas; default all but gpu, which needs one")
    parser.add_argument("--workers", default="1", help="trainings at once")
    parser.add_argument("--page", action="store_true", help="run nothing: keep what is finished, and write the page")
    options = parser.parse_args()
    usual = [key for key, study in STUDIES.items() if options.page or not study.gpu]
    asked = options.studies.split(",") if options.studies else usual
    if unknown := set(asked) - STUDIES.keys():
        sys.exit(f"there is no study {', '.join(sorted(unknown))}: there are {', '.join(STUDIES)}")
    for key in asked:
        folder = StudyFolder(options.folder / key)
        if options.page:
            keep(key, folder, StudyFolder(DOCS / "claims" / key))
        else:
            run(key, folder, DOCS, options.workers)
    found = {key: evidence for key in STUDIES if (evidence := evidence_of(key, DOCS))}
    files.write_text(DOCS / "explanation" / "claims.md", page(found))
    print(DOCS / "explanation" / "claims.md")
    leaderboard.main([])  # the studies kept are entries


if __name__ == "__main__":
    main()
