"""What docs/explanation/claims.md says: contrasts of kept rows, the confirmatory test, and how rows were made."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from anchored.data.catalog.registry import dataset_title
from anchored.metrics import intervals
from anchored.report import narrative
from anchored.report.aggregate import SIGNIFICANT
from anchored.report.tables import format_value, number_list
from anchored.store.rows import Row

Way = tuple[str, float | None, float | None]  # protocol, α, λ
STANDARD, ANCHORED = ("standard", None, None), ("anchored", None, None)
ALPHAS = tuple(("ram", alpha, None) for alpha in (0.0625, 0.125, 0.25))
RAM = ALPHAS[2]
LAMBDAS = (RAM, *(("ram", 0.25, weight) for weight in (0.01, 0.1, 1.0)))


@dataclass(frozen=True)
class Study:
    """A study that the page is made from: its recipe, with changes, and what it is called."""

    title: str
    recipe: str
    changes: tuple[str, ...] = ()
    seeds: Sequence[int] = range(5)
    why: str = ""  # what it is to find out, where it is there to explain another one
    shares: str = ""  # another study that has some of its trainings: they are not run, and not shown, twice
    confirms: str = ""  # its letter in the protocol; "" for an exploratory study
    gpu: bool = False  # of a size for a GPU: run only where it is named


@dataclass(frozen=True)
class Evidence:
    """What is kept of a study: rows, and how they were made."""

    study: Study
    command: str
    rows: tuple[Row, ...]
    shared: frozenset[str]  # names of trainings that are another study's
    made: Mapping[str, Any]  # versions and machine of trainings that have no record of their own
    runs: Mapping[str, Mapping[str, Any]]  # the records of those that have one
    seconds: Mapping[str, float]  # that each training took
    missing: Sequence[int]  # seeds of which a training is not done


@dataclass(frozen=True)
class Figure:
    """What is contrasted: a metric's mean over corruptions or over data sets (all that the study has where empty)."""

    metric: str
    corrupted: bool = False
    sets: tuple[str, ...] = ()


FIGURES = {
    "corruption accuracy": Figure("accuracy", corrupted=True),
    "corruption smooth ECE": Figure("smooth_ece", corrupted=True),
    "AUROC": Figure("auroc"),
    "near AUROC": Figure("auroc", sets=("fashion-mini-novel",)),
    "far AUROC": Figure("auroc", sets=("digits", "textures", "photos")),
    "synthetic AUROC": Figure("auroc", sets=("gaussian-noise", "uniform-noise", "blobs")),
    "adaptation accuracy": Figure("linear_probe_accuracy"),
    "clean accuracy": Figure("accuracy"),
}
EXPLAINED = ("corruption accuracy", "corruption smooth ECE", "AUROC", "adaptation accuracy", "clean accuracy")
"""Columns of the table of reasons."""


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
    confirms: str = ""  # the letter of the study of the protocol that it is tested on


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
    Claim("RAM raises AUROC over standard (lowers it: said of CIFAR-100 and ImageNet)",
          "table 6 (CIFAR-10); appendix B, ¶1", "AUROC", (STANDARD, RAM), +1),
    Claim("AUROC recovers at the smaller α = 0.125", "appendix B, ¶2", "AUROC", (ALPHAS[2], ALPHAS[1]), +1),
    Claim("The smaller α = 0.125 costs accuracy under corruption", "appendix B, ¶2", "corruption accuracy",
          (ALPHAS[2], ALPHAS[1]), -1),
    Claim("RAM adapts better than standard", "table 8", "adaptation accuracy", (STANDARD, RAM), +1),
    Claim("RAM adapts better than anchored", "table 8", "adaptation accuracy", (ANCHORED, RAM), +1),
    *(Claim(f"λ: {after[2]:g} raises AUROC over {before[2] or 0:g}", "appendix B, ¶3; fig. 4b", "AUROC",
            (before, after), +1) for before, after in pairwise(LAMBDAS)),
    *(Claim(f"λ: {after[2]:g} costs accuracy under corruption against {before[2] or 0:g}", "the same",
            "corruption accuracy", (before, after), -1) for before, after in pairwise(LAMBDAS)),
)  # fmt: skip
"""What is shown of exploratory studies."""

