"""Readers of encoded images: one function for each way in which sets lay out images, labels and splits on disk.

Each returns the source of the images, their keys in it and their labels; nothing is decoded. torchvision's readers of
the same sets were compared (the same files and labels); they are not used, since they read unpacked folders only, have
no counts to check against, and ImageNet's keeps its labels in a file that torch unpickles.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import DataSet
from anchored.data.decoding import error_text
from anchored.data.image_sources import FileSource, ImageIndex, TarSource, ZipSource, is_image_name
from anchored.data.readers.arrays import Bytes, corrupted_arrays
from anchored.data.readers.files import locate_entry, missing_file, require_file
from anchored.errors import UserError

Listed = tuple[FileSource, list[str], list[int]]  # the source, and of each image (N) its key and label


def _source(row: DataSet, entry: str, root: str | Path | None) -> FileSource:
    """Return the source of the images in the folder ``entry`` of ``row``: that folder, or the archive that holds it."""
    path = locate_entry(row, entry, root)
    if path is None:
        raise missing_file(row, entry, root)
    if path.is_dir():
        return FileSource(path)
    return (ZipSource if path.suffix == ".zip" else TarSource)(path, f"{entry}/")


def _image_keys(source: FileSource) -> list[str]:
    keys = [key for key in source.keys() if is_image_name(key)]  # noqa: SIM118 -- not a dict
    if not keys:
        raise UserError(f"{source.path} has no images")
    return keys


def _check_listed(row: DataSet, source: FileSource, keys: list[str], labels: list[int]) -> Listed:
    """Return the images that a list names; UserError naming the first that is not there."""
    there = set(source.keys())
    for key in keys:
        if key not in there:
            raise UserError(f"{source.where(key)} is missing, but {row.title}'s list has it: fetch {row.name} again")
    return source, keys, labels


def _by_label(source: FileSource, keys: Sequence[str], labels: Sequence[int]) -> Listed:
    """Return images sorted by label, those of a class by name."""
    order = sorted(range(len(keys)), key=lambda i: (labels[i], keys[i]))
    return source, [keys[i] for i in order], [labels[i] for i in order]


def _by_class_folder(name: str, folders: Sequence[str], source: FileSource) -> Listed:
    """Return the images of class folders, whose classes are in the order of ``folders``."""
    label_of = {folder: label for label, folder in enumerate(folders)}
    keys = _image_keys(source)
    labels = [label_of.get(key.split("/")[0], -1) for key in keys]
    if -1 in labels:
        raise UserError(f"{source.where(keys[labels.index(-1)])} is in no class folder of '{name}': move it elsewhere")
    lost = sorted(set(range(len(folders))) - set(labels))
    if lost:
        raise UserError(f"{source.path} has no images of class '{folders[lost[0]]}' ({len(lost)} classes are missing)")
    return _by_label(source, keys, labels)


def _labels_in_names(row: DataSet, names: Sequence[str]) -> list[int]:
    label_of = {name: label for label, name in enumerate(row.classes)}
    labels = [label_of.get(name.split("/")[0], -1) for name in names]
    if -1 in labels:
        raise UserError(f"{row.title}: its list names '{names[labels.index(-1)]}', which is in none of its classes")
    return labels


def _text(row: DataSet, name: str, root: str | Path | None) -> list[list[str]]:
    """Return the words of each line of the text file ``name`` of ``row``; empty lines and '#' lines are left out."""
    path = require_file(row, name, root)
    try:
        words = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a list in UTF-8 ({error_text(error)}): fetch {row.name} again") from error
    return [line for line in words if line and not line[0].startswith("#")]


def _mat(row: DataSet, name: str, key: str, root: str | Path | None) -> Any:
    """Return the variable ``key`` of the MATLAB file ``name`` of ``row``, single values without their brackets."""
    from scipy.io import loadmat  # half a second: only where it is needed

    path = require_file(row, name, root)
    try:
        return loadmat(path, squeeze_me=True)[key]
    except Exception as error:  # scipy raises whatever a damaged file leads to
        problem = f"is not a MATLAB file with '{key}' ({error_text(error)})"
        raise UserError(f"{path} {problem}: fetch {row.name} again") from error


def _label(row: DataSet, where: str, number: int) -> int:
    """Return the label of a class that a list counts from 1; UserError where there is no such class."""
    if not 1 <= number <= row.file_classes:
        raise UserError(f"{where} of {row.title} names class {number}; there are 1 to {row.file_classes}")
    return number - 1


def _flat(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read images without labels, in a folder or below it, sorted by name: all are class 0."""
    source = _source(row, row.images, root)
    if row.subset:
        return _check_listed(row, source, [*row.subset], [0] * len(row.subset))
    keys = _image_keys(source)
    return source, keys, [0] * len(keys)


