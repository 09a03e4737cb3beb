"""Figures from rows over severity: the mean over corruptions, and small multiples per corruption."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Family, Summary, Variant
from anchored.report.style import WIDTH, Picture, blank, curve, mark
from anchored.report.tables import basis, pretty

CURVES = ("accuracy", "smooth_ece")
SPANS = {"accuracy": 8.0, "smooth_ece": 0.08}
"""Least height of a small panel, so that noise does not look like a difference."""


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


def _over_severity(
    summary: Summary, family: Family, variant: Variant, metric: str, corruption: str
) -> list[Estimate | None]:
    """The clean figure, then one per severity."""
    clean = summary.get(variant, metric, summary.trained_on)
    return [
        clean,
        *(
            summary.get(variant, metric, family.dataset, severity=severity, corruption=corruption)
            for severity in family.severities
        ),
    ]


def _severity_axis(family: Family, axes: Axes) -> list[float]:
    places = [0.0, *map(float, family.severities)]
    axes.set_xticks(places, ["clean", *map(str, family.severities)])
    axes.set_xlim(-0.25, places[-1] + 0.25)
    return places


def severity(summary: Summary, family: Family, architecture: str) -> Picture:
    """Accuracy and smooth ECE over severity, mean over corruptions, with bands."""
    figure = blank(WIDTH, 4.0)
    panels = figure.subplots(1, 2)
    found: list[Estimate | None] = []
    for axes, metric in zip(panels, CURVES, strict=True):
        places = _severity_axis(family, axes)
        for variant in summary.of(architecture):
            estimates = _over_severity(summary, family, variant, metric, MEAN)
            curve(axes, mark(summary, variant), places, estimates, variant.title)
            found += estimates
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        axes.set(
            xlabel="Corruption severity",
            ylabel=axis_title(metric),
            title=f"{METRICS[metric].title} ({better} is better)",
        )
    legend(figure, panels[0])
    said = f"mean over {len(family.corruptions)} corruptions" if len(family.corruptions) > 1 else "one corruption"
    caption = f"{architecture} on {family.dataset}, {said} at each severity. {basis(summary, found, drawn='bands')}"
    if len(family.severities) == 1:
        caption += " Only one severity was measured."
    alt = (
        f"Two line charts of {architecture}: accuracy and smooth ECE against corruption severity, a line per training."
    )
    return Picture(f"severity{family.suffix}{suffix(summary, architecture)}", figure, alt, caption)


def legend(figure: Figure, axes: Axes) -> None:
    """The lines' names above the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(5 if figure.get_figwidth() >= WIDTH else 3, len(labels))
    )


def corruptions(summary: Summary, family: Family, architecture: str, metric: str) -> Picture:
    """One small panel per corruption, each with its own vertical scale of at least ``SPANS``."""
    names = family.corruptions
    columns = min(5, len(names)) if len(names) != 6 else 3
    lines = math.ceil(len(names) / columns)
    figure = blank(WIDTH, 0.7 + 2.05 * lines)
    panels = figure.subplots(lines, columns, sharex=True, squeeze=False)
    found: list[Estimate | None] = []
    for axes, name in zip(panels.flat, names, strict=False):
        places = _severity_axis(family, axes)
        for variant in summary.of(architecture):
            estimates = _over_severity(summary, family, variant, metric, name)
            curve(axes, mark(summary, variant), places, estimates, variant.title)
            found += estimates
        _widen(axes, SPANS[metric])
        axes.set_title(pretty(name))
        axes.tick_params(labelsize=8.5)
        axes.set_xticks(places, ["0", *map(str, family.severities)])
    _hide_rest(panels, len(names))
    figure.supxlabel("Corruption severity (0: clean)", fontsize=10)
    figure.supylabel(axis_title(metric), fontsize=10)
    legend(figure, panels[0, 0])
    what = METRICS[metric].title[0].lower() + METRICS[metric].title[1:]
    caption = (
        f"{architecture} on {family.dataset}, {what} under each corruption; mind the vertical scales. "
        f"{basis(summary, found, drawn='bands')}"
    )
    alt = f"{len(names)} small line charts of {architecture}: {what} against severity, one per corruption."
    return Picture(f"corruptions-{metric}{family.suffix}{suffix(summary, architecture)}", figure, alt, caption)


def _widen(axes: Axes, least: float) -> None:
    """Grow the vertical scale around its middle to at least ``least``."""
    low, high = axes.get_ylim()
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def _hide_rest(panels: np.ndarray[tuple[int, ...], np.dtype[np.object_]], used: int) -> None:
    """Remove empty panels; the panels above them get the tick labels."""
    columns = panels.shape[1]
    for i in range(used, panels.size):
        panels.flat[i].set_visible(False)
        if i >= columns:
            panels.flat[i - columns].xaxis.set_tick_params(labelbottom=True)


def of(summary: Summary) -> Iterator[Picture]:
    """Curves of every architecture, where corruptions were measured."""
    for architecture in summary.architectures:
        for family in summary.families:
            if family.severities:
                yield severity(summary, family, architecture)
            if family.corruptions:
                for metric in CURVES:
                    yield corruptions(summary, family, architecture, metric)


def names(pictures: Sequence[Picture], prefix: str) -> list[Picture]:
    """The pictures of one kind."""
    return [picture for picture in pictures if picture.name == prefix or picture.name.startswith(f"{prefix}-")]
