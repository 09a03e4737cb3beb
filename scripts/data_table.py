"""Write the table of data sets in ``docs/reference/data-sets.md`` from the catalog, between its two markers.

    python scripts/data_table.py [--check]

``--check`` writes nothing, and exits with status 1 where the table is not the catalog's.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import markers

from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet
from anchored.data.inventory import total_size

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "data-sets.md"
MARKER = "scripts/data_table.py"
REAL = {name for name, row in CATALOG.items() if row.homes or row.reader == "procedural"}


def rows() -> Iterator[str]:
    """The table's lines."""
    yield "| row | title | train / test | image | role | download | hash | read in tests from | licence |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in CATALOG.values():
        images = f"{row.train:,} / {row.test:,}" if row.train else f"– / {row.test:,}"
        shape = "varied" if row.varied else f"{row.channels}×{row.size}×{row.size}"
        tested = "the real files" if row.name in REAL else "copies in the original layout"
        cells = (f"`{row.name}`", row.title, images, shape, ", ".join(row.roles), *_files(row), tested, row.licence)
        yield f"| {' | '.join(cells)} |"


def _files(row: DataSet) -> tuple[str, str]:
    """How much there is to download, and what of it has a published hash."""
    files = row.parts or row.downloads
    if not files:
        return ("by hand", "none") if row.manual else ("–", "–")
    kinds = sorted({(file.hash or file.content or "none published:").partition(":")[0] for file in files})
    by_hand = "" if row.downloads and not row.manual else ", by hand"
    return total_size(files) + by_hand, ", ".join(kinds)


def main(arguments: list[str]) -> int:
    """Write or check the table; the exit status."""
    table = "\n".join(rows()) + "\n"
    if "--check" in arguments:
        return int(markers.split(PAGE, MARKER)[1] != table)
    markers.write(PAGE, MARKER, table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
