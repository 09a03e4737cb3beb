"""Encoded images of any size, found but not decoded: what a reader of JPEG and PNG folders or archives returns."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.errors import UserError

Labels = npt.NDArray[np.int64]

#: Endings of image files (in lower case): any other file in a folder of images is passed over.
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")


class Source(Protocol):
    """Where encoded images lie. Picklable, so that worker processes can read from it."""

    @property
    def path(self) -> Path:
        """The folder or archive."""
        ...

    def read(self, key: str) -> bytes:
        """Return the bytes of the file called ``key``; OSError or KeyError where it is not there."""
        ...

    def keys(self) -> list[str]:
        """Return the relative names ("a/b.jpg") of all files, sorted."""
        ...


@dataclass(frozen=True)
class Folder:
    """Files below a folder."""

    path: Path

    def read(self, key: str) -> bytes:
        """Return the bytes of one file."""
        return (self.path / key).read_bytes()

    def keys(self) -> list[str]:
        """Return the names of all files, sorted; a linked class folder is followed, hidden files are not listed."""
        found: list[str] = []
        for folder, folders, files in os.walk(self.path, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            base = Path(folder).relative_to(self.path).as_posix()
            found.extend(name if base == "." else f"{base}/{name}" for name in files if not name.startswith("."))
        return sorted(found)


@dataclass(frozen=True)
class Zip:
    """Members of a zip file, read without unpacking it."""

    path: Path

    def read(self, key: str) -> bytes:
        """Return the bytes of one member."""
        return _opened(self.path, os.getpid()).read(key)

    def keys(self) -> list[str]:
        """Return the names of all members that are files, sorted."""
        return sorted(name for name in _opened(self.path, os.getpid()).namelist() if not name.endswith("/"))


@lru_cache(maxsize=16)
def _opened(path: Path, process: int) -> zipfile.ZipFile:
    """Return the open archive. One for each process: forked workers would share, and spoil, one file position."""
    return zipfile.ZipFile(path)


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
        return str(self.source.path / self.keys[index])

    def take(self, indices: npt.NDArray[np.int64]) -> ImageIndex:
        """Return the images at ``indices`` (K,), in that order."""
        return ImageIndex(self.name, self.source, tuple(self.keys[i] for i in indices), self.labels[indices])

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image ``index``; UserError naming the file where it cannot be read."""
        try:
            return self.source.read(self.keys[index])
        except (OSError, KeyError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{self.where(index)} cannot be read ({_said(error)}): fetch {self.name} again") from error

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
        grey = image.mode in ("L", "1")
        return image.convert("L" if grey else "RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{where} is not a whole image ({_said(error)}): fetch it again") from error


def _said(error: Exception) -> str:
    """Return what an exception says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
