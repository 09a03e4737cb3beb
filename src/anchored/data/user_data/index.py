"""A user's own images: a folder of class folders, a CSV, an npz, or a Hugging Face data set, as an index of images.

Nothing is unpickled and no code of a data set is run. Images are turned as their camera says, 16-bit grey becomes
8-bit, transparent pixels become white.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.data.readers.images import IMAGE_ENDINGS
from anchored.data.user_data.sources import FORMATS, UNREADABLE, Files, Listing, Source, decoded, listed
from anchored.errors import UserError

__all__ = ["LARGEST_SIZE", "OwnIndex", "OwnSet", "checked", "find", "listed", "listing_of", "of_files"]

LARGEST_SIZE = 224
"""Own images are seen at their median shorter side, but not above this, unless ``data.size`` says otherwise."""

_READ_WHOLE = 1 << 30  # bytes: up to here the content of files is hashed, above it their names, sizes and times
_LOOKED_AT = 256  # images whose headers decide on colours and size


@dataclass(frozen=True, eq=False)
class OwnIndex:
    """One split: images ``numbers`` (N,) of the source, with ``labels`` (N,) int64."""

    source: Source
    numbers: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.numbers)

    def decode(self, index: int) -> Image.Image:
        """Return image ``index``, "L" or "RGB"; UserError naming its file where it is not a whole image."""
        return decoded(self.source, int(self.numbers[index]))


@dataclass(frozen=True, eq=False)
class OwnSet:
    """A data set of one's own: its splits, how it looks, and the hash of its content."""

    name: str
    classes: tuple[str, ...]
    splits: dict[str, OwnIndex]  # train and test; "ood": the images shown as out-of-distribution
    channels: int
    size: int
    content: str
    divided: bool  # by us, since the data do not say what is for testing
    unclassed: str  # the first image without a class; "" if all have one

    def split(self, split: str) -> OwnIndex:
        """Return "train", "test" or "ood"; UserError where it has no images."""
        if split not in self.splits:
            what = f"{self.unclassed} has no class" if self.unclassed else f"there are no {split} images"
            raise UserError(f"{self.name}: {what}: {_WANTED}")
        return self.splits[split]


_WANTED = "put each class's images in a folder of its own, or give a CSV with the columns path,label"


@functools.lru_cache(maxsize=16)
def find(name: str, test_share: float) -> OwnSet:
    """Find the images of ``name``, without decoding them.

    ``test_share``: share of each class that is kept for testing where the data do not say which: those whose names have
    the lowest hashes, the same on every machine. UserError, one line, where there are no images, a class is missing or
    has a single image, or a file is not what it should be. Found once a process: ``find.cache_clear()`` looks again.
    """
    listing = listing_of(name)
    with _mended(name):
        content = _content(listing)
    odd = next((label for label in listing.labels if not label.isprintable()), None)
    if odd is not None:
        raise UserError(f"{name}: the class {odd!r} has signs in its name that cannot be shown: rename it")
    stated = set(listing.sides)
    if "" in stated and len(stated) > 1:
        missing = listing.names[listing.sides.index("")]
        raise UserError(f"{name} says of some images whether they are for training or testing, but not of {missing}")
    labelled = sorted(set(listing.labels))
    numeric = all(label.isdecimal() for label in labelled)
    classes = tuple(sorted(labelled, key=int) if numeric else labelled)
    sides = listing.sides if "test" in stated else _divided(listing, test_share)
    channels, size = _look(listing)
    splits = {split: _split(listing, classes, sides, split) for split in ("train", "test")}
    everything = np.arange(len(listing.names))
    outside = splits["test"] if "test" in stated else OwnIndex(listing.source, everything, np.zeros_like(everything))
    splits["ood"] = outside if len(outside) else splits["train"]
    unclassed = ""
    if "" in classes:  # good for nothing that needs classes
        splits, unclassed = {"ood": splits["ood"]}, listing.names[listing.labels.index("")]
    kept = {split: index for split, index in splits.items() if len(index)}
    return OwnSet(name, classes, kept, channels, size, content, "test" not in stated, unclassed)