ONE, SIX, SEVEN, EIGHT = "appendix B, ¶1; fig. 4a", "table 6 (CIFAR-10)", "table 7", "table 8"
NEAR, LAMBDA = "exploratory runs; appendix B, ¶1 (CIFAR-100, ImageNet)", "appendix B, ¶3; fig. 4b"
HYPOTHESES = (
    Claim("RAM raises corruption accuracy over standard", ONE, "corruption accuracy", (STANDARD, RAM), +1, "A"),
    Claim("RAM raises corruption accuracy over anchored", "fig. 3", "corruption accuracy", (ANCHORED, RAM), +1, "A"),
    Claim("RAM lowers corruption smooth ECE below standard", SEVEN, "corruption smooth ECE", (STANDARD, RAM), -1, "A"),
    Claim("RAM lowers corruption smooth ECE below anchored", SEVEN, "corruption smooth ECE", (ANCHORED, RAM), -1, "A"),
    Claim("RAM raises far AUROC over standard", SIX, "far AUROC", (STANDARD, RAM), +1, "A"),
    Claim("RAM lowers near AUROC below standard", NEAR, "near AUROC", (STANDARD, RAM), -1, "A"),
    Claim("RAM adapts better than standard", EIGHT, "adaptation accuracy", (STANDARD, RAM), +1, "A"),
    Claim("λ = 0.01 raises far AUROC over λ = 0", LAMBDA, "far AUROC", LAMBDAS[0:2], +1, "A"),
    Claim("λ = 0.1 raises far AUROC over λ = 0.01", LAMBDA, "far AUROC", LAMBDAS[1:3], +1, "A"),
    Claim("λ = 1 raises far AUROC over λ = 0.1", LAMBDA, "far AUROC", LAMBDAS[2:4], +1, "A"),
    Claim("λ = 0.1 costs corruption accuracy against λ = 0", LAMBDA, "corruption accuracy", LAMBDAS[0:3:2], -1, "A"),
    Claim("λ = 0.1 raises far AUROC over standard", LAMBDA, "far AUROC", (STANDARD, LAMBDAS[2]), +1, "A"),
    Claim("RAM raises corruption accuracy over standard", ONE, "corruption accuracy", (STANDARD, RAM), +1, "B"),
    Claim("RAM raises corruption accuracy over anchored", "fig. 3", "corruption accuracy", (ANCHORED, RAM), +1, "B"),
    Claim("RAM lowers corruption smooth ECE below standard", SEVEN, "corruption smooth ECE", (STANDARD, RAM), -1, "B"),
    Claim("RAM lowers corruption smooth ECE below anchored", SEVEN, "corruption smooth ECE", (ANCHORED, RAM), -1, "B"),
    Claim("RAM raises far AUROC over standard", SIX, "far AUROC", (STANDARD, RAM), +1, "B"),
    Claim("RAM lowers near AUROC below standard", NEAR, "near AUROC", (STANDARD, RAM), -1, "B"),
    Claim("RAM adapts better than standard", EIGHT, "adaptation accuracy", (STANDARD, RAM), +1, "B"),
    Claim("RAM adapts better than anchored", EIGHT, "adaptation accuracy", (ANCHORED, RAM), +1, "B"),
    Claim("Anchoring alone lowers far AUROC below standard", "table 6", "far AUROC", (STANDARD, ANCHORED), -1, "B"),
)
"""The one family of docs/claims/protocol.md, in its order."""

VERDICTS = {True: "**holds**", False: "**does not hold**", None: "undecided"}


@dataclass(frozen=True)
class Verdict:
    """A hypothesis tested."""

    contrast: intervals.Interval
    p: float  # two-sided, corrected for the whole family
    seeds: int
    holds: bool | None  # None: undecided


