"""Where the files of a data set lie, and whether they are the published ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from anchored.data.catalog.row import DataSet, File
from anchored.errors import UserError

PACKAGE = Path(__file__).parents[1]  # relative homes of a row are below it
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder that holds downloaded sets: ``root``, else $ANCHORED_DATA, else ~/.cache/anchored."""
    return Path(root or os.environ.get("ANCHORED_DATA") or "~/.cache/anchored").expanduser()


def folders(row: DataSet, root: str | Path | None) -> list[Path]:
    """Return where ``row``'s files may lie, in the order of search; homes inside the package first."""
    homes = [PACKAGE / home for home in row.homes]  # an absolute home stays what it is
    inside = [home for home in homes if home.is_relative_to(PACKAGE)]
    return [*inside, data_root(root) / row.folder, data_root(root), *(home for home in homes if home not in inside)]


def find(row: DataSet, name: str, root: str | Path | None) -> Path | None:
    """Return the first place where a file or folder called ``name`` lies, a .gz also unpacked; None when nowhere.

    A bare folder name ("train") is only sought in the set's own folders: in the data root it may be anything's.
    """
    bare = "/" not in name and "." not in name
    for folder in folders(row, root):
        if bare and folder == data_root(root):
            continue
        for each in dict.fromkeys((name, name.removesuffix(".gz"))):
            if (folder / each).exists():
                return folder / each
    return None


def locate(row: DataSet, entry: str, root: str | Path | None) -> Path | None:
    """Return where ``entry`` ("a/b") of ``row`` lies: itself, or the archive it is read from; None when nowhere."""
    top = entry.split("/")[0]
    holders = (holder(row, part, root) for part in row.parts if top in part.holds)
    return find(row, entry, root) or next(filter(None, holders), None)


def holder(row: DataSet, part: File, root: str | Path | None) -> Path | None:
    """Return the archive ``part`` as single files can be read from it: of a compressed one, what lies beside it."""
    path = find(row, part.name, root)
    if part.compressed and (path is None or is_gzip(path)):
        return find(row, part.plain.name, root)
    return path


def is_gzip(path: Path) -> bool:
    """Say whether a file is compressed by gzip, by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def lacking(row: DataSet, root: str | Path | None = None, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what of ``row`` (or what of ``only``) is not there; () for a set that is, or that is computed.

    Only names are looked at. :func:`anchored.readers.index` and the readers check what the files hold.
    """
    wanted = only or row.needs or [file.name for file in row.train_files + row.test_files]
    return tuple(name for name in wanted if locate(row, name, root) is None)


def is_here(row: DataSet, root: str | Path | None = None) -> bool:
    """Say whether ``row``'s files are there (unverified); sets that are computed always are."""
    return not lacking(row, root)


def missing(row: DataSet, name: str, root: str | Path | None) -> UserError:
    """Return the error that ``name``, one of ``row``'s files, is nowhere: where it was sought and how to get it."""
    looked = ", ".join(str(folder) for folder in folders(row, root))
    start = f"{row.title}: {name} is missing (looked in {looked})"
    if row.manual:
        return UserError(f"{start}: {row.manual}")
    if not row.downloads:
        return UserError(f"{start}: install the package again")
    return UserError(
        f"{start}: run 'anchored data fetch {row.name}', or download {part_of(row, name).urls[0]} into "
        f"{data_root(root) / row.folder}"
    )


def part_of(row: DataSet, name: str) -> File:
    """Return the file to download that is or brings ``name``."""
    top = name.split("/")[0]
    bringing = (file for file in row.downloads if name == file.name or top in file.makes + file.holds)
    return next(bringing, row.downloads[0])


def is_web_page(start: bytes) -> bool:
    """Say whether a file that begins with ``start`` is a web page, as servers send it in place of a moved file."""
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def check_hash(path: Path, data: bytes, expected: str | None) -> None:
    """Raise UserError unless ``data``, read from ``path``, has the hash ``expected`` ("md5:..." or "sha256:...")."""
    if expected is None:
        return
    kind, _, digest = expected.partition(":")
    if hashlib.new(kind, data, usedforsecurity=False).hexdigest() != digest:
        raise UserError(
            f"{path} is not the published file (its {kind} differs from {digest}): delete it, fetch it again"
        )


def digest_of(path: Path, kind: str, start: int = 0, size: int | None = None) -> str:
    """Return the hash ("md5:..." for ``kind`` "md5") of ``size`` bytes of a file from ``start``, read in blocks."""
    found = hashlib.new(kind, usedforsecurity=False)
    left = path.stat().st_size - start if size is None else size
    with path.open("rb") as stream:
        stream.seek(start)
        while left > 0 and (block := stream.read(min(left, 1 << 22))):
            found.update(block)
            left -= len(block)
    return f"{kind}:{found.hexdigest()}"


def check(path: Path, file: File, expected: str | None) -> str:
    """Return the hash of ``path``, read in blocks; UserError where it is not ``file``, whose hash is ``expected``."""
    with path.open("rb") as stream:
        if is_web_page(stream.read(64)):
            raise UserError(f"{path} is a web page, not {file.name}: delete it and fetch it again")
    size = path.stat().st_size
    if size < (file.bytes or 0):
        raise UserError(f"{path} is cut short ({size:,} of {file.bytes:,} bytes): delete it and fetch it again")
    digest = digest_of(path, (expected or "sha256").partition(":")[0])
    if expected is not None and digest != expected:
        kind, _, wanted = expected.partition(":")
        raise UserError(f"{path} is not the published file (its {kind} is not {wanted}): delete it, fetch it again")
    return digest


def read_checked(path: Path, file: File) -> bytes:
    """Return the bytes of ``path``, which must be those published unless ``file.content`` is there to say otherwise."""
    data = path.read_bytes()
    if is_web_page(data[:64]):
        raise UserError(f"{path} is a web page, not {file.name}: delete it and fetch it again")
    if file.content is None:
        if len(data) < (file.bytes or 0):
            size = f"{len(data):,} of {file.bytes:,} bytes"
            raise UserError(f"{path} is cut short ({size}): delete it and fetch it again")
        check_hash(path, data, file.hash)
    return data


def read_content(path: Path, file: File) -> bytes:
    """Return the checked content of ``path``, unpacked if it is a gzip file."""
    data = read_checked(path, file)
    try:
        content = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except DAMAGED as error:
        size = f"{len(data):,} of {file.bytes:,} bytes"
        raise UserError(f"{path} is cut short or damaged ({size}): delete it and fetch it again") from error
    check_hash(path, content, file.content)
    return content