def listing_of(name: str) -> Listing:
    """Return every image of own data in its canonical order, found but not decoded; UserError where there is none."""
    with _mended(name):
        listing = next(read for fits, read in FORMATS if fits(name))(name)
    if not listing.names:
        raise UserError(f"{name} holds no images ({', '.join(IMAGE_ENDINGS)})")
    return listing


@contextlib.contextmanager
def _mended(name: str) -> Iterator[None]:
    """Turn the system's refusals into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {(error.strerror or str(error)).lower()}") from error


def checked(own: OwnSet) -> OwnSet:
    """Return ``own`` if a network can learn its classes; UserError otherwise."""
    if len(own.classes) < 2 and "train" in own.splits:
        raise UserError(f"{own.name} has one class ('{own.classes[0]}'): a classifier needs two or more")
    train, test = (set(own.split(split).labels.tolist()) for split in ("train", "test"))
    for label, title in enumerate(own.classes):
        if label not in train:
            raise UserError(f"{own.name}: class '{title}' has test images but no training images")
        if label not in test and own.divided:
            raise UserError(f"{own.name}: class '{title}' has one image: give two or more, to train and to test")
    return own


def _divided(listing: Listing, share: float) -> list[str]:
    """Return the side of each image, stratified by class."""
    if not 0 < share < 1:
        raise UserError(f"data.test_share is {share:g}: give a share above 0 and below 1")
    of_class: dict[str, list[int]] = {}
    for number, label in enumerate(listing.labels):
        of_class.setdefault(label, []).append(number)
    sides = ["train"] * len(listing.names)
    for numbers in of_class.values():
        held = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        for number in sorted(numbers, key=lambda n: hashlib.sha256(os.fsencode(listing.names[n])).digest())[:held]:
            sides[number] = "test"
    return sides


def _split(listing: Listing, classes: tuple[str, ...], sides: Sequence[str], split: str) -> OwnIndex:
    number_of = {label: number for number, label in enumerate(classes)}
    numbers = np.array([i for i, side in enumerate(sides) if side == split], np.int64)
    return OwnIndex(listing.source, numbers, np.array([number_of[listing.labels[i]] for i in numbers], np.int64))


def _content(listing: Listing) -> str:
    """Return the hash of names, classes, splits, and of the files' content (their sizes and times above 1 GiB)."""
    found = hashlib.sha256()
    for entry in zip(listing.names, listing.labels, listing.sides, strict=True):
        found.update("\0".join((*entry, "")).encode("utf-8", "surrogateescape"))
    stats = [file.stat() for file in listing.files]
    whole = sum(stat.st_size for stat in stats) <= _READ_WHOLE
    for file, stat in zip(listing.files, stats, strict=True):
        found.update(
            hashlib.sha256(file.read_bytes()).digest() if whole else f"{stat.st_size} {stat.st_mtime_ns}".encode()
        )
    return found.hexdigest()[:16]


def _look(listing: Listing) -> tuple[int, int]:
    """Return channels (1 if all images looked at are grey) and size (their median shorter side, 224 at most)."""
    places = np.unique(np.linspace(0, len(listing.names) - 1, _LOOKED_AT).astype(int)).tolist()
    grey, sides = True, []
    for place in places:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with listing.source.open(place) as image:  # reads the header alone
                    grey = grey and image.mode in ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")
                    sides.append(min(image.size))
        except UNREADABLE:  # noqa: PERF203 -- the others are still to be looked at
            continue  # said, with its name, when it is decoded
    if not sides:
        raise UserError(f"{listing.source.where(0)} and {len(places) - 1} others looked at are not images")
    return 1 if grey else 3, min(LARGEST_SIZE, int(np.median(sides)))


def of_files(paths: Iterable[Path]) -> OwnIndex:
    """Return an index of image files without classes, in the order given."""
    names = [str(path) for path in paths]
    numbers = np.arange(len(names))
    return OwnIndex(Files(Path(), names), numbers, np.zeros_like(numbers))
