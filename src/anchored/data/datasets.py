"""From the name of a data set, a row of the catalog or a user's own, to images as a network's input.

Sets that fit in memory are one uint8 tensor (``ImageSet``); larger ones are decoded by worker processes as they are
needed (``ImageStream``). Both are ``LabelledImages``: nothing above this module asks which.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from anchored.config.settings import Data
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import DataSet
from anchored.data.image_sets import ImageSet, ImageStream, LabelledImages
from anchored.data.image_sources import ImageIndex
from anchored.data.preprocessing import InputFormat, fit_to_input
from anchored.data.readers.arrays import READERS
from anchored.data.readers.files import data_root
from anchored.data.readers.layouts import INDEXES, read_corrupted, read_index
from anchored.data.synthetic_ood import draw_images
from anchored.data.user_data.index import find_user_data
from anchored.errors import UserError

_SAMPLED = 10_000  # training images at most that give the mean and standard deviation of user data
_Images = TypeVar("_Images", ImageSet, ImageStream, LabelledImages)
_decoded: OrderedDict[tuple[object, ...], ImageSet] = OrderedDict()  # sets that were opened last
_moments_of: dict[tuple[object, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}


def load_split(
    name: str, split: str, root: str | Path | None = None, *, channels: int | None = None, size: int | None = None
) -> ImageSet:
    """Return one split, "train" or "test", of the data set called ``name``, in memory: (N,C,H,W) uint8.

    ``root``: the folder of downloaded sets; default $ANCHORED_DATA, else ~/.cache/anchored. ``channels`` and ``size``:
    the input of the network that will see the images, if it differs from the set's own: computed sets (noise, blobs)
    are then drawn at that shape, others pass through ``fit_to_input``. UserError, one line, when the set or split does
    not exist, or a file is missing, damaged or not what the catalog says.
    """
    row = dataset_row(name, Data())
    target = InputFormat(channels or row.channels, size or row.size)
    return _in_memory(_open_split(row, split, Data(), root, target), target)


def open_set(
    name: str,
    split: str,
    settings: Data,
    target: InputFormat,
    root: str | Path | None = None,
    *,
    minimum: int = 1,
    originals: bool = False,
) -> LabelledImages:
    """Return one split of a data set as a network's input: in memory up to ``settings.memory`` GB, else as a stream.

    ``split``: "train", "test", "ood", what is shown as out-of-distribution, or "all", what a network that was trained
    elsewhere is measured on: the test images, and of user data without a test split all. ``settings.fraction`` of each
    class, its first images and at least ``minimum``, is kept. Of the set to train on, "validation" is the share that
    ``settings.validation`` holds out, and "train" is without it; ``minimum`` is 1 there.
    ``originals``: leave images as they are, for random crops of them. Sets in memory are kept for the next
    call, as long as they fit into the limit together. UserError as in :func:`load_split`, and where user data are not
    those with the hash that ``settings.content`` or ``settings.contents`` has of them.
    """
    limit = settings.memory * 1e9
    content = content_hash(name, settings)
    began = settings.content if name == settings.train else dict(settings.contents).get(name, "")
    if began and content != began:
        raise UserError(
            f"the images of {name} are not those that this training began with (their hash was {began}, is {content}): "
            "bring those back, or train in another folder"
        )
    divided = name == settings.train and split in ("train", "validation")
    held_out, minimum = (settings.validation, 1) if divided else (0.0, minimum)  # one division, whoever asks for it
    shares = (settings.fraction, settings.test_share, held_out)
    key = (name, split, str(data_root(root)), content, target, shares, minimum, limit)
    if key in _decoded and not originals:
        _decoded.move_to_end(key)
        return _decoded[key]
    in_file = "train" if split == "validation" else split
    images = _open_split(dataset_row(name, settings), in_file, settings, root, target)
    images = take_fraction(images, settings.fraction, minimum)
    if held_out or split == "validation":
        images = images.take(_hold_out(images, held_out)[split == "validation"])
    needed = len(images) * target.channels * target.size**2
    if needed > limit or originals:
        return images if isinstance(images, ImageStream) else replace(images, shown=(target.channels, target.size))
    decoded = _decoded[key] = _in_memory(images, target)
    while len(_decoded) > 1 and sum(images.images.nbytes for images in _decoded.values()) > limit:
        _decoded.popitem(last=False)
    return decoded


def _hold_out(images: LabelledImages, share: float) -> tuple[Tensor, Tensor]:
    """The places of the images to train on, and of the ``share`` of each class that is held out, both in order.

    Drawn at random, since neighbours in a file may be of one burst or source, by a seed that no setting changes: every
    training of a study has the same held-out images. UserError where a class would have none on either side.
    """
    generator = torch.Generator().manual_seed(0)
    held = torch.zeros(len(images), dtype=torch.bool)
    for label, name in enumerate(images.classes):
        of_class = (images.labels.cpu() == label).nonzero().squeeze(1)
        count = max(1, round(share * len(of_class)))
        if share <= 0 or len(of_class) <= count:
            raise UserError(
                f"data.validation {share:g} of the {len(of_class)} training images of class '{name}' of {images.name} "
                "leaves none to hold out or none to train on: give another share"
            )
        held[of_class[torch.randperm(len(of_class), generator=generator)[:count]]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)


def outlier_split(name: str, settings: Data) -> str:
    """Return the split that outliers to train on are taken from: training images, or all where a set has none."""
    return "train" if dataset_row(name, settings).train else "ood"


def check_readable(name: str, split: str, settings: Data, root: str | Path | None = None) -> None:
    """Raise UserError, in little time, where :func:`open_set` could not open a split. Arrays are read (and kept for
    that call); of encoded images, names and labels are read and the first is decoded."""
    row, target = dataset_row(name, settings), input_format(settings)
    if row.reader in INDEXES:
        next(_open_split(row, split, settings, root, target).parts([torch.zeros(1, dtype=torch.int64)]))
    else:
        open_set(name, split, settings, target, root, minimum=10)


def open_counted(settings: Data, root: str | Path | None = None) -> LabelledImages:
    """Return the images to train on to be counted, likewise: arrays are kept, encoded images are not decoded."""
    row = dataset_row(settings.train, settings)
    counted = replace(settings, memory=0.0) if row.reader in INDEXES else settings
    return open_set(row.name, "train", counted, input_format(settings), root)


def open_corrupted(
    name: str,
    corruption: str,
    severity: int,
    settings: Data,
    target: InputFormat,
    root: str | Path | None = None,
    *,
    minimum: int = 1,
) -> LabelledImages:
    """Return an archive's test images under one corruption and severity, in the order of the clean set, as an input.

    ``name``: a row such as "cifar10-c". Small images come in memory, ImageNet's as a stream; ``settings.fraction`` and
    ``minimum`` as in :func:`open_set`. UserError where the archive has no such corruption, or files are missing.
    """
    row, stored = catalog.get_dataset(name), read_corrupted(name, corruption, severity, root)
    row = replace(row, classes=catalog.get_dataset(row.clean).classes)
    if isinstance(stored, ImageIndex):
        return take_fraction(_stream(row, stored, target, settings.workers), settings.fraction, minimum)
    pixels, labels = (torch.tensor(part) for part in stored)
    images = ImageSet(name, pixels, labels.long(), row.classes, shown=(target.channels, target.size))
    return take_fraction(images, settings.fraction, minimum)


def content_hash(name: str, settings: Data) -> str:
    """Return the hash of user data; "" for a set of the catalog, whose files have hashes of their own."""
    return find_user_data(name, settings.test_share).content if catalog.is_user_data(name) else ""


def with_content_hash(settings: Data, others: Iterable[str] = ()) -> Data:
    """Return the settings with the hashes of the user's images, found anew where they are not there yet.

    ``others``: names of what is trained with besides ``settings.train``; those of the catalog have none.
    """
    find_user_data.cache_clear()
    began = {settings.train: settings.content, **dict(settings.contents)}
    names = dict.fromkeys((settings.train, *others))
    (_, content), *found = ((name, began.get(name) or content_hash(name, settings)) for name in names)
    return replace(settings, content=content, contents=tuple(pair for pair in found if pair[1]))


def input_format(settings: Data) -> InputFormat:
    """Return the input of a study's networks: the training set's shape, unless the settings say otherwise."""
    row = dataset_row(settings.train, settings)
    size = settings.size or row.size
    crop = 0.875 if row.varied and size >= 96 else 1.0
    return InputFormat(settings.channels or row.channels, size, settings.crop or crop, settings.interpolation)


def training_row(settings: Data, root: str | Path | None = None) -> DataSet:
    """Return the row of the training set: the catalog's, or one made of user data, mean and s.d. measured.

    These are of the training images at the input's size, of 10,000 spread evenly where there are more. UserError where
    a network cannot learn from it.
    """
    row = learnable_row(settings.train, settings, "data.train is")
    if not catalog.is_user_data(row.name):
        return row
    target = input_format(settings)
    key = (row.name, content_hash(row.name, settings), target, settings.test_share, settings.validation)
    if key not in _moments_of:
        _moments_of[key] = _moments(open_set(row.name, "train", replace(settings, fraction=1.0), target, root))
    mean, std = _moments_of[key]
    return replace(row, mean=mean, std=std)


def learnable_row(name: str, settings: Data, subject: str) -> DataSet:
    """Return the row of a set that a network or a probe is to learn; UserError (``subject`` ...) if none can."""
    row = dataset_row(name, settings)
    if catalog.is_user_data(name):
        find_user_data(name, settings.test_share).check_learnable()
    elif len(row.classes) < 2:
        raise UserError(f"{subject} '{name}', which has no classes: name a set with labels")
    return row


def refuse_undivided(name: str, settings: Data) -> None:
    """Raise UserError where all images of the user's data are measured, so that none is left to fit detectors on."""
    if catalog.is_user_data(name) and find_user_data(name, settings.test_share).divided:
        raise UserError(
            f"detectors are fitted on training images, and all of {name} are measured: say which are for training and "
            "which for testing (folders train/ and test/, or a column split)"
        )