def by_seed(rows: Sequence[Row], way: Way, figure: str) -> dict[int, float]:
    """Seed -> value of a figure of one way of training; nothing where it was not measured, or not on all its sets.

    Rows that were measured with ``saturate``, which does not change grey images, are taken without it.
    """
    wanted = FIGURES[figure]
    titles = {dataset_title(name) for name in wanted.sets} or None
    values: dict[int, list[float]] = {}
    still: dict[int, list[float]] = {}
    for row in rows:
        if (row.protocol, row.alpha, row.tail_weight) != way or row.metric != wanted.metric:
            continue
        if wanted.corrupted:
            kind = values if (row.corruption, row.severity) == ("mean", None) else still
            if kind is values or (row.corruption == "saturate" and row.severity is not None):
                kind.setdefault(row.seed, []).append(row.value)
        elif not row.corruption and (row.dataset in titles if titles else row.dataset in ("mean", row.trained_on)):
            values.setdefault(row.seed, []).append(row.value)
    whole = {seed: found for seed, found in values.items() if len(found) == len(titles or "1")}
    means = {seed: statistics.fmean(found) for seed, found in whole.items()}
    return {s: (19 * v - statistics.fmean(still[s])) / 18 if s in still else v for s, v in means.items()}


def contrasts(rows: Sequence[Row], claim: Claim) -> list[float]:
    """The claim's contrast for each seed that all its ways have."""
    values = [by_seed(rows, way, claim.figure) for way in claim.ways]
    seeds = sorted(set.intersection(*(set(each) for each in values)))
    return [_rise([each[seed] for each in values]) for seed in seeds]


def _rise(values: Sequence[float]) -> float:
    """From the first to the last point of the least-squares line through equally spaced values."""
    return statistics.linear_regression(range(len(values)), values).slope * (len(values) - 1)


def confirm(studies: Mapping[str, Evidence]) -> dict[Claim, Verdict]:
    """Every hypothesis tested, with one correction (Holm) over the family; nothing before every training is done."""
    evidence = {each.study.confirms: each for each in studies.values() if each.study.confirms and not each.missing}
    if any(claim.confirms not in evidence for claim in HYPOTHESES):
        return {}
    values = {claim: contrasts(evidence[claim.confirms].rows, claim) for claim in HYPOTHESES}
    p_values = intervals.holm([intervals.paired_t_test(each, [0.0] * len(each)) for each in values.values()])
    return {claim: verdict(claim, each, p) for (claim, each), p in zip(values.items(), p_values, strict=True)}


def verdict(claim: Claim, values: Sequence[float], p: float) -> Verdict:
    """What a contrast's values, one a seed, say of a claim; ``p`` is corrected already."""
    interval = intervals.over_seeds(values)
    clear = p < SIGNIFICANT and interval.value != 0
    return Verdict(interval, p, len(values), math.copysign(1, interval.value) == claim.sign if clear else None)


# --- The page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# The source's claims, tested

Made by `python scripts/claims.py runs/claims`: everything but the words is computed from the rows in
[docs/claims](../claims). A contrast is taken seed by seed on the same test images; intervals are 95 %, Student's t over
seeds, and not corrected. The source's networks and images are larger: what fails here may hold there, and the other
way round. With the same seed another processor gives another training (seeds 0 to 4 on a second one: AUROC 75.7 →
70.1, corruption accuracy 79.4 → 81.2): intervals over seeds hold that noise only as far as the seeds do."""

CONFIRMATORY = """\
Hypotheses, trainings, seeds and family are those of [the protocol](../claims/protocol.md), committed before any of
these trainings. p is two-sided and corrected over the whole family (Holm). **Holds**, **does not hold**: p < 0.05, with
the stated sign or the other; undecided: the seeds do not tell, which is no evidence against the claim."""

EXPLORATORY = """\
## Exploratory: looked at, not tested

