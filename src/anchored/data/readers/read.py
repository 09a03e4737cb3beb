"""From a row of the catalog to its encoded images (``ImageIndex``), and to archives of corrupted images."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import DataSet
from anchored.data.image_sources import ImageIndex
from anchored.data.readers.arrays import Bytes, corrupted_arrays
from anchored.data.readers.layouts import INDEXES, corrupted_index
from anchored.errors import UserError


def read_index(row: DataSet, split: str, root: str | Path | None = None) -> ImageIndex:
    """Return one split, "train" or "test", of a set of encoded images (``row.reader`` in ``INDEXES``), in its order.

    Only names and labels are read; nothing is decoded. UserError naming the file where something is missing, or the
    numbers are not those of the catalog.
    """
    source, keys, labels = INDEXES[row.reader](row, split, root)
    expected = row.train if split == "train" else row.test
    if len(keys) != expected:
        raise UserError(f"{row.title}: {source.path} has {len(keys):,} {split} images; the catalog says {expected:,}")
    return ImageIndex(source, tuple(keys), np.array(labels, np.int64), row.name)


def read_corrupted(
    name: str, corruption: str, severity: int, root: str | Path | None = None
) -> tuple[Bytes, npt.NDArray[np.int64]] | ImageIndex:
    """Return the test images of an archive of corrupted images ("cifar10-c"), at ``severity`` 1 to 5.

    Small images come as arrays, (N,C,H,W) uint8 (mapped from the file) and labels (N,) int64; ImageNet's as an
    ``ImageIndex``. Both are in the order of the clean test set. UserError, one line, for a name, corruption or severity
    that the archive does not have, and for missing or unfit files.
    """
    row = get_dataset(name)
    if corruption not in row.corruptions:
        have = ", ".join(row.corruptions) or "none"
        raise UserError(f"data set '{name}' has no corruption '{corruption}': there are {have}")
    if severity not in range(1, 6):
        raise UserError(f"severity is {severity}: {row.title} has 1 to 5")
    if row.reader != "corrupted_folders":
        return corrupted_arrays(row, corruption, severity, root)
    source, keys, labels = corrupted_index(row, corruption, severity, root)
    if len(keys) != row.test:
        where = source.path / corruption / str(severity)
        raise UserError(f"{where}: {len(keys):,} images; the catalog says {row.test:,}")
    return ImageIndex(source, tuple(keys), np.array(labels, np.int64), row.name)
