"""Data sets as rows: everything a reader, a trainer or a report needs to know about a set, written once.

Standard library only, so that listing the sets costs nothing. To add a set, add a row (and its test): nothing else in
the package names a data set. ``anchored.data.load`` turns a row into images.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from anchored.data.catalog import corrupted, imagenet, naming, outside, small, transfer
from anchored.data.catalog.row import DataSet, File, Reader, Role
from anchored.errors import UserError

__all__ = ["CATALOG", "DataSet", "File", "Reader", "Role", "file_name", "get", "is_own", "title"]

#: Every data set by name.
CATALOG: dict[str, DataSet] = {
    row.name: row for row in (*small.ROWS, *imagenet.ROWS, *outside.ROWS, *corrupted.ROWS, *transfer.ROWS)
}


def get(name: str) -> DataSet:
    """Return the row called ``name``; UserError with the nearest names when there is none."""
    row = CATALOG.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), CATALOG, n=3, cutoff=0.5)
        if Path(name).is_dir():
            raise UserError(f"data set '{name}' is not in the catalog; write '{name}/' for the folder of that name")
        known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CATALOG)}"
        raise UserError(f"data set '{name}' is not in the catalog; {known}")
    return row


def is_own(name: str) -> bool:
    """Say whether a data set's name is that of own images: a path ("photos/"), a .csv, a .npz, or ``hf:...``."""
    return name not in CATALOG and naming.is_place(name)


def title(name: str) -> str:
    """Return how reports spell a data set: its row's title, or what own images are called."""
    return naming.title(name) if is_own(name) else get(name).title


def file_name(name: str) -> str:
    """Return a data set's name as part of a file's: itself, or for own images their title and a hash of the path."""
    return naming.slug(name) if is_own(name) else name
