"""The figure of a choice: what held-out training images say of each candidate against what the test says."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchored.report.choice import Choice
from anchored.report.comparison import Variant
from anchored.report.figures import legend
from anchored.report.style import WIDTH, Picture, blank, mark
from anchored.report.sweeps import bars, said
from anchored.report.tables import basis


def picture(choice: Choice, place: int = 0) -> Picture:
    """One panel per aim and one of the mean error; filled: on the Pareto front, ringed: picked."""
    panels_needed = len(choice.test.aims) + 1
    columns = min(3, panels_needed)
    lines = math.ceil(panels_needed / columns)
    figure = blank(WIDTH, 0.9 + 3.0 * lines)
    panels = figure.subplots(lines, columns, squeeze=False)
    hints: dict[str, str] = {}
    pairs = list(zip(choice.held_out.aims, choice.test.aims, strict=True))
    for i, (axes, pair) in enumerate(zip(panels.flat, pairs, strict=False)):
        for k, variant in enumerate(choice.shown):
            across = choice.held_out.summary.measured(variant, pair[0])
            up = choice.test.summary.measured(variant, pair[1])
            assert across is not None
            assert up is not None
            gid = f"choice-{place}-{i}-{k}"
            spread = {"xerr": bars([(variant, across)]), "yerr": bars([(variant, up)])}
            axes.errorbar(
                [across.value], [up.value], **spread, color=mark(choice.test.summary, variant).color, fmt="none",
                elinewidth=1, capsize=2,
            )  # fmt: skip
            _point(axes, choice, variant, across.value, up.value, gid)
            texts = [said(half.summary, variant, e) for half, e in ((choice.held_out, across), (choice.test, up))]
            hints[gid] = f"held-out: {texts[0]}; test: {texts[1].partition(': ')[2]}"
        axes.set(title=f"{pair[1].title} {pair[1].arrow}")
    last = panels.flat[len(pairs)]
    for k, variant in enumerate(choice.shown):
        x, y = (choice.mean_error(half, variant) for half in (choice.held_out, choice.test))
        gid = f"choice-{place}-{len(pairs)}-{k}"
        _point(last, choice, variant, x, y, gid)
        hints[gid] = f"{variant.title}: mean error {x:.3f} held-out, {y:.3f} on test"
    last.set(title="Geometric mean of the errors ↓")
    for axes in panels.flat[:panels_needed]:
        axes.set(xlabel="Held-out training images", ylabel="Test")
        axes.locator_params(nbins=5)
    for axes in panels.flat[panels_needed:]:
        axes.set_visible(False)
    legend(figure, panels[0, 0])
    return _named(choice, place, figure, hints)


def _point(axes: Axes, choice: Choice, variant: Variant, x: float, y: float, gid: str) -> None:
    style = mark(choice.test.summary, variant)
    if variant == choice.picked:
        axes.plot([x], [y], marker="o", markersize=15, markerfacecolor="none", color=style.color, linestyle="")
    fill = style.color if choice.front[variant] else "white"
    axes.plot(
        [x], [y], marker=style.marker, markersize=7, color=style.color, markerfacecolor=fill, linestyle="", gid=gid,
        label=f"{variant.title}{' (picked)' * (variant == choice.picked)}", zorder=4,
    )  # fmt: skip


def _named(choice: Choice, place: int, figure: Figure, hints: dict[str, str]) -> Picture:
    estimates = [each for half in (choice.held_out, choice.test) for v in choice.shown for each in half.estimates(v)]
    architecture = choice.candidates[0].architecture
    caption = (
        f"{architecture}: each training's figures on test images against those on held-out training images, which "
        "alone choose. Filled: on the Pareto front of the held-out figures; hollow: not; ringed: picked. Corruptions "
        "and outliers of the two differ, so that the order counts, not the diagonal. "
        f"{basis(choice.test.summary, estimates, drawn='bars')}"
    )
    picked = "none" if choice.picked is None else choice.name(choice.picked)
    alt = f"Scatter plots of test against held-out figures of {architecture}, a point per training; picked: {picked}."
    return Picture(f"choice{f'-{place}' if place else ''}", figure, alt, caption, hints=hints)
