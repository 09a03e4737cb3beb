"""The report: one self-contained page, and its figures and tables as files beside it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from anchored.report import cached, formats, narrative, style
from anchored.report.choice import Choice, choice_figure, choice_tables, find_choices
from anchored.report.comparison import Summary
from anchored.report.decisions import decision_tables, decision_text, promise_figures
from anchored.report.detector_table import detector_tables
from anchored.report.diagnostics import diagnostic_figures
from anchored.report.figures import severity_figures
from anchored.report.paper import paper_tables
from anchored.report.published_figures import published_tables
from anchored.report.radar import radar_figures
from anchored.report.reading import read_summary
from anchored.report.reference_figures import reference_pictures, reference_tables
from anchored.report.style import Picture, SavedPicture
from anchored.report.sweeps import sweep_figures
from anchored.report.table import Table
from anchored.report.tables import result_tables
from anchored.report.templates import template
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
    ("Energy score", "Minus the log-sum-exp of the logits; higher is more out-of-distribution.",
     "Liu et al. 2020", "https://arxiv.org/abs/2010.03759"),
    ("Decisions", "Thresholds, prediction sets and abstention, fitted on held-out images with a bounded error.",
     "Angelopoulos & Bates 2023", "https://arxiv.org/abs/2107.07511"),
    ("AURC, AUGRC", "Area under the share of errors (AUGRC: of all images, wrong and accepted) by images accepted.",
     "Traub et al. 2024", "https://arxiv.org/abs/2407.01032"),
    ("Detector", "An OOD score that reads features, or learns from training images; by pytorch-ood.",
     "Kirchheim et al. 2022", "https://github.com/kkirchheim/pytorch-ood"),
    ("Adaptation", "Accuracy of a linear classifier trained on the frozen features for another task.",
     "Kornblith et al. 2019", "https://arxiv.org/abs/1805.08974"),
    ("Interval over images", "Middle 95 % of the figure over resamples of the test images (bootstrap).",
     "Efron & Tibshirani 1993", "https://doi.org/10.1201/9780429246593"),
    ("Interval over seeds", "Mean over trainings ± the 95 % quantile of Student's t times the standard error.",
     "Student 1908", "https://doi.org/10.1093/biomet/6.1.1"),
)  # fmt: skip
"""Term, one line, citation, address."""


SHOWN = ("detectors", "choice", "paper_")  # starts of the names of tables that the terminal shows after the headline
FIGURES = (
    radar_figures, sweep_figures, severity_figures, promise_figures, diagnostic_figures, reference_pictures,
)  # fmt: skip
FOLDED_DECISIONS = ("decisions_severity", "decisions_detection_rate", "decisions_scod_aurc")
OPEN_READINGS = 4  # with more comparisons in words than this, those of RAM against anchored are folded away


@dataclass(frozen=True)
class Block:
    """Figures and tables under one heading; folded away under the title ``folded`` where there is one."""

    pictures: tuple[SavedPicture, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page."""

    id: str
    title: str
    blocks: tuple[Block, ...]
    text: tuple[str, ...] = ()  # paragraphs above them


def write(folder: StudyFolder) -> Path:
    """Write ``report.html``, ``figures/*.png|pdf`` and ``tables/*.md|tex`` of a study; return the page's path.

    Reads ``results.csv``, ``study.json``, and the outputs and examples that exist; the same folder gives the same
    bytes, and nothing is drawn again where all of it is as it was. Raises ``UserError`` where there are no rows, or
    they are not of one study.
    """
    if cached.current_tables(folder) is not None:
        return folder.report_file
    summary = read_summary(folder)
    choices = list(find_choices(summary))
    with style.drawing():
        drawn = [*draw_pictures(summary), *(choice_figure(choice, number) for number, choice in enumerate(choices))]
        saved = [style.save_picture(picture) for picture in drawn]
    for picture in saved:
        files.write_bytes(folder.figures / f"{picture.name}.png", picture.png)
        files.write_bytes(folder.figures / f"{picture.name}.pdf", picture.pdf)
    tables = all_tables(summary, choices)
    for table in tables:
        files.write_text(folder.tables / f"{table.name}.md", formats.markdown(table))
        files.write_text(folder.tables / f"{table.name}.tex", formats.latex(table))
    files.write_text(folder.report_file, _render(summary, saved, tables))
    cached.keep(
        folder, [table for table in tables if table.name == "headline" or table.name.startswith(SHOWN)], summary.notices
    )
    return folder.report_file


