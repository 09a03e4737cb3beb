"""Write ``docs/explanation/results.md`` and what other pages say of it, from a study's folder.

    anchored study demo-seeds -o runs/demo-seeds && python scripts/results_page.py runs/demo-seeds

The other pages: the headline in ``docs/explanation/findings.md``, decisions in ``docs/explanation/calibration.md``.
The rows behind the README's picture (``scripts/effect_picture.py``) are kept beside the page, as ``results.csv``.
Tables and sentences are the report's own; nothing is typed by hand.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import effect_picture
import markers

from anchored.report import narrative as words
from anchored.report.comparison import Summary
from anchored.report.decisions import decision_text
from anchored.report.reading import read_summary
from anchored.report.tables import and_list
from anchored.store.files import write_text
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows, write_rows

MARKER = "scripts/results_page.py"
TABLES = (
    "headline",
    "severity_accuracy",
    "severity_smooth_ece",
    "ood",
    "adaptation",
    "clean",
    "ood_auroc",
    "ood_fpr95",
)
DECISIONS = ("decisions_alarms", "decisions_sets", "decisions_abstention", "decisions_ranking", "decisions_severity")
DOCS = Path(__file__).parent.parent / "docs" / "explanation"


def said(summary: Summary) -> str:
    """The report's comparisons as a list."""
    lines = []
    for reading in words.readings(summary):
        parts = [("clearly better", reading.better), ("clearly worse", reading.worse)]
        parts.append(("no clear difference", reading.unclear))
        told = [f"**{name}**: {and_list(found)}" for name, found in parts if found]
        told += [f"other OOD scores tell otherwise: {reading.scores}"] * bool(reading.scores)
        lines.append(f"- *{reading.title}.* {'; '.join(told)}.")
    return "\n".join(lines)


def page(summary: Summary, study: StudyFolder) -> str:
    """The whole page."""
    made = ", ".join(f"{key} {value}" for key, value in summary.made.items() if value and key != "command")
    parts = [
        "# The demo over five seeds",
        " ".join(words.what_was_run(summary)),
        f"`{command(summary)}`: {made}. This page is made from it by `scripts/results_page.py`.",
        said(summary),
        words.caution(summary),
        "\n".join(f"- {note}" for note in words.notes(summary)),
        *(table_text(study, name) for name in TABLES),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def command(summary: Summary) -> str:
    """How the study was run, to be copied: before 27 November 2026 lists were kept without their quotes."""
    return re.sub(r"(?<!')(\[[^\]]*\])", r"'\1'", summary.made["command"])


def table_text(study: StudyFolder, name: str) -> str:
    """A table as the report has it."""
    return (study.tables / f"{name}.md").read_text(encoding="utf-8").strip()


def main(folder: str) -> None:
    """Read the study, write the page, its rows, and the parts of the other two."""
    study = StudyFolder(Path(folder))
    summary = read_summary(study)
    run = " ".join(words.what_was_run(summary))
    write_text(DOCS / "results.md", page(summary, study))
    write_rows(DOCS / "results.csv", effect_picture.kept(read_rows(study.results_file)))
    markers.write(DOCS / "findings.md", MARKER, f"{run}\n\n{table_text(study, 'headline')}\n\n{said(summary)}\n")
    parts = [f"`{command(summary)}`: {run}", *decision_text(summary)]
    parts += [table_text(study, name) for name in DECISIONS]
    markers.write(DOCS / "calibration.md", MARKER, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
