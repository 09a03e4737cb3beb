"""Summary -> tables: one structure that the page, Markdown, LaTeX and the terminal all render."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Change, Estimate
from anchored.report.comparison import MEAN, Family, Summary, Variant

Tone = Literal["", "better", "worse", "unclear"]


@dataclass(frozen=True)
class Column:
    """A column's heading: its title, which way is better, and the heading above it."""

    title: str
    arrow: str = ""
    group: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell: the value, its interval, and its change with a tone."""

    text: str
    interval: str = ""
    change: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table: columns, rows of as many cells, what must be said under it. The first ``stubs`` columns are names."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str
    stubs: int = 1


MISSING = Cell("—")


def number(metric: str, value: float, decimals: int | None = None) -> str:
    """A figure as it is shown: percent with one decimal, others with three, unless ``decimals`` are asked for."""
    return f"{value:.{decimals or (1 if METRICS[metric].percent else 3)}f}"


def pretty(name: str) -> str:
    """A name for people: ``jpeg_compression`` -> ``JPEG compression``."""
    if name == MEAN:
        return "Mean"
    words = name.replace("_", " ").replace("-", " ")
    return words.replace("jpeg", "JPEG") if words.startswith("jpeg") else words[:1].upper() + words[1:]


def relative(change: Change) -> str:
    """``+3.1 %``, with a true minus sign; the bare difference where the base is zero."""
    share = change.relative
    text = f"{100 * share:+.1f} %" if share is not None else f"{change.after - change.before:+.3f}"
    return text.replace("-", "−")


def estimate_cell(
    summary: Summary, estimate: Estimate | None, change: Change | None = None, decimals: int | None = None
) -> Cell:
    """A figure with its interval, its marks (†: not all seeds, ‡: image counts differ) and its change."""
    if estimate is None:
        return MISSING
    if estimate.mixed:
        return Cell("—‡")
    metric, (value, low, high) = estimate.rows[0].metric, estimate.interval
    mark = "" if estimate.seeds == summary.seeds else "†"
    if len(estimate.seeds) > 1:
        interval = f"± {number(metric, high - value)}"
    else:
        interval = f"{number(metric, low)}–{number(metric, high)}".replace("-", "−")
    return Cell(f"{number(metric, value, decimals)}{mark}", interval, *_shown(change))


def _shown(change: Change | None) -> tuple[str, Tone]:
    if change is None:
        return "", ""
    if not change.clear:
        return f"≈ {relative(change)}", "unclear"
    arrow = "▲" if change.after > change.before else "▼"
    return f"{arrow} {relative(change)}", "better" if change.better else "worse"


PAIRED = " / "
"""Between two figures in one cell."""


def joined(cells: Sequence[Cell]) -> Cell:
    """Two figures in one cell: ``76.2 / 0.074``; one alone stays as it is."""
    if len(cells) == 1 or all(cell == MISSING for cell in cells):
        return cells[0]
    intervals = [cell.interval for cell in cells]
    return Cell(PAIRED.join(cell.text for cell in cells), PAIRED.join(i or "—" for i in intervals) * any(intervals))


def counted(values: Sequence[int], noun: str) -> str:
    """``seeds 0, 1 and 2`` or ``seed 0``."""
    words = [f"{value}" for value in values]
    if len(words) == 1:
        return f"{noun} {words[0]}"
    if len(words) > 8:
        return f"{len(words)} {noun}s"
    return f"{noun}s {', '.join(words[:-1])} and {words[-1]}"


def images(estimates: Iterable[Estimate | None]) -> str:
    """``n = 2,000``, or the range where figures differ in it."""
    sizes = sorted({row.n for estimate in estimates if estimate is not None for row in estimate.rows}) or [0]
    return f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"


def basis(summary: Summary, estimates: Iterable[Estimate | None], drawn: str = "") -> str:
    """What the intervals (in a figure what is ``drawn``) are, over which images and seeds, and what the marks say."""
    found = [estimate for estimate in estimates if estimate is not None]
    parts = []
    if any(len(estimate.seeds) == 1 for estimate in found):
        name = f"{drawn} are" if drawn else "a–b is"
        parts.append(f"{name} the 95 % bootstrap interval over test images of one trained network")
    if any(len(estimate.seeds) > 1 for estimate in found):
        name = f"{drawn} are" if drawn else "± is half"
        parts.append(f"{name} the 95 % Student-t interval over seeds, around their mean")
    text = f"{images(found)} test images; {counted(summary.seeds, 'seed')}; {'; '.join(parts)}."
    partial = sorted({estimate.seeds for estimate in found if estimate.seeds != summary.seeds and not estimate.mixed})
    if partial:
        text += f" † only {' or '.join(counted(seeds, 'seed') for seeds in partial)}."
    if any(estimate.mixed for estimate in found):
        text += " ‡ not averaged: its seeds were measured on different numbers of images."
    return text


def headline(summary: Summary) -> Table:
    """Rows: variants. Columns: the headline's figures, each with its interval and its change against standard."""
    rows, found = [], []
    for variant in summary.variants:
        estimates = [summary.measured(variant, measure) for measure in summary.measures]
        found += estimates
        cells = [
            estimate_cell(summary, estimate, summary.change(variant, measure))
            for estimate, measure in zip(estimates, summary.measures, strict=True)
        ]
        rows.append((*_name(summary, variant), *cells))
    compared = [summary.change(v, m) for v in summary.variants for m in summary.measures]
    columns = tuple(Column(m.title, m.arrow) for m in summary.measures)
    stubs = (Column("Network"), Column("Training")) if len(summary.architectures) > 1 else (Column("Training"),)
    caption = f"{basis(summary, found)} {comparison(compared)}".strip()
    title = "Accuracy, calibration, rejection and adaptation"
    return Table("headline", title, (*stubs, *columns), tuple(rows), caption, len(stubs))


