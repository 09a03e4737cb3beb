"""Readers of encoded images: one function for each way in which sets lay out images, labels and splits on disk.

They return names and labels; nothing is decoded. torchvision's readers of the same sets were compared (Flowers102,
DTD, Food101, OxfordIIITPet, StanfordCars, ImageNet: the same files and labels); they are not used, since they read
unpacked folders only, have no counts to check against, and ImageNet's keeps its labels in a file that torch unpickles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anchored.data.catalog.registry import get
from anchored.data.catalog.row import DataSet
from anchored.data.readers.files import find, locate, missing
from anchored.data.readers.images import IMAGE_ENDINGS, Folder, ImageIndex, Source, Tar, Zip, said
from anchored.errors import UserError


def source(row: DataSet, entry: str, root: str | Path | None) -> Source:
    """Return where the images of the folder ``entry`` of ``row`` are: that folder, or the archive that holds it."""
    path = locate(row, entry, root)
    if path is None:
        raise missing(row, entry, root)
    if path.is_dir():
        return Folder(path)
    return (Zip if path.suffix == ".zip" else Tar)(path, f"{entry}/")


def _images(place: Source) -> list[str]:
    keys = [key for key in place.keys() if key.lower().endswith(IMAGE_ENDINGS)]  # noqa: SIM118 -- not a dict
    if not keys:
        raise UserError(f"{place.path} has no images")
    return keys


def _listed(row: DataSet, place: Source, keys: Sequence[str], labels: Iterable[int]) -> ImageIndex:
    """Index the images that a list names; UserError naming the first that is not there."""
    there = set(place.keys())
    for key in keys:
        if key not in there:
            raise UserError(f"{place.path / key} is missing, but {row.title}'s list has it: fetch {row.name} again")
    return ImageIndex(row.name, place, tuple(keys), np.array([*labels], np.int64))


def _by_class(name: str, folders: Sequence[str], place: Source) -> ImageIndex:
    """Index class folders: classes in the order of ``folders``, the images of each sorted by name."""
    label_of = {folder: label for label, folder in enumerate(folders)}
    keys = _images(place)
    labels = [label_of.get(key.split("/")[0], -1) for key in keys]
    if -1 in labels:
        raise UserError(f"{place.path / keys[labels.index(-1)]} is in no class folder of '{name}': remove it")
    lost = sorted(set(range(len(folders))) - set(labels))
    if lost:
        raise UserError(f"{place.path} has no images of class '{folders[lost[0]]}' ({len(lost)} classes are missing)")
    order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
    return ImageIndex(name, place, tuple(keys[i] for i in order), np.array([labels[i] for i in order], np.int64))


def _text(row: DataSet, name: str, root: str | Path | None) -> list[list[str]]:
    """Return the words of each line of the text file ``name`` of ``row``; empty lines and '#' lines are left out."""
    path = find(row, name, root)
    if path is None:
        raise missing(row, name, root)
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a list in UTF-8 ({said(error)}): fetch {row.name} again") from error
    return [line for line in words if line and not line[0].startswith("#")]


def _mat(row: DataSet, name: str, key: str, root: str | Path | None) -> Any:
    """Return the variable ``key`` of the MATLAB file ``name`` of ``row``, single values without their brackets."""
    from scipy.io import loadmat  # half a second: only where it is needed

    path = find(row, name, root)
    if path is None:
        raise missing(row, name, root)
    try:
        return loadmat(path, squeeze_me=True)[key]
    except Exception as error:  # scipy raises whatever a damaged file leads to
        raise UserError(f"{path} is not a MATLAB file with '{key}' ({said(error)}): fetch {row.name} again") from error


def _label(row: DataSet, where: str, number: int) -> int:
    """Return the label of a class that a list counts from 1; UserError where there is no such class."""
    if not 1 <= number <= row.file_classes:
        raise UserError(f"{where} of {row.title} names class {number}; there are 1 to {row.file_classes}")
    return number - 1


def _flat(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read images without labels, in a folder or below it, sorted by name: all are class 0."""
    place = source(row, row.images, root)
    if row.subset:
        return _listed(row, place, row.subset, [0] * len(row.subset))
    keys = _images(place)
    return ImageIndex(row.name, place, tuple(keys), np.zeros(len(keys), np.int64))


