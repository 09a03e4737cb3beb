"""The radar of the four aims, each relative to the standard network, as figure 4a of the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from anchored.metrics.intervals import Interval
from anchored.report.comparison import MEAN, Measure, Summary, Variant
from anchored.report.figures import legend, suffix
from anchored.report.style import OVER_LINES, Picture, blank, mark
from anchored.report.tables import counted, images

Ratios = dict[Variant, list[Interval]]  # each variant over standard, one per axis; NaN ends where there is no interval

AXES = {
    ("accuracy", MEAN): "Corruption\naccuracy",
    ("smooth_ece", MEAN): "Calibration\n(1 − smooth\nECE)",
    ("linear_probe_accuracy", ""): "Adaptation\naccuracy",
    ("auroc", ""): "OOD\nAUROC",
}
"""(metric, corruption) of a headline figure -> its axis."""

BESIDE = math.radians(5)
"""Between the error bars of two variants on one axis."""

WIDEST = (0.5, 1.5)
"""Error bars are cut there."""


def of(summary: Summary) -> Iterator[Picture]:
    """One radar per architecture that has a standard network, another one, and at least three of the four aims."""
    for architecture in summary.architectures:
        aims = aims_of(summary)
        ratios = _ratios(summary, architecture, [measure for _, measure in aims])
        if len(aims) >= 3 and ratios:
            yield _radar(summary, architecture, aims, ratios)


def aims_of(summary: Summary) -> list[tuple[str, Measure]]:
    """The axes that were measured."""
    found = {(measure.metric, measure.corruption): measure for measure in reversed(summary.measures)}  # C before C̄
    return [(name, found[key]) for key, name in AXES.items() if key in found]


def _ratios(summary: Summary, architecture: str, measures: list[Measure]) -> Ratios:
    """The variants that have every aim, and standard among them."""
    ratios = {
        v: [_ratio(summary, v, m) for m in measures] for v in summary.of(architecture) if v.protocol != "standard"
    }
    return {v: [r for r in each if r is not None] for v, each in ratios.items() if None not in each}


def _ratio(summary: Summary, variant: Variant, measure: Measure) -> Interval | None:
    """A variant over standard, on the seeds they share; calibration as 1 − smooth ECE.

    Its ends are those of the paired difference, over standard's mean.
    """
    change = summary.change(variant, measure)
    if change is None:
        return None
    rises = (change.after - change.before, change.low, change.high)
    before = change.before
    if measure.metric == "smooth_ece":
        before, rises = 1 - before, (-rises[0], -rises[2], -rises[1])
    return Interval(*(1 + rise / before for rise in rises)) if before > 0 else None


def _radar(summary: Summary, architecture: str, aims: list[tuple[str, Measure]], ratios: Ratios) -> Picture:
    figure = blank(7.0, 5.6)
    axes: Any = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * i / len(aims) for i in range(len(aims) + 1)]
    standard = next(v for v in summary.of(architecture) if v.protocol == "standard")
    axes.plot(angles, [1.0] * len(angles), label=f"{standard.title} (= 1)", **mark(summary, standard).line())
    names = [name.partition("\n(")[0].replace("\n", " ") for name, _ in aims]
    hints: dict[str, str] = {}
    for place, (variant, each) in enumerate(ratios.items()):
        line, values = mark(summary, variant), [ratio.value for ratio in each]
        axes.plot(angles, [*values, values[0]], label=variant.title, **line.line())
        axes.fill(angles, [*values, values[0]], color=line.color, alpha=0.08)
        beside = BESIDE * (place - (len(ratios) - 1) / 2)  # bars on one axis would hide each other
        for k, (angle, name, ratio) in enumerate(zip(angles, names, each, strict=False)):
            hint, gid = f"{variant.title}: {name} {ratio.value:.3f} times standard's", f"radar-{place}-{k}"
            if bar := _bar(ratio):
                axes.plot([angle + beside] * 2, bar, color=line.color, linewidth=1, marker="_", markersize=4)
                hint += f" ({ratio.low:.3f} to {ratio.high:.3f})"
            axes.plot([angle], [ratio.value], color=line.color, marker=line.marker, linestyle="", gid=gid)
            hints[gid] = f"{hint}, {counted(summary.seeds, 'seed')}"
    centre, rings = _rings(ratios)
    axes.set(theta_offset=math.pi / 2, theta_direction=-1, ylim=(centre, rings[-1]))
    _label(axes, angles, [name for name, _ in aims], rings)
    legend(figure, axes)
    estimates = [summary.measured(v, m) for v in (standard, *ratios) for _, m in aims]
    drawn = [ratio for each in ratios.values() for ratio in each if _bar(ratio)]
    cut = f", cut at {WIDEST[0]} and {WIDEST[1]}" * any(_bar(ratio) != list(ratio[1:]) for ratio in drawn)
    bars = f"Bars: 95 % interval of the paired difference to standard, over standard's mean{cut}. " * bool(drawn)
    caption = (
        f"{architecture}, each aim relative to standard (= 1; outwards is better), as in the paper's figure 4a. "
        f"Calibration is 1 − smooth ECE under corruption. The centre is {centre:.2f}, not 0. {bars}"
        f"{images(estimates)} test images; {counted(summary.seeds, 'seed')}."
    )
    said = [
        f"{v.title}: {', '.join(f'{n} {r.value:.2f}' for n, r in zip(names, ratios[v], strict=True))}." for v in ratios
    ]
    alt = f"Radar of {architecture}, relative to standard. {' '.join(said)}"
    return Picture(f"radar{suffix(summary, architecture)}", figure, alt, caption, hints=hints)


def _label(axes: Any, angles: list[float], names: list[str], rings: list[float]) -> None:
    """Names around the circle, growing away from it, and the rings' values over the lines."""
    axes.set_xticks(angles[:-1], names)
    axes.tick_params(axis="x", pad=12)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=False):
        side = round(math.sin(angle), 3)
        text.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.set_yticks(rings, [""] * len(rings))
    places = max(len(f"{ring:.4g}".partition(".")[2]) for ring in rings)
    for ring in rings:
        axes.text(
            angles[1] / 2, ring, f"{ring:.{places}f}", fontsize=8.5, ha="center", va="center", bbox=OVER_LINES, zorder=6
        )


def _bar(ratio: Interval) -> list[float]:
    """From where to where the error bar is drawn, if there is an interval: two seeds' may leave any radar."""
    low, high = min(ratio.value, WIDEST[0]), max(ratio.value, WIDEST[1])
    return [] if math.isnan(ratio.low) else [max(ratio.low, low), min(ratio.high, high)]


def _rings(ratios: Ratios) -> tuple[float, list[float]]:
    """The centre, and round rings that hold all values and 1, one step of room in the middle."""
    values = [1.0, *(value for each in ratios.values() for ratio in each for value in (ratio.value, *_bar(ratio)))]
    low, high = min(values), max(values)
    span = max(high - low, 0.02)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if span / s <= 4), span / 4)
    centre = max(0.0, (math.floor(low / step + 1e-9) - 1) * step)
    count = math.ceil((high - centre) / step - 1e-9)
    return centre, [round(centre + step * (i + 1), 10) for i in range(count)]
