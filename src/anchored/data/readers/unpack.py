"""Unpacking archives without trusting them.

Only regular files below the entries that the catalog names are written, each under a path made of checked names, into
a new folder that is renamed into place when everything is there. An archive that holds a link, a device, an absolute
path or ``..`` is refused whole, as is one that grows beyond what its size allows.
"""

import contextlib
import gzip
import hashlib
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from anchored.data.catalog.row import File
from anchored.data.decoding import error_text
from anchored.data.readers.files import DAMAGED
from anchored.errors import UserError

GROWTH, GROUND, MOST = 20, 1 << 30, 10_000_000  # an archive may unpack to 20 × its bytes + 1 GiB, and so many files
Member = tuple[str, "IO[bytes] | None", int]  # of an archive: its name, its content (None: a folder), its bytes


def unpack(
    archive: Path,
    file: File,
    folder: Path,
    wrote: Callable[[int], object] = lambda count: None,
    *,
    ours: bool = False,
) -> int:
    """Unpack what ``file`` makes from ``archive`` into ``folder`` and return the number of files.

    ``wrote`` is called with the bytes written so far. Entries of that name that are there already are replaced, unless
    a file would be lost: one that the archive lacks, or, where the entries are not ``ours``, one of another size.
    UserError, one line, for that, and for an archive that is damaged, unsafe or too large, or lacks one of its entries;
    then nothing has changed.
    """
    fresh = folder / f".{archive.name}.unpacked"
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        writer = _Writer(archive, fresh, file.makes, wrote)
        with refusing_damage(archive):
            packed = _zip_members(archive) if zipfile.is_zipfile(archive) else tar_members(archive, file.nested)
            writer.take(packed, file.into)
        for name in file.makes:
            if not (fresh / name).exists():
                raise UserError(f"{archive} does not hold {name}: move it elsewhere and fetch it again")
        for name in file.makes:
            if lost := _would_be_lost(folder / name, fresh / name, ours):
                raise UserError(
                    f"{lost} is not as in {archive}, which would replace {folder / name}: move one of them elsewhere"
                )
        for name in file.makes:
            _put(fresh / name, folder / name)
        return writer.files
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def decompress(archive: Path, place: Path, wrote: Callable[[int], object] = lambda count: None) -> str:
    """Write the content of the gzip file ``archive`` to ``place``, whole or not at all; return its sha256. UserError,
    one line, for an archive that is damaged or too large."""
    digest, left = hashlib.sha256(), GROWTH * archive.stat().st_size + GROUND
    fresh = place.with_name(f".{place.name}.part")
    try:
        with refusing_damage(archive), gzip.open(archive) as stream, fresh.open("wb") as out:
            while block := stream.read(1 << 20):
                left -= len(block)
                if left < 0:
                    raise UserError(f"{archive} grows to more than it can hold when unpacked: it was left as it is")
                digest.update(block)
                out.write(block)
                wrote(out.tell())
        fresh.replace(place)
    finally:
        fresh.unlink(missing_ok=True)
    return f"sha256:{digest.hexdigest()}"


@contextlib.contextmanager
def refusing_damage(archive: Path) -> Iterator[None]:
    """Turn whatever a damaged archive leads to into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tarfile and zipfile raise whatever a damaged header leads to
        if isinstance(error, OSError) and not isinstance(error, DAMAGED):
            raise UserError(f"cannot unpack {archive} into {archive.parent}: {error_text(error)}") from error
        raise UserError(f"{archive} is damaged ({error_text(error)}): move it elsewhere and fetch it again") from error


class _Writer:
    """Writes the members of one archive below ``folder``, within bounds."""

    def __init__(self, archive: Path, folder: Path, wanted: tuple[str, ...], wrote: Callable[[int], object]) -> None:
        self.archive, self.folder, self.wanted, self.wrote = archive, folder, wanted, wrote
        self.left = GROWTH * archive.stat().st_size + GROUND
        self.files = self.written = 0

    def take(self, members: Iterable[Member], into: str) -> None:
        """Write every member below the wanted entries; all names are checked, those left out as well."""
        for name, stream, size in members:
            parts = [*([into] if into else []), *self._parts(name)]
            if stream is None or not parts or parts[0] not in self.wanted:
                continue
            self.files += 1
            self.left -= size
            if self.left < 0 or self.files > MOST:
                raise UserError(f"{self.archive} grows to more than it can hold when unpacked: it was not unpacked")
            self._write(self.folder.joinpath(*parts), stream, size)

    def _parts(self, name: str) -> list[str]:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or any(character in name for character in "\\\0:"):
            raise UserError(f"{self.archive} wants to write outside its folder ({name!r}): it was not unpacked")
        return parts

    def _write(self, path: Path, stream: IO[bytes], size: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = 0
        with path.open("wb") as out:
            while block := stream.read(1 << 20):
                done += len(block)
                if done > size:
                    raise UserError(f"{self.archive} says that {path.name} has {size:,} bytes, but it has more")
                out.write(block)
                self.written += len(block)
                self.wrote(self.written)
        if done != size:
            raise UserError(f"{self.archive} is cut short in {path.name}: move it elsewhere and fetch it again")


def tar_members(archive: Path, nested: bool = False) -> Iterator[Member]:
    """Give the members of a tar in turn, each to be read before the next; ``nested``: those of each tar in it."""
    with tarfile.open(archive, "r|*") as tar:
        yield from _members_of(archive, tar, nested)


def _members_of(archive: Path, tar: tarfile.TarFile, nested: bool) -> Iterator[Member]:
    for member in tar:
        if not member.isdir() and (not member.isreg() or member.issparse()):
            raise UserError(f"{archive} holds a link or device ({member.name!r}): it was not unpacked")
        stream = tar.extractfile(member)
        if nested and stream is not None:
            with tarfile.open(fileobj=stream, mode="r|") as inner:
                for name, content, size in _members_of(archive, inner, nested=False):
                    yield f"{member.name.removesuffix('.tar')}/{name}", content, size
        else:
            yield member.name, stream, member.size


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as packed:
        for info in packed.infolist():
            if info.external_attr >> 28 not in (0, 4, 8):  # the file type of Unix: none stated, a folder, a file
                raise UserError(f"{archive} holds a link or device ({info.filename!r}): it was not unpacked")
            with packed.open(info) as stream:
                yield info.filename, None if info.is_dir() else stream, info.file_size


def _would_be_lost(place: Path, fresh: Path, ours: bool) -> Path | None:
    """The first file of ``place`` that ``fresh`` does not have."""
    if place.is_symlink() or not place.exists():  # a link goes, not what it leads to
        return None
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.is_dir() and not path.is_symlink():
            continue
        new = fresh / path.relative_to(place)
        if not new.is_file() or not (ours or path.lstat().st_size == new.stat().st_size):
            return path
    return None


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
