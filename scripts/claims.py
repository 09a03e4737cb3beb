"""Test the claims of the source on data that comes with the package (and full Fashion-MNIST), and write docs/claims.md.

    python scripts/claims.py runs/claims [--workers 2] [--studies alphas,lambdas] [--page]

Runs the studies named below into folders of their own (hours; the same command goes on where it stopped), keeps the
rows that the page needs in ``docs/claims/``, which is committed, tests every claim on each study that has its figures,
and writes the page. Trainings whose rows are kept already are not run again: after a change of a study's settings all
are. ``--page`` writes the page from the rows that are kept and those of finished trainings in the folder.

A claim is a contrast of one figure: a difference of two ways of training, or a trend along a knob. It is computed seed
by seed on the same test images, and its mean over seeds is tested with Student's t, corrected by Holm's method for the
number of contrasts tested on that study. Holds, or does not: the sign is clear (p < 0.05). Undecided: it is not.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchored.cli import main as cli
from anchored.cli.parser import parse_arguments
from anchored.cli.verbs import VERBS
from anchored.config.recipe import Recipe, canonical
from anchored.metrics import intervals
from anchored.report import narrative as words
from anchored.report.aggregate import SIGNIFICANT
from anchored.report.comparison import Measure, Summary, Variant, read_summary
from anchored.report.tables import format_value, number_list
from anchored.store import files, layout
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, read_rows, write_rows

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Study:
    """A study that claims are tested on: its recipe, with changes, and what it is called."""

    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    seeds: Sequence[int] = range(5)
    why: str = ""  # what it is to find out, where it is there to explain another one
    shares: str = ""  # another study that has some of its trainings: they are not run, and not tested, twice
    looks: int = 1  # how often it was looked at before its last seeds were added, and then: each costs a share of 5 %


HELD_OUT = ("--data.validation", "0.1")  # as in demo-alphas: the same images are trained on
ONLY_RAM = (*HELD_OUT, "--grid.protocols", "[ram]")
STUDIES = {
    "alphas": Study("embedded part of Fashion-MNIST", "demo-alphas", seeds=range(10), looks=2),
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

STANDARD, ANCHORED = ("standard", None, None), ("anchored", None, None)  # protocol, α, λ
ALPHAS = tuple(("ram", alpha, None) for alpha in (0.0625, 0.125, 0.25))
LAMBDAS = (ALPHAS[2], *(("ram", 0.25, weight) for weight in (0.01, 0.1, 1.0)))
RAM = ALPHAS[2]

Way = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Claim:
    """What the source says, as the sign of a contrast: of ``ways[1] − ways[0]``, or of the trend along three or more.

    A trend is the least-squares line through the figures of the ways in their order, from its first to its last point.
    """

    sentence: str
    source: str
    figure: str  # a key of FIGURES
    ways: tuple[Way, ...]
    sign: int


FIGURES = {
    "corruption accuracy": ("accuracy", "mean"),
    "corruption smooth ECE": ("smooth_ece", "mean"),
    "AUROC": ("auroc", ""),
    "adaptation accuracy": ("linear_probe_accuracy", ""),
    "clean accuracy": ("accuracy", ""),
}
"""Name -> metric, and "mean" where it is over corruptions."""

CLAIMS = (
    Claim("RAM raises accuracy under corruption over standard", "appendix B, ¶1; fig. 4a", "corruption accuracy",
          (STANDARD, RAM), +1),
    Claim("RAM raises accuracy under corruption over anchored", "fig. 3", "corruption accuracy", (ANCHORED, RAM), +1),
    Claim("Accuracy under corruption grows with α", "appendix B, ¶2 (“direct correlation”)", "corruption accuracy",
          ALPHAS, +1),
    Claim("Anchoring alone lowers smooth ECE under corruption", "table 7", "corruption smooth ECE",
          (STANDARD, ANCHORED), -1),
    Claim("RAM lowers smooth ECE under corruption below standard", "table 7", "corruption smooth ECE",
          (STANDARD, RAM), -1),
    Claim("RAM lowers smooth ECE under corruption below anchored", "table 7", "corruption smooth ECE",
          (ANCHORED, RAM), -1),
    Claim("Smooth ECE under corruption falls along α", "table 7", "corruption smooth ECE", ALPHAS, -1),
    Claim("Anchoring alone lowers AUROC", "table 6", "AUROC", (STANDARD, ANCHORED), -1),
    Claim("RAM raises AUROC over standard", "table 6 (CIFAR-10)", "AUROC", (STANDARD, RAM), +1),
    Claim("RAM lowers AUROC below standard", "appendix B, ¶1 (said of CIFAR-100 and ImageNet)", "AUROC",
          (STANDARD, RAM), -1),
    Claim("AUROC recovers at the smaller α = 0.125", "appendix B, ¶2", "AUROC", (ALPHAS[2], ALPHAS[1]), +1),
    Claim("The smaller α = 0.125 costs accuracy under corruption", "appendix B, ¶2", "corruption accuracy",
          (ALPHAS[2], ALPHAS[1]), -1),
    Claim("RAM adapts better than standard", "table 8", "adaptation accuracy", (STANDARD, RAM), +1),
    Claim("RAM adapts better than anchored", "table 8", "adaptation accuracy", (ANCHORED, RAM), +1),
    Claim("A larger λ raises AUROC", "appendix B, ¶3; fig. 4b", "AUROC", LAMBDAS, +1),
    Claim("A larger λ costs accuracy under corruption", "appendix B, ¶3; fig. 4b", "corruption accuracy", LAMBDAS, -1),
)  # fmt: skip


VERDICTS = {True: "holds", False: "does not hold", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """A claim tested on one study."""

    contrast: intervals.Interval
    p: float  # two-sided, corrected
    seeds: int
    holds: bool | None  # None: undecided

    @property
    def word(self) -> str:
        """The verdict in the table, bold where the sign is clear."""
        return VERDICTS[self.holds] if self.holds is None else f"**{VERDICTS[self.holds]}**"


def measure(summary: Summary, figure: str) -> Measure | None:
    """The headline's figure of that name, if the study has it."""
    metric, corruption = FIGURES[figure]
    return next((m for m in summary.measures if (m.metric, m.corruption) == (metric, corruption)), None)