def all_tables(summary: Summary, choices: Sequence[Choice]) -> list[Table]:
    """All tables of a study, the headline first."""
    tables = [*result_tables(summary), *detector_tables(summary), *decision_tables(summary), *choice_tables(choices)]
    return [*tables, *paper_tables(summary), *published_tables(summary), *reference_tables(summary)]


def draw_pictures(summary: Summary) -> Iterator[Picture]:
    """All figures of a study but those of a choice, within ``style.drawing``."""
    for figures in FIGURES:
        yield from figures(summary.drawn)


def _render(summary: Summary, pictures: Sequence[SavedPicture], tables: Sequence[Table]) -> str:
    readings = list(narrative.readings(summary))
    seconds = narrative.training_seconds(summary)
    return template("page.html.jinja").render(
        summary=summary, introduction=list(narrative.what_was_run(summary)),
        missing=list(narrative.missing_parts(summary, [picture.name for picture in pictures])), readings=readings,
        folded=len(readings) > OPEN_READINGS and any(reading.masking for reading in readings),
        caution=narrative.caution(summary), notes=list(narrative.notes(summary)),
        headline=next(table for table in tables if table.name == "headline"),
        sections=[section for section in _sections(summary, pictures, tables) if section.blocks],
        column_groups=formats.column_groups, is_continuation=formats.is_continuation,
        recipe=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True),
        made=[(str(key), str(value)) for key, value in summary.made.items() if value not in ("", None)],
        seconds={name: narrative.duration_text(duration) for name, duration in seconds.items()},
        definitions=DEFINITIONS,
    )  # fmt: skip


def _sections(summary: Summary, pictures: Sequence[SavedPicture], tables: Sequence[Table]) -> Iterator[Section]:
    def named(prefix: str) -> list[str]:
        return [table.name for table in tables if table.name.startswith(prefix)]

    def block(*kinds: str, table: Sequence[str] = (), folded: str = "") -> list[Block]:
        shown = tuple(p for kind in kinds for p in pictures if p.name == kind or p.name.startswith(f"{kind}-"))
        listed = tuple(t for name in table for t in tables if t.name == name)
        return [Block(shown, listed, folded)] if shown or listed else []

    def section(name: str, title: str, *blocks: list[Block], text: Iterable[str] = ()) -> Section:
        return Section(name, title, tuple(block for group in blocks for block in group), tuple(text))

    yield section("paper", "Beside the paper", block(table=named("paper_")))
    yield section("published", "Beside published figures", block(table=named("published_")))
    yield section("radar", "Four aims at once", block("radar"))
    yield section("sweeps", "Along α and λ", block("alpha"), block("lambda"))
    yield section("choice", "Choosing on held-out images", block("choice", table=named("choice")))
    yield section(
        "severity",
        "Under corruption",
        block("severity"),
        block("corruptions-accuracy", table=named("severity_")),
        block("corruptions-smooth_ece", folded="Smooth ECE under each corruption"),
    )
    yield section(
        "ood",
        "Rejecting other data",
        block("scores", table=("ood",)),
        block(table=("detectors",)),
        block(table=("ood_detectors",), folded="Each detector against the headline's score"),
        block(table=("ood_auroc", "ood_fpr95", "ood_aupr"), folded="All scores: AUROC, FPR at 95 % TPR, AUPR"),
    )
    yield section("shifted", "On other images of the same classes", block(table=("shifted",)))
    yield section("adaptation", "Adapting to other tasks", block(table=("adaptation",)))
    yield section(
        "calibration",
        "Calibration",
        block("reliability"),
        block(table=("clean",), folded="All figures on clean test images"),
    )
    folded = [name for name in named("decisions_") if name.startswith(FOLDED_DECISIONS)]
    yield section(
        "decisions",
        "Deciding",
        block("promises"),
        block(table=[name for name in named("decisions_") if name not in (*folded, "decisions_ranking")]),
        block("risk", table=("decisions_ranking",)),
        block(table=folded, folded="By severity, and by out-of-distribution set"),
        text=decision_text(summary),
    )
    yield section(
        "references",
        "References",
        block("references-images"),
        block(table=("references_ways", "references_scores")),
        block("references-sensitivity", table=("references_sensitivity",)),
        block("references-label_free", table=("references_label_free",)),
        block(table=("references_frontier",), folded="Adaptive inference along its confidence"),
    )
    yield section("examples", "What the networks saw", block("examples-corruptions", "examples-ood"))
