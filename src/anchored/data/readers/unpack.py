"""Unpacking archives without trusting them.

Only regular files below the entries that the catalog names are written, each under a path made of checked names, into
a new folder that is renamed into place when everything is there. An archive that holds a link, a device, an absolute
path or ``..`` is refused whole, as is one that grows beyond what its size allows.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from anchored.data.catalog.row import File
from anchored.data.readers.files import DAMAGED
from anchored.data.readers.images import said
from anchored.errors import UserError

GROWTH, GROUND, MOST = 20, 1 << 30, 10_000_000  # an archive may unpack to 20 × its bytes + 1 GiB, and so many files
Member = tuple[str, "Callable[[], IO[bytes]] | None", int]  # its name, how to open it (None: a folder), its bytes
Progress = Callable[[int], None]  # called with the number of bytes written


def unpack(archive: Path, file: File, folder: Path, progress: Progress = lambda count: None) -> int:
    """Unpack what ``file`` makes from ``archive`` into ``folder`` and return the number of files.

    Entries of that name that are there already are replaced. UserError, one line, for an archive that is damaged,
    unsafe or too large, or lacks one of its entries; then nothing has changed.
    """
    fresh = folder / f".{archive.name}.unpacked"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        written = _Writer(archive, fresh, file.makes, progress)
        with _reporting(archive):
            if zipfile.is_zipfile(archive):
                written.take(_zip_members(archive), file.into)
            else:
                written.take(_tar_members(archive, file.nested), file.into)
        for name in file.makes:
            if not (fresh / name).exists():
                raise UserError(f"{archive} does not hold {name}: delete it and fetch it again")
        for name in file.makes:
            _put(fresh / name, folder / name)
        return written.files
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def decompress(archive: Path, place: Path, progress: Progress = lambda count: None) -> str:
    """Write the content of the gzip file ``archive`` to ``place``, whole or not at all; return its sha256.

    UserError, one line, for an archive that is damaged or too large.
    """
    found, left = hashlib.sha256(), GROWTH * archive.stat().st_size + GROUND
    fresh = place.with_name(f".{place.name}.part")
    try:
        with _reporting(archive), gzip.open(archive) as stream, fresh.open("wb") as out:
            while block := stream.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise UserError(f"{archive} grows to more than it can hold when unpacked: it was left as it is")
                found.update(block)
                out.write(block)
                progress(len(block))
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)
    return f"sha256:{found.hexdigest()}"


@contextlib.contextmanager
def _reporting(archive: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile and zipfile raise whatever a damaged header leads to
        if isinstance(error, OSError) and not isinstance(error, DAMAGED):
            raise UserError(f"cannot unpack {archive} into {archive.parent}: {said(error)}") from error
        raise UserError(f"{archive} is damaged ({said(error)}): delete it and fetch it again") from error


class _Writer:
    """Writes the members of one archive below ``folder``, within bounds."""

    def __init__(self, archive: Path, folder: Path, wanted: tuple[str, ...], progress: Progress) -> None:
        self.archive, self.folder, self.wanted, self.progress = archive, folder, wanted, progress
        self.left = GROWTH * archive.stat().st_size + GROUND
        self.files = 0

    def take(self, members: Iterator[Member], into: str) -> None:
        """Write every member below the wanted entries; all names are checked, those left out as well."""
        for name, opened, size in members:
            parts = self._parts(name)
            if into:
                parts = [into, *parts]
            if opened is None or not parts or parts[0] not in self.wanted:
                continue
            self.files += 1
            self.left -= size
            if self.left < 0 or self.files > MOST:
                raise UserError(f"{self.archive} grows to more than it can hold when unpacked: it was not unpacked")
            self._write(self.folder.joinpath(*parts), opened, size)

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or any(character in name for character in "\\\0:"):
            raise UserError(f"{self.archive} wants to write outside its folder ({name!r}): it was not unpacked")
        return parts

    def _write(self, path: Path, opened: Callable[[], IO[bytes]], size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = 0
        with opened() as stream, path.open("wb") as out:
            while block := stream.read(1 << 20):
                done += len(block)
                if done > size:
                    raise UserError(f"{self.archive} says that {path.name} has {size:,} bytes, but it has more")
                out.write(block)
                self.progress(len(block))
        if done != size:
            raise UserError(f"{self.archive} is cut short in {path.name}: delete it and fetch it again")


def _tar_members(archive: Path, nested: bool) -> Iterator[Member]:
    with tarfile.open(archive, "r|*") as tar:
        for member in tar:
            if not nested or not member.isreg():
                yield _tar_member(archive, tar, member)
                continue
            inside = tar.extractfile(member)
            assert inside is not None  # a regular file
            below = member.name.removesuffix(".tar")
            with tarfile.open(fileobj=inside, mode="r|") as inner:
                for each in inner:
                    name, opened, size = _tar_member(archive, inner, each)
                    yield f"{below}/{name}", opened, size


def _tar_member(archive: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> Member:
    if member.isdir():
        return member.name, None, 0
    if not member.isreg() or member.issparse():
        raise UserError(f"{archive} holds a link or device ({member.name!r}): it was not unpacked")

    def opened() -> IO[bytes]:
        stream = tar.extractfile(member)
        assert stream is not None  # a regular file
        return stream

    return member.name, opened, member.size


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            kind = info.external_attr >> 28  # the file type of Unix, 0 where none is stated
            if info.is_dir():
                yield info.filename, None, 0
            elif kind not in (0, 8):
                raise UserError(f"{archive} holds a link or device ({info.filename!r}): it was not unpacked")
            else:
                yield info.filename, lambda info=info: packed.open(info), info.file_size  # type: ignore[misc]


def _put(fresh: Path, place: Path) -> None:
    """Move ``fresh`` to ``place``; what was there goes when the new one stands."""
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists() or place.is_symlink():
        place.replace(old)
    fresh.replace(place)
    if old.is_symlink() or old.is_file():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)
