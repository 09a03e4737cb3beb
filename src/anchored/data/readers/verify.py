"""Reading a data set whole, and saying how far that proves that it is the published one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from anchored.data.catalog.row import DataSet, File
from anchored.data.readers.arrays import Bytes, block_place, corrupted_arrays, ordered
from anchored.data.readers.download import Record
from anchored.data.readers.files import check, digest_of, find, missing
from anchored.data.readers.images import ImageIndex, spread
from anchored.errors import UserError

SAMPLE = 2_000  # images of each split that are decoded, evenly spaced, unless all are asked for


def archives(row: DataSet, root: str | Path | None) -> list[str]:
    """Check the downloaded files of ``row`` that are here, and say of each what that shows.

    UserError for one that is not the published file (or, where no hash is published, not the first download).
    """
    record, said = Record.of(row, root), []
    for file in row.parts:
        path = find(row, file.name, root)
        if path is not None:
            check(path, file, record.expected(file))
            said.append(_trust(file, record))
        kept = record.of_file(file)
        if file.makes and kept:
            _check_count(row, file, kept["unpacked"], root)
        beside = find(row, file.plain.name, root) if file.compressed else None
        if beside is not None:
            check(beside, file.plain, record.expected(file.plain))
            if path is None:
                said.append(_trust(file.plain, record))
    return said


def _trust(file: File, record: Record) -> str:
    if file.hash:
        return f"{file.name} is the published file"
    kept = record.of_file(file)
    since = f"unchanged since it was first fetched on {kept['when']}" if kept else "and it was not fetched here"
    return f"{file.name} cannot be verified (no hash of it is published), {since}"


def _check_count(row: DataSet, file: File, expected: int, root: str | Path | None) -> None:
    count = 0
    for entry in file.makes:
        path = find(row, entry, root)
        if path is None:
            raise missing(row, entry, root)
        count += sum(each.is_file() for each in path.rglob("*")) if path.is_dir() else 1
    if count != expected:
        raise UserError(
            f"{row.title}: {', '.join(file.makes)} has {count:,} files, not {expected:,} as {file.name}: "
            f"delete it and run 'anchored data fetch {row.name}'"
        )


def images(row: DataSet, found: ImageIndex, every: bool, progress: Callable[[], None] = lambda: None) -> int:
    """Decode images of ``found``, evenly spaced ones or every one, and return how many; UserError for a bad one."""
    chosen = spread(len(found), len(found) if every else SAMPLE)
    for i in chosen:
        image = found.decode(int(i))
        if not row.varied and image.size != (row.size, row.size):
            raise UserError(f"{found.where(int(i))} is {image.width} × {image.height}, not {row.size} × {row.size}")
        progress()
    return len(chosen)


def blocks(row: DataSet, root: str | Path | None, clean: Bytes | None) -> int:
    """Check every file of an archive in CIFAR-C's layout and return how many there are.

    Shapes, types and labels; each file's hash where it is published; else, with the ``clean`` test images (N,C,H,W),
    that the fifth block is further from them than the first, as severities in their order are.
    """
    for corruption in row.corruptions:
        corrupted_arrays(row, corruption, 1, root)
    for file in row.test_files:
        path, start, size = block_place(row, Path(file.name).name, root)
        kind, _, wanted = (file.hash or "").partition(":")
        if wanted and digest_of(path, kind, start, size) != file.hash:
            raise UserError(f"{file.name} in {path} is not the published file (its {kind} is not {wanted})")
    if not row.test_files and clean is not None:
        for corruption in row.corruptions:
            ordered(row, corruption, clean, root)
    return len(row.corruptions) + 1
