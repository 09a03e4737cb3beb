"""From a row of the catalog to raw arrays: find the files, check them, read them; download them on request.

Nothing is unpickled and nothing is unpacked to disk. Every read checks the file's hash first: the largest set today is
170 MB, where that costs 0.3 s beside the 2 s of decompressing it, less than a marker file would cost in doubt.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pooch
from rich.progress import Progress

from anchored.catalog import DataSet, File, get
from anchored.errors import UserError

Bytes = npt.NDArray[np.uint8]
_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder that holds downloaded sets: ``root``, else $ANCHORED_DATA, else ~/.cache/anchored."""
    return Path(root or os.environ.get("ANCHORED_DATA") or "~/.cache/anchored").expanduser()


def _folders(row: DataSet, root: str | Path | None) -> list[Path]:
    """Return where ``row``'s files may lie, in the order of search; homes inside the package first."""
    homes = [Path(__file__).parent / home for home in row.homes]  # an absolute home stays what it is
    inside = [home for home in homes if home.is_relative_to(Path(__file__).parent)]
    return [*inside, data_root(root) / row.folder, data_root(root), *(home for home in homes if home not in inside)]


def _find(row: DataSet, file: File, root: str | Path | None) -> Path | None:
    """Return the first place where ``file`` lies, compressed or unpacked; None when it is nowhere."""
    for folder in _folders(row, root):
        for name in dict.fromkeys((file.name, file.name.removesuffix(".gz"))):
            if (folder / name).is_file():
                return folder / name
    return None


def is_here(row: DataSet, root: str | Path | None = None) -> bool:
    """Say whether ``row``'s files are there (unverified); sets that are computed always are."""
    files = row.train_files + row.test_files
    unpacked = all(_find(row, file, root) for file in files)
    return unpacked or (row.archive is not None and _find(row, row.archive, root) is not None)


def _missing(row: DataSet, file: File, root: str | Path | None) -> UserError:
    looked = ", ".join(str(folder) for folder in _folders(row, root))
    if not file.urls:
        return UserError(f"{row.title}: {file.name} is missing (looked in {looked}): install the package again")
    return UserError(
        f"{row.title}: {file.name} is missing (looked in {looked}): run 'anchored data fetch {row.name}', or download "
        f"{file.urls[0]} into {data_root(root) / row.folder}"
    )


def _is_web_page(start: bytes) -> bool:
    """Say whether a file that begins with ``start`` is a web page, as servers send it in place of a moved file."""
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _check_hash(path: Path, data: bytes, expected: str | None) -> None:
    """Raise UserError unless ``data``, read from ``path``, has the hash ``expected`` ("md5:..." or "sha256:...")."""
    if expected is None:
        return
    kind, _, digest = expected.partition(":")
    if hashlib.new(kind, data, usedforsecurity=False).hexdigest() != digest:
        raise UserError(
            f"{path} is not the published file (its {kind} differs from {digest}): delete it, fetch it again"
        )


def _read_checked(path: Path, file: File) -> bytes:
    """Return the bytes of ``path``, which must be those published unless ``file.content`` is there to say otherwise."""
    data = path.read_bytes()
    if _is_web_page(data[:64]):
        raise UserError(f"{path} is a web page, not {file.name}: delete it and fetch it again")
    if file.content is None:
        if len(data) < file.bytes:
            size = f"{len(data):,} of {file.bytes:,} bytes"
            raise UserError(f"{path} is cut short ({size}): delete it and fetch it again")
        _check_hash(path, data, file.hash)
    return data


def _read_content(path: Path, file: File) -> bytes:
    """Return the checked content of ``path``, unpacked if it is a gzip file."""
    data = _read_checked(path, file)
    try:
        content = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except _DAMAGED as error:
        size = f"{len(data):,} of {file.bytes:,} bytes"
        raise UserError(f"{path} is cut short or damaged ({size}): delete it and fetch it again") from error
    _check_hash(path, content, file.content)
    return content


def _parse_idx(path: Path, content: bytes, rank: int) -> Bytes:
    """Return the array in idx ``content``: magic 0x0800 + rank, ``rank`` big-endian sizes, then bytes."""
    if len(content) < 4 * (rank + 1) or struct.unpack(">I", content[:4])[0] != 0x0800 + rank:
        raise UserError(f"{path} is not an idx file of bytes in {rank} dimensions: it starts with {content[:4].hex()}")
    sizes = struct.unpack(f">{rank}I", content[4 : 4 * (rank + 1)])
    data = np.frombuffer(content, np.uint8, offset=4 * (rank + 1))
    if len(data) != int(np.prod(sizes)):
        raise UserError(f"{path} has {len(data):,} bytes after its header, which says {' x '.join(map(str, sizes))}")
    return data.reshape(sizes)


def _read_idx(row: DataSet, split: str, root: str | Path | None) -> tuple[Bytes, Bytes]:
    """Read images (N,H,W), grey, and labels (N,) in the format of the MNIST page."""
    arrays = []
    for file, rank in zip(row.train_files if split == "train" else row.test_files, (3, 1), strict=True):
        path = _find(row, file, root)
        if path is None:
            raise _missing(row, file, root)
        arrays.append(_parse_idx(path, _read_content(path, file), rank))
    return arrays[0][:, None], arrays[1]


