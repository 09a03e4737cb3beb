"""Downloads: every place in turn, resumed where they broke off, checked, and unpacked without trust."""

from __future__ import annotations

from pathlib import Path

import pooch
from rich.progress import Progress

from anchored.catalog import DataSet, File, get
from anchored.errors import UserError
from anchored.readers.files import data_root, find, is_web_page, read_checked, read_content


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
            if is_web_page(stream.read(64)):
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
    path = find(row, file.name, root)
    if path is not None:
        try:
            (read_checked if file.content is None else read_content)(path, file)
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
