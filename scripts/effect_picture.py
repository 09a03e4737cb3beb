"""Draw the README's picture, accuracy and calibration along severity, from rows that are kept in docs/explanation.

    python scripts/effect_picture.py        # docs/assets/effect.png

The rows are kept by ``scripts/results_page.py``: five seeds of each training, means over 18 corruptions.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot

from anchored.metrics.intervals import over_seeds
from anchored.report.style import place_style
from anchored.store.rows import Row, read_rows

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROWS, PICTURE = DOCS / "explanation" / "results.csv", DOCS / "assets" / "effect.png"
TITLES = {
    ("standard", None): "Standard",
    ("anchored", None): "Anchored",
    ("ram", None): "RAM, masks in a quarter of the steps",
    ("ram", 0.1): "RAM and hard Δ mining, λ = 0.1",
}
PANELS = {"accuracy": "Accuracy under corruption, % (higher is better)", "smooth_ece": "Smooth ECE (lower is better)"}


def kept(rows: list[Row]) -> list[Row]:
    """The rows that the picture is made of: means over corruptions by severity, and clean images as severity 0."""
    return [
        row for row in rows if row.metric in PANELS and (_is_clean(row) or (row.corruption == "mean" and row.severity))
    ]


def _is_clean(row: Row) -> bool:
    return row.dataset == row.trained_on and not row.corruption


def draw(rows: list[Row], path: Path) -> None:
    """One panel a metric, one line a training with its 95 % interval over seeds."""
    values: dict[tuple[str, str, float | None, int], list[float]] = defaultdict(list)
    for row in rows:
        values[row.metric, row.protocol, row.tail_weight, row.severity or 0].append(row.value)
    with mpl.rc_context({"font.family": "DejaVu Sans", "font.size": 10, "text.parse_math": False}):
        figure, panels = pyplot.subplots(1, len(PANELS), figsize=(10, 3.7), layout="constrained")
        for axes, (metric, title) in zip(panels, PANELS.items(), strict=True):
            for place, ((protocol, weight), name) in enumerate(TITLES.items()):
                found = [over_seeds(values[metric, protocol, weight, severity]) for severity in range(6)]
                means = [(each.low + each.high) / 2 for each in found]
                half = [(each.high - each.low) / 2 for each in found]
                x = [severity + 0.06 * (place - 1.5) for severity in range(6)]
                look = place_style(place)
                axes.errorbar(
                    x, means, half, color=look.color, marker=look.marker, label=name, capsize=2, lw=1.6, ms=4.5
                )
            axes.set_title(title, fontsize=10.5)
            axes.set_xticks(range(6), ["clean", *map(str, range(1, 6))])
            axes.set_xlabel("severity, mean over 18 corruptions")
            axes.grid(color="#d9d9d9", lw=0.6)
            axes.spines[["top", "right"]].set_visible(False)
        panels[0].legend(frameon=False, loc="lower left")
        figure.savefig(path, dpi=130, metadata={"Software": None})
        pyplot.close(figure)


if __name__ == "__main__":
    draw(read_rows(ROWS), PICTURE)
    print(PICTURE)