def _moments(images: LabelledImages) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and s.d. per channel of images scaled to [0, 1], exactly: from counts of each level."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), _SAMPLED), dtype=torch.float64).long()
    counts: Tensor = sum(  # (C,256)
        (
            torch.stack([channel.flatten().cpu().bincount(minlength=256) for channel in part.unbind(1)])
            for part in images.parts(torch.split(chosen, 256))
        ),
        start=torch.zeros((), dtype=torch.int64),
    )
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp(min=1 / 255).tolist())


def dataset_row(name: str, settings: Data) -> DataSet:
    """Return the row of a data set; one made of user data has no mean and s.d. yet (see ``training_row``)."""
    if not catalog.is_user_data(name):
        return catalog.get_dataset(name)
    images = find_user_data(name, settings.test_share)
    counts = {split: len(index) for split, index in images.splits.items()}
    return DataSet(
        name=name, title=catalog.dataset_title(name), classes=images.classes, channels=images.channels,
        size=images.size, train=counts.get("train", 0), test=counts.get("test", 0),
        roles=("train", "ood", "adaptation"), licence="own", citation="", reader="own",
        file_classes=len(images.classes), varied=True,
    )  # fmt: skip


def _open_split(
    row: DataSet, split: str, settings: Data, root: str | Path | None, target: InputFormat
) -> LabelledImages:
    """Return all images of a split, as they are in the files: pixels of any shape, or encoded."""
    if row.reader == "own":
        index = find_user_data(row.name, settings.test_share).split(split)
        return _stream(row, index, target, settings.workers)
    split = "test" if split in ("ood", "all") else split
    count = {"train": row.train, "test": row.test}.get(split, 0)
    if count == 0:
        have = " and ".join(f"'{s}' ({n:,} images)" for s, n in (("train", row.train), ("test", row.test)) if n)
        raise UserError(f"data set '{row.name}' has no split '{split}': use {have}")
    if row.reader in INDEXES:
        return _stream(row, read_index(row, split, root), target, settings.workers)
    if row.reader == "procedural":
        images = draw_images(row.name, split, count, (target.channels, target.size, target.size))
        labels = torch.zeros(count, dtype=torch.int64)
    else:
        images, labels = _read(row, split, root)
    if len(images) != count:
        raise UserError(f"data set '{row.name}' has {len(images):,} {split} images here; the catalog says {count:,}")
    return ImageSet(row.name, images, labels, row.classes)


