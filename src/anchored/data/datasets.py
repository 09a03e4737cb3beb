"""From the name of a data set, a row of the catalog or own images, to images as a network sees them.

Sets that fit in memory are one uint8 tensor (``batches.ImageSet``); larger ones are decoded by worker processes as they
are needed (``stream.ImageStream``). Both are ``Images``, and nobody above this module asks which.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.config.settings import Data
from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.data.batches import Batches, ImageSet, as_seen_by, crop_and_flip, to_input
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import DataSet
from anchored.data.readers import read as readers
from anchored.data.readers.arrays import READERS
from anchored.data.readers.download import fetch
from anchored.data.readers.files import data_root, is_here
from anchored.data.readers.images import ImageIndex
from anchored.data.readers.layouts import INDEXES
from anchored.data.streaming import Images, ImageStream, Index, View
from anchored.data.user_data import index as own
from anchored.errors import UserError

__all__ = [
    "Batches",
    "ImageSet",
    "Images",
    "View",
    "as_seen_by",
    "bound",
    "content",
    "crop_and_flip",
    "data_root",
    "describe",
    "fetch",
    "is_here",
    "learnable",
    "load",
    "look",
    "open_corrupted",
    "open_set",
    "row",
    "scaled",
    "seen_by",
    "to_input",
]

_CHUNK = 512  # computed images drawn at a time: bounds the memory their float copies take
_MEASURED = 10_000  # training images at most that give the mean and standard deviation of own data
_Some = TypeVar("_Some", bound=Images)


def load(
    name: str, split: str, root: str | Path | None = None, *, channels: int | None = None, size: int | None = None
) -> ImageSet:
    """Return one split, "train" or "test", of the data set called ``name``, in memory.

    ``root``: the folder of downloaded sets; default $ANCHORED_DATA, else ~/.cache/anchored. ``channels`` and ``size``:
    the input of the network that will see the images, if it differs from the set's own: computed sets (noise, blobs)
    are then drawn at that shape, others pass through :func:`as_seen_by`. UserError, one line, when the set or split
    does not exist, or a file is missing, damaged or not what the catalog says.
    """
    known = row(name, Data())
    seen = View(channels or known.channels, size or known.size)
    return _in_memory(_found(known, split, Data(), root, seen), seen)


def open_set(
    name: str,
    split: str,
    settings: Data,
    seen: View,
    root: str | Path | None = None,
    *,
    minimum: int = 1,
    originals: bool = False,
) -> Images:
    """Return one split of a data set as a network sees it: in memory up to ``settings.memory`` GB, else as a stream.

    ``split``: "train", "test", or "ood", what is shown as out-of-distribution: the test images, and of own data without
    a test split all. ``settings.fraction`` of each class, its first images and at least ``minimum``, is kept. Of the
    set to train on, "validation" is the share that ``settings.validation`` holds out, and "train" is without it.
    ``originals``: leave encoded images as they are, for random crops of them. Sets in memory are kept for the next
    call, as long as they fit into the limit together. UserError as in :func:`load`, and where own images are not those
    that ``settings.content`` tells of.
    """
    limit = settings.memory * 1e9
    stated = content(name, settings)
    if name == settings.train and settings.content and stated != settings.content:
        raise UserError(
            f"the images of {name} are not those that this training began with (their hash was {settings.content}, is "
            f"{stated}): bring those back, or train in another folder"
        )
    held_out = settings.validation if name == settings.train and split in ("train", "validation") else 0.0
    shares = (settings.fraction, settings.test_share, held_out)
    key = (name, split, str(data_root(root)), stated, seen, shares, minimum, limit)
    if key in _KEPT and not originals:
        _KEPT.move_to_end(key)
        return _KEPT[key]
    part = "train" if split == "validation" else split
    found = scaled(_found(row(name, settings), part, settings, root, seen), settings.fraction, minimum)
    if held_out or split == "validation":
        found = found.take(_divided(found, held_out)[split == "validation"])
    needed = len(found) * seen.channels * seen.size**2
    if needed > limit or (originals and isinstance(found, ImageStream)):
        return found if isinstance(found, ImageStream) else replace(found, shown=(seen.channels, seen.size))
    kept = _KEPT[key] = _in_memory(found, seen)
    while len(_KEPT) > 1 and sum(each.images.nbytes for each in _KEPT.values()) > limit:
        _KEPT.popitem(last=False)
    return kept


def _divided(images: Images, share: float) -> tuple[Tensor, Tensor]:
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


_KEPT: OrderedDict[tuple[object, ...], ImageSet] = OrderedDict()  # sets that were opened last, decoded


def look(name: str, split: str, settings: Data, root: str | Path | None = None) -> None:
    """Raise UserError, in little time, where :func:`open_set` could not open a split.

    Arrays are read (and kept for that call); of encoded images, names and labels are read and the first is decoded.
    """
    known, seen = row(name, settings), seen_by(settings)
    if known.reader in INDEXES:
        found = _found(known, split, settings, root, seen)
        next(found.parts([torch.zeros(1, dtype=torch.int64)]))
    else:
        open_set(name, split, settings, seen, root, minimum=10)


def open_corrupted(
    name: str,
    corruption: str,
    severity: int,
    settings: Data,
    seen: View,
    root: str | Path | None = None,
    *,
    minimum: int = 1,
) -> Images:
    """Return an archive's test images under one corruption and severity, in the order of the clean set, as a view.

    ``name``: a row such as "cifar10-c". Small images come in memory, ImageNet's as a stream; ``settings.fraction`` and
    ``minimum`` as in :func:`open_set`. UserError where the archive has no such corruption, or files are missing.
    """
    known, found = catalog.get(name), readers.corrupted(name, corruption, severity, root)
    known = replace(known, classes=catalog.get(known.clean).classes)
    if isinstance(found, ImageIndex):
        return scaled(_stream(known, found, seen, settings.workers), settings.fraction, minimum)
    pixels, labels = (torch.tensor(part) for part in found)
    images = ImageSet(name, pixels, labels.long(), known.classes, shown=(seen.channels, seen.size))
    return scaled(images, settings.fraction, minimum)


def content(name: str, settings: Data) -> str:
    """Return the hash of own images; "" for a set of the catalog, whose files have hashes of their own."""
    return own.find(name, settings.test_share).content if catalog.is_own(name) else ""


def bound(settings: Data) -> Data:
    """Return the settings with the hash of own training images, which are looked at anew; others as they are."""
    own.find.cache_clear()
    return settings if settings.content else replace(settings, content=content(settings.train, settings))


def seen_by(settings: Data) -> View:
    """Return how the networks of a study see images: the training set's shape, unless the settings say otherwise."""
    known = row(settings.train, settings)
    size = settings.size or known.size
    rule = 0.875 if known.varied and size >= 96 else 1.0
    return View(settings.channels or known.channels, size, settings.crop or rule, settings.interpolation)