def _archive_members(path: Path, archive: File, wanted: tuple[File, ...]) -> dict[str, bytes]:
    """Return the content of the ``wanted`` members of the tar.gz at ``path``, by name."""
    _read_checked(path, archive)
    names = {file.name for file in wanted}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.name in names else None
                if stream is not None:
                    found[member.name] = stream.read()
                if len(found) == len(names):
                    break
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged: delete it and fetch it again") from error
    for name in sorted(names - found.keys()):
        raise UserError(f"{path} has no member {name}: delete it and fetch it again")
    return found


def _read_cifar(row: DataSet, split: str, root: str | Path | None) -> tuple[Bytes, Bytes]:
    """Read images (N,3,32,32) and labels (N,) of the CIFAR binary version, from its archive or unpacked folder.

    A record is ``label_bytes`` bytes, the last of them the label, then the pixels channel by channel
    (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    files = row.train_files if split == "train" else row.test_files
    assert row.archive is not None
    path = _find(row, row.archive, root)
    if path is not None:
        contents = _archive_members(path, row.archive, files)
    else:
        contents = {}
        for file in files:
            path = _find(row, file, root)
            if path is None:
                raise _missing(row, row.archive, root)
            contents[file.name] = _read_content(path, file)
    width = row.label_bytes + row.channels * row.size**2
    for file in files:
        if len(contents[file.name]) != file.bytes or file.bytes % width:
            raise UserError(f"{file.name} of {row.title} has {len(contents[file.name]):,} bytes, not {file.bytes:,}")
    records = np.frombuffer(b"".join(contents[file.name] for file in files), np.uint8).reshape(-1, width)
    images = records[:, row.label_bytes :].reshape(-1, row.channels, row.size, row.size)
    return images, records[:, row.label_bytes - 1]


#: The readers of files: (row, split, root) -> images (N,C,H,W) and labels (N,), both uint8, as they are in the files.
READERS: dict[str, Callable[[DataSet, str, str | Path | None], tuple[Bytes, Bytes]]] = {
    "idx": _read_idx,
    "cifar_binary": _read_cifar,
}


class _Bar:
    """What pooch calls while it downloads, shown by rich."""

    total = 0

    def __init__(self, name: str) -> None:
        self.progress = Progress(transient=True)
        self.task = self.progress.add_task(name, total=None)

    def update(self, count: int) -> None:
        """Advance by ``count`` bytes."""
        self.progress.start()
        self.progress.update(self.task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """Start again from zero: pooch calls this before its last update."""
        self.progress.reset(self.task)

    def close(self) -> None:
        """Take the bar off the screen."""
        self.progress.stop()


def _download(url: str, file: File, folder: Path, progress: bool) -> Path:
    """Download ``file`` from ``url`` into ``folder``: to a temporary name, checked, then moved into place."""

    def bring(address: str, target: str, pooch_: object) -> None:
        bar = _Bar(file.name) if progress else False
        pooch.HTTPDownloader(progressbar=bar, timeout=30)(address, target, pooch_)
        with Path(target).open("rb") as stream:
            if _is_web_page(stream.read(64)):
                raise UserError("the server sent a web page, not the file")

    pooch.get_logger().setLevel("WARNING")  # the bar and our own error line say it all
    return Path(pooch.retrieve(url, file.hash, fname=file.name, path=folder, downloader=bring))


def _reason(error: Exception, file: File) -> str:
    """Say in a few words why a download failed."""
    if isinstance(error, UserError):
        return str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"HTTP {status}"
    if isinstance(error, OSError):
        return "no connection"
    return f"its hash is not {file.hash}"


def _fetch_file(row: DataSet, file: File, root: str | Path | None, progress: bool) -> Path:
    """Return ``file``'s path, downloading it from the first of its places that gives the published file."""
    path = _find(row, file, root)
    if path is not None:
        try:
            (_read_checked if file.content is None else _read_content)(path, file)
        except UserError:
            path = None  # pooch replaces a file whose hash is wrong
    if path is not None:
        return path
    folder = data_root(root) / row.folder
    reasons = []
    for url in file.urls:
        try:
            return _download(url, file, folder, progress)
        except (OSError, ValueError) as error:  # noqa: PERF203 -- one failed place must not end the search
            reasons.append(f"{url}: {_reason(error, file)}")
    raise UserError(f"cannot download {row.title}: {'; '.join(reasons)}; bring {file.urls[0]} by hand into {folder}")


def fetch(name: str, root: str | Path | None = None, *, progress: bool = True) -> tuple[Path, ...]:
    """Download the files of the data set called ``name`` that are not there yet; return where they all are.

    Files go to ``data_root(root)/<the set's folder>``. Every place in the catalog is tried in turn, every file's hash
    is checked, and a file appears under its name only when it is whole. Sets that ship with the package or are computed
    need no files: an empty tuple. UserError, one line, names each place tried, what went wrong there, and what to
    download by hand.
    """
    row = get(name)
    return tuple(_fetch_file(row, file, root, progress) for file in row.downloads)
