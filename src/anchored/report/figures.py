"""Figures from rows: the radar of the four aims, curves over severity, small multiples per corruption."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchored.metrics import METRICS
from anchored.report.style import WIDTH, Picture, blank, curve, mark
from anchored.report.summary import MEAN, Estimate, Measure, Summary, Variant
from anchored.report.tables import basis, counted, pretty

CURVES = ("accuracy", "smooth_ece")


def slug(text: str) -> str:
    """A name as part of a file's name: letters, digits and dashes."""
    return "".join(sign if sign.isalnum() and sign.isascii() else "-" for sign in text.lower()).strip("-") or "x"


def suffix(summary: Summary, architecture: str) -> str:
    """Tells the files of several architectures apart."""
    if len(summary.architectures) == 1:
        return ""
    return f"-{summary.architectures.index(architecture)}-{slug(architecture)}"


def axis_title(metric: str) -> str:
    """A metric with its unit: ``Accuracy (%)``."""
    return METRICS[metric].title + " (%)" * METRICS[metric].percent


# --- Radar --------------------------------------------------------------------------------------------------------------


def _radar_axes(summary: Summary) -> list[tuple[str, Measure]]:
    """The axes of figure 4a that were measured, with short names."""
    names = {
        ("accuracy", MEAN): "Corruption\naccuracy",
        ("smooth_ece", MEAN): "Calibration\n(1 − smooth\nECE)",
        ("linear_probe_accuracy", ""): "Adaptation\naccuracy",
        ("auroc", ""): "OOD\nAUROC",
    }
    found = {(measure.metric, measure.corruption): measure for measure in summary.measures}
    return [(name, found[key]) for key, name in names.items() if key in found]


def _ratio(summary: Summary, variant: Variant, measure: Measure) -> float | None:
    """A variant over standard, on the seeds they share; calibration as 1 − smooth ECE."""
    change = summary.change(variant, measure)
    if change is None:
        return None
    pair = [change.after, change.before]
    after, before = [1 - value for value in pair] if measure.metric == "smooth_ece" else pair
    return after / before if before > 0 else None


def radar(summary: Summary, architecture: str) -> Picture | None:
    """Each variant relative to standard (= 1) on the four aims, as figure 4a of the paper; None below three axes."""
    axes_of, variants = _radar_axes(summary), summary.of(architecture)
    lines = {v: [_ratio(summary, v, m) for _, m in axes_of] for v in variants if v.protocol != "standard"}
    whole = {v: [r for r in ratios if r is not None] for v, ratios in lines.items() if None not in ratios}
    if len(axes_of) < 3 or not whole or all(v.protocol != "standard" for v in variants):
        return None
    values = [ratio for ratios in whole.values() for ratio in ratios]
    low, step, rings = _rings(min(1.0, *values), max(1.0, *values))
    figure = blank(7.0, 5.8)
    axes = figure.add_subplot(projection="polar")
    angles = [2 * math.pi * i / len(axes_of) for i in range(len(axes_of) + 1)]
    standard = next(v for v in variants if v.protocol == "standard")
    axes.plot(angles, [1.0] * len(angles), label=f"{standard.title} (= 1)", **mark(summary, standard).line())
    for variant, ratios in whole.items():
        line = mark(summary, variant)
        axes.plot(angles, [*ratios, ratios[0]], label=variant.title, **line.line())
        axes.fill(angles, [*ratios, ratios[0]], color=line.color, alpha=0.08)
    axes.set(theta_offset=math.pi / 2, theta_direction=-1, xticks=angles[:-1], ylim=(low, rings[-1]))
    axes.set_xticklabels([name for name, _ in axes_of])
    axes.tick_params(axis="x", pad=18)
    axes.set_yticks(rings, [f"{ring:.{2 if step < 0.1 else 1}f}" for ring in rings], fontsize=8.5)
    for text in axes.get_yticklabels():
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
    axes.set_rlabel_position(180 / len(axes_of))
    _legend(figure, axes)
    estimates = [summary.measured(v, m) for v in variants for _, m in axes_of]
    alt = f"Radar of {architecture}: " + "; ".join(
        f"{v.title} " + ", ".join(f"{m.phrase} {r:.2f}" for (_, m), r in zip(axes_of, ratios, strict=True))
        for v, ratios in whole.items()
    )
    caption = (
        f"{architecture}, each aim relative to the standard network (= 1; outwards is better), as figure 4a of the paper. "
        f"Calibration is 1 − smooth ECE under corruption. The centre is {low:.2f}, not zero. No intervals are drawn: "
        "see the table for what is clear. "
        f"{basis(summary, estimates).split(';')[0]}; {counted(summary.seeds, 'seed')}."
    )
    return Picture(f"radar{suffix(summary, architecture)}", figure, alt, caption)


