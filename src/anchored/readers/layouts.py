"""Readers of encoded images: one function for each way in which sets lay out images, labels and splits on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anchored.catalog import DataSet, get
from anchored.errors import UserError
from anchored.readers.files import folders, missing
from anchored.readers.images import IMAGE_ENDINGS, Folder, ImageIndex


def _base(row: DataSet, root: str | Path | None) -> Path:
    """Return the folder that has all that ``row`` needs; UserError naming the first thing that is missing."""
    looked = folders(row, root)
    for folder in looked:
        if all((folder / name).exists() for name in row.needs):
            return folder
    raise missing(row, next(name for name in row.needs if not (looked[0] / name).exists()), root)


def _images(source: Folder) -> list[str]:
    return [key for key in source.keys() if key.lower().endswith(IMAGE_ENDINGS)]  # noqa: SIM118


def _flat(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read a folder of images that have no labels: all are class 0."""
    source = Folder(_base(row, root) / row.images)
    keys = _images(source)
    return ImageIndex(row.name, source, tuple(keys), np.zeros(len(keys), np.int64))


def _by_class(row: DataSet, source: Folder) -> ImageIndex:
    """Index a folder of class folders; classes in the catalog's order, images sorted within each."""
    names = row.folders or row.classes
    label_of = {name: label for label, name in enumerate(names)}
    keys = _images(source)
    labels = [label_of.get(key.split("/")[0], -1) for key in keys]
    if -1 in labels:
        raise UserError(f"{source.path / keys[labels.index(-1)]} is in no class folder of {row.title}: remove it")
    lost = sorted(set(range(len(names))) - set(labels))
    if lost:
        raise UserError(f"{source.path} has no images of class '{names[lost[0]]}' ({len(lost)} classes are missing)")
    order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
    return ImageIndex(row.name, source, tuple(keys[i] for i in order), np.array([labels[i] for i in order], np.int64))


def _class_folders(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read a folder of class folders that has one split."""
    return _by_class(row, Folder(_base(row, root) / row.images))


#: The readers of encoded images: (row, split, root) -> ImageIndex.
INDEXES: dict[str, Callable[[DataSet, str, str | Path | None], ImageIndex]] = {
    "flat_folder": _flat,
    "class_folders": _class_folders,
}


def corrupted_index(row: DataSet, corruption: str, severity: int, root: str | Path | None) -> ImageIndex:
    """Index one corruption at one severity in the layout of ImageNet-C: ``<corruption>/<severity>/<class>/<image>``."""
    clean = get(row.clean)
    for folder in folders(row, root):
        if (folder / corruption / str(severity)).is_dir():
            found = _by_class(clean, Folder(folder / corruption / str(severity)))
            return ImageIndex(row.name, found.source, found.keys, found.labels)
    raise missing(row, f"{corruption}/{severity}", root)
