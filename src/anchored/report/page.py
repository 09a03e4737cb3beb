"""The report: one self-contained page, and its figures and tables as files beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup
from rich import table as rich_table

from anchored.report import choice, choice_figure, figures, formats, paper, radar, style, sweeps, tables
from anchored.report import diagnostics as panels
from anchored.report import narrative as words
from anchored.report.comparison import Summary, read
from anchored.report.style import Picture
from anchored.report.tables import Table
from anchored.store import files
from anchored.store.layout import StudyFolder

DEFINITIONS: tuple[tuple[str, str, str, str], ...] = (
    ("Anchoring", "The network sees a reference r and the residual x − r instead of the image x alone.",
     "Thiagarajan et al. 2022", "https://arxiv.org/abs/2207.07235"),
    ("RAM", "Reference masking: in training the reference is replaced by zeros with probability α.",
     "Narayanaswamy et al. 2024", "https://arxiv.org/abs/2406.00529"),
    ("Corruptions", "Noise, blur, weather and digital damage at severities 1 (mild) to 5 (harsh).",
     "Hendrycks & Dietterich 2019", "https://arxiv.org/abs/1903.12261"),
    ("Smooth ECE", "Expected gap between confidence and accuracy, smoothed by a kernel, not binned; 0 is calibrated.",
     "Błasiok & Nakkiran 2023", "https://arxiv.org/abs/2309.12236"),
    ("ECE", "The same gap in 15 equal bins of confidence.", "Guo et al. 2017", "https://arxiv.org/abs/1706.04599"),
    ("AUROC", "Probability that an out-of-distribution image gets a higher score than a test image; 50 % is chance.",
     "Hendrycks & Gimpel 2017", "https://arxiv.org/abs/1610.02136"),
    ("FPR at 95 % TPR", "Share of test images flagged when 95 % of the out-of-distribution images are.",
     "Yang et al. 2022", "https://arxiv.org/abs/2210.07242"),
    ("AUPR", "Area under the precision-recall curve, out-of-distribution images being the positives.",
     "Davis & Goadrich 2006", "https://doi.org/10.1145/1143844.1143874"),
    ("Energy score", "Minus the log-sum-exp of the logits; higher is more foreign.",
     "Liu et al. 2020", "https://arxiv.org/abs/2010.03759"),
    ("Adaptation", "Accuracy of a linear classifier trained on the frozen features for another task.",
     "Kornblith et al. 2019", "https://arxiv.org/abs/1805.08974"),
    ("Interval over images", "Middle 95 % of the figure over resamples of the test images (bootstrap).",
     "Efron & Tibshirani 1993", "https://doi.org/10.1201/9780429246593"),
    ("Interval over seeds", "Mean over trainings ± the 95 % quantile of Student's t times the standard error.",
     "Student 1908", "https://doi.org/10.1093/biomet/6.1.1"),
)  # fmt: skip
"""Term, one line, citation, address."""


READINGS = 4
"""Comparisons in words that the page shows openly; beyond, those of RAM against anchored are folded away."""


@dataclass(frozen=True)
class Block:
    """Figures and tables under one heading; folded away where ``folded`` says what they are."""

    pictures: tuple[Picture, ...] = ()
    tables: tuple[Table, ...] = ()
    lead: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]


def write(folder: StudyFolder) -> Path:
    """Write ``report.html``, ``figures/*.png|pdf`` and ``tables/*.md|tex`` of a study, and give the page's path.

    Reads ``results.csv``, ``study.json``, and the outputs and examples that are there; the same folder gives the same
    bytes. Raises ``UserError`` where there are no rows, or they are not of one study.
    """
    summary = read(folder)
    choices = list(choice.of(summary))
    with style.drawing():
        pictures = [*radar.of(summary), *sweeps.of(summary), *figures.of(summary), *panels.of(summary)]
        pictures += [choice_figure.picture(each, place) for place, each in enumerate(choices)]
        for picture in pictures:
            files.write_bytes(folder.figures / f"{picture.name}.png", style.png(picture.figure))
            files.write_bytes(folder.figures / f"{picture.name}.pdf", style.pdf(picture.figure))
        made = [*tables.of(summary), *choice.tables(choices), *paper.tables(summary)]
        for table in made:
            files.write_text(folder.tables / f"{table.name}.md", formats.markdown(table))
            files.write_text(folder.tables / f"{table.name}.tex", formats.latex(table))
        page = render(summary, pictures, made)
    files.write_text(folder.report_file, page)
    return folder.report_file


def terminal(folder: StudyFolder, width: int) -> list[rich_table.Table]:
    """The headline and what stands beside the paper, for a terminal of ``width`` columns. Raises as ``write`` does."""
    summary = read(folder)
    shown = (tables.headline(summary), *choice.tables(list(choice.of(summary))), *paper.tables(summary))
    return [part for each in shown for part in formats.terminal(each, width)]


def render(summary: Summary, pictures: Sequence[Picture], made: Sequence[Table]) -> str:
    """The page as HTML; every name is escaped. Call it within ``style.drawing()``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("anchored", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    readings = list(words.readings(summary))
    return environment.get_template("page.html.jinja").render(
        summary=summary,
        said=list(words.what_was_run(summary)),
        missing=list(words.missing(summary, [picture.name for picture in pictures])),
        readings=readings,
        folded=len(readings) > READINGS and any(reading.masking for reading in readings),
        caution=words.caution(summary),
        notes=list(words.notes(summary)),
        headline=next(table for table in made if table.name == "headline"),
        sections=[section for section in _sections(pictures, made) if section.blocks],
        groups=formats.groups,
        continues=formats.continues,
        recipe=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True),
        made=_made(summary),
        seconds={name: words.duration(spent) for name, spent in words.seconds(summary).items()},
        definitions=DEFINITIONS,
    )


def _inline(picture: Picture) -> Markup:
    """The picture as an element that needs nothing from elsewhere."""
    label = Markup.escape(picture.alt)
    if picture.vector:
        drawn = style.svg(picture)
        return Markup(drawn.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))
    data = base64.b64encode(style.png(picture.figure)).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(picture.alt, data)


def _made(summary: Summary) -> list[tuple[str, str]]:
    """What is known on how the study was run, without empty entries."""
    return [(str(key), str(value)) for key, value in summary.made.items() if value not in ("", None)]


def _sections(pictures: Sequence[Picture], made: Sequence[Table]) -> Iterator[Section]:
    def block(*kinds: str, table: Sequence[str] = (), lead: str = "", folded: str = "") -> list[Block]:
        shown = tuple(picture for kind in kinds for picture in figures.names(pictures, kind))
        found = tuple(t for name in table for t in made if t.name == name)
        return [Block(shown, found, lead, folded)] if shown or found else []

    def section(name: str, title: str, *blocks: list[Block]) -> Section:
        return Section(name, title, tuple(found for each in blocks for found in each))

    listed = [table.name for table in made]
    yield section("paper", "Beside the paper", block(table=[name for name in listed if name.startswith("paper_")]))
    yield section("radar", "Four aims at once", block("radar"))
    yield section("sweeps", "Along α and λ", block("alpha"), block("lambda"))
    of_choice = [name for name in listed if name.startswith("choice")]
    yield section("choice", "Choosing on held-out images", block("choice", table=of_choice))
    yield section(
        "severity",
        "Under corruption",
        block("severity"),
        block("corruptions-accuracy", table=[name for name in listed if name.startswith("severity_")]),
        block("corruptions-smooth_ece", folded="Smooth ECE under each corruption"),
    )
    yield section(
        "ood",
        "Rejecting other data",
        block("scores", table=("ood",)),
        block(table=("ood_auroc", "ood_fpr95", "ood_aupr"), folded="All scores: AUROC, FPR at 95 % TPR, AUPR"),
    )
    yield section("adaptation", "Adapting to other tasks", block(table=("adaptation",)))
    yield section(
        "calibration",
        "Calibration",
        block("reliability"),
        block(table=("clean",), folded="All figures on clean test images"),
    )
    yield section("examples", "What the networks saw", block("examples-corruptions", "examples-ood"))
