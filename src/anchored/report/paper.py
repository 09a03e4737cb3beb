"""The paper's printed numbers beside the study's, table by table in the paper's layout.

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
from anchored.report.table import MISSING, Column, Table, TableCell
from anchored.report.tables import ADAPTATION, estimate_cell, format_value, interval_note, metric_heading, pair_cells

Place = tuple[str, int | None]  # a data set's title, a severity
Key = tuple[Variant, str, Place]  # what a number measures: variant, metric, place

KINDS = {"auroc": "ood", "smooth_ece": "calibration", **dict.fromkeys(ADAPTATION, "adaptation")}
"""Metric -> the kind of table that it is in."""

TITLES = {
    "ood": "rejection of other data",
    "calibration": "calibration under corruption",
    "adaptation": "adaptation by linear probes",
}

OLDER = {"smooth_ece": "smooth_ece_old", "linear_probe_ece": "linear_probe_ece_old"}
"""Printed metric -> ours by the paper's estimator: relplot 1.0, whose edges the reference code has."""

ROW_NAMES = ("paper", "here", "diff.")
"""The three rows of every variant."""

NEWER_ROW = "here, 1.0.3"
"""A fourth row, where smooth ECE was measured by the paper's estimator: our headline's, relplot 1.0.3."""


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
        """What it measures, within its training set."""
        return self.variant, self.metric, (self.dataset, self.severity)


@functools.cache
def published_numbers() -> tuple[Published, ...]:
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
class PaperTable:
    """A table of the paper, or a half of one: its rows, columns and cells."""

    table: int
    numbers: tuple[Published, ...]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in each cell: one, or accuracy and ECE of a probe."""
        return tuple(dict.fromkeys(number.metric for number in self.numbers))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The columns."""
        return tuple(dict.fromkeys((number.dataset, number.severity) for number in self.numbers))

    @cached_property
    def printed(self) -> dict[Key, str]:
        """The numbers, by what they measure."""
        return {number.key: number.printed for number in self.numbers}

    def decimals(self, metric: str) -> int:
        """Decimals that the table prints a metric with; some cells omit trailing zeros."""
        return max(len(number.printed.partition(".")[2]) for number in self.numbers if number.metric == metric)

    def variants(self, summary: Summary) -> list[Variant]:
        """The paper's variants in its order, then others of this study, grouped by architecture."""
        theirs = [number.variant for number in self.numbers]
        keys = [(v, m, p) for v in summary.variants for m in self.metrics for p in self.places]
        both = dict.fromkeys([*theirs, *(key[0] for key in keys if measured_here(summary, key))])
        architectures = list(dict.fromkeys(variant.architecture for variant in both))
        return sorted(both, key=lambda variant: architectures.index(variant.architecture))


def paper_layout(trained_on: str) -> list[PaperTable]:
    """The paper's tables on one training set; table 8 is two, rejection and adaptation."""
    tables: dict[tuple[int, str], list[Published]] = {}
    for number in published_numbers():
        if number.trained_on == trained_on:
            tables.setdefault((number.table, KINDS[number.metric]), []).append(number)
    return [PaperTable(table, tuple(numbers)) for (table, _), numbers in tables.items()]


def measured_here(summary: Summary, key: Key, newer: bool = False) -> Estimate | None:
    """This study's estimate: the mean over corruptions at a severity, the headline's score for AUROC.

    Smooth ECE by the paper's estimator where the study has it (older ones have not) unless ``newer`` is asked for.
    """
    variant, metric, (dataset, severity) = key
    if metric in OLDER and not newer and has_older(summary, metric):
        metric = OLDER[metric]
    return summary.get(
        variant,
        metric,
        dataset,
        severity=severity,
        corruption=MEAN if severity is not None else "",
        score=summary.score if metric == "auroc" else "",
    )


def has_older(summary: Summary, metric: str) -> bool:
    """Whether the study measured a printed smooth ECE by the paper's estimator, where the paper did."""
    corrupted = metric == "smooth_ece"
    return any(row.metric == OLDER[metric] and bool(row.corruption) == corrupted for row in summary.rows)


def paper_tables(summary: Summary) -> list[Table]:
    """Each table of the paper that the study has numbers for: paper, here and difference below one another."""
    return [
        _table(summary, paper)
        for paper in paper_layout(summary.trained_on)
        if any(measured_here(summary, key) for key in paper.printed)
    ]


