"""Test the claims of the source on data that comes with the package (and full Fashion-MNIST), and write docs/claims.md.

    python scripts/claims.py runs/claims [--workers 2] [--studies alphas,lambdas] [--page]

Runs the studies named below into folders of their own (hours; the same command goes on where it stopped), tests every
claim on each of them that has its figures, and writes the page. ``--page`` writes it from what is there already.

A claim is a contrast of one figure: a difference of two ways of training, or a trend along a knob. It is computed seed
by seed on the same test images, and its mean over seeds is tested with Student's t, corrected by Holm's method for the
number of claims tested on that study. Holds, or does not: the sign is clear (p < 0.05). Undecided: it is not.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchored import disk, intervals
from anchored.cli import main as command
from anchored.metrics import METRICS
from anchored.report import words
from anchored.report.summary import SIGNIFICANT, Measure, Summary, Variant, read
from anchored.runs import StudyFolder

PAGE = Path(__file__).parent.parent / "docs" / "claims.md"


@dataclass(frozen=True)
class Study:
    """A study that claims are tested on: its recipe, with changes, and what it is called."""

    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    why: str = ""  # what it is to find out, where it is there to explain another one


ONLY_RAM = ("--data.validation", "0.1", "--grid.protocols", "[ram]")
STUDIES = {
    "alphas": Study("embedded part of Fashion-MNIST", "demo-alphas"),
    "lambdas": Study("embedded part of Fashion-MNIST, along λ", "demo-lambdas"),
    "full": Study(
        "full Fashion-MNIST",
        "demo-seeds",
        (
            *("--data.train", "fashion-mnist", "--data.validation", "0.1", "--train.epochs", "4"),
            *("--evaluate.ood", "[digits, textures, photos, gaussian-noise, uniform-noise, blobs]"),
            *("--evaluate.adaptation", "[digits]"),
        ),
    ),
    "longer": Study("trained three times as long", "demo-seeds", (*ONLY_RAM, "--train.epochs", "36"), "too short?"),
    "image-masks": Study(
        "masks per image", "demo-seeds", (*ONLY_RAM, "--anchoring.mask_unit", "image"), "whole-batch masks?"
    ),
    "uniform-target": Study(
        "uniform target", "demo-seeds", (*ONLY_RAM, "--anchoring.masked_target", "uniform"), "the label as target?"
    ),
    "published-statistics": Study(
        "batch norm's statistics as published",
        "demo-seeds",
        (*ONLY_RAM, "--anchoring.batch_norm", "all"),
        "statistics from unmasked pairs?",
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
    Claim("… at the cost of accuracy under corruption", "appendix B, ¶2", "corruption accuracy",
          (ALPHAS[2], ALPHAS[1]), -1),
    Claim("RAM adapts better than standard", "table 8", "adaptation accuracy", (STANDARD, RAM), +1),
    Claim("RAM adapts better than anchored", "table 8", "adaptation accuracy", (ANCHORED, RAM), +1),
    Claim("A larger λ raises AUROC", "appendix B, ¶3; fig. 4b", "AUROC", LAMBDAS, +1),
    Claim("A larger λ costs accuracy under corruption", "appendix B, ¶3; fig. 4b", "corruption accuracy", LAMBDAS, -1),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A claim tested on one study."""

    contrast: intervals.Interval
    p: float  # two-sided, corrected
    seeds: int
    holds: bool | None  # None: undecided

    @property
    def word(self) -> str:
        """In the table."""
        return {True: "**holds**", False: "**does not hold**", None: "undecided"}[self.holds]


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


def verdicts(summary: Summary) -> dict[Claim, Verdict]:
    """Every claim that the study has the figures of, over two seeds or more."""
    found = {claim: each for claim in CLAIMS if len(each := contrasts(summary, claim)) > 1}
    p_values = intervals.holm([intervals.paired_t_test(each, [0.0] * len(each)) for each in found.values()])
    return {
        claim: Verdict(
            interval := intervals.over_seeds(each),
            p,
            len(each),
            None if p >= SIGNIFICANT else math.copysign(1, interval.value) == claim.sign,
        )
        for (claim, each), p in zip(found.items(), p_values, strict=True)
    }


# --- The page ---------------------------------------------------------------------------------------------------------


def number(value: float, figure: str, signed: bool = True) -> str:
    """A figure as in the other tables: percentages with one digit, calibration errors with three."""
    digits = 1 if METRICS[FIGURES[figure][0]].percent else 3
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def table_of_claims(summary: Summary, found: Mapping[Claim, Verdict]) -> Iterator[str]:
    """A row each, in the order of the source."""
    yield "| claim | where | figure | contrast, 95 % interval | p | verdict |"
    yield "|---|---|---|---:|---:|---|"
    for claim, verdict in found.items():
        value, low, high = (number(bound, claim.figure) for bound in verdict.contrast)
        p = "< 0.001" if verdict.p < 0.001 else f"{verdict.p:.3f}"
        cells = (claim.sentence, claim.source, claim.figure, f"{value} [{low}, {high}]", p, verdict.word)
        yield f"| {' | '.join(cells)} |"


