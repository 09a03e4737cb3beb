"""Beside the paper: its printed numbers joined to our rows, table by table in the paper's layout.

``paper.csv`` holds the 444 numbers of tables 6 to 11 as they are printed, under our names (scripts/build_paper.py).
"""

from __future__ import annotations

import csv
import functools
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Summary, Variant
from anchored.report.tables import ADAPTATION, MISSING, Cell, Column, Table, basis, estimate_cell, joined, title_of

Place = tuple[str, int | None]  # a data set's title, a severity
Key = tuple[Variant, str, Place]  # what a number is a figure of: how it was trained, metric, place

KINDS = {"auroc": "ood", "smooth_ece": "calibration", **dict.fromkeys(ADAPTATION, "adaptation")}
"""A metric -> the kind of table that it is in."""

TITLES = {
    "ood": "rejection of other data",
    "calibration": "calibration under corruption",
    "adaptation": "adaptation by linear probes",
}

LINES = ("paper", "here", "diff.")
"""The three lines of every variant."""


@dataclass(frozen=True)
class Published:
    """One number of the paper's tables."""

    table: int
    trained_on: str
    variant: Variant
    metric: str
    dataset: str
    severity: int | None
    printed: str  # as in the paper; "" where the entry is missing data

    @property
    def key(self) -> Key:
        """What it is a figure of, within its training set."""
        return self.variant, self.metric, (self.dataset, self.severity)


