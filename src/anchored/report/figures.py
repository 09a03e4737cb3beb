"""Figures from rows over severity: the mean over corruptions, and one small panel per corruption."""

import math
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Family, Summary
from anchored.report.style import WIDTH, Picture, blank_figure, curve, legend, variant_style
from anchored.report.tables import display_name, interval_note

CURVES = ("accuracy", "smooth_ece")
MIN_SPAN = {"accuracy": 8.0, "smooth_ece": 0.08}
"""Least height of a small panel's vertical scale, so that noise does not look like a difference."""


def architecture_suffix(summary: Summary, architecture: str) -> str:
    """Distinguishes the files of several architectures."""
    if len(summary.architectures) == 1:
        return ""
    slug = "".join(sign if sign.isalnum() and sign.isascii() else "-" for sign in architecture.lower()).strip("-")
    return f"-{summary.architectures.index(architecture)}-{slug or 'x'}"


def axis_title(metric: str) -> str:
    """A metric with its unit: ``Accuracy (%)``."""
    return METRICS[metric].title + " (%)" * METRICS[metric].percent


def plot_severities(
    axes: Axes, summary: Summary, family: Family, architecture: str, metric: str, corruption: str, clean: str = "clean"
) -> list[Estimate | None]:
    """Plot each variant's clean estimate, then one per severity; the estimates."""
    places = [0.0, *map(float, family.severities)]
    axes.set_xticks(places, [clean, *map(str, family.severities)])
    axes.set_xlim(-0.25, places[-1] + 0.25)
    plotted = list[Estimate | None]()
    for variant in summary.of(architecture):
        estimates = [
            summary.get(variant, metric, summary.trained_on),
            *(
                summary.get(variant, metric, family.dataset, severity=s, corruption=corruption)
                for s in family.severities
            ),
        ]
        curve(axes, variant_style(summary, variant), places, estimates, variant.title)
        plotted += estimates
    return plotted


def severity_figure(summary: Summary, family: Family, architecture: str) -> Picture:
    """Accuracy and smooth ECE over severity, mean over corruptions, with bands."""
    figure = blank_figure(WIDTH, 4.0)
    panels = figure.subplots(1, 2)
    plotted = list[Estimate | None]()
    for axes, metric in zip(panels, CURVES, strict=True):
        plotted += plot_severities(axes, summary, family, architecture, metric, MEAN)
        better = "higher" if METRICS[metric].higher_is_better else "lower"
        title = f"{METRICS[metric].title} ({better} is better)"
        axes.set(xlabel="Corruption severity", ylabel=axis_title(metric), title=title)
    legend(figure, panels[0])
    mean = f"mean over {len(family.corruptions)} corruptions" if len(family.corruptions) > 1 else "one corruption"
    caption = f"{architecture} on {family.dataset}, {mean} at each severity. {interval_note(summary, plotted, 'bands')}"
    if len(family.severities) == 1:
        caption += " Only one severity was measured."
    alt = (
        f"Two line charts of {architecture}: accuracy and smooth ECE against corruption severity, a line per training."
    )
    return Picture(f"severity{family.suffix}{architecture_suffix(summary, architecture)}", figure, alt, caption)


def corruptions_figure(summary: Summary, family: Family, architecture: str, metric: str) -> Picture:
    """One small panel per corruption, each with its own vertical scale of at least ``MIN_SPAN``."""
    names = family.corruptions
    columns = min(5, len(names)) if len(names) != 6 else 3
    rows = math.ceil(len(names) / columns)
    figure = blank_figure(WIDTH, 0.7 + 2.05 * rows)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    plotted = list[Estimate | None]()
    for axes, name in zip(panels.flat, names, strict=False):
        plotted += plot_severities(axes, summary, family, architecture, metric, name, clean="0")
        (low, high), least = axes.get_ylim(), MIN_SPAN[metric]
        if high - low < least:
            axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
        axes.set_title(display_name(name))
        axes.tick_params(labelsize=8.5)
    _hide_rest(panels, len(names))
    figure.supxlabel("Corruption severity (0: clean)", fontsize=10)
    figure.supylabel(axis_title(metric), fontsize=10)
    legend(figure, panels[0, 0])
    title = METRICS[metric].title[0].lower() + METRICS[metric].title[1:]
    caption = (
        f"{architecture} on {family.dataset}, {title} under each corruption; the vertical scales differ. "
        f"{interval_note(summary, plotted, 'bands')}"
    )
    alt = f"{len(names)} small line charts of {architecture}: {title} against severity, one per corruption."
    suffix = f"{family.suffix}{architecture_suffix(summary, architecture)}"
    return Picture(f"corruptions-{metric}{suffix}", figure, alt, caption)


def _hide_rest(panels: np.ndarray[tuple[int, ...], np.dtype[np.object_]], used: int) -> None:
    """Hide empty panels; the panels above them get the tick labels."""
    columns = panels.shape[1]
    for i in range(used, panels.size):
        panels.flat[i].set_visible(False)
        if i >= columns:
            panels.flat[i - columns].xaxis.set_tick_params(labelbottom=True)


def severity_figures(summary: Summary) -> Iterator[Picture]:
    """The curves of every architecture, where corruptions were measured."""
    for architecture in summary.architectures:
        for family in summary.families:
            if family.severities:
                yield severity_figure(summary, family, architecture)
            if family.corruptions:
                yield from (corruptions_figure(summary, family, architecture, metric) for metric in CURVES)
