"""From a row of the catalog to raw images: find the files, check them, read them; download them on request.

Sets that are arrays come as uint8 arrays (``READERS``); sets of encoded images as an ``ImageIndex`` (``INDEXES``),
which decodes one image at a time. Nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from anchored.data.catalog.registry import get
from anchored.data.catalog.row import DataSet
from anchored.data.readers import images, tars, unpack, verify, web
from anchored.data.readers.arrays import READERS, Bytes, corrupted_arrays
from anchored.data.readers.download import fetch
from anchored.data.readers.files import data_root, is_here, lacking
from anchored.data.readers.images import Folder, ImageIndex, Tar, Zip, spread
from anchored.data.readers.layouts import INDEXES, corrupted_index
from anchored.errors import UserError

__all__ = [
    "INDEXES",
    "READERS",
    "Bytes",
    "Folder",
    "ImageIndex",
    "Tar",
    "Zip",
    "corrupted",
    "data_root",
    "fetch",
    "images",
    "index",
    "is_here",
    "lacking",
    "spread",
    "tars",
    "unpack",
    "verify",
    "web",
]


def index(row: DataSet, split: str, root: str | Path | None = None) -> ImageIndex:
    """Return one split, "train" or "test", of a set of encoded images (``row.reader`` in ``INDEXES``), in its order.

    Only names and labels are read; nothing is decoded. UserError naming the file where something is missing, or the
    numbers are not those of the catalog.
    """
    found = INDEXES[row.reader](row, split, root)
    expected = row.train if split == "train" else row.test
    if len(found) != expected:
        raise UserError(
            f"{row.title}: {found.source.path} has {len(found):,} {split} images; the catalog says {expected:,}"
        )
    return found


def corrupted(
    name: str, corruption: str, severity: int, root: str | Path | None = None
) -> tuple[Bytes, npt.NDArray[np.int64]] | ImageIndex:
    """Return the test images of an archive of corrupted images ("cifar10-c"), at ``severity`` 1 to 5.

    Small images come as arrays, (N,C,H,W) uint8 (mapped from the file) and labels (N,) int64; ImageNet's as an
    ``ImageIndex``. Both are in the order of the clean test set (``get(name).clean``). UserError, one line, for a name,
    corruption or severity that the archive does not have, and for missing or unfit files.
    """
    row = get(name)
    if corruption not in row.corruptions:
        have = ", ".join(row.corruptions) or "none"
        raise UserError(f"data set '{name}' has no corruption '{corruption}': there are {have}")
    if severity not in range(1, 6):
        raise UserError(f"severity is {severity}: {row.title} has 1 to 5")
    read = corrupted_index if row.reader == "corrupted_folders" else corrupted_arrays
    return read(row, corruption, severity, root)
