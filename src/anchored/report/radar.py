"""The radar of the four aims, each relative to the standard network, as figure 4a of the paper."""

import math
from collections.abc import Iterator
from typing import Any

from anchored.metrics.intervals import Interval
from anchored.report.comparison import MEAN, Measure, Summary, Variant
from anchored.report.figures import architecture_suffix
from anchored.report.style import OVER_LINES, Picture, blank_figure, legend, variant_style
from anchored.report.tables import number_list, sample_sizes

Ratios = dict[Variant, list[Interval]]  # each variant over standard, one per axis; NaN ends where there is no interval

AXES = {
    ("accuracy", MEAN): "Corruption\naccuracy",
    ("smooth_ece", MEAN): "Calibration\n(1 − smooth\nECE)",
    ("linear_probe_accuracy", ""): "Adaptation\naccuracy",
    ("auroc", ""): "OOD\nAUROC",
}
"""(metric, corruption) of a measure -> the name of its axis."""

BAR_OFFSET = math.radians(5)  # angle between the error bars of two variants on one axis
BAR_LIMITS = (0.5, 1.5)  # error bars are cut at these ratios


def radar_figures(summary: Summary) -> Iterator[Picture]:
    """One radar per architecture that has a base, another network, and at least three of the four aims.

    Given models are in that of the first architecture, with whose base they are compared.
    """
    for architecture in summary.architectures:
        aims = measured_aims(summary)
        if (base := summary.base(summary.of(architecture)[0])) is None:
            continue
        variants = [each for each in summary.of(architecture) if each != base and summary.base(each) == base]
        found = {v: [ratio for _, measure in aims if (ratio := _ratio(summary, v, measure))] for v in variants}
        ratios = {v: each for v, each in found.items() if len(each) == len(aims)}  # of those that have every aim
        if len(aims) >= 3 and ratios:
            yield _radar(summary, architecture, base, aims, ratios)


def measured_aims(summary: Summary) -> list[tuple[str, Measure]]:
    """The axes that were measured, with their measures."""
    measures = {(m.metric, m.corruption): m for m in reversed(summary.measures)}  # C takes precedence over C̄
    aims = [(name, measures[key]) for key, name in AXES.items() if key in measures]
    # Of far and near AUROC the first, far, has an axis; it says so.
    return [(name if m.metric != "auroc" else m.title.partition(",")[0].replace(" ", "\n"), m) for name, m in aims]


def _ratio(summary: Summary, variant: Variant, measure: Measure) -> Interval | None:
    """A variant over its base, on the seeds they share; calibration as 1 − smooth ECE. Its ends are those of the paired
    difference, over the base's mean."""
    difference = summary.difference(variant, measure)
    if difference is None:
        return None
    before, rises = difference.before, (difference.after - difference.before, difference.low, difference.high)
    if measure.metric == "smooth_ece":
        before, rises = 1 - before, (-rises[0], -rises[2], -rises[1])
    return Interval(*(1 + rise / before for rise in rises)) if before > 0 else None


