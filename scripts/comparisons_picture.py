"""Draw a study of methods: what each reaches alone, anchored, with RAM, and with RAM and hard Δ mining."""

from __future__ import annotations

import io
from collections.abc import Collection

from claims_page import FIGURES
from comparisons_page import WAYS, Comparison

from anchored.config.methods import PLAIN, method_title
from anchored.metrics.intervals import Interval, over_seeds
from anchored.metrics.registry import METRICS
from anchored.report import style

PANELS = ("clean accuracy", "corruption accuracy", "corruption smooth ECE")


def draw(study: Comparison) -> bytes:
    """A PNG: a panel a figure, a row a method, the most accurate under corruption on top, a mark a way of training that
    has all seeds."""
    methods = sorted(study.best, key=study.best.__getitem__)
    with style.drawing():
        figure = style.blank_figure(style.WIDTH, 1.0 + 0.4 * len(methods))
        figure.set_layout_engine("constrained")
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, name in zip(panels, PANELS, strict=True):
            metric = METRICS[FIGURES[name].metric]
            for place, (way, title) in enumerate(WAYS.items()):
                found = {i: values for i, m in enumerate(methods) if (values := study.whole(m, way, name))}
                spans = [_span(values.values()) for values in found.values()]
                axes.errorbar(
                    [span.value for span in spans],
                    [i + 0.2 * (1.5 - place) for i in found],
                    xerr=[[span.value - span.low for span in spans], [span.high - span.value for span in spans]],
                    **{"ms": 4.5, "lw": 1.4, "label": title, **style.place_style(place).point()},
                )
            axes.set_title(f"{name}{', %' * metric.percent} {'↑' if metric.higher_is_better else '↓'}")
            axes.set_yticks(range(len(methods)), [method_title(method or PLAIN) for method in methods])
            axes.set_ylim(-0.5, len(methods) - 0.5)
            axes.grid(visible=False, axis="y")
            for i in range(1, len(methods)):
                axes.axhline(i - 0.5, color=style.FAINT, lw=0.6)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(WAYS))
        written = io.BytesIO()
        figure.savefig(written, format="png", dpi=130, metadata={"Software": None})
    return written.getvalue()


def _span(values: Collection[float]) -> Interval:
    """Mean and interval over seeds; of one value, itself."""
    return over_seeds([*values]) if len(values) > 1 else Interval(*[*values] * 3)