def describe(settings: Data, root: str | Path | None = None) -> DataSet:
    """Return the row of the training set: the catalog's, or one made of own images, mean and s.d. measured.

    These are of the training images at the input's size, of 10,000 spread evenly where there are more. UserError where
    a network cannot learn from it.
    """
    known = learnable(settings.train, settings, "data.train is")
    if not catalog.is_own(known.name):
        return known
    key = (known.name, content(known.name, settings), seen_by(settings), settings.test_share, settings.validation)
    if key not in _MOMENTS:
        images = open_set(known.name, "train", replace(settings, fraction=1.0), seen_by(settings), root)
        _MOMENTS[key] = _moments(images)
    mean, std = _MOMENTS[key]
    return replace(known, mean=mean, std=std)


def learnable(name: str, settings: Data, said: str) -> DataSet:
    """Return the row of a set that a network or a probe is to learn; UserError, beginning as ``said``, if it cannot."""
    known = row(name, settings)
    if catalog.is_own(name):
        own.checked(own.find(name, settings.test_share))
    elif len(known.classes) < 2:
        raise UserError(f"{said} '{name}', which has no classes: name a set with labels")
    return known


_MOMENTS: dict[tuple[object, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}


def _moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and s.d. per channel of images scaled to [0, 1], exactly: from counts of each level."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), _MEASURED), dtype=torch.float64).long()
    counts = torch.zeros(0)
    for part in images.parts(torch.split(chosen, 256)):
        found = torch.stack([channel.flatten().cpu().bincount(minlength=256) for channel in part.unbind(1)])
        counts = found if len(counts) == 0 else counts + found
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp(min=1 / 255).tolist())


def row(name: str, settings: Data) -> DataSet:
    """Return the row of a data set; one made of own images has no mean and s.d. yet (see ``describe``)."""
    if not catalog.is_own(name):
        return catalog.get(name)
    found = own.find(name, settings.test_share)
    counts = {split: len(index) for split, index in found.splits.items()}
    return DataSet(
        name=name,
        title=catalog.title(name),
        classes=found.classes,
        channels=found.channels,
        size=found.size,
        train=counts.get("train", 0),
        test=counts.get("test", 0),
        roles=("train", "ood", "adaptation"),
        licence="own",
        citation="",
        reader="own",
        file_classes=len(found.classes),
        varied=True,
    )


