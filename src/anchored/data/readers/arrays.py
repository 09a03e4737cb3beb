"""Readers of sets that are arrays: idx files, CIFAR's records, and the blocks of CIFAR-C."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from anchored.data.catalog.registry import get_dataset
from anchored.data.catalog.row import DataSet, File
from anchored.data.decoding import error_text
from anchored.data.image_sources import evenly_spaced
from anchored.data.readers.files import check_file, find_file, locate_entry, missing_file, read_checked, require_file
from anchored.data.readers.tars import members
from anchored.data.readers.unpack import refusing_damage, tar_members
from anchored.errors import UserError

Bytes = npt.NDArray[np.uint8]


def _parse_idx(path: Path, content: bytes, rank: int) -> Bytes:
    """Return the array in idx ``content``: magic 0x0800 + rank, ``rank`` big-endian sizes, then bytes."""
    if len(content) < 4 * (rank + 1) or struct.unpack(">I", content[:4])[0] != 0x0800 + rank:
        raise UserError(f"{path} is not an idx file of bytes in {rank} dimensions: it starts with {content[:4].hex()}")
    sizes = struct.unpack(f">{rank}I", content[4 : 4 * (rank + 1)])
    data = np.frombuffer(content, np.uint8, offset=4 * (rank + 1))
    if len(data) != math.prod(sizes):
        raise UserError(f"{path} has {len(data):,} bytes after its header, which says {' x '.join(map(str, sizes))}")
    return data.reshape(sizes)


def _read_idx(row: DataSet, split: str, root: str | Path | None) -> tuple[Bytes, Bytes]:
    """Read images (N,H,W), grey, and labels (N,) in the format of the MNIST page."""
    arrays = []
    for file, rank in zip(row.train_files if split == "train" else row.test_files, (3, 1), strict=True):
        path = require_file(row, file.name, root)
        arrays.append(_parse_idx(path, read_checked(path, file), rank))
    return arrays[0][:, None], arrays[1]


def _archive_members(path: Path, archive: File, wanted: tuple[File, ...]) -> dict[str, bytes]:
    """Return the content of the ``wanted`` members of the tar.gz at ``path``, by name."""
    check_file(path, archive, archive.hash)
    names = {file.name for file in wanted}
    with refusing_damage(path):
        contents = {name: stream.read() for name, stream, _ in tar_members(path) if stream and name in names}
    for name in sorted(names - contents.keys()):
        raise UserError(f"{path} has no member {name}: move it elsewhere and fetch it again")
    return contents


def _read_cifar(row: DataSet, split: str, root: str | Path | None) -> tuple[Bytes, Bytes]:
    """Read images (N,3,32,32) and labels (N,) of the CIFAR binary version, from its archive or unpacked folder.

    A record is ``label_bytes`` bytes, the last of them the label, then the pixels channel by channel
    (https://www.cs.toronto.edu/~kriz/cifar.html).
    """
    files = row.train_files if split == "train" else row.test_files
    archive = row.parts[0]
    path = find_file(row, archive.name, root)
    if path is not None:
        contents = _archive_members(path, archive, files)
    else:
        paths = [find_file(row, file.name, root) for file in files]
        if None in paths:
            raise missing_file(row, archive.name, root)
        contents = {file.name: read_checked(path, file) for path, file in zip(paths, files, strict=True) if path}
    width = row.label_bytes + row.channels * row.size**2
    for file in files:
        if len(contents[file.name]) != file.bytes or file.bytes % width:
            raise UserError(f"{file.name} of {row.title} has {len(contents[file.name]):,} bytes, not {file.bytes:,}")
    records = np.frombuffer(b"".join(contents[file.name] for file in files), np.uint8).reshape(-1, width)
    images = records[:, row.label_bytes :].reshape(-1, row.channels, row.size, row.size)
    return images, records[:, row.label_bytes - 1]


#: The readers of arrays: (row, split, root) -> images (N,C,H,W) and labels (N,), both uint8, as they are in the files.
READERS: dict[str, Callable[[DataSet, str, str | Path | None], tuple[Bytes, Bytes]]] = {
    "idx": _read_idx,
    "cifar_binary": _read_cifar,
}


def corrupted_arrays(
    row: DataSet, corruption: str, severity: int, root: str | Path | None
) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """Read one corruption at one severity in the layout of CIFAR-10-C: images (N,C,H,W) and labels (N,).

    ``<corruption>.npy`` holds (5 N,H,W,C) uint8, five blocks of the N test images in their order, severity 1 first;
    ``labels.npy`` the 5 N labels (Hendrycks and Dietterich 2019, https://zenodo.org/record/2535967). The blocks are
    mapped, not read: only the pages that are used are loaded.
    """
    clean = get_dataset(row.clean)
    path, blocks = _mapped(row, f"{corruption}.npy", root)
    count = row.test
    expected = (5 * count, clean.size, clean.size, clean.channels)
    if blocks.dtype != np.uint8 or blocks.shape != expected:
        stored = f"{blocks.dtype} {blocks.shape}"
        raise UserError(f"{corruption}.npy in {path} holds {stored}, not uint8 {expected}: five blocks of {count:,}")
    labels = _block_labels(row, count, root)
    chosen = blocks[(severity - 1) * count : severity * count]
    return chosen.transpose(0, 3, 1, 2), labels


def locate_block(row: DataSet, name: str, root: str | Path | None) -> tuple[Path, int, int]:
    """Return where the .npy file ``name`` of ``row`` is: its file or the tar that holds it, its start and its bytes."""
    entry = f"{row.images}/{name}"
    path = locate_entry(row, entry, root)
    if path is None:
        raise missing_file(row, entry, root)
    try:
        return (path, 0, path.stat().st_size) if path.name == name else (path, *members(path).place(entry))
    except KeyError as error:
        raise UserError(f"{path} does not hold {entry}: move it elsewhere and fetch {row.name} again") from error


def _mapped(row: DataSet, name: str, root: str | Path | None) -> tuple[Path, npt.NDArray[np.generic]]:
    """Return the array in the .npy file ``name`` of ``row``, mapped into memory, and its place: also inside a tar."""
    path, start, size = locate_block(row, name, root)
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            data = stream.tell()
        if dtype.hasobject or data + math.prod(shape) * dtype.itemsize > start + size:
            raise ValueError(f"its header says {dtype} {shape}")
        order: Literal["F", "C"] = "F" if fortran else "C"
        return path, np.memmap(path, dtype, "r", data, shape, order)
    except Exception as error:  # NumPy raises whatever a damaged header leads to
        raise UserError(
            f"{name} in {path} is not a whole .npy file of numbers ({error_text(error)}): fetch {row.name} again"
        ) from error


def check_severity_order(row: DataSet, corruption: str, clean: Bytes, root: str | Path | None) -> None:
    """Check that severity 5 of a corruption is further from the ``clean`` images (N,C,H,W) than severity 1 is. By the
    mean absolute difference of evenly spaced images; UserError where it is not."""
    chosen = evenly_spaced(len(clean), 100)
    first, last = (
        np.abs(corrupted_arrays(row, corruption, severity, root)[0][chosen].astype(np.int16) - clean[chosen]).mean()
        for severity in (1, 5)
    )
    if first >= last:
        raise UserError(
            f"{corruption}.npy of {row.title}: its first block is further from the clean images ({first:.1f}) than its "
            f"last ({last:.1f}): its severities are not in the order 1 to 5"
        )


def _block_labels(row: DataSet, count: int, root: str | Path | None) -> npt.NDArray[np.int64]:
    """Return the labels (N,) that all five blocks share."""
    path, labels = _mapped(row, "labels.npy", root)
    if labels.dtype.kind not in "iu" or labels.shape != (5 * count,):
        raise UserError(f"labels.npy in {path} holds {labels.dtype} {labels.shape}, not {5 * count:,} whole numbers")
    blocks: npt.NDArray[np.int64] = labels.astype(np.int64).reshape(5, count)
    if (blocks != blocks[0]).any():
        raise UserError(f"labels.npy in {path}: its five blocks of {count:,} differ, so they are not severities 1 to 5")
    if blocks.min() < 0 or blocks.max() >= len(get_dataset(row.clean).classes):
        raise UserError(
            f"labels.npy in {path}: labels run from {blocks.min()} to {blocks.max()}, beyond the classes of {row.clean}"
        )
    return np.asarray(blocks[0])