def table_of_reasons(studies: Mapping[str, Summary]) -> Iterator[str]:
    """RAM at α = 0.25 as trained by default, and with one thing changed: means over seeds, paired difference."""
    default = studies["alphas"]
    yield f"| RAM α=0.25 | {' | '.join(FIGURES)} |"
    yield "|---|" + "---:|" * len(FIGURES)
    for name, way in (("standard", STANDARD), ("anchored", ANCHORED), ("RAM as above", RAM)):
        means = [by_seed(default, way, figure).values() for figure in FIGURES]
        cells = [number(statistics.fmean(each), figure, False) for each, figure in zip(means, FIGURES, strict=True)]
        yield f"| {name} | {' | '.join(cells)} |"
    for key, study in STUDIES.items():
        if study.why and key in studies:
            yield f"| {study.title} | {' | '.join(_changed(default, studies[key], figure) for figure in FIGURES)} |"


def _changed(default: Summary, other: Summary, figure: str) -> str:
    ours, theirs = (by_seed(summary, RAM, figure) for summary in (other, default))
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return "—"
    found = intervals.paired_difference([ours[s] for s in common], [theirs[s] for s in common])
    value, low, high = (number(bound, figure) for bound in found)
    mean = number(statistics.fmean(ours[s] for s in common), figure, False)
    return f"{mean} ({value} [{low}, {high}])"


def made(summary: Summary) -> str:
    """How a study was made: command, versions, duration."""
    known = ", ".join(f"{key} {value}" for key, value in summary.made.items() if value and key != "command")
    return f"{' '.join(words.what_was_run(summary))} `{summary.made.get('command', '')}`: {known}."


def page(studies: Mapping[str, Summary]) -> str:
    """The whole page."""
    parts = [
        "# The source's claims, tested",
        "Made by `python scripts/claims.py runs/claims` (tables and verdicts are computed; nothing is typed by hand). "
        "A contrast is computed seed by seed on the same test images; p is Student's t-test over seeds, two-sided, "
        "corrected for the number of claims of its table (Holm). **Holds**, **does not hold**: p < 0.05, with the sign "
        "that the source states, or the other one. Undecided: the seeds do not tell.",
    ]
    for key, study in STUDIES.items():
        if not study.why and key in studies and (found := verdicts(studies[key])):
            seeds = f"{max(each.seeds for each in found.values())} seeds"
            parts += [f"## On the {study.title}, {seeds}", "\n".join(table_of_claims(studies[key], found))]
    if "alphas" in studies and any(STUDIES[key].why for key in studies):
        parts += [
            "## A look at why",
            "RAM with one thing changed. In brackets: the paired difference to RAM as above, with its 95 % interval "
            "over seeds, not corrected.",
            "\n".join(table_of_reasons(studies)),
        ]
    parts += ["## How it was made", *(f"- *{STUDIES[key].title}.* {made(each)}" for key, each in studies.items())]
    return "\n\n".join(parts) + "\n"


# --- The studies ------------------------------------------------------------------------------------------------------


def take_over(folder: Path, others: Sequence[Path]) -> None:
    """Copy trainings that another of the studies has made already: a study keeps those that are its own."""
    recipe = folder.name
    wanted = {"lambdas": ("small-standard-seed", "small-ram-0.25-seed")}.get(recipe, ())
    for other in others:
        for run in other.glob("runs/*"):
            target = folder / "runs" / run.name
            if run.name.startswith(wanted) and (run / "evaluation.json").exists() and not target.exists():
                shutil.copytree(run, target)


def main() -> None:
    """Run the studies, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--studies", default=",".join(STUDIES), help="names, separated by commas; default all")
    parser.add_argument("--workers", default="1", help="trainings at once")
    parser.add_argument("--page", action="store_true", help="only write the page, from what is there")
    options = parser.parse_args()
    for key in [] if options.page else options.studies.split(","):
        study, folder = STUDIES[key], options.folder / key
        if key == "lambdas":
            take_over(folder, [options.folder / "alphas"])
        words_ = ["study", study.recipe, *study.changes, "-o", str(folder), "--workers", options.workers]
        if command(words_) != 0:
            sys.exit(2)
    there = {key: StudyFolder(options.folder / key) for key in STUDIES}
    found = {key: read(folder) for key, folder in there.items() if folder.results_file.exists()}
    disk.write_text(PAGE, page(found))
    print(PAGE)


if __name__ == "__main__":
    main()