def _class_folders(row: DataSet, split: str, root: str | Path | None) -> Listed:
    return _by_class_folder(row.name, row.folders or row.classes, _source(row, row.images, root))


def _imagenet(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read ILSVRC 2012: ``train/<wnid>/``, and ``val/`` either the same or flat, with the development kit's labels.
    Classes are the sorted WordNet ids; images are sorted by class, then by name, whichever way they lie."""
    source = _source(row, "train" if split == "train" else "val", root)
    keys = _image_keys(source)
    if split == "train" or "/" in keys[0]:
        return _by_class_folder(row.name, row.folders, source)
    kit = "ILSVRC2012_devkit_t12/data/"
    wnid_of = {int(synset[0]): str(synset[1]) for synset in _mat(row, f"{kit}meta.mat", "synsets", root)}
    numbers = [int(line[0]) for line in _text(row, f"{kit}ILSVRC2012_validation_ground_truth.txt", root)]
    if len(numbers) != len(keys):
        raise UserError(f"{source.path} has {len(keys):,} images, its ground truth {len(numbers):,} labels")
    label_of = {wnid: label for label, wnid in enumerate(row.folders)}
    try:
        labels = [label_of[wnid_of[number]] for number in numbers]
    except KeyError as error:
        raise UserError(f"{row.title}: the ground truth of the validation set names no class by {error}") from error
    return _by_label(source, keys, labels)


def _dtd(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read DTD's official split 1: ``labels/{train,val,test}1.txt`` list ``<class>/<file>``."""
    parts = ("train", "val") if split == "train" else ("test",)
    keys = [" ".join(line) for part in parts for line in _text(row, f"dtd/labels/{part}1.txt", root)]
    return _check_listed(row, _source(row, row.images, root), keys, _labels_in_names(row, keys))


def _pets(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read Oxford Pets: ``annotations/{trainval,test}.txt`` list ``<image> <class from 1> <species> <breed>``."""
    name = f"annotations/{'trainval' if split == 'train' else 'test'}.txt"
    lines = _text(row, name, root)
    labels = [_label(row, name, int(line[1])) for line in lines]
    return _check_listed(row, _source(row, row.images, root), [f"{line[0]}.jpg" for line in lines], labels)


def _flowers(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read Flowers 102: ``imagelabels.mat`` has the classes from 1 of image 1, 2, ...; ``setid.mat`` the splits."""
    classes = _mat(row, "imagelabels.mat", "labels", root)
    parts = ("trnid", "valid") if split == "train" else ("tstid",)
    numbers = np.concatenate([np.atleast_1d(_mat(row, "setid.mat", part, root)) for part in parts]).tolist()
    keys = [f"image_{number:05d}.jpg" for number in numbers]
    labels = [_label(row, "imagelabels.mat", int(classes[number - 1])) for number in numbers]
    return _check_listed(row, _source(row, row.images, root), keys, labels)


def _cars(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read Stanford Cars: annotations with fields ``fname`` and ``class`` (from 1), one file for each split."""
    name = "devkit/cars_train_annos.mat" if split == "train" else "cars_test_annos_withlabels.mat"
    annotations = np.atleast_1d(_mat(row, name, "annotations", root))
    keys = [str(annotation["fname"]) for annotation in annotations]
    labels = [_label(row, name, int(annotation["class"])) for annotation in annotations]
    return _check_listed(row, _source(row, f"cars_{split}", root), keys, labels)


def _food(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read Food-101: ``meta/{train,test}.txt`` list ``<class>/<number>`` of ``images/<class>/<number>.jpg``."""
    names = [line[0] for line in _text(row, f"food-101/meta/{split}.txt", root)]
    labels = _labels_in_names(row, names)
    return _check_listed(row, _source(row, row.images, root), [f"{name}.jpg" for name in names], labels)


def _ucf101(row: DataSet, split: str, root: str | Path | None) -> Listed:
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
        labels.append(label_of[action])
        if number and int(number[0]) != labels[-1] + 1:
            raise UserError(f"{split}list01.txt numbers {action} {number[0]}, not {labels[-1] + 1} as {row.title}")
        keys.append(f"{re.sub('(?<!^)(?=[A-Z])', '_', action)}/{Path(name).stem}.jpg")
    return _check_listed(row, _source(row, row.images, root), keys, labels)


def _domainnet(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read a domain of DomainNet by ``clipart_train.txt``: lines ``clipart/axe/clipart_012_000001.jpg 11``.

    A label is the class that the folder names; the list's numbers say the same.
    """
    name, top = f"{row.images}_{split}.txt", f"{row.images}/"
    lines = [" ".join(line[:-1]) for line in _text(row, name, root)]
    if wrong := next((line for line in lines if not line.startswith(top)), None):
        raise UserError(f"{name} of {row.title} has the line '{wrong}', which is no image of {top} and its class")
    keys = [line.removeprefix(top) for line in lines]
    return _check_listed(row, _source(row, row.images, root), keys, _labels_in_names(row, keys))


def _openood(row: DataSet, split: str, root: str | Path | None) -> Listed:
    """Read a list of OpenOOD's: lines ``tin/val/n01443537/images/x.JPEG -1``, the first part being the set's folder.

    ``needs`` begins with the list of the test images, ``test_NAME.txt``; ``train_NAME.txt`` has the training images.
    """
    name, top = row.needs[0], f"{row.images.rpartition('/')[2]}/"
    if split == "train":
        name = name.replace("/test_", "/train_")
    lines = _text(row, name, root)
    if wrong := [text for line in lines if not re.fullmatch(rf"{top}\S.* -?\d+", text := " ".join(line))]:
        raise UserError(f"{name} of {row.title} has the line '{wrong[0]}', which is no image of {top} and its label")
    keys = [" ".join(line[:-1]).removeprefix(top) for line in lines]
    labels = [_label(row, name, int(line[-1]) + 1) for line in lines] if row.file_classes > 1 else [0] * len(lines)
    return _check_listed(row, _source(row, row.images, root), keys, labels)


#: The readers of encoded images: (row, split, root) -> source, keys, labels.
INDEXES: dict[str, Callable[[DataSet, str, str | Path | None], Listed]] = {
    "flat_folder": _flat, "class_folders": _class_folders, "imagenet": _imagenet, "dtd": _dtd, "pets": _pets,
    "flowers": _flowers, "cars": _cars, "food": _food, "ucf101": _ucf101, "openood": _openood,
    "domainnet": _domainnet,
}  # fmt: skip


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

    Small images come as arrays, (N,C,H,W) uint8 (mapped from the file) and labels (N,) int64; ImageNet's, in
    ``<corruption>/<severity>/<class>/<image>``, as an ``ImageIndex``. Both are in the order of the clean test set.
    UserError, one line, for a name, corruption or severity that the archive does not have, and for missing or unfit
    files.
    """
    row = get_dataset(name)
    if corruption not in row.corruptions:
        have = ", ".join(row.corruptions) or "none"
        raise UserError(f"data set '{name}' has no corruption '{corruption}': there are {have}")
    if severity not in range(1, 6):
        raise UserError(f"severity is {severity}: {row.title} has 1 to 5")
    if row.reader != "corrupted_folders":
        return corrupted_arrays(row, corruption, severity, root)
    clean = get_dataset(row.clean)
    source = _source(row, f"{row.images}/{corruption}/{severity}".lstrip("/"), root)
    _, keys, labels = _by_class_folder(row.name, clean.folders or clean.classes, source)
    if len(keys) != row.test:
        where = source.path / corruption / str(severity)
        raise UserError(f"{where}: {len(keys):,} images; the catalog says {row.test:,}")
    return ImageIndex(source, tuple(keys), np.array(labels, np.int64), row.name)
