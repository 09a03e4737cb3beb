"""Sets of encoded images and archives of corrupted ones, read from fixtures in their original layout and naming."""

import io
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anchored import catalog, readers
from anchored.catalog import CATALOG
from anchored.errors import UserError


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (8, 6), kind: str = "PNG") -> bytes:
    """An encoded image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, kind)
    return stream.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_an_odin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "lsun-r", replace(CATALOG["lsun-r"], test=3))
    for number in range(3):
        write(tmp_path / f"lsun-r/LSUN_resize/LSUN_resize/{number}.jpg", picture((number * 40, 0, 0), (32, 32)))
    write(tmp_path / "lsun-r/LSUN_resize/._0.jpg", b"a file that macOS leaves")
    packed = pickle.dumps(readers.index(catalog.get("lsun-r"), "test", tmp_path))  # as workers get it
    found = pickle.loads(packed)  # noqa: S301
    assert found.keys == tuple(f"LSUN_resize/{number}.jpg" for number in range(3))
    assert found.labels.tolist() == [0, 0, 0]
    assert [found.decode(i).getpixel((0, 0)) for i in range(3)] == [(0, 0, 0), (40, 0, 0), (80, 0, 0)]


def test_blocks_of_severities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CATALOG, "cifar10-c", replace(CATALOG["cifar10-c"], test=2))
    blocks = np.zeros((10, 32, 32, 3), np.uint8)
    blocks[...] = np.arange(10)[:, None, None, None] + np.array([0, 100, 200])
    folder = tmp_path / "cifar10-c/CIFAR-10-C"
    folder.mkdir(parents=True)
    np.save(folder / "fog.npy", blocks)
    np.save(folder / "labels.npy", np.array([7, 3] * 5))
    for severity in range(1, 6):
        found = readers.corrupted("cifar10-c", "fog", severity, tmp_path)
        assert isinstance(found, tuple)
        images, labels = found
        assert images.shape == (2, 3, 32, 32)
        first = 2 * (severity - 1)
        assert images[:, :, 5, 9].tolist() == [[first + i, first + i + 100, first + i + 200] for i in range(2)]
        assert labels.tolist() == [7, 3]
    np.save(folder / "labels.npy", np.array([7, 3] * 4 + [3, 7]))
    with pytest.raises(UserError, match=r"labels\.npy: the five blocks"):
        readers.corrupted("cifar10-c", "fog", 1, tmp_path)