def _name(summary: Summary, variant: Variant) -> tuple[Cell, ...]:
    names = (variant.architecture, variant.title) if len(summary.architectures) > 1 else (variant.title,)
    return tuple(Cell(name) for name in names)


def comparison(changes: Iterable[Change | None]) -> str:
    """What the changes in a table are, and how a clear one is told from an unclear one."""
    found = [change for change in changes if change is not None]
    tested = [change for change in found if not math.isnan(change.p)]
    if not found:
        return "There is no standard network to compare with."
    rules = []
    if any(change.seeds > 1 for change in tested):
        rules.append("paired t-test over seeds")
    if any(change.seeds == 1 for change in tested):
        rules.append("paired bootstrap over the same test images")
    judged = f"p ≥ 0.05, {' or '.join(rules)}, corrected for {len(tested)} comparisons (Holm)"
    if not tested:
        judged = "the two intervals over images overlap"
    return f"Changes are relative to the standard network of the same architecture; ≈ no clear difference ({judged})."


def _setting_columns(summary: Summary) -> tuple[Column, ...]:
    tails = (Column("λ"),) if any(variant.tail_weight is not None for variant in summary.variants) else ()
    return (Column("Architecture"), Column("Anchoring?"), Column("Reference masking?"), Column("α"), *tails)


def _setting_cells(summary: Summary, variant: Variant) -> tuple[Cell, ...]:
    """The paper's first columns: architecture, anchoring, masking, α."""
    masked = variant.protocol == "ram"
    words = [variant.architecture, "No" if variant.protocol == "standard" else "Yes", "Yes" if masked else "No"]
    words.append(f"{variant.alpha:g}" if masked and variant.alpha is not None else "–")
    if len(_setting_columns(summary)) == 5:
        words.append("–" if variant.tail_weight is None else f"{variant.tail_weight:g}")
    return tuple(Cell(word) for word in words)


def severities(summary: Summary, family: Family, metric: str) -> Table:
    """Mean over corruptions at each severity, in the layout of the paper's table 7.

    Where extra corruptions were measured as well, the mean over the 15 usual ones stands beside it.
    """
    title = f"{METRICS[metric].title} on {family.dataset}, by severity"
    measured = {row.corruption for row in summary.rows if row.dataset == family.dataset}
    means = {MEAN: f"{len(family.corruptions)} corruptions", "mean-15": "15 of them"}
    places = [(mean, severity) for mean in means if mean in measured for severity in family.severities]
    columns = [Column(f"Sev. {severity}", group=f"{title_of(metric)}, {means[mean]}") for mean, severity in places]
    rows, found = [], []
    for variant in summary.variants:
        estimates = [
            summary.get(variant, metric, family.dataset, severity=severity, corruption=mean)
            for mean, severity in places
        ]
        found += estimates
        rows.append((*_setting_cells(summary, variant), *(estimate_cell(summary, e) for e in estimates)))
    settings = _setting_columns(summary)
    caption = f"Mean over {len(family.corruptions)} corruptions. {basis(summary, found)}"
    if len(places) > len(family.severities):
        caption = f"{caption} 15 of them: without the four extra ones."
    name = f"severity_{metric}{family.suffix.replace('-', '_')}"
    return Table(name, title, (*settings, *columns), tuple(rows), caption, len(settings))


