"""A user's own images: a folder of class folders, a CSV, an npz, or a Hugging Face data set, split and indexed."""

import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anchored.data.decoding import IMAGE_ENDINGS, error_text
from anchored.data.image_sources import ImageIndex
from anchored.data.user_data.folders import list_csv, list_folder
from anchored.data.user_data.hugging_face import list_hugging_face
from anchored.data.user_data.listing import Listing, class_title, settle_splits, sort_classes
from anchored.data.user_data.npz import list_npz
from anchored.errors import UserError
from anchored.store import files

LARGEST_SIZE = 224
"""A network's input is the images' median shorter side, but not above this, unless ``data.size`` says otherwise."""

_READ_WHOLE = 1 << 30  # bytes: up to here the content of files is hashed, above it their names, sizes and times
_SAMPLED = 256  # images whose headers decide on colours and size
_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L")


@dataclass(frozen=True, eq=False)
class UserData:
    """A user's data set: its splits, its input's channels and size, and the hash of its content."""

    name: str
    classes: tuple[str, ...]
    splits: dict[str, ImageIndex]  # train and test; "ood": shown as out-of-distribution; "all": the same, labelled
    channels: int
    size: int
    content: str
    divided: bool  # by us, since the data do not say what is for testing
    unclassed: str  # the first image without a class; "" if all have one

    def split(self, split: str) -> ImageIndex:
        """Return "train", "test", "ood" or "all"; UserError where it has no images."""
        if split not in self.splits:
            what = f"{self.unclassed} has no class" if self.unclassed else f"there are no {split} images"
            advice = "put each class's images in a folder of its own, or give a CSV with the columns path,label"
            raise UserError(f"{self.name}: {what}: {advice}")
        return self.splits[split]

    def check_learnable(self) -> None:
        """Raise UserError where a network cannot learn its classes."""
        if len(self.classes) < 2 and "train" in self.splits:
            raise UserError(f"{self.name} has one class ('{self.classes[0]}'): a classifier needs two or more")
        train, test = (set(self.split(split).labels.tolist()) for split in ("train", "test"))
        for label, title in enumerate(self.classes):
            if label not in train:
                raise UserError(f"{self.name}: class '{title}' has test images but no training images")
            if label not in test and self.divided:
                raise UserError(f"{self.name}: class '{title}' has one image: give two or more, to train and to test")


def list_user_data(name: str) -> Listing:
    """Return every image of a user's data set, in whichever form, with its class and split.

    Labels are titles of classes ("" where none is stated), splits "train", "test" or "". UserError, one line, where it
    cannot be used. Nothing is decoded or unpickled, and no code of a data set is run.
    """
    list_form: Callable[[str], Listing] = list_folder
    if name.startswith("hf:"):
        list_form = list_hugging_face
    elif name.lower().endswith((".csv", ".npz")):
        list_form = list_csv if name.lower().endswith(".csv") else list_npz
    try:
        listing = settle_splits(list_form(name))
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {error_text(error).lower()}") from error
    if not listing.names:
        raise UserError(f"{name} holds no images ({', '.join(IMAGE_ENDINGS)})")
    places = listing.stated_at or [listing.source.where(key) for key in listing.names]
    labels = [class_title(*pair) for pair in zip(listing.labels, places, strict=True)]
    return replace(listing, labels=labels, classes=[class_title(title, name) for title in listing.classes])


@functools.lru_cache(maxsize=16)
def find_user_data(name: str, test_share: float) -> UserData:
    """Find the images of ``name``, without decoding them.

    ``test_share``: share of each class that is kept for testing where the data do not say which: those whose names have
    the lowest hashes, the same on every machine. UserError, one line, where there are no images, a class is missing or
    has a single image, or a file is not what it should be. Found once a process: ``cache_clear()`` looks again.
    """
    listing = list_user_data(name)
    content, small = _content_hash(name, listing)
    stated = set(listing.splits)
    if "" in stated and len(stated) > 1:
        missing = listing.names[listing.splits.index("")]
        raise UserError(f"{name} says of some images whether they are for training or testing, but not of {missing}")
    classes = sort_classes(listing.labels, name, listing.classes)
    divided = "test" not in stated
    split_of = _divide(listing, test_share) if divided else listing.splits
    channels, size = _channels_and_size(listing)
    splits = {split: _index(listing, classes, split_of, split) for split in ("train", "test")}
    everything = ImageIndex(listing.source, listing.names, np.zeros(len(listing.names), np.int64))
    splits["ood"] = everything if divided else splits["test"]
    splits["all"] = _index(listing, classes, [""] * len(listing.names), "") if divided else splits["test"]
    unclassed = ""
    if "" in classes:  # of use only as an out-of-distribution set
        splits, unclassed = {"ood": splits["ood"]}, listing.names[listing.labels.index("")]
    elif small:
        _warn_of_copies(name, listing, split_of)
    splits = {split: index for split, index in splits.items() if len(index)}
    return UserData(name, classes, splits, channels, size, content, divided, unclassed)


