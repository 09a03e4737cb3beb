"""Data sets as rows: everything a reader, a trainer or a report needs to know about a set, written once.

Standard library only, so that listing the sets costs nothing. To add a set, add a row (and its test): nothing else in
the package names a data set. ``datasets.load_split`` turns a row into images.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from anchored.data.catalog import corrupted, imagenet, openood, outside, shifted, small, transfer
from anchored.data.catalog.row import DataSet
from anchored.errors import UserError

#: Every data set by name.
CATALOG: dict[str, DataSet] = {
    row.name: row
    for row in chain(small.ROWS, imagenet.ROWS, outside.ROWS, openood.ROWS, corrupted.ROWS, shifted.ROWS, transfer.ROWS)
}


_SAYS_NOTHING = {
    "images",
    "imgs",
    "img",
    "photos",
    "pictures",
    "data",
    "dataset",
    "files",
    "labels",
    "train",
    "test",
    "val",
}


def get_dataset(name: str) -> DataSet:
    """Return the row called ``name``; UserError with the nearest names when there is none."""
    row = CATALOG.get(name)
    if row is None:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), CATALOG, n=3, cutoff=0.5)
        if Path(name).is_dir():
            raise UserError(f"data set '{name}' is not in the catalog; write '{name}/' for the folder of that name")
        known = f"did you mean {' or '.join(near)}?" if near else f"nor is it a folder; known: {', '.join(CATALOG)}"
        raise UserError(f"data set '{name}' is not in the catalog; {known}")
    return row


def expand_groups(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of OOD sets, those of a group ("openood-cifar10") in place of its name."""
    return tuple(each for name in names for each in openood.GROUPS.get(name, (name,)))


def ood_kind(name: str, train: str) -> str:
    """Return what an OOD set is for a network trained on ``train``: near, synthetic (drawn by a program), or far.

    User data are far: nobody has said that they are near.
    """
    row = CATALOG.get(name)
    if row is None:
        return "far"
    return "synthetic" if row.reader == "procedural" else "near" if train in row.near_to else "far"


def is_user_data(name: str) -> bool:
    """Say whether a data set's name is that of user data: a path ("photos/"), a .csv, a .npz, or ``hf:...``.

    What is on disk does not matter, but the catalog's names come first.
    """
    path = name.startswith(("hf:", ".", "~")) or "/" in name or "\\" in name
    return name not in CATALOG and (path or name.lower().endswith((".csv", ".npz")))


def dataset_title(name: str) -> str:
    """Return how reports spell a data set: its row's title, of user data the last part of the path without ending.

    Where that part says nothing ("near/images/"), with the part before it.
    """
    if not is_user_data(name):
        return get_dataset(name).title
    path = name.removeprefix("hf:").replace("\\", "/").rstrip("/")
    *before, last = re.sub(r"\.(csv|npz)$", "", path, flags=re.IGNORECASE).split("/")
    if last.lower() in _SAYS_NOTHING and before and before[-1].strip(".~"):
        last = f"{before[-1]}/{last}"
    return last or name


def title_file_name(title: str) -> str:
    """Return the title of images that were given as part of a file's name, told apart by a hash where letters had to
    go."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", title).strip("-").lower()
    return plain if plain == title else f"{plain}-{hashlib.sha256(title.encode()).hexdigest()[:8]}".lstrip("-")


def dataset_file_name(name: str) -> str:
    """Return a data set's name as part of a file's: itself, for user data title and eight digits of the path's hash."""
    if not is_user_data(name):
        return title_file_name(name)
    plain = re.sub(r"[^A-Za-z0-9]+", "-", dataset_title(name)).strip("-").lower()
    return f"{plain}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}".lstrip("-")