def by_seed(summary: Summary, way: Way, figure: str) -> dict[int, float]:
    """Seed -> value of a figure of one way of training; nothing where it was not measured."""
    variant, wanted = Variant(summary.architectures[0], *way), measure(summary, figure)
    found = None if wanted is None else summary.measured(variant, wanted)
    return {} if found is None or found.mixed else {row.seed: row.value for row in found.rows}


def contrasts(summary: Summary, claim: Claim) -> list[float]:
    """The claim's contrast for each seed that all its ways have."""
    values = [by_seed(summary, way, claim.figure) for way in claim.ways]
    seeds = sorted(set.intersection(*(set(each) for each in values)))
    return [_rise([each[seed] for each in values]) for seed in seeds]


def _rise(values: Sequence[float]) -> float:
    """From the first to the last point of the least-squares line through equally spaced values."""
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)


def verdicts(summary: Summary, base: Summary | None = None, looks: int = 1) -> dict[Claim, Verdict]:
    """Every claim that the study has the figures of, over two seeds or more; but none that its ``base`` has.

    Two claims may say opposite things of one contrast: it is tested, and counted, once. The p-values are corrected for
    the number of contrasts (Holm), and for that of ``looks`` (Bonferroni).
    """
    asked = [claim for claim in CLAIMS if base is None or len(contrasts(base, claim)) < 2]
    found = {claim: each for claim in asked if len(each := contrasts(summary, claim)) > 1}
    tested = {(claim.figure, claim.ways): each for claim, each in found.items()}
    p_values = intervals.holm([intervals.paired_t_test(each, [0.0] * len(each)) for each in tested.values()])
    corrected = {key: min(1.0, looks * p) for key, p in zip(tested, p_values, strict=True)}
    return {claim: verdict(claim, each, corrected[claim.figure, claim.ways]) for claim, each in found.items()}


def verdict(claim: Claim, values: Sequence[float], p: float) -> Verdict:
    """What a contrast's values, one a seed, say of a claim; ``p`` is corrected already."""
    interval = intervals.over_seeds(values)
    clear = p < SIGNIFICANT and interval.value != 0
    return Verdict(interval, p, len(values), math.copysign(1, interval.value) == claim.sign if clear else None)


# --- The page ---------------------------------------------------------------------------------------------------------


def number(value: float, figure: str, signed: bool = True) -> str:
    """A figure as in the report's tables."""
    return format_value(FIGURES[figure][0], value, sign="+" * signed)


