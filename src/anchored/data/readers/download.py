"""Getting data sets: every place in turn, checked, unpacked, by one process at a time."""

import contextlib
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import File, Holding
from anchored.data.readers import web
from anchored.data.readers.files import check_file, data_root, find_file, is_gzip, read_checked
from anchored.data.readers.unpack import decompress, unpack
from anchored.errors import UserError
from anchored.store import files as disk
from anchored.store.terminal import PlainConsole, progress_bar


@dataclass(frozen=True)
class DownloadRecord:
    """What is known of a set's files here: ``.anchored.json`` in its folder, written when a file was found whole.

    For each file its hash, whether that is a published one, its size and time when it was hashed, and how many files
    were unpacked from it.
    """

    row: Holding
    root: str | Path | None

    @property
    def _path(self) -> Path:
        return data_root(self.root) / self.row.folder / ".anchored.json"

    def read(self) -> dict[str, dict[str, Any]]:
        """Return what is known, by file name; {} where nothing is."""
        if not self._path.exists():
            return {}
        entries = disk.read_json(self._path)
        if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
            raise UserError(f"{self._path} was changed by hand: move it elsewhere, and files are checked anew")
        return entries

    def of_file(self, file: File) -> dict[str, Any]:
        """Return what is known of one file; {} where nothing is."""
        return self.read().get(file.name, {})

    def expected(self, file: File) -> str | None:
        """Return the hash that a copy of ``file`` must have: the published one, else that of the first download."""
        return file.hash or self.of_file(file).get("hash")

    def knows(self, file: File, path: Path) -> bool:
        """Say whether ``path`` is, by its size and time, the file that was found whole."""
        entry, now = self.of_file(file), path.stat()
        return (entry.get("bytes"), entry.get("mtime_ns")) == (now.st_size, now.st_mtime_ns)

    def write(self, file: File, path: Path, digest: str, files: int) -> None:
        """Keep that ``path`` is whole, and how many files were unpacked from it."""
        now = path.stat()
        entry = {
            "hash": digest, "published": file.hash is not None, "bytes": now.st_size, "mtime_ns": now.st_mtime_ns,
            "unpacked": files, "when": time.strftime("%Y-%m-%d"),
        }  # fmt: skip
        disk.write_json(self._path, {**self.read(), file.name: entry})


def fetch_dataset(
    name: str,
    root: str | Path | None = None,
    *,
    progress: bool = True,
    offline: bool = False,
    timeout: float = web.TIMEOUT,
) -> tuple[Path, ...]:
    """Download and unpack what is not there yet of the data set called ``name``; return where its files are.

    Files go to ``data_root(root)/<the set's folder>``. Every place in the catalog is tried in turn, downloads that
    broke off are gone on with, every file's hash is checked (where none is published, the first download's is kept),
    and a file or folder appears under its name only when it is whole. Archives that need a login are unpacked once they
    lie in the set's folder. Only one process at a time fetches a set; others wait. ``offline``, or $ANCHORED_OFFLINE:
    the network is not asked. ``timeout``: seconds of silence after which a server is given up.

    Sets that ship with the package or are computed need no files: an empty tuple. UserError, one line, names each place
    tried, what went wrong there, and what to bring by hand.
    """
    row = get_dataset(name)
    files = (*row.parts, *(file for file in row.train_files + row.test_files if file.urls))
    if not files:
        if row.manual and not find_file(row, row.needs[0], root):
            raise UserError(f"cannot fetch {row.title}: {row.manual}; put it into {data_root(root) / row.folder}")
        return ()
    return fetch_files(row, files, root, progress=progress, offline=offline, timeout=timeout)


def fetch_files(
    row: Holding,
    files: Sequence[File],
    root: str | Path | None = None,
    *,
    progress: bool = True,
    offline: bool = False,
    timeout: float = web.TIMEOUT,
) -> tuple[Path, ...]:
    """Download and unpack what is not there yet of ``files``; return where they are. All is as in ``fetch_dataset``."""
    offline = offline or os.environ.get("ANCHORED_OFFLINE", "0") not in ("", "0")
    job = _Job(row, root, progress, offline, timeout)
    with disk.os_errors_as_user_errors(job.folder, "write to"):
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(job.folder / ".lock", timeout=0):
                return tuple(job.bring(file) for file in files)
        except Timeout:
            if progress:
                print(f"{row.name}: another process is fetching it; waiting", file=sys.stderr)
            with FileLock(job.folder / ".lock"):
                return tuple(job.bring(file) for file in files)