def title_of(metric: str) -> str:
    """A metric with its unit and which way is better: ``Accuracy, % ↑``."""
    row = METRICS[metric]
    return f"{row.title}{', %' * row.percent} {'↑' if row.higher_is_better else '↓'}"


def ood(summary: Summary) -> Table:
    """AUROC by the headline's score, one column per set, in the layout of the paper's table 6."""
    sets = summary.sets("auroc")
    group = f"OOD rejection (AUROC, % ↑), score: {summary.score.replace('_', ' ')}"
    rows, found = [], []
    for variant in summary.variants:
        estimates = [summary.get(variant, "auroc", name, score=summary.score) for name in sets]
        found += estimates
        rows.append((*_setting_cells(summary, variant), *(estimate_cell(summary, e) for e in estimates)))
    settings = _setting_columns(summary)
    columns = [Column("Mean" if name == MEAN else name, group=group) for name in sets]
    caption = f"Test images of {summary.trained_on} against each set; n counts both. {basis(summary, found)}"
    return Table("ood", "Rejection of other data", (*settings, *columns), tuple(rows), caption, len(settings))


def ood_scores(summary: Summary, metric: str) -> Table:
    """Every score of every variant on one detection metric."""
    sets = summary.sets(metric)
    rows, found = [], []
    for variant in summary.variants:
        for score in summary.scores:
            estimates = [summary.get(variant, metric, name, score=score) for name in sets]
            found += estimates
            names = (*_name(summary, variant), Cell(pretty(score)))
            rows.append((*names, *(estimate_cell(summary, e) for e in estimates)))
    stubs = [Column("Network")] * (len(summary.architectures) > 1) + [Column("Training"), Column("Score")]
    arrow = "↑" if METRICS[metric].higher_is_better else "↓"
    title = f"{METRICS[metric].title}, % {arrow}"
    columns = [Column("Mean" if name == MEAN else name, group=title) for name in sets]
    return Table(f"ood_{metric}", title, (*stubs, *columns), tuple(rows), basis(summary, found), len(stubs))


ADAPTATION = ("linear_probe_accuracy", "linear_probe_ece")


def adaptation(summary: Summary) -> Table:
    """Linear probes: accuracy / smooth ECE, in the layout of the lower half of the paper's table 8."""
    sets = summary.sets(ADAPTATION[0])
    rows, found = [], []
    for variant in summary.variants:
        pairs = [[summary.get(variant, metric, name) for metric in ADAPTATION] for name in sets]
        found += [estimate for pair in pairs for estimate in pair]
        cells = [joined([estimate_cell(summary, estimate) for estimate in pair]) for pair in pairs]
        rows.append((*_setting_cells(summary, variant), *cells))
    settings, group = _setting_columns(summary), "Adaptation (accuracy, % ↑ / smooth ECE ↓)"
    columns = [Column("Mean" if name == MEAN else name, group=group) for name in sets]
    caption = f"A linear classifier on frozen features. {basis(summary, found)}"
    return Table("adaptation", "Adaptation", (*settings, *columns), tuple(rows), caption, len(settings))


def clean(summary: Summary) -> Table:
    """Every metric of the clean test set."""
    names = [m for m in METRICS if any(summary.get(v, m, summary.trained_on) for v in summary.variants)]
    rows, found = [], []
    for variant in summary.variants:
        estimates = [summary.get(variant, metric, summary.trained_on) for metric in names]
        found += estimates
        rows.append((*_name(summary, variant), *(estimate_cell(summary, e) for e in estimates)))
    stubs = [Column("Network")] * (len(summary.architectures) > 1) + [Column("Training")]
    columns = [
        Column(METRICS[m].title + ", %" * METRICS[m].percent, "↑" if METRICS[m].higher_is_better else "↓")
        for m in names
    ]
    title = f"All figures on the clean test images of {summary.trained_on}"
    return Table("clean", title, (*stubs, *columns), tuple(rows), basis(summary, found), len(stubs))


def of(summary: Summary) -> list[Table]:
    """All tables the study has rows for."""
    tables = [headline(summary), clean(summary)]
    for family in summary.families:
        measured = {row.metric for row in summary.rows if row.dataset == family.dataset and row.severity}
        tables += [severities(summary, family, metric) for metric in ("accuracy", "smooth_ece") if metric in measured]
    if summary.sets("auroc"):
        tables += [ood(summary), *(ood_scores(summary, m) for m in ("auroc", "fpr95", "aupr") if summary.sets(m))]
    if summary.sets(ADAPTATION[0]):
        tables.append(adaptation(summary))
    return tables