def _stream(row: DataSet, index: ImageIndex, target: InputFormat, workers: int) -> ImageStream:
    return ImageStream(row.name, index, row.classes, target, torch.arange(len(index)), workers)


def _in_memory(images: LabelledImages, target: InputFormat) -> ImageSet:
    if isinstance(images, ImageSet):
        return replace(images, images=fit_to_input(images.images, target.channels, target.size))
    pixels = torch.empty(len(images), target.channels, target.size, target.size, dtype=torch.uint8)
    batches = torch.split(torch.arange(len(images)), 64)
    for batch, part in zip(batches, images.parts(batches), strict=True):
        pixels[batch] = part
    return ImageSet(images.name, pixels, images.labels, images.classes)


def _read(row: DataSet, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Return images (N,C,H,W) uint8 and labels (N,) int64 of ``row``'s files, only the classes it keeps."""
    pixels, stored_labels = READERS[row.reader](row, split, root)
    expected = (row.channels, row.size, row.size)
    if pixels.shape[1:] != expected or len(pixels) != len(stored_labels):
        raise UserError(
            f"{row.title}: the files hold {pixels.shape} images and {len(stored_labels):,} labels; the catalog says "
            f"images of {expected}"
        )
    if int(stored_labels.max(initial=0)) >= row.file_classes:
        raise UserError(f"{row.title}: a label is {stored_labels.max()}; its {row.file_classes} classes end below that")
    if row.keep is None:
        return torch.tensor(pixels), torch.tensor(stored_labels, dtype=torch.int64)
    new_label = torch.full((row.file_classes,), -1)
    new_label[torch.tensor(row.keep)] = torch.arange(len(row.keep))
    labels = new_label[torch.tensor(stored_labels, dtype=torch.int64)]
    kept = labels >= 0
    return torch.tensor(pixels[kept.numpy()]), labels[kept]


def take_fraction(images: _Images, fraction: float, minimum: int = 1) -> _Images:
    """Return the first images of each class, in their order: a ``fraction`` of it, at least ``minimum``, for trials.
    UserError unless ``fraction`` is in (0, 1]."""
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction:g}: give a share of the images in (0, 1]")
    if fraction == 1:
        return images
    places = []
    for label in range(len(images.classes)):
        of_class = (images.labels == label).nonzero().squeeze(1)
        places.append(of_class[: max(minimum, round(fraction * len(of_class)))])
    return images.take(torch.cat(places).sort().values)