def _found(row: DataSet, split: str, settings: Data, root: str | Path | None, seen: View) -> ImageSet | ImageStream:
    """Return all images of a split, as they are found: pixels of any shape, or encoded."""
    if row.reader == "own":
        return _stream(row, own.find(row.name, settings.test_share).split(split), seen, settings.workers)
    split = "test" if split == "ood" else split
    count = {"train": row.train, "test": row.test}.get(split, 0)
    if count == 0:
        have = " and ".join(f"'{s}' ({n:,} images)" for s, n in (("train", row.train), ("test", row.test)) if n)
        raise UserError(f"data set '{row.name}' has no split '{split}': use {have}")
    if row.reader in INDEXES:
        return _stream(row, readers.index(row, split, root), seen, settings.workers)
    if row.reader == "procedural":
        images = _draw(row.name, split, count, (seen.channels, seen.size))
        labels = torch.zeros(count, dtype=torch.int64)
    else:
        images, labels = _read(row, split, root)
    if len(images) != count:
        raise UserError(f"data set '{row.name}' has {len(images):,} {split} images here; the catalog says {count:,}")
    return ImageSet(row.name, images, labels, row.classes)


def _stream(row: DataSet, index: Index, seen: View, workers: int) -> ImageStream:
    labels = torch.from_numpy(index.labels)
    return ImageStream(row.name, index, row.classes, seen, torch.arange(len(labels)), labels, workers)


def _in_memory(images: ImageSet | ImageStream, seen: View) -> ImageSet:
    """Return the images as the network sees them, as one tensor."""
    if isinstance(images, ImageSet):
        return replace(images, images=as_seen_by(images.images, seen.channels, seen.size))
    pixels = torch.empty(len(images), seen.channels, seen.size, seen.size, dtype=torch.uint8)
    batches = torch.split(torch.arange(len(images)), 64)
    for batch, part in zip(batches, images.parts(batches), strict=True):
        pixels[batch] = part
    return ImageSet(images.name, pixels, images.labels, images.classes)


def _read(row: DataSet, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Return images (N,C,H,W) uint8 and labels (N,) int64 of ``row``'s files, only the classes it keeps."""
    raw_images, raw_labels = READERS[row.reader](row, split, root)
    expected = (row.channels, row.size, row.size)
    if raw_images.shape[1:] != expected or len(raw_images) != len(raw_labels):
        raise UserError(
            f"{row.title}: the files hold {raw_images.shape} images and {len(raw_labels):,} labels; the catalog says "
            f"images of {expected}"
        )
    if int(raw_labels.max(initial=0)) >= row.file_classes:
        raise UserError(f"{row.title}: a label is {raw_labels.max()}; its {row.file_classes} classes end below that")
    if row.keep is None:
        return torch.tensor(raw_images), torch.tensor(raw_labels, dtype=torch.int64)
    new_label = torch.full((row.file_classes,), -1)
    new_label[torch.tensor(row.keep)] = torch.arange(len(row.keep))
    labels = new_label[torch.tensor(raw_labels, dtype=torch.int64)]
    kept = labels >= 0
    return torch.tensor(raw_images[kept.numpy()]), labels[kept]


def _draw(name: str, split: str, count: int, shape: tuple[int, int]) -> Tensor:
    """Return the ``count`` images (N,C,H,W) uint8 of a computed set; image i is the same whatever ``count`` is."""
    form = (shape[0], shape[1], shape[1])
    keys = image_keys(0, f"{name}/{split}", torch.arange(count))
    return torch.cat([_drawn(name, part, form) for part in torch.split(keys, _CHUNK)])


def _drawn(name: str, keys: Tensor, form: tuple[int, int, int]) -> Tensor:
    if name == "gaussian-noise":
        return (normal(keys, form) * (0.25 * 255) + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    if name == "uniform-noise":
        return (uniform(keys, form) * 256).to(torch.uint8)
    return _blobs(normal(keys, form))


def _blobs(noise: Tensor) -> Tensor:
    """Smooth ``noise`` (N,C,H,W) with a Gaussian of s.d. H/14 (2 px at 28), then stretch each channel to 0..255."""
    sigma = noise.shape[-1] / 14
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (2, 3):
        padded = F.pad(noise, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
        noise = sum(
            (w * padded.narrow(axis, i, noise.shape[axis]) for i, w in enumerate(weights.tolist())),
            start=torch.zeros(()),
        )
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return ((noise - low) / (high - low) * 255).round_().to(torch.uint8)


def scaled(images: _Some, fraction: float, minimum: int = 1) -> _Some:
    """Return the first images of each class, in their order: a ``fraction`` of it, at least ``minimum``, for trials.

    UserError unless ``fraction`` is in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction:g}: give a share of the images in (0, 1]")
    if fraction == 1:
        return images
    places = []
    for label in range(len(images.classes)):
        of_class = (images.labels == label).nonzero().squeeze(1)
        places.append(of_class[: max(minimum, round(fraction * len(of_class)))])
    return images.take(torch.cat(places).sort().values)  # type: ignore[return-value]  # a set of the same kind
