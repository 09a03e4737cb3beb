import gzip
import hashlib
import pwd
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.catalog_copies import cifar_fixture

from anchored.data import datasets
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet, File
from anchored.data.readers.files import data_root
from anchored.errors import UserError


def message(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- files


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DataSet, Path]:
    """A row of 6 grey 4 × 4 images whose two files lie in a data root, with hashes."""
    contents = {
        "i-ubyte.gz": idx(np.arange(96, dtype=np.uint8).reshape(6, 4, 4)),
        "l-ubyte.gz": idx(np.array([0, 1, 0, 1, 0, 1], np.uint8)),
    }
    folder = tmp_path / "small"
    folder.mkdir()
    files = []
    for name, content in contents.items():
        packed = gzip.compress(content, mtime=0)
        (folder / name).write_bytes(packed)
        files.append(
            File(
                name=name,
                bytes=len(packed),
                hash=f"md5:{hashlib.md5(packed, usedforsecurity=False).hexdigest()}",
                content=f"sha256:{hashlib.sha256(content).hexdigest()}",
                urls=(f"http://127.0.0.1:9/{name}",),
            )
        )
    row = replace(
        CATALOG["digits"],
        name="small",
        title="Small",
        classes=("a", "b"),
        size=4,
        train=0,
        test=6,
        file_classes=2,
        folder="small",
        train_files=(),
        test_files=tuple(files),
        homes=(),
    )
    monkeypatch.setitem(CATALOG, "small", row)
    return row, tmp_path


def unchecked(row: DataSet) -> DataSet:
    return replace(row, test_files=tuple(replace(file, content=None, hash=None, bytes=0) for file in row.test_files))


def test_idx_files_compressed_recompressed_and_plain(small: tuple[DataSet, Path]) -> None:
    _, root = small
    path = root / "small" / "i-ubyte.gz"
    first = datasets.load_split("small", "test", root)
    assert first.images.flatten().tolist() == list(range(96))
    assert first.labels.tolist() == [0, 1] * 3
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content, 1, mtime=7))  # another .gz of the same content, as Debian's
    assert torch.equal(datasets.load_split("small", "test", root).images, first.images)
    path.unlink()
    (root / "small" / "i-ubyte").write_bytes(content)
    assert torch.equal(datasets.load_split("small", "test", root).images, first.images)


def test_the_root_comes_from_the_environment(small: tuple[DataSet, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHORED_DATA", str(small[1]))
    assert len(datasets.load_split("small", "test")) == 6


def test_without_a_home_the_root_has_to_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a user whom the system does not know
    monkeypatch.delenv("ANCHORED_DATA", raising=False)
    with pytest.raises(UserError, match=r"there is no home folder for .*: set ANCHORED_DATA"):
        data_root()
    assert data_root("/data") == Path("/data")


def test_bad_idx_files_each_have_one_line(small: tuple[DataSet, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    row, root = small
    path = root / "small" / "i-ubyte.gz"
    good = path.read_bytes()
    content = gzip.decompress(good)
    cases = [
        (row, good[:-20], r"i-ubyte\.gz is cut short or damaged"),
        (row, good[:30] + b"\0\0\0\0" + good[34:], r"i-ubyte\.gz is (cut short or damaged|not the published file)"),
        (row, gzip.compress(content[:-1] + b"\1"), r"not the published file \(its sha256"),
        (row, b"<!DOCTYPE html><html>moved</html>", r"i-ubyte\.gz is a web page, not i-ubyte\.gz"),
        (unchecked(row), b"\0\0\x08\x01" + content[4:], r"not an idx file of bytes in 3 dimensions: .* 00000801"),
        (unchecked(row), content[:9], "not an idx file"),
        (unchecked(row), content[:-16], "has 80 bytes after its header, which says 6 x 4 x 4"),
        (unchecked(row), idx(np.zeros((6, 5, 4), np.uint8)), r"\(6, 1, 5, 4\) images .* \(1, 4, 4\)"),
        (unchecked(row), idx(np.zeros((5, 4, 4), np.uint8)), r"\(5, 1, 4, 4\) images and 6 labels"),
        (replace(unchecked(row), file_classes=1), content, "a label is 1; its 1 classes"),
        (replace(unchecked(row), test=7), content, "'small' has 6 test images here; the catalog says 7"),
    ]
    for case, written, text in cases:
        monkeypatch.setitem(CATALOG, "small", case)
        path.write_bytes(written)
        with pytest.raises(UserError, match=text) as error:
            datasets.load_split("small", "test", root)
        message(error)


def test_a_missing_file_says_where_and_how(small: tuple[DataSet, Path]) -> None:
    _, root = small
    (root / "small" / "l-ubyte.gz").unlink()
    with pytest.raises(UserError) as error:
        datasets.load_split("small", "test", root)
    text = message(error)
    for part in (
        "l-ubyte.gz is missing",
        str(root / "small"),
        "anchored data fetch small",
        "http://127.0.0.1:9/l-ubyte",
    ):
        assert part in text


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_binary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unpack: bool) -> None:
    row, arrays = cifar_fixture(tmp_path, name, 3, unpack=unpack)
    monkeypatch.setitem(CATALOG, name, row)
    for split, files in (("train", row.train_files), ("test", row.test_files)):
        images = datasets.load_split(name, split, tmp_path)
        records = np.concatenate([arrays[file.name] for file in files])
        assert images.labels.tolist() == records[:, row.label_bytes - 1].tolist()  # CIFAR-100: the fine label, second
        for channel in range(3):
            start = row.label_bytes + 1024 * channel
            assert images.images[:, channel].flatten(1).tolist() == records[:, start : start + 1024].tolist()


def test_bad_cifar_files_each_have_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, _ = cifar_fixture(tmp_path, "cifar10", 2, unpack=False)
    path = tmp_path / "cifar10" / row.parts[0].name
    good = path.read_bytes()
    loose = replace(row.parts[0], bytes=0, hash=None)
    renamed = (replace(row.test_files[0], name="cifar-10-batches-bin/other.bin"),)
    longer = (replace(row.test_files[0], bytes=3 * 3073),)
    cases = [
        (row, good[:1000], r"tar\.gz is cut short \(1,000 of"),
        (row, good[:-1] + b"\7", r"not the published file \(its md5"),
        (row, b"<html>quota</html>" + bytes(100), "is a web page, not cifar-10-binary"),
        (replace(row, parts=(loose,)), good[:5000], "is damaged"),
        (replace(row, parts=(loose,)), b"no archive", "is damaged"),
        (replace(row, test_files=renamed), good, r"has no member cifar-10-batches-bin/other\.bin"),
        (replace(row, test_files=longer), good, "has 6,146 bytes, not 9,219"),
        (replace(row, file_classes=1), good, "its 1 classes"),
    ]
    for case, written, text in cases:
        monkeypatch.setitem(CATALOG, "cifar10", case)
        path.write_bytes(written)
        with pytest.raises(UserError, match=text) as error:
            datasets.load_split("cifar10", "test", tmp_path)
        message(error)
    path.unlink()
    with pytest.raises(UserError, match="anchored data fetch cifar10"):
        datasets.load_split("cifar10", "test", tmp_path)
