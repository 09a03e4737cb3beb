"""Write the table of published models in ``docs/reference/networks.md`` from their rows, between its two markers.

    python scripts/models_table.py [--check]

``--check`` writes nothing, and exits with status 1 where the table is not that of the rows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import markers

from anchored.data.catalog.registry import get_dataset
from anchored.models.published import PREFIX, PUBLISHED, PublishedModel

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "networks.md"
MARKER = "scripts/models_table.py"


def rows() -> Iterator[str]:
    """The table's lines."""
    yield "| name | network | trained on | method | weights | hash | licence |"
    yield "|---|---|---|---|---|---|---|"
    for row in PUBLISHED.values():
        method = f"[{row.method}]({row.citation})" + f", {row.note}" * bool(row.note and row.file.urls)
        cells = (f"`{PREFIX}{row.name}`", row.layout.title, get_dataset(row.trained_on).title, method, *_file(row))
        yield f"| {' | '.join((*cells, row.licence))} |"


def _file(row: PublishedModel) -> tuple[str, str]:
    """Where the weights are, and the start of their published hash."""
    if not row.file.urls or row.file.hash is None:
        return f"`{row.file.name}`, by hand", "none published"
    kind, _, digest = row.file.hash.partition(":")
    return f"[{row.file.urls[0].split('/')[2]}]({row.file.urls[0]})", f"{kind} {digest[:8]}…"


def main(arguments: list[str]) -> int:
    """Write or check the table; the exit status."""
    table = "\n".join(rows()) + "\n"
    if "--check" in arguments:
        return int(markers.split(PAGE, MARKER)[1] != table)
    markers.write(PAGE, MARKER, table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