def in_short(tested: Mapping[str, Mapping[Claim, Verdict]]) -> Iterator[str]:
    """Study -> verdicts -> a line for each verdict, with the claims that have it and where."""
    where: dict[bool | None, dict[str, list[str]]] = {True: {}, False: {}, None: {}}
    for key, verdicts_of_study in tested.items():
        for claim, verdict in verdicts_of_study.items():
            where[verdict.holds].setdefault(claim.sentence, []).append(STUDIES[key].title)
    decided = {*where[True], *where[False]}
    for holds in (True, False):
        claims = [f"{sentence} ({'; '.join(titles)})" for sentence, titles in where[holds].items()]
        yield f"- **{VERDICTS[holds].capitalize()}**: {' · '.join(claims) or 'none'}."
    left = " · ".join(sentence for sentence in where[None] if sentence not in decided) or "none"
    yield f"- **{VERDICTS[None].capitalize()}** wherever it was tested: {left}."


def table_of_claims(summary: Summary, found: Mapping[Claim, Verdict]) -> Iterator[str]:
    """A row each, in the order of the source."""
    yield "| claim | where | figure | contrast, 95 % interval | p | verdict |"
    yield "|---|---|---|---:|---:|---|"
    for claim, each in found.items():
        value, low, high = (number(bound, claim.figure) for bound in each.contrast)
        p = "< 0.001" if each.p < 0.001 else f"{each.p:.3f}"
        cells = (claim.sentence, claim.source, claim.figure, f"{value} [{low}, {high}]", p, each.word)
        yield f"| {' | '.join(cells)} |"


def table_of_reasons(studies: Mapping[str, Summary]) -> Iterator[str]:
    """RAM at α = 0.25 as trained by default, and with one thing changed: means over seeds, paired difference."""
    default = studies["alphas"]
    yield f"| RAM α=0.25 | {' | '.join(FIGURES)} |"
    yield "|---|" + "---:|" * len(FIGURES)
    for name, way in (("standard", STANDARD), ("anchored", ANCHORED), ("RAM as above", RAM)):
        means = [by_seed(default, way, figure).values() for figure in FIGURES]
        shown = zip(means, FIGURES, strict=True)
        cells = [number(statistics.fmean(each), figure, False) if each else "—" for each, figure in shown]
        yield f"| {name} | {' | '.join(cells)} |"
    for key, study in STUDIES.items():
        for name, way in (("standard", STANDARD), ("anchored", ANCHORED), ("RAM", RAM)):
            if study.why and key in studies and by_seed(studies[key], way, "clean accuracy"):
                cells = [_changed(default, studies[key], way, figure) for figure in FIGURES]
                yield f"| {study.title} ({study.why}): {name} | {' | '.join(cells)} |"


def _changed(default: Summary, other: Summary, way: Way, figure: str) -> str:
    ours, theirs = (by_seed(summary, way, figure) for summary in (other, default))
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return "—"
    found = intervals.paired_difference([ours[s] for s in common], [theirs[s] for s in common])
    value, low, high = (number(bound, figure) for bound in found)
    mean = number(statistics.fmean(ours[s] for s in common), figure, False)
    return f"{mean} ({value} [{low}, {high}])"


def made(key: str, summary: Summary) -> str:
    """How a study was made: what was run, the command, versions, duration."""
    told = summary.made
    known = ", ".join(f"{name} {value}" for name, value in told.items() if value and name not in ("command", "seconds"))
    spent = math.fsum(told.get("seconds", {}).values())
    took = f" Training took {words.duration_text(spent)} in all." if spent else ""
    return f"{next(words.what_was_run(summary))} `anchored {' '.join(command_of(key))}`: {known}.{took}"


def page(studies: Mapping[str, Summary]) -> str:
    """The whole page."""
    parts = [
        "# The source's claims, tested",
        "Made by `python scripts/claims.py runs/claims`: tables and verdicts are computed from the rows in "
        "[claims/](claims), nothing is typed by hand. A contrast is computed seed by seed on the same test images; p "
        "is Student's t-test over seeds, two-sided, corrected for the number of contrasts of its table (Holm); the "
        "intervals are not corrected. **Holds**, **does not hold**: p < 0.05, with the sign that the source states, or "
        "the other one. Undecided: the seeds do not tell, which is no evidence against the claim. The source's "
        "networks and images are larger: what fails here may hold there, and the other way round.",
    ]
    tested = {
        key: found
        for key, study in STUDIES.items()
        if key in studies
        if (found := verdicts(studies[key], studies.get(study.shares), study.looks))
    }
    parts += ["## In short", "\n".join(in_short(tested))] * bool(tested)
    for key, found in tested.items():
        study = STUDIES[key]
        most, least = (f({each.seeds for each in found.values()}) for f in (max, min))
        seeds = f"{most} seeds" if most == least else f"{least} to {most} seeds"
        parts += [f"## On the {study.title}, {seeds}", "\n".join(table_of_claims(studies[key], found))]
        if study.looks > 1:
            parts += [f"Seeds were added after a look at the first: p is {study.looks} times as large (Bonferroni)."]
    if "alphas" in studies and any(STUDIES[key].why for key in studies):
        parts += [
            "## A look at why",
            "Training with one thing changed. In brackets: the paired difference to the same training as above, with "
            "its 95 % interval over seeds, not corrected.",
            "\n".join(table_of_reasons(studies)),
        ]
    parts += ["## How it was made", *(f"- *{STUDIES[key].title}.* {made(key, each)}" for key, each in studies.items())]
    left = []
    for key, study in STUDIES.items():
        missing = missing_seeds(key, {row.run for row in studies[key].rows} if key in studies else set())
        if missing:
            left.append(f"{study.title} ({number_list(missing, 'seed')})")
    parts += [f"Not run yet, or not whole: {'; '.join(left)}. The same command goes on there."] * bool(left)
    return "\n\n".join(parts) + "\n"


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
    apart = dict.fromkeys(("name", "title", "grid", "choose", "validate"))
    return not layout.first_difference({**found, **apart}, {**json.loads(canonical(recipe)), **apart})


