"""Encoded images, listed but not decoded: in folders, zip and tar archives, arrays or tables, by one index."""

import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.data.decoding import IMAGE_ENDINGS, decode_image, error_text, open_encoded
from anchored.data.readers.tars import members
from anchored.errors import UserError
from anchored.store import files

Labels = npt.NDArray[np.int64]
LARGEST = 1 << 28  # bytes: what says it is larger than this is not one encoded image
_PASSED_OVER = {"__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found"}
"""What file systems and archivers leave beside a user's files, in lower case."""


class ImageSource(Protocol):
    """Where images lie, by key. Picklable, so that worker processes can read from it."""

    def where(self, key: str) -> str:
        """Return the place of an image, for messages."""

    def open(self, key: str) -> Image.Image:
        """Return an image, its header read; any exception where that cannot be."""

    def read(self, key: str) -> bytes:
        """Return what an image is decoded from; any exception where that cannot be."""


@dataclass(frozen=True)
class FileSource:
    """Files by relative path: those of a folder, or of an archive (the subclasses)."""

    path: Path

    def where(self, key: str) -> str:
        """Return the path of one file."""
        return str(self.path / key)

    def open(self, key: str) -> Image.Image:
        """Return one image, its header read."""
        return open_encoded(self.read(key))

    def read(self, key: str) -> bytes:
        """Return the bytes of one file; OSError, KeyError or ValueError where that cannot be."""
        file = self.path / key
        if file.exists():
            files.refuse_special(file)
        return file.read_bytes()

    def keys(self) -> list[str]:
        """Return the relative names ("a/b.jpg") of all files, sorted; hidden ones are left out."""
        return list_files(self.path)


@dataclass(frozen=True)
class ZipSource(FileSource):
    """The members below ``top`` ("" or "a/b/") of a zip file, read without unpacking it."""

    top: str = ""

    def read(self, key: str) -> bytes:
        """Return the bytes of one member."""
        archive = _open_zip(self.path, os.getpid())
        if archive.getinfo(self.top + key).file_size > LARGEST:
            raise ValueError(f"it says that it is larger than {LARGEST:,} bytes")
        return archive.read(self.top + key)

    def keys(self) -> list[str]:
        """Return the names of all members that are files, sorted."""
        names = (name for name in _open_zip(self.path, os.getpid()).namelist() if name.startswith(self.top))
        return _visible(name.removeprefix(self.top) for name in names if not name.endswith("/"))


@dataclass(frozen=True)
class TarSource(FileSource):
    """The members below ``top`` ("" or "a/b/") of an uncompressed tar file, read without unpacking it."""

    top: str = ""

    def read(self, key: str) -> bytes:
        """Return the bytes of one member."""
        start, size = members(self.path).place(self.top + key)
        if size > LARGEST:
            raise ValueError(f"it says that it is larger than {LARGEST:,} bytes")
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(size)

    def keys(self) -> list[str]:
        """Return the names of all members that are files, sorted."""
        return _visible(name.removeprefix(self.top) for name in members(self.path).below(self.top))


@lru_cache(maxsize=16)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """Return the open archive. One for each process: forked workers would share, and spoil, one file position."""
    try:
        return zipfile.ZipFile(files.refuse_special(path))
    except (OSError, UserError):
        raise
    except Exception as error:  # zipfile raises whatever a damaged header leads to
        raise UserError(
            f"{path} is not a whole zip file ({error_text(error)}): move it elsewhere and fetch it again"
        ) from error


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not any(map(is_passed_over, name.split("/"))))


def is_passed_over(name: str) -> bool:
    """Say whether a file or folder is hidden, or one that the system left beside the user's."""
    return name.startswith(".") or name.lower() in _PASSED_OVER


def is_image_name(name: str) -> bool:
    """Say whether a file's name ends as an image's does."""
    return name.lower().endswith(IMAGE_ENDINGS)


def list_files(folder: Path, below: Path | None = None) -> list[str]:
    """Return the files below a folder, sorted, as paths relative to ``below`` (default: the folder).

    Hidden ones, and what systems leave there, are left out; linked folders are followed, each one once. UserError where
    one cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {(error.strerror or str(error)).lower()}") from error

    names, seen = [], set[tuple[int, int]]()
    for place, folders, here in os.walk(folder, followlinks=True, onerror=refuse):
        stat = Path(place).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [name for name in folders if not is_passed_over(name)]
        base = os.path.relpath(place, below or folder).replace(os.sep, "/")
        names += [name if base == "." else f"{base}/{name}" for name in here if not is_passed_over(name)]
    return sorted(names)


def list_images(folder: Path, below: Path | None = None) -> list[str]:
    """Return the image files below a folder, as :func:`list_files`."""
    return [name for name in list_files(folder, below) if is_image_name(name)]


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """N images of a source with their labels: one split of a data set.

    ``source``: where they lie. ``keys`` (N): each image's key in it, in the set's order. ``labels`` (N,) int64.
    ``dataset``: the catalog's row, whose images are decoded ``as_published``; "" for a user's own. Picklable: archives
    are opened by each process for itself.
    """

    source: ImageSource
    keys: Sequence[str]
    labels: Labels = field(repr=False)
    dataset: str = ""

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, index: int) -> str:
        """Return the place of image ``index``, for messages."""
        return self.source.where(self.keys[index])

    def take(self, indices: npt.NDArray[np.int64]) -> "ImageIndex":
        """Return the images at ``indices`` (K,), in that order."""
        return replace(self, keys=[self.keys[i] for i in indices], labels=self.labels[indices])

    def decode(self, index: int) -> Image.Image:
        """Return image ``index``, "L" or "RGB", as ``decoding.decode_image``; UserError naming its file."""
        key, advice = self.keys[index], f"fetch {self.dataset} again" if self.dataset else "replace or move it"
        opened = lambda: self.source.open(key)  # noqa: E731
        return decode_image(opened, self.source.where(key), advice, as_published=bool(self.dataset))


def index_files(paths: Iterable[Path]) -> ImageIndex:
    """Return an index of image files without classes (all labels 0), in the order given."""
    keys = [str(path) for path in paths]
    return ImageIndex(FileSource(Path()), keys, np.zeros(len(keys), np.int64))


def evenly_spaced(count: int, most: int) -> Labels:
    """Return at most ``most`` of the places 0 .. ``count`` - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