def _class_folders(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read a folder of class folders that has one split."""
    return _by_class(row.name, row.folders or row.classes, source(row, row.images, root))


def _imagenet(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read ILSVRC 2012: ``train/<wnid>/``, and ``val/`` either the same or flat, with the development kit's labels.

    Classes are the sorted WordNet ids; images are sorted by class, then by name, whichever way they lie.
    """
    place = source(row, "train" if split == "train" else "val", root)
    keys = _images(place)
    if split == "train" or "/" in keys[0]:
        return _by_class(row.name, row.folders, place)
    kit = "ILSVRC2012_devkit_t12/data/"
    wnid_of = {int(synset[0]): str(synset[1]) for synset in _mat(row, f"{kit}meta.mat", "synsets", root)}
    numbers = [int(line[0]) for line in _text(row, f"{kit}ILSVRC2012_validation_ground_truth.txt", root)]
    if len(numbers) != len(keys):
        raise UserError(f"{place.path} has {len(keys):,} images, its ground truth {len(numbers):,} labels")
    label_of = {wnid: label for label, wnid in enumerate(row.folders)}
    try:
        labels = [label_of[wnid_of[number]] for number in numbers]
    except KeyError as error:
        raise UserError(f"{row.title}: the ground truth of the validation set names no class by {error}") from error
    order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
    return ImageIndex(row.name, place, tuple(keys[i] for i in order), np.array([labels[i] for i in order], np.int64))


def _dtd(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read DTD's official split 1: ``labels/{train,val,test}1.txt`` list ``<class>/<file>``."""
    parts = ("train", "val") if split == "train" else ("test",)
    keys = [" ".join(line) for part in parts for line in _text(row, f"dtd/labels/{part}1.txt", root)]
    label_of = {name: label for label, name in enumerate(row.classes)}
    labels = [label_of.get(key.split("/")[0], -1) for key in keys]
    if -1 in labels:
        raise UserError(f"{row.title}: its list names '{keys[labels.index(-1)]}', which is in none of its classes")
    return _listed(row, source(row, row.images, root), keys, labels)


def _pets(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read Oxford Pets: ``annotations/{trainval,test}.txt`` list ``<image> <class from 1> <species> <breed>``."""
    name = f"annotations/{'trainval' if split == 'train' else 'test'}.txt"
    lines = _text(row, name, root)
    labels = [_label(row, name, int(line[1])) for line in lines]
    return _listed(row, source(row, row.images, root), [f"{line[0]}.jpg" for line in lines], labels)


def _flowers(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read Flowers 102: ``imagelabels.mat`` has the classes from 1 of image 1, 2, ...; ``setid.mat`` the splits."""
    classes = _mat(row, "imagelabels.mat", "labels", root)
    parts = ("trnid", "valid") if split == "train" else ("tstid",)
    numbers = np.concatenate([np.atleast_1d(_mat(row, "setid.mat", part, root)) for part in parts]).tolist()
    keys = [f"image_{number:05d}.jpg" for number in numbers]
    labels = [_label(row, "imagelabels.mat", int(classes[number - 1])) for number in numbers]
    return _listed(row, source(row, row.images, root), keys, labels)


def _cars(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read Stanford Cars: annotations with fields ``fname`` and ``class`` (from 1), one file for each split."""
    name = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    annotations = np.atleast_1d(_mat(row, name, "annotations", root))
    keys = [str(each["fname"]) for each in annotations]
    labels = [_label(row, name, int(each["class"])) for each in annotations]
    return _listed(row, source(row, f"cars_{split}", root), keys, labels)


def _food(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read Food-101: ``meta/{train,test}.txt`` list ``<class>/<number>`` of ``images/<class>/<number>.jpg``."""
    names = [line[0] for line in _text(row, f"food-101/meta/{split}.txt", root)]
    label_of = {name: label for label, name in enumerate(row.classes)}
    labels = [label_of.get(name.split("/")[0], -1) for name in names]
    if -1 in labels:
        raise UserError(f"{row.title}: its list names '{names[labels.index(-1)]}', which is in none of its classes")
    return _listed(row, source(row, row.images, root), [f"{name}.jpg" for name in names], labels)


def _ucf101(row: DataSet, split: str, root: str | Path | None) -> ImageIndex:
    """Read the middle frames of UCF101 by the official split 1.

    ``ucfTrainTestlist/{train,test}list01.txt`` list videos, ``ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi``; the frames
    lie in ``Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg`` (CoOp's archive: an underscore before each inner capital).
    """
    label_of = {name: label for label, name in enumerate(row.classes)}
    keys, labels = [], []
    for video, *number in _text(row, f"ucfTrainTestlist/{split}list01.txt", root):
        action, _, name = video.partition("/")
        if action not in label_of:
            raise UserError(f"{row.title}: {split}list01.txt names '{video}', which is in none of its classes")
        if number and int(number[0]) != label_of[action] + 1:
            raise UserError(
                f"{split}list01.txt numbers {action} {number[0]}, not {label_of[action] + 1} as {row.title}"
            )
        labels.append(label_of[action])
        keys.append(f"{re.sub('(?<!^)(?=[A-Z])', '_', action)}/{Path(name).stem}.jpg")
    return _listed(row, source(row, row.images, root), keys, labels)


#: The readers of encoded images: (row, split, root) -> ImageIndex.
INDEXES: dict[str, Callable[[DataSet, str, str | Path | None], ImageIndex]] = {
    "flat_folder": _flat,
    "class_folders": _class_folders,
    "imagenet": _imagenet,
    "dtd": _dtd,
    "pets": _pets,
    "flowers": _flowers,
    "cars": _cars,
    "food": _food,
    "ucf101": _ucf101,
}


def corrupted_index(row: DataSet, corruption: str, severity: int, root: str | Path | None) -> ImageIndex:
    """Index one corruption at one severity in the layout of ImageNet-C: ``<corruption>/<severity>/<class>/<image>``."""
    clean = get(row.clean)
    below = f"{row.images}/{corruption}/{severity}".lstrip("/")
    found = _by_class(row.name, clean.folders or clean.classes, source(row, below, root))
    if len(found) != row.test:
        raise UserError(f"{found.source.path}, {below}: {len(found):,} images; the catalog says {row.test:,}")
    return found
