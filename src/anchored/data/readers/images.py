"""Encoded images of any size, found but not decoded: what a reader of JPEG and PNG folders or archives returns."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.data.readers.tars import members
from anchored.errors import UserError

Labels = npt.NDArray[np.int64]

#: Endings of image files (in lower case): any other file in a folder of images is passed over.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
LARGEST = 1 << 28  # bytes: what says it is larger than this is not one encoded image


class Source(Protocol):
    """Where encoded images lie. Picklable, so that worker processes can read from it."""

    @property
    def path(self) -> Path:
        """The folder, or the archive."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes of the file called ``key``; OSError, KeyError or ValueError where that cannot be."""
        ...

    def keys(self) -> list[str]:
        """Return the relative names ("a/b.jpg") of all files, sorted; hidden ones are left out."""
        ...


@dataclass(frozen=True)
class Folder:
    """Files below a folder. Linked folders are followed: class folders may lie on another disk."""

    path: Path

    def read(self, key: str) -> bytes:
        """Return the bytes of one file."""
        return (self.path / key).read_bytes()

    def keys(self) -> list[str]:
        """Return the names of all files, sorted."""
        found: list[str] = []
        for folder, folders, files in os.walk(self.path, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = os.path.relpath(folder, self.path).replace(os.sep, "/")
            found.extend(name if base == "." else f"{base}/{name}" for name in files if not name.startswith("."))
        return sorted(found)


@dataclass(frozen=True)
class Zip:
    """The members below ``top`` ("" or "a/b/") of a zip file, read without unpacking it."""

    path: Path
    top: str = ""

    def read(self, key: str) -> bytes:
        """Return the bytes of one member."""
        archive = _opened(self.path, os.getpid())
        if archive.getinfo(self.top + key).file_size > LARGEST:
            raise ValueError(f"it says that it is larger than {LARGEST:,} bytes")
        return archive.read(self.top + key)

    def keys(self) -> list[str]:
        """Return the names of all members that are files, sorted."""
        names = (name for name in _opened(self.path, os.getpid()).namelist() if name.startswith(self.top))
        return _visible(name.removeprefix(self.top) for name in names if not name.endswith("/"))


@dataclass(frozen=True)
class Tar:
    """The members below ``top`` ("" or "a/b/") of an uncompressed tar file, read without unpacking it."""

    path: Path
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
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """Return the open archive. One for each process: forked workers would share, and spoil, one file position."""
    try:
        return zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # zipfile raises whatever a damaged header leads to
        raise UserError(f"{path} is not a whole zip file ({said(error)}): delete it and fetch it again") from error


def _visible(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """One split of a data set whose images are encoded files.

    ``name``: the catalog row's. ``source``: the folder or archive. ``keys``: each image's relative name in it, in the
    set's canonical order (N). ``labels``: int64 (N,) in [0, classes). ``decode(i)`` gives image i. It can be pickled;
    archives are opened by each process for itself.
    """

    name: str
    source: Source
    keys: tuple[str, ...]
    labels: Labels = field(repr=False)

    def __post_init__(self) -> None:
        if self.labels.dtype != np.int64 or self.labels.shape != (len(self.keys),):
            raise UserError(
                f"labels of {self.name} are {self.labels.dtype} {self.labels.shape}: give int64 ({len(self.keys)},)"
            )

    def __len__(self) -> int:
        return len(self.keys)

    def where(self, index: int) -> str:
        """Return the place of image ``index``, for messages."""
        return f"{self.source.path / self.keys[index]}"

    def take(self, indices: npt.NDArray[np.int64]) -> ImageIndex:
        """Return the images at ``indices`` (K,), in that order."""
        return ImageIndex(self.name, self.source, tuple(self.keys[i] for i in indices), self.labels[indices])

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image ``index``; UserError naming the file where it cannot be read."""
        try:
            return self.source.read(self.keys[index])
        except (OSError, KeyError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.where(index)} cannot be read ({said(error)}): fetch {self.name} again") from error

    def decode(self, index: int) -> Image.Image:
        """Return image ``index``, "L" if it is grey, else "RGB" (transparency dropped, as torchvision's loader does).

        The orientation tag of cameras is not applied: the sets' published results were made without. UserError naming
        the file where it is not a whole image.
        """
        return decoded(self.read(index), self.where(index))


def decoded(content: bytes, where: str) -> Image.Image:
    """Return the image in ``content``, "L" or "RGB"; UserError naming ``where`` it came from if it is not whole."""
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        image.load()
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns of going straight to RGB
        return image.convert("L" if image.mode in ("L", "1") else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is not a whole image ({said(error)}): fetch it again") from error


def spread(count: int, most: int) -> Labels:
    """Return at most ``most`` of the places 0 .. ``count`` - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))


def said(error: Exception) -> str:
    """Return what an exception says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
