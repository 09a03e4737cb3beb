"""What every form of user data is brought to: images with classes and splits, by one rule for all forms."""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from anchored.data.image_sources import FileSource, ImageSource
from anchored.errors import UserError

_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]{1,6})?")
_BIDIRECTIONAL = set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # they reorder what stands around them


@dataclass(frozen=True, eq=False)
class Listing:
    """Every image (N) of a data set in its canonical order, before it is divided.

    ``names``: keys in the source. ``labels``: the class of each as it was given; None where none is stated.
    ``splits``: "train", "test" or "validation"; "" where none is stated. ``containers``: files that the images or what
    is said of them are read from, beside the images' own. ``stated_at``: where each label stands, for messages; empty:
    the image's place. ``classes``: titles in the order of the data's own numbers, where they have one.
    """

    source: ImageSource
    names: Sequence[str]
    labels: Sequence[Any]
    splits: Sequence[str]
    containers: Sequence[Path] = ()
    stated_at: Sequence[str] = ()
    classes: Sequence[str] = ()

    @property
    def images(self) -> list[Path]:
        """The images' own files, if they have any."""
        return [self.source.path / name for name in self.names] if isinstance(self.source, FileSource) else []

    def take(self, numbers: Sequence[int]) -> "Listing":
        """Return the images of these numbers, in that order."""
        names, labels, splits, stated_at = (
            [values[number] for number in numbers] if values else []
            for values in (self.names, self.labels, self.splits, self.stated_at)
        )
        return replace(self, names=names, labels=labels, splits=splits, stated_at=stated_at)


def split_of_name(name: str) -> str:
    """Return the split that a folder, a column's value or a table is called after, in any case; "" for another name."""
    plain = re.sub(r"[ _-]?(set|images|data)$", "", name.strip().casefold())
    return _SPLITS.get(plain, "")


def settle_splits(listing: Listing) -> Listing:
    """Return the images that are trained on and tested on: split "train", "test", or "" where none is stated.

    What is called test is tested on, and validation images are set aside. Validation images are tested on where there
    are no test images, or where these have no classes (as of a competition) and the validation images have.
    """

    def is_labelled(split: str) -> bool:
        pairs = zip(listing.labels, listing.splits, strict=True)
        return any(not _is_missing(value) for value, of in pairs if of == split)

    aside = "validation"
    if "test" not in listing.splits or (is_labelled("validation") and not is_labelled("test")):
        aside = "test"
    kept = listing.take([number for number, split in enumerate(listing.splits) if split != aside])
    return replace(kept, splits=["test" if split == "validation" else split for split in kept.splits])


class FolderName(str):
    """A label that is the name of a folder: a class whatever it says, as ``nan``, a kind of bread."""


def _is_missing(value: object) -> bool:
    """Say whether a label stands for none: NaN however it came here, since pandas and NumPy write it as text."""
    if isinstance(value, FolderName):
        return False
    return value is None or value != value or value in ("", b"", "nan", "NaN", b"nan")


def class_title(value: object, where: str) -> str:
    """Return a label as the title of its class: text (NFC), whole numbers without a fraction; "" for None. UserError
    where it is missing or can be no title."""
    if value is None:
        return ""
    if _is_missing(value):
        raise UserError(f"{where} has no label{f' ({value})' if value else ''}: give it one, or leave it out")
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: its label {value!r} is not UTF-8 text: give text or numbers") from error
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int | float):
        raise UserError(f"{where}: its label is a {type(value).__name__}: give each image one number or name")
    title = unicodedata.normalize("NFC", str(value)).strip()
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or sign in _BIDIRECTIONAL for sign in title):
        raise UserError(f"{where}: the class {title!r} has signs in its name that cannot be shown: rename it")
    return title


def sort_classes(titles: Iterable[str], name: str, own: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the classes in their ``own`` order, else by number if all are numbers, else by name. UserError for one
    number twice."""
    there = sorted(set(titles))
    if set(there) <= set(own):
        return tuple(title for title in own if title in there)
    if not all(_NUMBER.fullmatch(title) for title in there):
        return tuple(there)
    there.sort(key=Decimal)
    for one, other in itertools.pairwise(there):
        if Decimal(one) == Decimal(other):
            raise UserError(f"{name}: the classes '{one}' and '{other}' are one number: write it in one way")
    return tuple(there)
