"""The figure of a choice: each candidate on held-out training images against the same candidate on test images."""

from matplotlib.axes import Axes

from anchored.report.aggregate import Estimate
from anchored.report.choice import Choice
from anchored.report.comparison import Variant
from anchored.report.style import Picture, error_bars, legend, panel_grid, variant_style
from anchored.report.sweeps import point_hint
from anchored.report.tables import interval_note


def choice_figure(choice: Choice, number: int = 0) -> Picture:
    """One panel per aim and one for the mean error; filled: on the Pareto front, ringed: picked."""
    aims = list(zip(choice.held_out.aims, choice.test.aims, strict=True))
    figure, panels = panel_grid(len(aims) + 1, 3.0, extra=0.9)
    held_out, test = choice.held_out.summary, choice.test.summary
    plotted = list[Estimate | None]()
    hints: dict[str, str] = {}
    for k, variant in enumerate(choice.shown):
        for i, (axes, (held_out_aim, test_aim)) in enumerate(zip(panels, aims, strict=False)):
            x, y = held_out.measured(variant, held_out_aim), test.measured(variant, test_aim)
            assert x is not None
            assert y is not None
            gid, color = f"choice-{number}-{i}-{k}", variant_style(test, variant).color
            axes.errorbar(
                [x.value], [y.value], xerr=error_bars([x]), yerr=error_bars([y]), color=color, fmt="none",
                elinewidth=1, capsize=2,
            )  # fmt: skip
            _plot_point(axes, choice, variant, x.value, y.value, gid)
            texts = point_hint(held_out, variant, x), point_hint(test, variant, y).partition(": ")[2]
            hints[gid] = f"held-out: {texts[0]}; test: {texts[1]}"
            axes.set(title=f"{test_aim.title} {test_aim.arrow}")
        (across, up), gid = (
            (choice.mean_error(half, variant) for half in choice.halves),
            f"choice-{number}-{len(aims)}-{k}",
        )
        _plot_point(panels[-1], choice, variant, across, up, gid)
        hints[gid] = f"{variant.title}: mean error {across:.3f} held-out, {up:.3f} on test"
        plotted += [estimate for half in choice.halves for estimate in half.estimates(variant)]
    panels[-1].set(title="Geometric mean of the errors ↓")
    for axes in panels:
        axes.set(xlabel="Held-out training images", ylabel="Test")
        axes.locator_params(nbins=5)
    legend(figure, panels[0])
    architecture = choice.candidates[0].architecture
    caption = (
        f"{architecture}: each training on test images against the same on held-out training images, which alone "
        "decide the choice. Filled: on the Pareto front of the held-out images; hollow: not; ringed: picked. The two "
        "differ in their corruptions and outliers, so compare the order of the points, not their distance from the "
        f"diagonal. {interval_note(test, plotted, 'bars')}"
    )
    picked = "none" if choice.picked is None else choice.name(choice.picked)
    alt = f"Scatter plots of test against held-out figures of {architecture}, a point per training; picked: {picked}."
    return Picture(f"choice{f'-{number}' if number else ''}", figure, alt, caption, hints=hints)


def _plot_point(axes: Axes, choice: Choice, variant: Variant, x: float, y: float, gid: str) -> None:
    style, picked = variant_style(choice.test.summary, variant), variant == choice.picked
    if picked:
        axes.plot([x], [y], marker="o", markersize=15, markerfacecolor="none", color=style.color, linestyle="")
    fill = style.color if choice.front[variant] else "white"
    label = f"{variant.title}{' (picked)' * picked}"
    axes.plot([x], [y], markersize=7, markerfacecolor=fill, gid=gid, label=label, zorder=4, **style.point())