@functools.cache
def published() -> tuple[Published, ...]:
    """The paper's 444 numbers, in its order."""
    text = (resources.files("anchored") / "report" / "paper.csv").read_text(encoding="utf-8")
    return tuple(
        Published(
            table=int(row["table"]),
            trained_on=row["trained_on"],
            variant=Variant(row["architecture"], row["protocol"], float(row["alpha"]) if row["alpha"] else None, None),
            metric=row["metric"],
            dataset=row["dataset"],
            severity=int(row["severity"]) if row["severity"] else None,
            printed=row["value"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )


@dataclass(frozen=True)
class Panel:
    """A table of the paper, or a half of one: what its rows, columns and cells are."""

    table: int
    numbers: tuple[Published, ...]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """What a cell holds: one metric, or accuracy and ECE of a probe."""
        return tuple(dict.fromkeys(number.metric for number in self.numbers))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The columns."""
        return tuple(dict.fromkeys((number.dataset, number.severity) for number in self.numbers))

    @cached_property
    def printed(self) -> dict[Key, str]:
        """The numbers, by what they are figures of."""
        return {number.key: number.printed for number in self.numbers}

    def decimals(self, metric: str) -> int:
        """Decimals that the table prints a metric with; some cells leave trailing zeros away."""
        return max(len(number.printed.partition(".")[2]) for number in self.numbers if number.metric == metric)

    def variants(self, summary: Summary) -> list[Variant]:
        """The rows: the paper's in its order, then what was measured here beyond them, each with its architecture."""
        theirs = [number.variant for number in self.numbers]
        keys = [(v, m, p) for v in summary.variants for m in self.metrics for p in self.places]
        both = dict.fromkeys([*theirs, *(key[0] for key in keys if here(summary, key))])
        architectures = list(dict.fromkeys(variant.architecture for variant in both))
        return sorted(both, key=lambda variant: architectures.index(variant.architecture))


def panels(trained_on: str) -> list[Panel]:
    """The paper's tables on one training set; table 8 is two, rejection and adaptation."""
    found: dict[tuple[int, str], list[Published]] = {}
    for each in published():
        if each.trained_on == trained_on:
            found.setdefault((each.table, KINDS[each.metric]), []).append(each)
    return [Panel(table, tuple(numbers)) for (table, _), numbers in found.items()]


def here(summary: Summary, key: Key) -> Estimate | None:
    """Our figure of the same thing: the mean over corruptions at a severity, the headline's score for AUROC."""
    variant, metric, (dataset, severity) = key
    return summary.get(
        variant,
        metric,
        dataset,
        severity=severity,
        corruption=MEAN if severity is not None else "",
        score=summary.score if metric == "auroc" else "",
    )


def tables(summary: Summary) -> list[Table]:
    """Each table of the paper that the study has a figure for: paper, here and difference under one another."""
    return [
        _table(summary, panel)
        for panel in panels(summary.trained_on)
        if any(here(summary, key) for key in panel.printed)
    ]


def _table(summary: Summary, panel: Panel) -> Table:
    kind = KINDS[panel.metrics[0]]
    variants = panel.variants(summary)
    rows = []
    for variant in variants:
        columns = [_lines(summary, panel, variant, place) for place in panel.places]
        for i, (line, cells) in enumerate(zip(LINES, zip(*columns, strict=True), strict=True)):
            names = (variant.architecture, variant.title) if i == 0 else ("", "")
            rows.append((*map(Cell, (*names, line)), *cells))
    found = [here(summary, (v, m, p)) for v in variants for m in panel.metrics for p in panel.places]
    return Table(
        name=f"paper_table{panel.table}_{kind}",
        title=f"Table {panel.table} of the paper beside this study: {TITLES[kind]}, {summary.trained_on}",
        columns=(Column("Network"), Column("Training"), Column(""), *_columns(summary, panel)),
        rows=tuple(rows),
        caption=_caption(summary, panel, found),
        stubs=3,
    )


def _columns(summary: Summary, panel: Panel) -> Iterator[Column]:
    title = " / ".join(title_of(metric) for metric in panel.metrics)
    score = f", score: {summary.score.replace('_', ' ')}" if panel.metrics == ("auroc",) else ""
    for dataset, severity in panel.places:
        if severity is None:
            yield Column(dataset, group=f"{title}{score}")
        else:
            yield Column(f"Sev. {severity}", group=f"{dataset}, {title}")


def _lines(summary: Summary, panel: Panel, variant: Variant, place: Place) -> tuple[Cell, Cell, Cell]:
    """A cell of the paper's table, ours and the difference."""
    theirs, ours, apart = [], [], []
    for metric in panel.metrics:
        printed, estimate = panel.printed.get((variant, metric, place), ""), here(summary, (variant, metric, place))
        decimals = panel.decimals(metric) if METRICS[metric].percent else 3
        theirs.append(Cell(printed) if printed else MISSING)
        ours.append(estimate_cell(summary, estimate, decimals=decimals))
        apart.append(_difference(printed, estimate, decimals, rounding=10 ** -panel.decimals(metric)))
    return joined(theirs), joined(ours), joined(apart)


def _difference(printed: str, estimate: Estimate | None, decimals: int, rounding: float) -> Cell:
    """Ours minus the paper's; ≈ where the paper's number, before it was rounded, may lie within our interval."""
    if not printed or estimate is None or estimate.mixed:
        return MISSING
    value, low, high = estimate.interval
    theirs = float(printed)
    text = f"{value - theirs:+.{decimals}f}".replace("-", "−")
    return Cell(f"≈\u00a0{text}" if low - rounding / 2 <= theirs <= high + rounding / 2 else text)


def _caption(summary: Summary, panel: Panel, found: list[Estimate | None]) -> str:
    parts = [
        "Each variant: the paper's number as printed, this study's, and this study's minus the paper's "
        "(≈ the paper's number lies within this study's interval). — not in the paper, or not measured here.",
    ]
    if any(not number.printed for number in panel.numbers):
        parts.append("One entry of the paper, printed as 0 / 0, is taken as missing.")
    datasets = {dataset for dataset, severity in panel.places if severity is not None}
    parts += [
        f"{family.dataset}: mean over {len(family.corruptions)} corruptions."
        for family in summary.families
        if family.dataset in datasets
    ]
    share = float(summary.setting("data", "fraction"))
    if share < 1:
        parts.append(f"A trial on {100 * share:.2g} % of the images: it says nothing on the paper's numbers.")
    return " ".join([*parts, f"This study: {basis(summary, found)} The paper gives neither."])
