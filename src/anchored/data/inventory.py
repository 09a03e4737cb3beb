"""Available and downloaded data sets: the table and the lines of ``anchored data``."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table

from anchored.data import datasets
from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import DataSet, File
from anchored.data.image_sources import ImageIndex, evenly_spaced
from anchored.data.readers import verify
from anchored.data.readers.arrays import READERS
from anchored.data.readers.files import is_here, missing_entries
from anchored.data.readers.layouts import INDEXES, read_corrupted, read_index
from anchored.errors import UserError
from anchored.store.terminal import PlainConsole, progress_bar

_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_bytes(count: float) -> str:
    """Return a number of bytes as people write it: ``2.92 GB``."""
    return next((f"{count / unit:.3g} {name}" for unit, name in _UNITS if count >= unit), f"{count:.0f} B")


def total_size(files: Sequence[File]) -> str:
    """Return how much files have together; ``?`` or ``> 2 GB`` where the size of one is not published."""
    known = sum(file.bytes or 0 for file in files)
    unknown = any(file.bytes is None for file in files)
    return f"{'> ' if unknown else ''}{format_bytes(known)}" if known else "?"


def catalog_table(rows: Sequence[DataSet], root: Path | None = None) -> Table:
    """Return a line for each row: images, classes, what fetching it downloads, whether it is here."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "train", "test", "image", "classes", "download", "here"):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "name" else "right")
    for row in rows:
        shape = "varied" if row.varied else f"{row.channels}×{row.size}×{row.size}"
        parts = row.parts or row.downloads
        download = "by hand" if row.manual and not row.downloads else total_size(parts) if parts else "–"
        here = "yes" if is_here(row, root) else "no"
        table.add_row(row.name, f"{row.train:,}", f"{row.test:,}", shape, str(row.file_classes), download, here)
    return table


def describe_row(row: DataSet) -> Iterator[str]:
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
        yield f"  file: {file.name}, {total_size([file])}, {file.hash or 'no published hash'}"
        if file.urls:
            yield f"    from {' or '.join(file.urls)}"
    if row.manual:
        yield f"  by hand: {row.manual}"


def verify_dataset(row: DataSet, root: Path | None = None, every: bool = False) -> str:
    """Read a set whole and say what that shows; UserError for the first thing that is wrong.

    Archives and files are hashed; labels, splits and counts checked; of encoded images 2,000 of each split are decoded,
    or ``every`` one.
    """
    missing = missing_entries(row, root)
    if missing and len(missing) == len(row.needs or row.train_files + row.test_files):
        return "not here"
    if missing:
        way = f"run 'anchored data fetch {row.name}'" if row.downloads else row.manual or "install the package again"
        raise UserError(f"{row.title} is here in part: {', '.join(missing)} is missing; {way}")
    proofs = verify.check_archives(row, root)
    if row.reader == "corrupted_blocks":
        clean = get_dataset(row.clean)
        here = row.test_files or not is_here(clean, root)
        unverified = None if here else READERS[clean.reader](clean, "test", root)[0]
        return "; ".join([f"whole, {verify.check_blocks(row, root, unverified)} files", *proofs])
    if row.reader == "corrupted_folders":
        return "; ".join([f"whole, {_folders(row, root, every)} sets of {row.test:,} images", *proofs])
    counts = [_split(row, split, root, every) for split in ("train", "test") if getattr(row, split)]
    return "; ".join([f"whole, {' and '.join(counts)} images", *proofs])


def _split(row: DataSet, split: str, root: Path | None, every: bool) -> str:
    if row.reader not in INDEXES:
        return f"{len(datasets.load_split(row.name, split, root)):,} {split}"
    index = read_index(row, split, root)
    decoded = _decode(row, index, every, f"{row.name}, {split}")
    return f"{len(index):,} {split}" + (f" ({decoded:,} decoded)" if decoded < len(index) else "")


def _decode(row: DataSet, index: ImageIndex, every: bool, what: str) -> int:
    with progress_bar(PlainConsole(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=len(index) if every else min(verify.SAMPLE, len(index)))
        return verify.check_images(row, index, every, lambda: bar.advance(task))


def _folders(row: DataSet, root: Path | None, every: bool) -> int:
    for corruption in row.corruptions:
        for severity in range(1, 6):
            index = read_corrupted(row.name, corruption, severity, root)
            assert isinstance(index, ImageIndex)
            some = index if every else index.take(evenly_spaced(len(index), verify.SAMPLE // 100))
            _decode(row, some, True, f"{row.name}, {corruption}, severity {severity}")
    return 5 * len(row.corruptions)
