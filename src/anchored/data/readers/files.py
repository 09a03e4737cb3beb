"""Where the files of a data set lie, and whether they are the published ones."""

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from anchored.data.catalog.row import DataSet, File, Holding
from anchored.errors import UserError
from anchored.store import files

_PACKAGE = Path(__file__).parents[1]  # relative homes of a row are below it
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder that holds downloaded sets: ``root``, else $ANCHORED_DATA, else ~/.cache/anchored."""
    chosen = Path(root or os.environ.get("ANCHORED_DATA") or "~/.cache/anchored")
    try:
        return chosen.expanduser()
    except RuntimeError as error:
        raise UserError(f"there is no home folder for {chosen}: set ANCHORED_DATA to a folder for data sets") from error


def _search_folders(row: Holding, root: str | Path | None) -> list[Path]:
    """Return where ``row``'s files may lie, in the order of search; homes inside the package first."""
    homes = [_PACKAGE / home for home in row.homes]  # an absolute home stays what it is
    inside = [home for home in homes if home.is_relative_to(_PACKAGE)]
    return [*inside, data_root(root) / row.folder, data_root(root), *(home for home in homes if home not in inside)]


def find_file(row: Holding, name: str, root: str | Path | None) -> Path | None:
    """Return the first place where a file or folder called ``name`` lies, a .gz also unpacked; None when nowhere. A
    bare folder name ("train") is only sought in the set's own folders: in the data root it may be anything's."""
    bare = "/" not in name and "." not in name
    for folder in _search_folders(row, root):
        if bare and folder == data_root(root):
            continue
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.exists():
                return files.refuse_special(candidate)
    return None


def require_file(row: DataSet, name: str, root: str | Path | None) -> Path:
    """Return where a file or folder called ``name`` lies; UserError where nowhere."""
    path = find_file(row, name, root)
    if path is None:
        raise missing_file(row, name, root)
    return path


def locate_entry(row: DataSet, entry: str, root: str | Path | None) -> Path | None:
    """Return where ``entry`` ("a/b") of ``row`` lies: itself, or the archive it is read from; None when nowhere."""
    top = entry.split("/")[0]
    archives = (_readable_archive(row, part, root) for part in row.parts if top in part.holds)
    return find_file(row, entry, root) or next(filter(None, archives), None)


def _readable_archive(row: DataSet, part: File, root: str | Path | None) -> Path | None:
    """Return the archive ``part`` as single files can be read from it: of a compressed one, what lies beside it."""
    path = find_file(row, part.name, root)
    if part.compressed and (path is None or is_gzip(path)):
        return find_file(row, part.plain.name, root)
    return path


def is_gzip(path: Path) -> bool:
    """Say whether a file is compressed by gzip, by its first bytes."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def missing_entries(row: DataSet, root: str | Path | None = None, only: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what of ``row`` (or what of ``only``) is not there; () for a set that is, or that is computed. Only names
    are looked at: the readers check what the files hold."""
    wanted = only or row.needs or [file.name for file in row.train_files + row.test_files]
    return tuple(name for name in wanted if locate_entry(row, name, root) is None)


def is_here(row: DataSet, root: str | Path | None = None) -> bool:
    """Say whether ``row``'s files are there (unverified); sets that are computed always are."""
    return not missing_entries(row, root)


def missing_file(row: DataSet, name: str, root: str | Path | None) -> UserError:
    """Return the error that ``name``, one of ``row``'s files, is nowhere: where it was sought and how to get it."""
    places = ", ".join(str(folder) for folder in _search_folders(row, root))
    advice = row.manual or "install the package again"
    if row.downloads and not row.manual:
        top = name.split("/")[0]
        bringing = (file for file in row.downloads if name == file.name or top in file.makes + file.holds)
        url = next(bringing, row.downloads[0]).urls[0]
        advice = f"run 'anchored data fetch {row.name}', or download {url} into {data_root(root) / row.folder}"
    return UserError(f"{row.title}: {name} is missing (looked in {places}): {advice}")


def is_web_page(start: bytes) -> bool:
    """Say whether a file that begins with ``start`` is a web page, as servers send it in place of a moved file."""
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def file_hash(path: Path, kind: str, start: int = 0, size: int | None = None) -> str:
    """Return the hash ("md5:..." for ``kind`` "md5") of ``size`` bytes of a file from ``start``, read in blocks."""
    digest = hashlib.new(kind, usedforsecurity=False)
    left = path.stat().st_size - start if size is None else size
    with path.open("rb") as stream:
        stream.seek(start)
        while left > 0 and (block := stream.read(min(left, 1 << 22))):
            digest.update(block)
            left -= len(block)
    return f"{kind}:{digest.hexdigest()}"


def check_file(path: Path, file: File, expected: str | None) -> str:
    """Return the hash of ``path``, read in blocks; UserError where it is not ``file``, whose hash is ``expected``."""
    _refuse_web_page(path, file)
    size = path.stat().st_size
    if size < (file.bytes or 0):
        raise UserError(f"{path} is cut short ({size:,} of {file.bytes:,} bytes): move it elsewhere and fetch it again")
    digest = file_hash(path, (expected or "sha256").partition(":")[0])
    _compare(path, digest, expected)
    return digest


def _refuse_web_page(path: Path, file: File) -> None:
    with path.open("rb") as stream:
        if is_web_page(stream.read(64)):
            raise UserError(f"{path} is a web page, not {file.name}: move it elsewhere and fetch it again")


def _compare(path: Path, digest: str, expected: str | None) -> None:
    if expected not in (None, digest):
        kind, _, wanted = str(expected).partition(":")
        raise UserError(f"{path} is not the published file (its {kind} is not {wanted}): move it and fetch it again")


def read_checked(path: Path, file: File) -> bytes:
    """Return the content of ``path``, unpacked if it is a gzip file; UserError where it is not the published one. By
    the hash of the content where that is known, else by that of the file."""
    if file.content is None:
        check_file(path, file, file.hash)
    _refuse_web_page(path, file)
    data = path.read_bytes()
    try:
        content = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except DAMAGED as error:
        size = f"{len(data):,} of {file.bytes:,} bytes"
        raise UserError(f"{path} is cut short or damaged ({size}): move it elsewhere and fetch it again") from error
    if file.content is not None:
        kind = file.content.partition(":")[0]
        _compare(path, f"{kind}:{hashlib.new(kind, content, usedforsecurity=False).hexdigest()}", file.content)
    return content