def _divide(listing: Listing, share: float) -> list[str]:
    """Return the split of each image, stratified by class."""
    if not 0 < share < 1:
        raise UserError(f"data.test_share is {share:g}: give a share above 0 and below 1")
    of_class: dict[str, list[int]] = {}
    for number, label in enumerate(listing.labels):
        of_class.setdefault(label, []).append(number)
    splits = ["train"] * len(listing.names)
    for numbers in of_class.values():
        held = min(len(numbers) - 1, max(1, round(share * len(numbers))))
        for number in sorted(numbers, key=lambda n: hashlib.sha256(os.fsencode(listing.names[n])).digest())[:held]:
            splits[number] = "test"
    return splits


def _index(listing: Listing, classes: tuple[str, ...], split_of: Sequence[str], split: str) -> ImageIndex:
    label_of = {title: label for label, title in enumerate(classes)}
    numbers = [number for number, its_split in enumerate(split_of) if its_split == split]
    labels = np.array([label_of[listing.labels[number]] for number in numbers], np.int64)
    return ImageIndex(listing.source, [listing.names[number] for number in numbers], labels)


def _content_hash(name: str, listing: Listing) -> tuple[str, bool]:
    """Return the hash of names, classes, splits and the files' content; and whether the files have 1 GiB at most. Of
    larger ones, sizes and times stand for the content."""
    digest = hashlib.sha256()
    for entry in zip(listing.names, listing.labels, listing.splits, strict=True):
        digest.update("\0".join((*entry, "")).encode("utf-8", "surrogateescape"))
    if tuple(listing.classes) != sort_classes(listing.classes, name):  # the same titles are other numbers
        digest.update("\0".join(listing.classes).encode())
    paths = [*listing.containers, *listing.images]
    try:
        stats = [files.refuse_special(path).stat() for path in paths]
        whole = sum(stat.st_size for stat in stats) <= _READ_WHOLE
        for path, stat in zip(paths, stats, strict=True):
            state = f"{stat.st_size} {stat.st_mtime_ns}".encode()
            digest.update(hashlib.sha256(files.read_bytes(path)).digest() if whole else state)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {error_text(error).lower()}") from error
    return digest.hexdigest()[:16], whole


def _warn_of_copies(name: str, listing: Listing, split_of: Sequence[str]) -> None:
    """Warn of images whose content is there twice, in training and test or in two classes."""
    first: dict[bytes, int] = {}
    pairs = []
    for number, key in enumerate(listing.names):
        before = first.setdefault(hashlib.sha256(listing.source.read(key)).digest(), number)
        if (listing.labels[before], split_of[before]) != (listing.labels[number], split_of[number]):
            pairs.append((before, number))
    if pairs:
        (one, other), where = pairs[0], listing.source.where
        what = "in two classes" if listing.labels[one] != listing.labels[other] else "in training and test"
        warnings.warn(
            f"{name}: {len(pairs):,} of its images are there again {what}, as {where(listing.names[one])} and "
            f"{where(listing.names[other])}: what is measured will be wrong by them",
            stacklevel=2,
        )


def _channels_and_size(listing: Listing) -> tuple[int, int]:
    """Return channels (1 if all sampled images are grey) and size (their median shorter side, 224 at most)."""
    places = np.unique(np.linspace(0, len(listing.names) - 1, _SAMPLED).astype(int)).tolist()
    grey, sides = True, []
    for place in places:
        try:
            with listing.source.open(listing.names[place]) as image:  # reads the header alone
                grey = grey and image.mode in _GREY_MODES
                sides.append(min(image.size))
        except Exception:  # noqa: PERF203 -- the others are still to be sampled; its decoding will name it
            continue
    if not sides:
        first = listing.source.where(listing.names[0])
        raise UserError(f"{first} and {len(places) - 1} others looked at are not images")
    return 1 if grey else 3, min(LARGEST_SIZE, int(np.median(sides)))