@dataclass(frozen=True)
class _Job:
    row: Holding
    root: str | Path | None
    progress: bool
    offline: bool
    timeout: float

    @property
    def folder(self) -> Path:
        return data_root(self.root) / self.row.folder

    @property
    def record(self) -> DownloadRecord:
        return DownloadRecord(self.row, self.root)

    def bring(self, file: File) -> Path:
        """Return where ``file``, or what it makes, is whole; downloaded and unpacked if need be."""
        made = [find_file(self.row, entry, self.root) for entry in (*file.makes, *file.holds)]
        brought = find_file(self.row, file.name, self.root)
        if made and made[0] and all(made) and (self.record.of_file(file) or not brought):
            return made[0]  # unpacked before, or brought unpacked by the user
        plain = find_file(self.row, file.plain.name, self.root) if file.compressed else None
        if plain and not brought:
            return plain  # decompressed before; the archive was deleted
        path, digest = self._whole(file, brought)
        if not file.hash and path.suffix == ".zip" and not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not a whole zip file: move it elsewhere and fetch it again")
        count = 0
        if file.makes:
            self._check_room(path.stat().st_size, file)
            with self._bar(f"unpacking {file.name}") as moved:
                count = unpack(path, file, self.folder, moved, ours=bool(self.record.of_file(file)))
        self.record.write(file, path, digest, count)
        if file.compressed and is_gzip(path):
            return self._decompressed(file, path)
        return self.folder / file.makes[0] if file.makes else path

    def _decompressed(self, file: File, path: Path) -> Path:
        place = self.folder / file.plain.name
        if not (place.exists() and self.record.knows(file.plain, place)):
            self._check_room(path.stat().st_size, file.plain)
            with self._bar(f"decompressing {file.name}") as moved:
                digest = decompress(path, place, moved)
            self.record.write(file.plain, place, digest, 0)
        return place

    def _whole(self, file: File, path: Path | None) -> tuple[Path, str]:
        """Return where a whole copy of ``file`` lies, and its hash; downloaded unless that at ``path`` is."""
        if path is not None and self.record.knows(file, path):
            return path, str(self.record.of_file(file)["hash"])
        if path is not None:
            try:
                if file.content is not None:
                    read_checked(path, file)
                    return path, file.content
                return path, check_file(path, file, self.record.expected(file))
            except UserError:
                if not file.urls:
                    raise
        return self._download(file)

    def _download(self, file: File) -> tuple[Path, str]:
        row, reasons = self.row, []
        by_hand = row.manual or (f"bring {file.urls[0]} by hand" if file.urls else "")
        if self.offline or not file.urls:
            why = "the network is off (offline)" if file.urls else "it cannot be downloaded without you"
            raise UserError(f"cannot fetch {file.name} of {row.title}: {why}: {by_hand} (into {self.folder})")
        self._check_room(file.bytes or 0, file)
        path = self.folder / file.name
        for url in file.urls:
            with self._bar(file.name, file.bytes) as moved:
                try:
                    return path, web.download(url, path, self.record.expected(file), moved, self.timeout, file.bytes)
                except web.TransferError as error:
                    reasons.append(f"{url}: {error}")
        raise UserError(f"cannot download {row.title}: {'; '.join(reasons)}; {by_hand} (into {self.folder})")

    def _check_room(self, count: int, file: File) -> None:
        free = shutil.disk_usage(self.folder).free
        if count + web.RESERVE > free:
            needs = f"{count / 1e9:.1f} GB in {self.folder}, where {free / 1e9:.1f} GB are free"
            raise UserError(f"{file.name} needs {needs}: make room, or set ANCHORED_DATA to another disk")

    @contextlib.contextmanager
    def _bar(self, name: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Give the function that moves a progress bar: bytes done, and how many there are to be if known."""
        what = TextColumn("{task.description}", markup=False)
        columns = (what, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        console = PlainConsole(stderr=True, quiet=not self.progress)
        with progress_bar(console, *columns, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda done, total=None: bar.update(task, completed=done, total=total)