def _table(summary: Summary, paper: PaperTable) -> Table:
    kind = KINDS[paper.metrics[0]]
    variants = paper.variants(summary)
    rows = []
    for variant in variants:
        columns = [_cells(summary, paper, variant, place) for place in paper.places]
        for i, (line, cells) in enumerate(zip(names_of_rows(summary, paper), zip(*columns, strict=True), strict=True)):
            names = (variant.architecture, variant.title) if i == 0 else ("", "")
            rows.append((*map(TableCell, (*names, line)), *cells))
    estimates = [measured_here(summary, (v, m, p)) for v in variants for m in paper.metrics for p in paper.places]
    return Table(
        name=f"paper_table{paper.table}_{kind}",
        title=f"Table {paper.table} of the paper beside this study: {TITLES[kind]}, {summary.trained_on}",
        columns=(Column("Network"), Column("Training"), Column(""), *_columns(summary, paper)),
        rows=tuple(rows),
        caption=_caption(summary, paper, estimates),
        stubs=3,
    )


def names_of_rows(summary: Summary, paper: PaperTable) -> tuple[str, ...]:
    """The rows of every variant."""
    both = any(metric in OLDER and has_older(summary, metric) for metric in paper.metrics)
    return (*ROW_NAMES, NEWER_ROW) if both else ROW_NAMES


def _columns(summary: Summary, paper: PaperTable) -> Iterator[Column]:
    title = " / ".join(metric_heading(metric) for metric in paper.metrics)
    score = f", score: {summary.score.replace('_', ' ')}" if paper.metrics == ("auroc",) else ""
    for dataset, severity in paper.places:
        if severity is None:
            yield Column(dataset, group=f"{title}{score}")
        else:
            yield Column(f"Sev. {severity}", group=f"{dataset}, {title}")


def _cells(summary: Summary, paper: PaperTable, variant: Variant, place: Place) -> tuple[TableCell, ...]:
    """A cell of the paper's table, this study's, the difference, and this study's by the newer smooth ECE, if asked."""
    theirs, ours, differences, newer = [], [], [], []
    for metric in paper.metrics:
        key = variant, metric, place
        printed, estimate = paper.printed.get(key, ""), measured_here(summary, key)
        decimals = paper.decimals(metric) if METRICS[metric].percent else 3
        theirs.append(TableCell(printed) if printed else MISSING)
        ours.append(estimate_cell(summary, estimate, decimals=decimals))
        newer.append(estimate_cell(summary, measured_here(summary, key, newer=True), decimals=decimals))
        differences.append(_difference(printed, estimate, decimals, rounding=10 ** -paper.decimals(metric)))
    cells = [pair_cells(each) for each in (theirs, ours, differences, newer)]
    return tuple(cells[: len(names_of_rows(summary, paper))])


def _difference(printed: str, estimate: Estimate | None, decimals: int, rounding: float) -> TableCell:
    """This study's minus the paper's; ≈ where the paper's, before rounding, may lie within this study's interval."""
    if not printed or estimate is None or estimate.mixed:
        return MISSING
    value, low, high = estimate.interval
    theirs = float(printed)
    text = format_value(estimate.rows[0].metric, value - theirs, decimals, sign="+")
    return TableCell(f"≈\u00a0{text}" if low - rounding / 2 <= theirs <= high + rounding / 2 else text)


def _caption(summary: Summary, paper: PaperTable, estimates: list[Estimate | None]) -> str:
    parts = [
        "Each variant: the paper's number as printed, this study's, and this study's minus the paper's "
        "(≈ the paper's number lies within this study's interval). — not in the paper, or not measured here.",
    ]
    if any(not number.printed for number in paper.numbers):
        parts.append("One entry of the paper, printed as 0 / 0, is taken as missing.")
    if any(metric in OLDER for metric in paper.metrics):
        parts.append(_estimators(summary, paper))
    datasets = {dataset for dataset, severity in paper.places if severity is not None}
    parts += [
        f"{family.dataset}: mean over {len(family.corruptions)} corruptions."
        for family in summary.families
        if family.dataset in datasets
    ]
    if note := trial_note(summary, "the paper's numbers"):
        parts.append(note)
    return " ".join([*parts, f"This study: {interval_note(summary, estimates)} The paper gives neither."])


def trial_note(summary: Summary, numbers: str) -> str:
    """That a study on a part of the images says nothing on ``numbers``; empty for one on all of them."""
    share = float(summary.setting("data", "fraction"))
    return f"A trial on {100 * share:.2g} % of the images: it says nothing on {numbers}." if share < 1 else ""


def _estimators(summary: Summary, paper: PaperTable) -> str:
    """Which smooth ECE stands where."""
    if len(names_of_rows(summary, paper)) > len(ROW_NAMES):
        return (
            "Smooth ECE is relplot 1.0's, which the reference code pins, in the rows paper, here and diff.; "
            f"{NEWER_ROW}: by relplot 1.0.3, this report's headline."
        )
    return (
        "Smooth ECE: the paper's by relplot 1.0, this study's by relplot 1.0.3, which reads up to half as high again."
    )
