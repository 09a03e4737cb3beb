"""What there is to be had and what is here: the tables and lines of ``anchored data``."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from anchored.data import datasets
from anchored.data.catalog.registry import get
from anchored.data.catalog.row import DataSet, File
from anchored.data.readers import read as readers
from anchored.data.readers import verify
from anchored.data.readers.arrays import READERS
from anchored.data.readers.files import is_here, lacking
from anchored.data.readers.images import ImageIndex, spread
from anchored.data.readers.layouts import INDEXES
from anchored.errors import UserError

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def amount(count: float) -> str:
    """Return a number of bytes as people write it: ``2.92 GB``."""
    return next((f"{count / unit:.3g} {name}" for unit, name in UNITS if count >= unit), f"{count:.0f} B")


def size(files: Sequence[File]) -> str:
    """Return how much files have together; ``?`` or ``> 2 GB`` where the size of one is not published."""
    known = sum(file.bytes or 0 for file in files)
    unknown = any(file.bytes is None for file in files)
    return f"{'> ' if unknown else ''}{amount(known)}" if known else "?"


def listing(rows: Sequence[DataSet], root: Path | None = None) -> Table:
    """Return a line for each row: images, classes, what fetching it downloads, whether it is here."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "train", "test", "image", "classes", "download", "here"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "name" else "right")
    for row in rows:
        shape = "varied" if row.varied else f"{row.channels}×{row.size}×{row.size}"
        parts = row.parts or row.downloads
        download = "by hand" if row.manual and not row.downloads else size(parts) if parts else "–"
        here = "yes" if is_here(row, root) else "no"
        table.add_row(row.name, f"{row.train:,}", f"{row.test:,}", shape, str(row.file_classes), download, here)
    return table


def described(row: DataSet) -> Iterator[str]:
    """Say everything that the catalog knows of a set, line by line."""
    yield f"{row.name}: {row.title}"
    for name in ("train", "test", "channels", "size", "mean", "std", "roles", "licence", "citation", "note"):
        if value := getattr(row, name):
            yield f"  {name}: {', '.join(map(str, value)) if isinstance(value, tuple) else value}"
    if row.clean:
        yield f"  corrupted images of {row.clean}: {', '.join(row.corruptions)}"
    if row.classes:
        yield f"  classes: {textwrap.shorten(', '.join(row.classes), 800, placeholder=' ...')}"
    for file in (*row.parts, *(file for file in row.train_files + row.test_files if file.urls)):
        yield f"  file: {file.name}, {size([file])}, {file.hash or 'no published hash'}"
        if file.urls:
            yield f"    from {' or '.join(file.urls)}"
    if row.manual:
        yield f"  by hand: {row.manual}"


def verified(row: DataSet, root: Path | None = None, every: bool = False) -> str:
    """Read a set whole and say what that shows; UserError for the first thing that is wrong.

    Archives and files are hashed; labels, splits and counts checked; of encoded images 2,000 of each split are decoded,
    or ``every`` one.
    """
    missing = lacking(row, root)
    if missing and len(missing) == len(row.needs or row.train_files + row.test_files):
        return "not here"
    if missing:
        raise UserError(f"{row.title} is here in part: {', '.join(missing)} is missing; {how(row)}")
    proofs = verify.archives(row, root)
    if row.reader == "corrupted_blocks":
        clean = get(row.clean)
        here = row.test_files or not is_here(clean, root)
        unverified = None if here else READERS[clean.reader](clean, "test", root)[0]
        return _sentence([f"whole, {verify.blocks(row, root, unverified)} files", *proofs])
    if row.reader == "corrupted_folders":
        return _sentence([f"whole, {_folders(row, root, every)} sets of {row.test:,} images", *proofs])
    counts = [_split(row, split, root, every) for split in ("train", "test") if getattr(row, split)]
    return _sentence([f"whole, {' and '.join(counts)} images", *proofs])


def _split(row: DataSet, split: str, root: Path | None, every: bool) -> str:
    if row.reader not in INDEXES:
        return f"{len(datasets.load(row.name, split, root)):,} {split}"
    found = readers.index(row, split, root)
    decoded = _decoded(row, found, every, f"{row.name}, {split}")
    return f"{len(found):,} {split}" + (f" ({decoded:,} decoded)" if decoded < len(found) else "")


def _decoded(row: DataSet, found: ImageIndex, every: bool, what: str) -> int:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=len(found) if every else min(verify.SAMPLE, len(found)))
        return verify.images(row, found, every, lambda: bar.advance(task))


def _folders(row: DataSet, root: Path | None, every: bool) -> int:
    for corruption in row.corruptions:
        for severity in range(1, 6):
            found = readers.corrupted(row.name, corruption, severity, root)
            assert isinstance(found, ImageIndex)
            some = found if every else found.take(spread(len(found), verify.SAMPLE // 100))
            _decoded(row, some, True, f"{row.name}, {corruption}, severity {severity}")
    return 5 * len(row.corruptions)


def _sentence(parts: Sequence[str]) -> str:
    return "; ".join(parts)


def how(row: DataSet) -> str:
    """Return how to get a set, as the second half of a sentence."""
    if row.downloads:
        return f"run 'anchored data fetch {row.name}'"
    return row.manual or "install the package again"
