"""Build ``src/anchored/report/paper.csv``: the paper's numbers under the names that our rows have.

    python scripts/build_paper.py TABLES.csv

``TABLES.csv`` holds the numbers of the paper's tables 6 to 11 as they are printed. Every value stays the text that is
printed (96.40 keeps its zero). Changed are spellings, so that a report can join by row; table 7's severities, 0 to 4
there and 1 to 5 everywhere else; and table 8's entry 0 / 0, which is missing data and becomes an empty field.
"""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

OUTPUT = Path(__file__).parents[1] / "src" / "anchored" / "report" / "paper.csv"
TITLES = {"CIFAR10": "CIFAR-10", "CIFAR100": "CIFAR-100", "ImageNet-C-bar": "ImageNet-C\u0304"}
"""The paper's spelling of a data set -> the catalog's; all others are the same."""


def normalised(text: str) -> str:
    """The printed numbers (CSV) under our names."""
    rows = list(csv.DictReader(io.StringIO(text)))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(row) for row in rows)
    return stream.getvalue()


def _row(row: dict[str, str]) -> dict[str, str]:
    titles = {name: TITLES.get(row[name], row[name]) for name in ("trained_on", "dataset")}
    severity = str(int(row["severity"]) + 1) if row["table"] == "7" else row["severity"]
    missing = row["metric"].startswith("linear_probe") and float(row["value"]) == 0
    return {**row, **titles, "severity": severity, "value": "" if missing else row["value"]}


if __name__ == "__main__":
    OUTPUT.write_text(normalised(Path(sys.argv[1]).read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{OUTPUT}: {OUTPUT.read_text(encoding='utf-8').count(chr(10)) - 1} numbers")
