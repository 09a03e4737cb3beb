"""Reading a data set whole, and saying how far that proves that it is the published one."""

from collections.abc import Callable
from pathlib import Path

from anchored.data.catalog.row import DataSet, File
from anchored.data.image_sources import ImageIndex, evenly_spaced
from anchored.data.readers.arrays import Bytes, check_severity_order, corrupted_arrays, locate_block
from anchored.data.readers.download import DownloadRecord
from anchored.data.readers.files import check_file, file_hash, find_file, require_file
from anchored.errors import UserError

SAMPLE = 2_000  # images of each split that are decoded, evenly spaced, unless all are asked for


def check_archives(row: DataSet, root: str | Path | None) -> list[str]:
    """Check the downloaded files of ``row`` that are here, and say of each what that shows. UserError for one that is
    not the published file (or, where no hash is published, not the first download)."""
    record, statements = DownloadRecord(row, root), []
    for file in row.parts:
        path = find_file(row, file.name, root)
        if path is not None:
            check_file(path, file, record.expected(file))
            statements.append(_trust(file, record))
        known = record.of_file(file)
        if file.makes and known:
            _check_count(row, file, known["unpacked"], root)
        beside = find_file(row, file.plain.name, root) if file.compressed else None
        if beside is not None:
            check_file(beside, file.plain, record.expected(file.plain))
            if path is None:
                statements.append(_trust(file.plain, record))
    return statements


def _trust(file: File, record: DownloadRecord) -> str:
    if file.hash:
        return f"{file.name} is the published file"
    known = record.of_file(file)
    since = f"unchanged since it was first fetched on {known['when']}" if known else "and it was not fetched here"
    return f"{file.name} cannot be verified (no hash of it is published), {since}"


def _check_count(row: DataSet, file: File, expected: int, root: str | Path | None) -> None:
    count = 0
    for entry in file.makes:
        path = require_file(row, entry, root)
        count += sum(entry.is_file() for entry in path.rglob("*")) if path.is_dir() else 1
    if count != expected:
        raise UserError(
            f"{row.title}: {', '.join(file.makes)} has {count:,} files, not {expected:,} as {file.name}: "
            f"move it elsewhere and run 'anchored data fetch {row.name}'"
        )


def check_images(row: DataSet, index: ImageIndex, every: bool, progress: Callable[[], None] = lambda: None) -> int:
    """Decode images of ``index``, evenly spaced ones or every one, and return how many; UserError for a bad one."""
    chosen = evenly_spaced(len(index), len(index) if every else SAMPLE).tolist()
    for i in chosen:
        image = index.decode(i)
        if not row.varied and image.size != (row.size, row.size):
            raise UserError(f"{index.where(i)} is {image.width} × {image.height}, not {row.size} × {row.size}")
        progress()
    return len(chosen)


def check_blocks(row: DataSet, root: str | Path | None, clean: Bytes | None) -> int:
    """Check every file of an archive in CIFAR-C's layout and return how many there are.

    Shapes, types and labels; each file's hash where it is published; else, with the ``clean`` test images (N,C,H,W),
    that the fifth block is further from them than the first, as severities in their order are.
    """
    for corruption in row.corruptions:
        corrupted_arrays(row, corruption, 1, root)
    for file in row.test_files:
        path, start, size = locate_block(row, Path(file.name).name, root)
        kind, _, wanted = (file.hash or "").partition(":")
        if wanted and file_hash(path, kind, start, size) != file.hash:
            raise UserError(f"{file.name} in {path} is not the published file (its {kind} is not {wanted})")
    if not row.test_files and clean is not None:
        for corruption in row.corruptions:
            check_severity_order(row, corruption, clean, root)
    return len(row.corruptions) + 1