Until 26 November 2026 this page gave a verdict for each row below, corrected within its table, and said "holds" where
one table had it. One correction over all 35 contrasts would not have let four of the thirteen verdicts stand: both on
AUROC (RAM raises it, trained three times as long; a larger λ raises it), RAM over anchored in accuracy on the full
set, and "RAM lowers AUROC below standard: does not hold". They have fallen: nothing below is called true or false any
more. In what order things were looked at:

1. Seeds 0 to 4 along α; then seeds 5 to 9 were added.
2. Along λ with tail points in a pass of their own (`tail.batch_norm: own`), seeds 0 to 4: nothing. Then the cause was
   found (`scripts/tail_entropy.py`), `joint` was written, run on the same seeds and test images, and made the
   default. Along λ the step from 0 to 0.01 raises AUROC, that to 0.1 hardly, and that to 1 lowers it in all five
   seeds: having the term helps, more of it does not.
3. "Trained three times as long", masks per image, the uniform target and the published statistics were looks at why.

Means over corruptions hold all 19, `saturate` among them, which does not change grey images (18, without it, in the
table of the ConvNeXt). AUROC is the mean over
all sets, of which three of seven are synthetic; near ones (clothes of held-back classes) went the other way in the
first five seeds (76.0 → 73.5 from standard to RAM)."""


def number(value: float, figure: str, signed: bool = True) -> str:
    """A figure as in the report's tables."""
    return format_value(FIGURES[figure].metric, value, sign="+" * signed)


def interval_text(contrast: intervals.Interval, figure: str) -> str:
    """A contrast with its interval."""
    value, low, high = (number(bound, figure) for bound in contrast)
    return f"{value} [{low}, {high}]"