def _radar(
    summary: Summary, architecture: str, base: Variant, aims: list[tuple[str, Measure]], ratios: Ratios
) -> Picture:
    figure = blank_figure(7.0, 5.6)
    axes: Any = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * i / len(aims) for i in range(len(aims) + 1)]
    axes.plot(angles, [1.0] * len(angles), label=f"{base.title} (= 1)", **variant_style(summary, base).line())
    names = [name.partition("\n(")[0].replace("\n", " ") for name, _ in aims]
    hints: dict[str, str] = {}
    for i, (variant, row) in enumerate(ratios.items()):
        style, values = variant_style(summary, variant), [ratio.value for ratio in row]
        axes.plot(angles, [*values, values[0]], label=variant.title, **style.line())
        axes.fill(angles, [*values, values[0]], color=style.color, alpha=0.08)
        offset = BAR_OFFSET * (i - (len(ratios) - 1) / 2)  # bars on one axis would hide each other
        for k, (angle, name, ratio) in enumerate(zip(angles, names, row, strict=False)):
            hint, gid = f"{variant.title}: {name} {ratio.value:.3f} times {base.phrase}'s", f"radar-{i}-{k}"
            if bar := _bar(ratio):
                axes.plot([angle + offset] * 2, bar, color=style.color, linewidth=1, marker="_", markersize=4)
                hint += f" ({ratio.low:.3f} to {ratio.high:.3f})"
            axes.plot([angle], [ratio.value], gid=gid, **style.point())
            hints[gid] = f"{hint}, {number_list(summary.seeds, 'seed')}"
    centre, rings = _rings(ratios)
    axes.set(theta_offset=math.pi / 2, theta_direction=-1, ylim=(centre, rings[-1]))
    _label(axes, angles, [name for name, _ in aims], rings)
    legend(figure, axes)
    estimates = [summary.measured(v, m) for v in (base, *ratios) for _, m in aims]
    drawn = [ratio for row in ratios.values() for ratio in row if _bar(ratio)]
    cut = f", cut at {BAR_LIMITS[0]} and {BAR_LIMITS[1]}" * any(_bar(ratio) != list(ratio[1:]) for ratio in drawn)
    bars = f"Bars: 95 % interval of the paired difference to {base.phrase}, over {base.phrase}'s mean{cut}. "
    caption = (
        f"{architecture}, each aim relative to {base.phrase} (= 1; outwards is better), as in the paper's figure 4a. "
        f"Calibration is 1 − smooth ECE under corruption. The centre is {centre:.2f}, not 0. {bars * bool(drawn)}"
        f"{sample_sizes(estimates)} test images; {number_list(summary.seeds, 'seed')}."
    )
    values_text = [
        f"{v.title}: {', '.join(f'{n} {r.value:.2f}' for n, r in zip(names, row, strict=True))}."
        for v, row in ratios.items()
    ]
    alt = f"Radar of {architecture}, relative to {base.phrase}. {' '.join(values_text)}"
    return Picture(f"radar{architecture_suffix(summary, architecture)}", figure, alt, caption, hints=hints)


def _label(axes: Any, angles: list[float], names: list[str], rings: list[float]) -> None:
    axes.set_xticks(angles[:-1], names)
    axes.tick_params(axis="x", pad=12)
    for text, angle in zip(axes.get_xticklabels(), angles, strict=False):
        side = round(math.sin(angle), 3)
        text.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
    axes.set_yticks(rings, [""] * len(rings))
    decimals = max(len(f"{ring:.4g}".partition(".")[2]) for ring in rings)
    place = {"fontsize": 8.5, "ha": "center", "va": "center", "zorder": 6}
    for ring in rings:
        axes.text(angles[1] / 2, ring, f"{ring:.{decimals}f}", bbox=OVER_LINES, **place)


def _bar(ratio: Interval) -> list[float]:
    """The ends of the error bar, cut at ``BAR_LIMITS`` (two seeds give very wide ones); empty without an interval."""
    low, high = min(ratio.value, BAR_LIMITS[0]), max(ratio.value, BAR_LIMITS[1])
    return [] if math.isnan(ratio.low) else [max(ratio.low, low), min(ratio.high, high)]


def _rings(ratios: Ratios) -> tuple[float, list[float]]:
    """The centre's value, and those of the rings: round numbers that enclose all ratios and 1."""
    values = [1.0, *(value for row in ratios.values() for ratio in row for value in (ratio.value, *_bar(ratio)))]
    low, high = min(values), max(values)
    span = max(high - low, 0.02)
    step = next((s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10) if span / s <= 4), span / 4)
    centre = max(0.0, (math.floor(low / step + 1e-9) - 1) * step)
    count = math.ceil((high - centre) / step - 1e-9)
    return centre, [round(centre + step * (i + 1), 10) for i in range(count)]