def _rings(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round rings that hold all values with some room in the middle: centre, step, ring values."""
    span = max(high - low, 0.02)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, math.inf) if span / s <= 4)
    if math.isinf(step):
        step = span / 4
    first = max(0.0, (math.floor(low / step + 1e-9) - 1) * step)
    count = math.ceil((high - first) / step - 1e-9)
    return first, step, [round(first + step * (i + 1), 10) for i in range(count)]


# --- Severity -----------------------------------------------------------------------------------------------------------


def _over_severity(summary: Summary, variant: Variant, metric: str, corruption: str) -> list[Estimate | None]:
    """The clean figure, then one per severity."""
    clean = summary.get(variant, metric, summary.trained_on)
    return [
        clean,
        *(
            summary.get(variant, metric, summary.corrupted, severity=severity, corruption=corruption)
            for severity in summary.severities
        ),
    ]


def _severity_axis(summary: Summary, axes: Axes) -> list[float]:
    places = [0.0, *map(float, summary.severities)]
    axes.set_xticks(places, ["clean", *map(str, summary.severities)])
    axes.set_xlim(-0.25, places[-1] + 0.25)
    return places


def severity(summary: Summary, architecture: str) -> Picture:
    """Accuracy and smooth ECE over severity, mean over corruptions, with bands."""
    figure = blank(WIDTH, 4.0)
    panels = figure.subplots(1, 2)
    found: list[Estimate | None] = []
    for axes, metric in zip(panels, CURVES, strict=True):
        places = _severity_axis(summary, axes)
        for variant in summary.of(architecture):
            estimates = _over_severity(summary, variant, metric, MEAN)
            curve(axes, mark(summary, variant), places, estimates, variant.title)
            found += estimates
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        axes.set(
            xlabel="Corruption severity",
            ylabel=axis_title(metric),
            title=f"{METRICS[metric].title} ({better} is better)",
        )
    _legend(figure, panels[0])
    said = f"mean over {len(summary.corruptions)} corruptions" if len(summary.corruptions) > 1 else "one corruption"
    caption = f"{architecture} on {summary.corrupted}, {said} at each severity; bands are the 95 % intervals. {basis(summary, found)}"
    if len(summary.severities) == 1:
        caption += " Only one severity was measured."
    alt = f"Two line charts of {architecture}, accuracy and smooth ECE against corruption severity, one line per training."
    return Picture(f"severity{suffix(summary, architecture)}", figure, alt, caption)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(5, len(labels)))


def corruptions(summary: Summary, architecture: str, metric: str) -> Picture:
    """One small panel per corruption, the same axes everywhere."""
    names = summary.corruptions
    columns = min(5, len(names)) if len(names) != 6 else 3
    lines = math.ceil(len(names) / columns)
    figure = blank(WIDTH, 0.7 + 2.05 * lines)
    panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    found: list[Estimate | None] = []
    for axes, name in zip(panels.flat, names, strict=False):
        places = _severity_axis(summary, axes)
        for variant in summary.of(architecture):
            estimates = _over_severity(summary, variant, metric, name)
            curve(axes, mark(summary, variant), places, estimates, variant.title)
            found += estimates
        axes.set_title(pretty(name))
        axes.tick_params(labelsize=8.5)
        axes.set_xticks(places, ["0", *map(str, summary.severities)])
    _hide_rest(panels, len(names))
    figure.supxlabel("Corruption severity (0: clean)", fontsize=10)
    figure.supylabel(axis_title(metric), fontsize=10)
    _legend(figure, panels[0, 0])
    what = METRICS[metric].title[0].lower() + METRICS[metric].title[1:]
    caption = f"{architecture}, {what} under each corruption; bands are the 95 % intervals. {basis(summary, found)}"
    alt = f"{len(names)} small line charts of {architecture}: {METRICS[metric].title} against severity for each corruption."
    return Picture(f"corruptions-{metric}{suffix(summary, architecture)}", figure, alt, caption)


def _hide_rest(panels: np.ndarray[tuple[int, ...], np.dtype[np.object_]], used: int) -> None:
    """Remove empty panels; the panels above them get the tick labels."""
    columns = panels.shape[1]
    for i in range(used, panels.size):
        panels.flat[i].set_visible(False)
        if i >= columns:
            panels.flat[i - columns].xaxis.set_tick_params(labelbottom=True)


def of(summary: Summary) -> Iterator[Picture]:
    """The figures made from rows alone."""
    for architecture in summary.architectures:
        shown = radar(summary, architecture)
        if shown is not None:
            yield shown
        if summary.severities:
            yield severity(summary, architecture)
        if summary.corruptions:
            for metric in CURVES:
                yield corruptions(summary, architecture, metric)


def names(pictures: Sequence[Picture], prefix: str) -> list[Picture]:
    """The pictures of one kind."""
    return [picture for picture in pictures if picture.name == prefix or picture.name.startswith(f"{prefix}-")]
