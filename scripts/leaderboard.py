"""The leaderboard: studies that people share, checked, and shown on one page (docs/explanation/leaderboard.md).

    python scripts/leaderboard.py                          # check every entry, write the page
    python scripts/leaderboard.py add runs/NAME --by you   # make an entry of a study, for a pull request

An entry is a folder below ``leaderboard/`` with ``study.json`` and the rows of the headline's figures in
``results.csv``, as a study leaves them. The rows of docs/claims are shown too.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from anchored.errors import UserError
from anchored.metrics.registry import METRICS
from anchored.report import formats
from anchored.report.comparison import Summary, Variant, variant_of
from anchored.report.reading import read_summary
from anchored.report.table import Column, Table, TableCell
from anchored.report.tables import estimate_cell, number_list
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, rows_text

ROOT = Path(__file__).resolve().parent.parent
SHARED, CLAIMS = ROOT / "leaderboard", ROOT / "docs" / "claims"
PAGE = ROOT / "docs" / "explanation" / "leaderboard.md"
RATES = 100.0  # per cent, the largest value of a rate
MADE = ("anchored", "torch")
"""What ``study.json`` must say of how it was made."""
INTRODUCTION = """# Leaderboard

Studies that people have shared, by the images that were trained on. Each figure is the mean over seeds ± half its 95 %
Student-t interval, or of one seed the value with its interval over test images. Rows are in the order of accuracy under
corruption, which is one aim of four and decides nothing. What an entry's recipe says beside network, training and
epochs differs: look there before you compare.

**Add yours**: run any study, then `python scripts/leaderboard.py add runs/NAME --by you`, and open a pull request with
the new folder below `leaderboard/` and this page. CI checks the columns, the ranges, that the entry says how it was
made, and that this page is what the entries give. Nobody runs your study again: an entry is what its author states,
with its whole recipe.
"""


@dataclass(frozen=True)
class Entry:
    """A study that is shown."""

    folder: Path
    summary: Summary
    by: str
    version: str  # of anchored

    @property
    def name(self) -> str:
        """Its folder, below the repository."""
        return self.folder.relative_to(ROOT).as_posix()


def entry(folder: Path) -> Entry:
    """A checked entry. ``UserError`` for what is no study, values out of range, or no word on how it was made."""
    summary = read_summary(StudyFolder(folder))
    record = files.read_json(folder / "study.json")
    own: dict[str, dict[str, str]] = record.get("runs", {})  # in docs/claims each training's, where they differ
    made = record.get("made") or next(iter(own.values()), {})
    lacking = [name for name in MADE if not made.get(name)]
    if lacking:
        raise UserError(f"{folder}: study.json does not say how it was made: {', '.join(lacking)}")
    for place, row in enumerate(summary.rows, start=2):
        if problem := _problem(row):
            raise UserError(f"{folder / 'results.csv'}, line {place}: {problem}")
    if not summary.measures:
        raise UserError(f"{folder / 'results.csv'} has none of the headline's figures")
    return Entry(folder, summary, str(made.get("by", "the project")), str(made["anchored"]))


def _problem(row: Row) -> str:
    values = [value for value in (row.low, row.value, row.high) if value is not None]
    if not all(map(math.isfinite, values)):
        return f"{row.metric} is not finite"
    if values != sorted(values):
        return f"{row.metric} is {row.value:g}, outside its interval"
    if METRICS[row.metric].percent and not -1e-9 <= values[0] <= values[-1] <= RATES + 1e-9:
        return f"{row.metric} is {row.value:g}, which is no percentage"
    return "" if row.n > 0 else f"n is {row.n}"


def entries() -> list[Entry]:
    """All entries, by name."""
    found = [file.parent for root in (SHARED, CLAIMS) for file in sorted(root.glob("*/results.csv"))]
    return [entry(folder) for folder in found]


def add(study: Path, by: str, name: str) -> Path:
    """Make an entry of a study's folder: its settings, and the rows of the headline."""
    summary = read_summary(StudyFolder(study))
    rows = [row for v in summary.variants for m in summary.measures if (e := summary.measured(v, m)) for row in e.rows]
    folder = SHARED / (name or study.resolve().name)
    if folder.exists():
        raise UserError(f"{folder} is there already: give another --name")
    record = files.read_json(study / "study.json")
    record["made"] = {**record.get("made", {}), "by": by}
    files.write_json(folder / "study.json", record)
    files.write_text(folder / "results.csv", rows_text(rows))
    entry(folder)
    return folder


