"""Write ``docs/results.md`` and the README's "What it found here" from a study's folder.

    anchored study demo-seeds -o runs/demo-seeds && python scripts/results_page.py runs/demo-seeds

Tables and sentences are the report's own; nothing is typed by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from anchored.report import narrative as words
from anchored.report.comparison import Summary, read_summary
from anchored.report.tables import and_list
from anchored.store.files import write_text
from anchored.store.layout import StudyFolder

BEGIN, END = "<!-- scripts/results_page.py -->\n", "<!-- end -->\n"
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
ROOT = Path(__file__).parent.parent


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


def page(summary: Summary, tables: Path) -> str:
    """The whole page."""
    made = ", ".join(f"{key} {value}" for key, value in summary.made.items() if value and key != "command")
    parts = [
        "# The demo over five seeds",
        " ".join(words.what_was_run(summary)),
        f"`{summary.made['command']}`: {made}. This page is made from it by `scripts/results_page.py`.",
        said(summary),
        words.caution(summary),
        "\n".join(f"- {note}" for note in words.notes(summary)),
        *((tables / f"{name}.md").read_text(encoding="utf-8").strip() for name in TABLES),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(folder: str) -> None:
    """Read the study, write the page and the README's part."""
    study = StudyFolder(Path(folder))
    summary = read_summary(study)
    write_text(ROOT / "docs" / "results.md", page(summary, study.tables))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit("README.md has lost the two markers between which this script writes")
    table = (study.tables / "headline.md").read_text(encoding="utf-8").strip()
    part = f"{' '.join(words.what_was_run(summary))}\n\n{table}\n\n{said(summary)}\n"
    write_text(ROOT / "README.md", before + BEGIN + part + END + after)


if __name__ == "__main__":
    main(sys.argv[1])