def needed(row: Row, score: str) -> bool:
    """Whether the page is made from a row."""
    if row.severity is not None or row.score not in ("", score):
        return False
    where = row.corruption if (row.metric, row.dataset) != ("accuracy", row.trained_on) else ""
    mean_of_sets = row.dataset == "mean" or row.metric not in ("auroc", "linear_probe_accuracy")
    return (row.metric, where) in FIGURES.values() and mean_of_sets


def keep(key: str, folder: StudyFolder, kept: StudyFolder) -> None:
    """Add the rows of a folder's finished trainings to those that are kept; rows of other settings make way."""
    recipe = recipe_of(key)
    if not folder.study_file.exists() or not same(files.read_json(folder.study_file)["recipe"], recipe):
        return
    new = [row for run in folder.runs() for row in read_rows(run.rows_file) if needed(row, recipe.evaluate.score)]
    if not new:
        return
    found, seconds = files.read_json(folder.study_file), dict[str, float]()
    old = kept_rows(key, kept)
    if old:
        seconds = files.read_json(kept.study_file)["made"].get("seconds", {})
    fresh = {row.run for row in new}
    rows = sorted([row for row in old if row.run not in fresh] + new, key=lambda row: (row.seed, row.run))
    write_rows(kept.results_file, rows)
    spent = words.training_seconds(Summary(folder, found["recipe"], {}, tuple(new)))
    told = {name: value for name, value in found["made"].items() if name != "command"}
    told["seconds"] = {name: round(value, 1) for name, value in sorted({**seconds, **spent}.items())}
    files.write_json(kept.study_file, {"recipe": json.loads(canonical(recipe)), "made": told})


def kept_rows(key: str, kept: StudyFolder) -> list[Row]:
    """The rows that are kept of a study, if they were made with its settings."""
    if not kept.study_file.exists() or not same(files.read_json(kept.study_file)["recipe"], recipe_of(key)):
        return []
    return read_rows(kept.results_file)


def missing_seeds(key: str, done: set[str]) -> list[int]:
    """Seeds of which a training is not among the names ``done``."""
    return sorted({cell.seed for cell in recipe_of(key).cells() if cell.name not in done})


def summary_of(key: str, docs: Path) -> Summary | None:
    """What is known of a study from the rows that are kept, with those that it shares; None where there are none."""
    kept, shared = StudyFolder(docs / "claims" / key), list[Row]()
    own = kept_rows(key, kept)
    if not own:
        return None
    if base := STUDIES[key].shares:
        names, have = {cell.name for cell in recipe_of(key).cells()}, {row.run for row in own}
        rows = kept_rows(base, StudyFolder(docs / "claims" / base))
        shared = [row for row in rows if row.run in names - have]
    return replace(read_summary(kept), rows=(*own, *shared))


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
    parser.add_argument("--studies", default=",".join(STUDIES), help="names, separated by commas; default all")
    parser.add_argument("--workers", default="1", help="trainings at once")
    parser.add_argument("--page", action="store_true", help="run nothing: keep what is finished, and write the page")
    options = parser.parse_args()
    for key in options.studies.split(","):
        folder = StudyFolder(options.folder / key)
        if options.page:
            keep(key, folder, StudyFolder(DOCS / "claims" / key))
        else:
            run(key, folder, DOCS, options.workers)
    found = {key: summary for key in STUDIES if (summary := summary_of(key, DOCS))}
    files.write_text(DOCS / "claims.md", page(found))
    print(DOCS / "claims.md")


if __name__ == "__main__":
    main()
