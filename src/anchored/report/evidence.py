"""The evidence file: what a review asks of accuracy, robustness and uncertainty figures, from the rows of a study.

Questions are those that Article 15 of the EU AI Act (Regulation (EU) 2024/1689) and the function MEASURE of the NIST AI
Risk Management Framework (AI 100-1) raise and that figures of a classifier can speak to; what else they raise is listed
as not measured. Nothing here judges: the file states figures, how they were made and what they do not show.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anchored.data.readers.files import file_hash
from anchored.report import formats, narrative
from anchored.report.comparison import Summary
from anchored.report.decisions import decision_tables, decision_text
from anchored.report.detector_table import detector_tables
from anchored.report.reading import read_summary
from anchored.report.table import Table
from anchored.report.tables import result_tables
from anchored.report.templates import template
from anchored.store import files
from anchored.store.layout import StudyFolder


@dataclass(frozen=True)
class Question:
    """What a review asks, where it is written, and which tables of the report speak to it."""

    id: str
    title: str
    asked: str  # in our words
    places: str
    tables: tuple[str, ...]  # their names, or starts of names that end with _
    otherwise: str  # how it would be measured, where it was not


QUESTIONS = (
    Question(
        "accuracy", "Accuracy, and on what", "Which levels of accuracy, by which metrics, are declared?",
        "Article 15(1), 15(3); MEASURE 2.3, 2.5", ("headline", "clean"), "",
    ),
    Question(
        "robustness", "Robustness to faults of the input",
        "How does performance hold when inputs have errors, faults or inconsistencies, as noise, blur or weather make?",
        "Article 15(4); MEASURE 2.5, 2.6", ("severity_",), "name corruptions: --evaluate.corruptions '[c]'",
    ),
    Question(
        "uncertainty", "Uncertainty, and what is decided by it",
        "Does stated confidence match the share of right answers, and does the system fail safely where it is unsure?",
        "Article 15(1), 15(4); MEASURE 2.5, 2.6", ("decisions_",),
        "hold out images: --data.validation 0.1, or --evaluate.held_out NAME",
    ),
    Question(
        "limits", "Beyond its knowledge",
        "What does the system do with inputs that are none of its classes?",
        "Article 15(4); MEASURE 2.6", ("ood", "detectors"), "name sets of other images: --evaluate.ood '[NAME, ...]'",
    ),
)  # fmt: skip

UNMEASURED = (
    ("Adversarial examples and model evasion", "Article 15(5); MEASURE 2.7"),
    ("Poisoned data, tampered pre-trained parts, attacks on confidentiality", "Article 15(5); MEASURE 2.7, 2.10"),
    ("Differences between groups of persons", "MEASURE 2.11"),
    ("Feedback loops of systems that learn after they are put to use", "Article 15(4)"),
    ("Performance in use, and how it is watched", "MEASURE 2.4"),
    ("The system around the classifier: sensors, people, fall-backs, redundancy", "Article 15(4); MEASURE 2.2, 2.6"),
    ("Explanation of single answers; privacy; use of energy", "MEASURE 2.9, 2.10, 2.12"),
)  # fmt: skip
"""What figures of a classifier on sets of images cannot say, and where it is asked for."""


def write_evidence(folder: StudyFolder) -> Path:
    """Write ``evidence.html`` of a study: one page, offline, to be read or printed; return its path.

    The same folder gives the same bytes. ``UserError`` where there are no rows, or they are not of one study.
    """
    summary = read_summary(folder)
    tables = [*result_tables(summary), *detector_tables(summary), *decision_tables(summary)]
    answers = [(question, _answering(question, tables)) for question in QUESTIONS]
    page = template("evidence.html.jinja").render(
        summary=summary, answers=answers, introduction=list(narrative.what_was_run(summary)),
        decided=list(decision_text(summary)), limits=list(_limits(summary)), unmeasured=UNMEASURED,
        made=[(str(key), str(value)) for key, value in summary.made.items() if value not in ("", None)],
        hashes=list(_hashes(folder)), column_groups=formats.column_groups, is_continuation=formats.is_continuation,
    )  # fmt: skip
    files.write_text(folder.evidence_file, page)
    return folder.evidence_file


def _answering(question: Question, tables: Sequence[Table]) -> list[Table]:
    groups = tuple(name for name in question.tables if name.endswith("_"))
    return [table for table in tables if table.name in question.tables or table.name.startswith(groups)]


def _limits(summary: Summary) -> Iterator[str]:
    """What the figures do not show, a sentence each."""
    yield (
        f"Figures are of images as those of {summary.trained_on}: what other cameras, places or times would give is "
        "not among them, but for the corruptions and sets that are named."
    )
    if summary.families:
        yield "Corruptions are synthetic: each stands for one fault of inputs; what happens in use is more than these."
    if summary.sets("auroc"):
        yield "Rejection was measured on the sets that are named; on others it can be better or worse."
    if len(summary.seeds) == 1:
        yield "One training of each network: intervals are over images, and another training would differ by more."
    yield (
        "What a threshold or a set promises holds for images as those that it was fitted on; under corruption and on "
        "other data it can fail, and does where the tables say so."
    )
    yield narrative.caution(summary)
    yield from narrative.notes(summary)


def _hashes(folder: StudyFolder) -> Iterator[tuple[str, str]]:
    """Each file that the figures rest on, below the study's folder, and its SHA-256."""
    whole = [folder.study_file, folder.results_file, folder.record_file]
    for run in folder.runs():
        whole += [run.cell_file, run.made_file, run.weights_file, run.rows_file, run.evaluation_file, run.decision_file]
    for file in whole:
        if file.is_file():
            with files.os_errors_as_user_errors(file, "read"):
                yield file.relative_to(folder.path).as_posix(), file_hash(file, "sha256").removeprefix("sha256:")