def page(studies: Mapping[str, Evidence]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Confirmatory: one family, tested once", "\n".join(confirmatory(studies)), EXPLORATORY]
    for key, evidence in studies.items():
        if table := list(table_of_contrasts(key, studies)):
            parts += [f"### {evidence.study.title[0].upper()}{evidence.study.title[1:]}", "\n".join(table)]
    if "alphas" in studies and any(each.study.why for each in studies.values()):
        parts += [
            "### A look at why",
            "Training with one thing changed. In brackets: the paired difference to the same training as above, with "
            "its 95 % interval over seeds.",
            "\n".join(table_of_reasons(studies)),
        ]
    parts += ["## How it was made", *(f"- *{each.study.title}.* {how_made(each)}" for each in studies.values())]
    left = [f"{each.study.title} ({number_list(each.missing, 'seed')})" for each in studies.values() if each.missing]
    parts += [f"Not run yet, or not whole: {'; '.join(left)}. The same command goes on there."] * bool(left)
    return "\n\n".join(parts) + "\n"


def confirmatory(studies: Mapping[str, Evidence]) -> Iterator[str]:
    """The test of the protocol, or how far its trainings are."""
    yield f"{CONFIRMATORY}\n"
    tested = confirm(studies)
    if not tested:
        done = {
            each.study.confirms: len({row.run for row in each.rows}) for each in studies.values() if each.study.confirms
        }
        a, b = done.get("A", 0), done.get("B", 0)
        yield f"**Not tested yet**: {a} of 60 trainings of study A and {b} of 24 of study B are done."
        return
    held = {holds: [f"{i} ({claim.confirms}): {claim.sentence}" for i, (claim, each) in enumerate(tested.items(), 1)
                    if each.holds is holds] for holds in (True, False, None)}  # fmt: skip
    for holds, sentences in held.items():
        yield f"- {VERDICTS[holds]}: {' · '.join(sentences) or 'none'}."
    yield ""
    yield "| | study | hypothesis | source | contrast, 95 % interval | seeds | p | verdict |"
    yield "|---|---|---|---|---:|---:|---:|---|"
    for i, (claim, each) in enumerate(tested.items(), 1):
        p = "< 0.001" if each.p < 0.001 else f"{each.p:.3f}"
        cells = (str(i), claim.confirms, claim.sentence, claim.source, interval_text(each.contrast, claim.figure),
                 str(each.seeds), p, VERDICTS[each.holds])  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def table_of_contrasts(key: str, studies: Mapping[str, Evidence]) -> Iterator[str]:
    """The contrasts of an exploratory study, but for those that the study it shares trainings with has."""
    evidence = studies[key]
    base = studies.get(evidence.study.shares)
    heading = ["| the source says | where | figure | contrast, 95 % interval | seeds |", "|---|---|---|---:|---:|"]
    for claim in () if evidence.study.confirms else CLAIMS:
        if base is not None and len(contrasts(base.rows, claim)) > 1:
            continue
        if len(values := contrasts(evidence.rows, claim)) > 1:
            yield from heading
            heading = []
            shown = interval_text(intervals.over_seeds(values), claim.figure)
            yield f"| {claim.sentence} | {claim.source} | {claim.figure} | {shown} | {len(values)} |"


def table_of_reasons(studies: Mapping[str, Evidence]) -> Iterator[str]:
    """RAM at α = 0.25 as trained by default, and with one thing changed: means over seeds, paired difference."""
    default = studies["alphas"].rows
    yield f"| RAM α=0.25 | {' | '.join(EXPLAINED)} |"
    yield "|---|" + "---:|" * len(EXPLAINED)
    for name, way in (("standard", STANDARD), ("anchored", ANCHORED), ("RAM as above", RAM)):
        means = [by_seed(default, way, figure).values() for figure in EXPLAINED]
        shown = zip(means, EXPLAINED, strict=True)
        cells = [number(statistics.fmean(each), figure, False) if each else "—" for each, figure in shown]
        yield f"| {name} | {' | '.join(cells)} |"
    for evidence in studies.values():
        for name, way in (("standard", STANDARD), ("anchored", ANCHORED), ("RAM", RAM)):
            if evidence.study.why and by_seed(evidence.rows, way, "clean accuracy"):
                cells = [_changed(default, evidence.rows, way, figure) for figure in EXPLAINED]
                yield f"| {evidence.study.title} ({evidence.study.why}): {name} | {' | '.join(cells)} |"


def _changed(default: Sequence[Row], other: Sequence[Row], way: Way, figure: str) -> str:
    ours, theirs = (by_seed(rows, way, figure) for rows in (other, default))
    common = sorted(ours.keys() & theirs.keys())
    if len(common) < 2:
        return "—"
    difference = intervals.paired_difference([ours[s] for s in common], [theirs[s] for s in common])
    return f"{number(statistics.fmean(ours[s] for s in common), figure, False)} ({interval_text(difference, figure)})"


def how_text(records: Iterable[Mapping[str, Any]], noun: str) -> str:
    """Versions, processor and threads of records, without command and time: those alike together, counted, with the
    revisions that they are of."""
    alike: dict[str, Counter[str]] = {}
    for record in records:
        told = {key: value for key, value in record.items() if key not in ("command", "started", "revision")}
        text = ", ".join(f"{key} {value}" for key, value in told.items() if value)
        alike.setdefault(text, Counter())[record.get("revision") or ""] += 1
    parts = []
    for text, revisions in alike.items():
        named = ", ".join(f"{name} ({count})" for name, count in sorted(revisions.items()) if name)
        parts.append(f"{revisions.total()} {noun}: {text}{f'; revision {named}' * bool(named)}")
    return ". ".join(parts)


def how_made(evidence: Evidence) -> str:
    """The command, and versions, revision, processor and threads of each training."""
    runs = sorted({row.run for row in evidence.rows} - evidence.shared)
    of_the_last = {**evidence.made, "earlier ones' records": "were overwritten"}
    counted = how_text((evidence.runs.get(run, of_the_last) for run in runs), "trainings")
    spent = math.fsum(evidence.seconds.values())
    took = f" Training took {narrative.duration_text(spent)} in all." if spent else ""
    return f"`anchored {evidence.command}`. {counted}.{took}"
