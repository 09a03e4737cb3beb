"""How figures look and how they are saved; the same study gives the same bytes."""

import base64
import html
import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from fontTools.subset import Options
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from anchored.report.aggregate import Estimate
from anchored.report.comparison import Summary, Variant

INK, FAINT = "#1a1a1a", "#d9d9d9"
WIDTH = 10.0  # inches: the page's column
NEUTRAL = "#9a9a9a"
_COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe & Ito 2008
_LINESTYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif", "font.size": 10, "axes.titlesize": 10.5, "axes.labelsize": 10,
    "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same glyphs everywhere
    "axes.titley": 1.0,  # a fixed place: finding a free one takes a fifth of the drawing
    "axes.edgecolor": "#666666", "axes.labelcolor": INK, "text.color": INK, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
    "grid.color": FAINT, "grid.linewidth": 0.6, "legend.frameon": False, "lines.linewidth": 1.8,
    "lines.markersize": 5.5, "figure.facecolor": "white",
    "text.parse_math": False,  # dollar signs in names are text
    "pdf.fonttype": 42,  # TrueType: text stays text, as publishers ask
    "svg.fonttype": "none", "svg.hashsalt": "anchored",
}  # fmt: skip

OVER_LINES = {"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85}
"""The box behind text that may lie over lines."""


@dataclass(frozen=True)
class Picture:
    """A figure with its alternative text and its caption."""

    name: str
    figure: Figure
    alt: str
    caption: str
    vector: bool = True  # shown on the page as SVG, otherwise as PNG
    hints: dict[str, str] = field(default_factory=dict)  # id of an artist -> its tooltip on the page


@dataclass(frozen=True)
class SavedPicture:
    """A picture in every format that the report needs."""

    name: str
    caption: str
    png: bytes
    pdf: bytes
    html: Markup  # an element that loads nothing from elsewhere


@dataclass(frozen=True)
class LineStyle:
    """How one variant, or one architecture, is drawn in every figure."""

    color: str
    linestyle: str
    marker: str

    def line(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for a line with markers."""
        return {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}

    def point(self) -> dict[str, Any]:
        """Keyword arguments of ``Axes.plot`` for markers alone."""
        return {"color": self.color, "linestyle": "", "marker": self.marker}


def architecture_style(i: int) -> LineStyle:
    """The style of the i-th architecture where a line is an architecture; black is kept for the standard network."""
    return LineStyle(
        _COLOURS[(2, 5, 3, 4, 1, 6)[i % 6]], _LINESTYLES[i % len(_LINESTYLES)], _MARKERS[i % (len(_MARKERS) - 1)]
    )


def variant_style(summary: Summary, variant: Variant) -> LineStyle:
    """The variant's style, by its place among those it is shown beside; a given model's is the same in all figures."""
    if variant in summary.given:
        most = max(len(summary.of(each)) for each in summary.architectures)
        return place_style(most - len(summary.given) + summary.given.index(variant))
    return place_style(summary.beside(variant).index(variant))


def place_style(i: int) -> LineStyle:
    """The style of the i-th of what is shown together; when colours repeat, line and marker differ."""
    repeat = i // len(_COLOURS)
    return LineStyle(
        _COLOURS[i % len(_COLOURS)],
        _LINESTYLES[(i + 2 * repeat) % len(_LINESTYLES)],
        _MARKERS[(i + repeat) % len(_MARKERS)],
    )


@contextmanager
def drawing() -> Iterator[None]:
    """Use the report's matplotlib settings; the caller's own are restored afterwards."""
    with mpl.rc_context(), warnings.catch_warnings(), _slim_fonts():
        mpl.rcdefaults()
        settings: Any = mpl.rcParams  # its keys are typed one by one
        settings.update(_SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # names in scripts that the font lacks
        yield


@contextmanager
def _slim_fonts() -> Iterator[None]:
    """Leave out of the fonts in PDFs what places glyphs, which is done by then: most of the time of embedding one."""
    dropped = Options._drop_tables_default
    Options._drop_tables_default = [*dropped, "GDEF", "GPOS", "GSUB", "MATH"]
    try:
        yield
    finally:
        Options._drop_tables_default = dropped


def blank_figure(width: float, height: float) -> Figure:
    """An empty figure (inches) outside pyplot's global state."""
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def panel_grid(panels: int, height: float, extra: float = 0.7) -> tuple[Figure, list[Axes]]:
    """A figure with ``panels`` axes, up to three a row of ``height`` inches, and ``extra`` inches for the legend."""
    columns = min(3, panels)
    rows = math.ceil(panels / columns)
    figure = blank_figure(WIDTH, extra + height * rows)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[panels:]:
        unused.set_visible(False)
    return figure, axes[:panels]


def legend(figure: Figure, axes: Axes) -> None:
    """Show the labels of ``axes`` above the whole figure."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(5 if figure.get_figwidth() >= WIDTH else 3, len(labels))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def curve(axes: Axes, style: LineStyle, x: list[float], estimates: list[Estimate | None], label: str) -> None:
    """Plot the estimates that exist as a line, with their intervals as a band."""
    points = [(at, e.interval) for at, e in zip(x, estimates, strict=True) if e is not None and not e.mixed]
    if not points:
        return
    at = [place for place, _ in points]
    low, high = [i.low for _, i in points], [i.high for _, i in points]
    axes.fill_between(at, low, high, color=style.color, alpha=0.15, linewidth=0)
    axes.plot(at, [i.value for _, i in points], label=label, **style.line())


def error_bars(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Lengths of error bars below and above, as ``Axes.errorbar`` takes them."""
    ends = [estimate.interval for estimate in estimates]
    return [[max(0.0, i.value - i.low) for i in ends], [max(0.0, i.high - i.value) for i in ends]]


def save_picture(picture: Picture) -> SavedPicture:
    """Lay the figure out once and save it as PNG (160 dots per inch), PDF (embedded fonts) and HTML, without dates."""
    for axis in (axis for axes in picture.figure.axes for axis in (axes.xaxis, axes.yaxis)):
        if not axis.get_label_text():
            axis.set_label_coords(0, 0)  # finding a place for no label takes a tenth of the drawing
    ConstrainedLayoutEngine().execute(picture.figure)  # an engine of the figure's own would draw twice for each format
    png = _saved(picture.figure, "png", dpi=160, metadata={"Software": None})
    pdf = _saved(picture.figure, "pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None})
    if picture.vector:
        label = Markup.escape(picture.alt)
        element = Markup(_svg(picture).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
    else:
        data = base64.b64encode(png).decode()
        element = Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.alt, data)
    return SavedPicture(picture.name, picture.caption, png, pdf, element)


def _svg(picture: Picture) -> str:
    """An ``<svg>`` element: text as text, ids made unique by the picture's name, nothing loaded from elsewhere."""
    name, metadata = picture.name, dict.fromkeys(("Date", "Creator", "Format", "Type"))
    text = _saved(picture.figure, "svg", metadata=metadata).decode()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href=", "href=")
    for part, hint in picture.hints.items():
        text = text.replace(f'<g id="{part}">', f'<g id="{part}"><title>{html.escape(hint)}</title>', 1)
    text = re.sub(r'\b(id|href)="(#?)', rf'\1="\g<2>{name}-', text).replace("url(#", f"url(#{name}-")
    width = math.ceil(picture.figure.get_figwidth() * 100)
    return re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', rf'<svg viewBox="\1" width="{width}">', text, count=1)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=kind, **options)
    return stream.getvalue()
