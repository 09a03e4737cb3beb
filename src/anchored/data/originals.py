"""The images that ``anchored corrupt`` starts from (of the catalog, a user's, a npy file), and their copies' names."""

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anchored.config.settings import Data
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.names import resolve_name
from anchored.data.image_sets import ImageSet, ImageStream, LabelledImages
from anchored.data.image_sources import ImageIndex
from anchored.data.preprocessing import InputFormat
from anchored.data.user_data.index import find_user_data, list_user_data
from anchored.data.user_data.listing import Listing
from anchored.errors import UserError
from anchored.store import files


@dataclass(frozen=True)
class Originals:
    """The images (N) to corrupt: their names without folder and ending, and the titles of their classes ("": none)."""

    images: LabelledImages
    names: Sequence[str]
    classes: Sequence[str]
    labelled: bool = True
    content: str = ""  # hash of user data

    def paths(self) -> list[str]:
        """Return class/name for each image, or its name where it has no class, each once."""
        return _unique(self.names, self.classes)


def resolve_source(source: str) -> str:
    """Return the name of a set of the catalog, or a path; a folder needs no slash at its end here. UserError where a
    folder is called as a set of the catalog."""
    source = resolve_name(source)
    is_folder = source not in catalog.CATALOG and files.expand_home(source).is_dir()
    return f"{source.rstrip('/')}/" if is_folder else source


def open_originals(name: str, size: int, one_size: bool) -> Originals:
    """Open an image set by its name; UserError where there is none, or user data have several sizes but may not."""
    if name.lower().endswith(".npy"):
        return _open_npy(name, size)
    if catalog.is_user_data(name):
        return _open_user_data(name, size, one_size)
    row = catalog.get_dataset(name)
    images = datasets.open_set(name, "test", Data(train=name), _target(row.channels, size or row.size))
    classes = row.classes if len(row.classes) > 1 else ("",) * (int(images.labels.max()) + 1)
    return Originals(images, _numbers(len(images)), [classes[label] for label in images.labels.tolist()])


def _target(channels: int, size: int) -> InputFormat:
    return InputFormat(channels, size, 0.875 if size >= 96 else 1.0)


def _open_user_data(name: str, size: int, one_size: bool) -> Originals:
    """A user's images: those for testing where the set says which, else all."""
    find_user_data.cache_clear()  # the two must be of the same moment
    data, listing = find_user_data(name, Data.test_share), list_user_data(name)
    numbers = [i for i, split in enumerate(listing.splits) if split == "test"] or range(len(listing.names))
    if one_size:
        _check_one_size(listing, numbers)
    titles = [listing.labels[i] for i in numbers]
    names, labelled = [listing.names[i] for i in numbers], all(titles)
    labels = np.array([data.classes.index(title) if labelled else 0 for title in titles], np.int64)
    index = ImageIndex(listing.source, names, labels)
    images = ImageStream(name, index, data.classes or ("",), _target(data.channels, size), torch.arange(len(index)))
    return Originals(images, [Path(image).stem for image in names], titles, labelled, data.content)


def _check_one_size(listing: Listing, numbers: Sequence[int]) -> None:
    """Read the images' headers; UserError naming the first one of another size. Unreadable ones are named later."""
    first: dict[tuple[int, int], str] = {}
    for key in (listing.names[number] for number in numbers):
        with contextlib.suppress(Exception), listing.source.open(key) as image:
            first.setdefault(image.size, listing.source.where(key))
        if len(first) > 1:
            sizes = " and ".join(f"{width} × {height} px ({where})" for (width, height), where in first.items())
            raise UserError(f"images are of several sizes, {sizes}: give --size, or use --layout folders")


def _open_npy(name: str, size: int) -> Originals:
    """A npy file of images (N,H,W) or (N,H,W,C) uint8, without classes; mapped into memory."""
    try:
        path = files.refuse_special(files.expand_home(name))
        pixels = np.load(path, mmap_mode="c")  # NumPy's default refuses arrays of objects
    except UserError:
        raise
    except Exception as error:  # NumPy raises whatever a damaged header leads to
        raise UserError(f"cannot read {name}: {getattr(error, 'strerror', None) or 'not a plain array'}") from error
    fits = pixels.ndim in (3, 4) and pixels.shape[3:] in ((), (1,), (3,)) and pixels.size > 0
    if pixels.dtype != np.uint8 or not fits:
        raise UserError(f"{name} holds {pixels.dtype} {pixels.shape}: give uint8 (N,H,W), (N,H,W,1) or (N,H,W,3)")
    content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()[:16]
    tensor = torch.from_numpy(pixels if pixels.ndim == 4 else pixels[..., None]).permute(0, 3, 1, 2)
    shown = (tensor.shape[1], size) if size else None
    images = ImageSet(name, tensor, torch.zeros(len(tensor), dtype=torch.int64), ("",), shown)
    return Originals(images, _numbers(len(tensor)), [""] * len(tensor), labelled=False, content=content)


def _numbers(count: int) -> list[str]:
    return [f"{number:0{len(str(count))}d}" for number in range(count)]


def _unique(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Return class/name for each image, numbered where it is another's; UserError where two classes share a folder."""
    folders = {title: title.replace("/", "-").replace("\\", "-").lstrip(".") for title in dict.fromkeys(classes)}
    title_of: dict[str, str] = {}
    for title, folder in folders.items():
        if title_of.setdefault(folder, title) != title or (title and not folder):
            other = f" and '{title_of[folder]}' would share" if title_of[folder] != title else " gives no name for"
            raise UserError(f"class '{title}'{other} a folder ('{folder}'): rename it, or use --layout npy")
    wanted = [f"{folders[title]}/{name}".lstrip("/") for name, title in zip(names, classes, strict=True)]
    taken, given = set(wanted), set[str]()
    paths = []
    for path in wanted:
        if path in given:  # another image's: the first number that is nobody's
            path = next(new for n in itertools.count(2) if (new := f"{path}-{n}") not in taken)
        given.add(path)
        taken.add(path)
        paths.append(path)
    return paths
