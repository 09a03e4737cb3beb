"""Figures along α and λ, as the paper's figures 3 and 4b: measures against α, and the trade-off along λ."""

from collections.abc import Iterator
from dataclasses import replace

from matplotlib.axes import Axes

from anchored.report import style as styles
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Measure, Summary, Variant
from anchored.report.figures import axis_title
from anchored.report.style import LineStyle, Picture, architecture_style, blank_figure, error_bars, legend, panel_grid
from anchored.report.tables import estimate_cell, interval_note, number_list, sample_sizes

Point = tuple[Variant, Estimate]


def sweep_figures(summary: Summary) -> Iterator[Picture]:
    """The sweeps that the study has: two or more values of α, or two or more of λ at one α."""
    if any(sum(v.protocol == "ram" for v in _alpha_sweep(summary, name)) > 1 for name in summary.architectures):
        yield alpha_figure(summary)
    if (trade_off := _trade_off(summary)) and (lines := _lambda_sweeps(summary)):
        yield lambda_figure(summary, lines, trade_off)


def point_hint(summary: Summary, variant: Variant, *estimates: Estimate) -> str:
    """The tooltip of a point."""
    cells = [(axis_title(e.rows[0].metric), estimate_cell(summary, e)) for e in estimates]
    values = ", ".join(f"{name} {cell.text} ({cell.interval})" for name, cell in cells)
    seeds = number_list(estimates[0].seeds, "seed")
    return f"{variant.architecture}, {variant.title}: {values}; {sample_sizes(estimates)}, {seeds}"


def _measured(summary: Summary, variants: list[Variant], measure: Measure) -> list[Point]:
    points = [(variant, summary.measured(variant, measure)) for variant in variants]
    return [(variant, estimate) for variant, estimate in points if estimate is not None and not estimate.mixed]


def _alpha_sweep(summary: Summary, architecture: str) -> list[Variant]:
    """Anchored (α = 0), then RAM by α; without hard Δ mining."""
    return [v for v in summary.of(architecture) if v.protocol in ("anchored", "ram") and v.tail_weight is None]


def alpha_figure(summary: Summary) -> Picture:
    """Every measure of the headline against α: a line with error bars per architecture, standard as a band."""
    measures = summary.measures
    figure, panels = panel_grid(len(measures), 2.7)
    plotted = list[Estimate | None]()
    hints: dict[str, str] = {}
    ticks = sorted({v.alpha or 0.0 for a in summary.architectures for v in _alpha_sweep(summary, a)})
    for i, (axes, measure) in enumerate(zip(panels, measures, strict=True)):
        for j, architecture in enumerate(summary.architectures):
            points = _measured(summary, _alpha_sweep(summary, architecture), measure)
            standard = _measured(summary, [v for v in summary.of(architecture) if v.protocol == "standard"], measure)
            _plot_alphas(axes, points, standard, architecture_style(j), architecture, f"alpha-{i}-{j}")
            shown = [*points, *standard]
            hints |= {f"alpha-{i}-{j}-{k}": point_hint(summary, *point) for k, point in enumerate(shown)}
            plotted += [estimate for _, estimate in shown]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=35 if len(ticks) > 4 else 0)
        axes.set(title=f"{measure.title} {measure.arrow}", xlabel="Mask probability α (0: no masks)")
    legend(figure, panels[0])
    caption = (
        "Figures of the headline against the mask probability α, as the paper's figure 3. Lines: anchored (α = 0) and "
        f"RAM; level lines: standard, with its band. {interval_note(summary, plotted, 'bars and bands')}"
    )
    alt = f"{len(measures)} line charts against the mask probability, a line per architecture: " + ", ".join(
        measure.phrase for measure in measures
    )
    return Picture("alpha", figure, alt, caption, hints=hints)


