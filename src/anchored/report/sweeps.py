"""Figures along a knob, as the paper's figures 3 and 4b: metrics against α, and the trade-off along λ."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from matplotlib.axes import Axes

from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Measure, Summary, Variant
from anchored.report.figures import axis_title, legend
from anchored.report.style import OVER_LINES, WIDTH, Picture, blank
from anchored.report.tables import basis, counted, estimate_cell, images

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe & Ito 2008
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLES = ("-", "--", "-.", ":")

Point = tuple[Variant, Estimate]


def of(summary: Summary) -> Iterator[Picture]:
    """The sweeps that the study has: two or more α's, or two or more λ's at one α."""
    if any(sum(v.protocol == "ram" for v in _swept(summary, name)) > 1 for name in summary.architectures):
        yield alphas(summary)
    if _lines(summary):
        yield tail_weights(summary)


def _swept(summary: Summary, architecture: str) -> list[Variant]:
    """Anchored (α = 0), then RAM by α; without hard-Δ mining."""
    return [v for v in summary.of(architecture) if v.protocol != "standard" and v.tail_weight is None]


def _style(place: int) -> dict[str, Any]:
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": STYLES[place % len(STYLES)],
    }


def bars(points: list[Point]) -> list[list[float]]:
    """Lengths of error bars below and above."""
    ends = [estimate.interval for _, estimate in points]
    return [[max(0.0, i.value - i.low) for i in ends], [max(0.0, i.high - i.value) for i in ends]]


def said(summary: Summary, variant: Variant, *estimates: Estimate) -> str:
    """A point in words, shown when the pointer rests on it."""
    cells = [estimate_cell(summary, estimate) for estimate in estimates]
    names = [axis_title(estimate.rows[0].metric) for estimate in estimates]
    values = ", ".join(f"{name} {cell.text} ({cell.interval})" for name, cell in zip(names, cells, strict=True))
    seeds = counted(estimates[0].seeds, "seed")
    return f"{variant.architecture}, {variant.title}: {values}; {images(estimates)}, {seeds}"


def _measured(summary: Summary, variants: list[Variant], measure: Measure) -> list[Point]:
    found = [(variant, summary.measured(variant, measure)) for variant in variants]
    return [(variant, estimate) for variant, estimate in found if estimate is not None and not estimate.mixed]


def alphas(summary: Summary) -> Picture:
    """Every figure of the headline against α: a line with error bars per architecture, standard as a band."""
    measures = summary.measures
    columns = min(3, len(measures))
    lines = math.ceil(len(measures) / columns)
    figure = blank(WIDTH, 0.7 + 2.7 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    found: list[Estimate | None] = []
    hints: dict[str, str] = {}
    for i, (axes, measure) in enumerate(zip(panels.flat, measures, strict=False)):
        for place, architecture in enumerate(summary.architectures):
            points = _measured(summary, _swept(summary, architecture), measure)
            standard = _measured(summary, [v for v in summary.of(architecture) if v.protocol == "standard"], measure)
            _against_alpha(axes, points, standard, _style(place), architecture, f"alpha-{i}-{place}")
            hints |= {f"alpha-{i}-{place}-{k}": said(summary, *point) for k, point in enumerate([*points, *standard])}
            found += [estimate for _, estimate in [*points, *standard]]
        ticks = sorted({v.alpha or 0.0 for a in summary.architectures for v in _swept(summary, a)})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=35 if len(ticks) > 4 else 0)
        axes.set(title=f"{measure.title} {measure.arrow}", xlabel="Mask probability α (0: no masks)")
    for axes in list(panels.flat)[len(measures) :]:
        axes.set_visible(False)
    legend(figure, panels[0, 0])
    caption = (
        "Figures of the headline against the mask probability α, as the paper's figure 3. Lines: anchored (α = 0) and "
        f"RAM; level lines: standard, with its band. {basis(summary, found, drawn='bars and bands')}"
    )
    alt = f"{len(measures)} line charts against the mask probability, a line per architecture: " + ", ".join(
        measure.phrase for measure in measures
    )
    return Picture("alpha", figure, alt, caption, hints=hints)


def _against_alpha(
    axes: Axes, points: list[Point], standard: list[Point], style: dict[str, Any], architecture: str, gid: str
) -> None:
    """One architecture in one panel; each point has an id of its own, to rest the pointer on."""
    for k, (_, estimate) in enumerate(standard):
        value, low, high = estimate.interval
        axes.axhspan(low, high, color=style["color"], alpha=0.12, linewidth=0, gid=f"{gid}-{len(points) + k}")
        axes.axhline(value, color=style["color"], linewidth=1, linestyle=(0, (1, 2)), label=f"{architecture}, standard")
    if not points:
        return
    at = [variant.alpha or 0.0 for variant, _ in points]
    values = [estimate.value for _, estimate in points]
    axes.errorbar(at, values, yerr=bars(points), capsize=3, elinewidth=1, label=architecture, **style)
    for k, (x, y) in enumerate(zip(at, values, strict=True)):
        axes.plot([x], [y], color=style["color"], marker=style["marker"], linestyle="", gid=f"{gid}-{k}")


# --- λ ----------------------------------------------------------------------------------------------------------------


def _lines(summary: Summary) -> dict[tuple[str, float], list[Variant]]:
    """(architecture, α) -> its variants by λ, where two or more were measured; without hard-Δ mining λ is 0."""
    found: dict[tuple[str, float], list[Variant]] = {}
    for variant in summary.variants:
        if variant.protocol == "ram" and variant.alpha is not None:
            found.setdefault((variant.architecture, variant.alpha), []).append(variant)
    return {
        key: sorted(group, key=lambda variant: variant.tail_weight or 0.0)
        for key, group in found.items()
        if len(group) > 1 and _trade(summary)
    }


def _trade(summary: Summary) -> tuple[Measure, Measure] | None:
    """Corruption accuracy and AUROC, where both were measured."""
    by = {(measure.metric, measure.corruption): measure for measure in reversed(summary.measures)}
    pair = by.get(("accuracy", MEAN)), by.get(("auroc", ""))
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def tail_weights(summary: Summary) -> Picture:
    """AUROC against corruption accuracy along λ, error bars both ways, as the paper's figure 4b."""
    trade = _trade(summary)
    assert trade is not None
    figure = blank(7.0, 5.0)
    axes = figure.subplots()
    found: list[Estimate | None] = []
    hints: dict[str, str] = {}
    for place, ((architecture, alpha), variants) in enumerate(_lines(summary).items()):
        across, up = (dict(_measured(summary, variants, measure)) for measure in trade)
        points = [(v, across[v], up[v]) for v in variants if v in across and v in up]
        style = _style(place)
        axes.errorbar(
            [x.value for _, x, _ in points],
            [y.value for _, _, y in points],
            xerr=bars([(v, x) for v, x, _ in points]),
            yerr=bars([(v, y) for v, _, y in points]),
            capsize=3,
            elinewidth=1,
            label=f"{architecture}, RAM α={alpha:g}",
            **style,
        )
        for k, (variant, x, y) in enumerate(points):
            gid = f"lambda-{place}-{k}"
            axes.plot([x.value], [y.value], color=style["color"], marker=style["marker"], linestyle="", gid=gid)
            hints[gid] = said(summary, variant, x, y)
            text = f"λ = {variant.tail_weight or 0:g}"
            below, left = k % 2, k % 4 > 1  # neighbours may all but coincide: four corners in turn
            where = (-6 if left else 6, -15 if below else 6)
            side = "right" if left else "left"
            axes.annotate(
                text, (x.value, y.value), where, textcoords="offset points", ha=side, fontsize=9, bbox=OVER_LINES
            )
            found += [x, y]
    axes.set(xlabel=f"{trade[0].title} {trade[0].arrow}", ylabel=f"{trade[1].title} {trade[1].arrow}")
    legend(figure, axes)
    caption = (
        "Rejection of other data against accuracy under corruption along the weight λ of hard-Δ mining, as the paper's "
        f"figure 4b; right and up are better. {basis(summary, found, drawn='bars')}"
    )
    alt = "Line chart of AUROC against corruption accuracy, a point per tail weight λ."
    return Picture("lambda", figure, alt, caption, hints=hints)