# --- The page -------------------------------------------------------------------------------------------------------


def page(found: Sequence[Entry]) -> str:
    """The whole page."""
    by_images: dict[str, list[Entry]] = defaultdict(list)
    for each in found:
        by_images[each.summary.trained_on].append(each)
    parts = [INTRODUCTION]
    parts += [f"## {name}\n\n{formats.markdown(_table(name, by_images[name]))}" for name in sorted(by_images)]
    parts.append("## Entries\n\n" + "\n".join(map(_about, found)) + "\n")
    return "\n".join(parts)


def _table(images: str, found: Sequence[Entry]) -> Table:
    columns = {(m.title, m.arrow): None for each in found for m in each.summary.measures}
    body = []
    for each in found:
        own = {m.title: m for m in each.summary.measures}
        for variant in each.summary.variants:
            shown = [own.get(title) for title, _ in columns]
            estimates = [each.summary.measured(variant, m) if m else None for m in shown]
            cells = [estimate_cell(each.summary, e) for e in estimates]
            order = next((e.value for m, e in zip(shown, estimates, strict=True) if m and e and m.corruption), 0.0)
            body.append((order, (*map(TableCell, _names(each, variant)), *cells)))
    body.sort(key=lambda row: -row[0])
    stubs = ("Network", "Training", "Epochs", "Seeds", "Entry")
    heads = (*map(Column, stubs), *(Column(title, arrow) for title, arrow in columns))
    caption = (
        "† not of all seeds of its study. Entries with an OOD AUROC of their own column are older: it is the mean over "
        "far, near and synthetic sets alike, and their means over corruptions have saturate, which leaves grey images "
        "as they are."
    )
    return Table("leaderboard", images, heads, tuple(row for _, row in body), caption, len(stubs))


def _names(each: Entry, variant: Variant) -> list[str]:
    summary = each.summary
    seeds = {row.seed for row in summary.rows if variant_of(row) == variant}
    return [variant.architecture, variant.title, _epochs(summary, variant), str(len(seeds)), each.folder.name]


def _epochs(summary: Summary, variant: Variant) -> str:
    """Those of the variant's network; those of all where rows do not tell which of the recipe's it is."""
    if variant in summary.given:
        return "–"
    if len(summary.architectures) == len(summary.epochs):
        return str(summary.epochs[summary.architectures.index(variant.architecture)])
    return " or ".join(map(str, sorted(set(summary.epochs))))


def _about(each: Entry) -> str:
    seeds = number_list(each.summary.seeds, "seed")
    by, title = map(formats.md_escaped, (each.by, each.summary.title))
    return f"- `{each.name}`, by {by}: {title}; {seeds}; anchored {each.version}."


def main(arguments: Sequence[str]) -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    verbs = parser.add_subparsers(dest="verb")
    adding = verbs.add_parser("add", help="make an entry of a study")
    adding.add_argument("study", type=Path, help="the study's folder")
    adding.add_argument("--by", required=True, help="your name, or your group's")
    adding.add_argument("--name", default="", help="the entry's folder; default: the study's")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "add":
            print(f"{add(options.study, options.by, options.name)}: commit it, and the page")
        files.write_text(PAGE, page(entries()))
    except UserError as error:
        print(f"leaderboard: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
