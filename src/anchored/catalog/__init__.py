"""Data sets as rows: everything a reader, a trainer or a report needs to know about a set, written once.

Standard library only, so that listing the sets costs nothing. To add a set, add a row (and its test): nothing else in
the package names a data set. ``anchored.data.load`` turns a row into images.
"""

from __future__ import annotations

import difflib

from anchored.catalog import corrupted, outside, small
from anchored.catalog.row import DataSet, File, Reader, Role
from anchored.errors import UserError

__all__ = ["CATALOG", "DataSet", "File", "Reader", "Role", "get"]

#: Every data set by name.
CATALOG: dict[str, DataSet] = {row.name: row for row in (*small.ROWS, *outside.ROWS, *corrupted.ROWS)}


def get(name: str) -> DataSet:
    """Return the row called ``name``; UserError with the nearest names when there is none."""
    row = CATALOG.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), CATALOG, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CATALOG)}"
        raise UserError(f"data set '{name}' is not in the catalog; {known}")
    return row
