"""How figures look, and how they become bytes: the same study gives the same bytes."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from anchored.report.aggregate import Estimate
from anchored.report.comparison import Summary, Variant

INK, FAINT = "#1a1a1a", "#d9d9d9"
WIDTH = 10.0  # inches: the page's column
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe & Ito 2008
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.facecolor": "white",
    "text.parse_math": False,  # a name with dollar signs is a name
    "pdf.fonttype": 42,  # fonts embedded whole, text stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "anchored",
}

OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
"""The box of a text that lines may run behind."""


@dataclass(frozen=True)
class Picture:
    """A figure with its words: what it shows (alt text) and how it was made (caption)."""

    name: str
    figure: Figure
    alt: str
    caption: str
    vector: bool = True  # drawn on the page as SVG; pixels else
    hints: dict[str, str] = field(default_factory=dict)  # id of an artist -> what the page says when pointed at


@dataclass(frozen=True)
class Mark:
    """How one variant is drawn everywhere."""

    color: str
    linestyle: str
    marker: str

    def line(self) -> dict[str, Any]:
        """Arguments of a line."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}


def mark(summary: Summary, variant: Variant) -> Mark:
    """The variant's colour, line and marker: by its place within its architecture."""
    place = summary.of(variant.architecture).index(variant)
    again = place // len(COLOURS)  # the colours come round: with another line and another marker
    return Mark(
        COLOURS[place % len(COLOURS)],
        LINES[(place + 2 * again) % len(LINES)],
        MARKERS[(place + again) % len(MARKERS)],
    )


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings for the time of drawing and saving; the user's own are back afterwards."""
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams  # its keys are typed one by one
        settings.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script we have no letters for
        yield


def blank(width: float, height: float) -> Figure:
    """An empty figure, inches; no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def curve(axes: Axes, mark: Mark, x: list[float], estimates: list[Estimate | None], label: str) -> None:
    """A line through the figures there are, with its interval as a band."""
    points = [(at, e.interval) for at, e in zip(x, estimates, strict=True) if e is not None and not e.mixed]
    if not points:
        return
    at = [place for place, _ in points]
    axes.fill_between(
        at, [i.low for _, i in points], [i.high for _, i in points], color=mark.color, alpha=0.15, linewidth=0
    )
    axes.plot(at, [i.value for _, i in points], label=label, **mark.line())


def png(figure: Figure) -> bytes:
    """PNG bytes at 160 dots an inch, no date."""
    return _saved(figure, "png", dpi=160, metadata={"Software": None})


def pdf(figure: Figure) -> bytes:
    """PDF bytes with embedded fonts, no date."""
    return _saved(figure, "pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})


def svg(picture: Picture) -> str:
    """An ``<svg>`` element for a page: text as text, ids made unique by the picture's name, nothing from elsewhere."""
    figure, name = picture.figure, picture.name
    text = _saved(figure, "svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    for part, hint in picture.hints.items():
        text = text.replace(f'<g id="{part}">', f'<g id="{part}"><title>{html.escape(hint)}</title>', 1)
    text = re.sub(r'\b(id|href)="(#?)', rf'\1="\g<2>{name}-', text).replace("url(#", f"url(#{name}-")
    width = math.ceil(figure.get_figwidth() * 100)
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" width="{width}">', text, count=1)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)
    figure.set_layout_engine("none")  # the layout stands: the next format need not find it again
    return stream.getvalue()