def _plot_alphas(
    axes: Axes, points: list[Point], standard: list[Point], style: LineStyle, architecture: str, gid: str
) -> None:
    """One architecture in one panel; each point has an id for its tooltip."""
    for k, (_, estimate) in enumerate(standard):
        value, low, high = estimate.interval
        axes.axhspan(low, high, color=style.color, alpha=0.12, linewidth=0, gid=f"{gid}-{len(points) + k}")
        axes.axhline(value, color=style.color, linewidth=1, linestyle=(0, (1, 2)), label=f"{architecture}, standard")
    if not points:
        return
    alphas = [variant.alpha or 0.0 for variant, _ in points]
    estimates = [estimate for _, estimate in points]
    values = [estimate.value for estimate in estimates]
    bars = error_bars(estimates)
    axes.errorbar(alphas, values, yerr=bars, capsize=3, elinewidth=1, label=architecture, **style.line())
    for k, (x, y) in enumerate(zip(alphas, values, strict=True)):
        axes.plot([x], [y], gid=f"{gid}-{k}", **style.point())


def _lambda_sweeps(summary: Summary) -> list[list[Variant]]:
    """The variants of each architecture and α by λ, where there are two or more; without hard Δ mining λ is 0."""
    groups: dict[tuple[str, float], list[Variant]] = {}
    for variant in summary.variants:  # by λ within each α
        if variant.protocol == "ram" and variant.alpha is not None:
            groups.setdefault((variant.architecture, variant.alpha), []).append(variant)
    return [group for group in groups.values() if len(group) > 1]


def _trade_off(summary: Summary) -> tuple[Measure, Measure] | None:
    """Corruption accuracy and AUROC, where both were measured."""
    measures = {(measure.metric, measure.corruption): measure for measure in reversed(summary.measures)}
    pair = measures.get(("accuracy", MEAN)), measures.get(("auroc", ""))
    return (pair[0], pair[1]) if pair[0] and pair[1] else None


def lambda_figure(summary: Summary, lines: list[list[Variant]], trade_off: tuple[Measure, Measure]) -> Picture:
    """AUROC against corruption accuracy along λ, with error bars both ways, as the paper's figure 4b."""
    figure = blank_figure(7.0, 5.0)
    axes = figure.subplots()
    plotted = list[Estimate | None]()
    hints: dict[str, str] = {}
    for i, variants in enumerate(lines):
        across, up = (dict(_measured(summary, variants, measure)) for measure in trade_off)
        points = [(v, across[v], up[v]) for v in variants if v in across and v in up]
        xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
        every = replace(variants[0], tail_weight=None)
        style, label = architecture_style(i), f"{every.architecture}, {every.title}"
        axes.errorbar(
            [x.value for x in xs], [y.value for y in ys], xerr=error_bars(xs), yerr=error_bars(ys), capsize=3,
            elinewidth=1, label=label, **style.line(),
        )  # fmt: skip
        for k, (variant, x, y) in enumerate(points):
            gid = f"lambda-{i}-{k}"
            axes.plot([x.value], [y.value], gid=gid, **style.point())
            hints[gid] = point_hint(summary, variant, x, y)
            below, left = k % 2, k % 4 > 1  # neighbours may nearly coincide: four corners in turn
            axes.annotate(
                f"λ = {variant.tail_weight or 0:g}", (x.value, y.value), (-6 if left else 6, -15 if below else 6),
                textcoords="offset points", ha="right" if left else "left", fontsize=9, bbox=styles.OVER_LINES,
            )  # fmt: skip
            plotted += [x, y]
    axes.set(xlabel=f"{trade_off[0].title} {trade_off[0].arrow}", ylabel=f"{trade_off[1].title} {trade_off[1].arrow}")
    legend(figure, axes)
    caption = (
        "Rejection of other data against accuracy under corruption along the weight λ of hard Δ mining, as the paper's "
        f"figure 4b; right and up are better. {interval_note(summary, plotted, 'bars')}"
    )
    alt = "Line chart of AUROC against corruption accuracy, a point per tail weight λ."
    return Picture("lambda", figure, alt, caption, hints=hints)
