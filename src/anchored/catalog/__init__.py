"""Data sets as rows: everything a reader, a trainer or a report needs to know about a set, written once.

Standard library only, so that listing the sets costs nothing. To add a set, add a row (and its test): nothing else in
the package names a data set. ``anchored.data.load`` turns a row into images.
"""

from __future__ import annotations

import difflib

from anchored.catalog import corrupted, outside, small
from anchored.catalog.naming import file_name, is_own, own_title
from anchored.catalog.row import DataSet, File, Reader, Role
from anchored.errors import UserError

__all__ = ["CATALOG", "DataSet", "File", "Reader", "Role", "file_name", "get", "is_own", "title"]

#: Every data set by name.
CATALOG: dict[str, DataSet] = {row.name: row for row in (*small.ROWS, *outside.ROWS, *corrupted.ROWS)}


def get(name: str) -> DataSet:
    """Return the row called ``name``; UserError with the nearest names when there is none."""
    row = CATALOG.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), CATALOG, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CATALOG)}"
        raise UserError(f"data set '{name}' is neither in the catalog nor a folder here; {known}")
    return row


def title(name: str) -> str:
    """Return how reports spell a data set: its row's title, or what own images are called."""
    return own_title(name) if is_own(name) else get(name).title
