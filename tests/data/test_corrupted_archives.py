"""Archives of corrupted images, read from small copies in their original layout: ImageNet-C, CIFAR-C and the C̄."""

import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.catalog_copies import cifar_c, pack, picture, write

from anchored.data.catalog.registry import CATALOG
from anchored.data.image_sources import FileSource, ImageIndex
from anchored.data.readers import verify
from anchored.data.readers.download import fetch_dataset
from anchored.data.readers.files import is_here, missing_entries
from anchored.data.readers.layouts import read_corrupted
from anchored.errors import UserError


def contents(index: ImageIndex) -> list[bytes]:
    assert isinstance(index.source, FileSource)
    return [index.source.read(key) for key in index.keys]


@pytest.mark.parametrize(
    ("name", "corruption", "archive"),
    [
        ("imagenet-c", "zoom_blur", "blur.tar"),
        ("imagenet-c", "gaussian_noise", ""),
        ("imagenet-c-bar", "caustic_refraction", ""),  # its .tar.gz is unpacked by fetch
    ],
)
def test_imagenet_c_in_its_tars_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, corruption: str, archive: str
) -> None:
    wnids = ("n01440764", "n01443537")
    monkeypatch.setitem(CATALOG, "imagenet", replace(CATALOG["imagenet"], folders=wnids, classes=("a", "b")))
    row = replace(CATALOG[name], test=3)
    monkeypatch.setitem(CATALOG, name, row)
    files = {}
    for severity in (5, 1, 3):
        for wnid, image in ((wnids[1], 7), (wnids[0], 9), (wnids[0], 2)):
            key = f"{corruption}/{severity}/{wnid}/ILSVRC2012_val_{image:08d}.JPEG"
            files[f"cbar_download/{key}" if name.endswith("bar") else f"./{key}"] = picture((224, 224))
    if archive:
        pack(tmp_path / name / archive, files)
    else:
        for key, data in files.items():
            write(tmp_path / name / key, data)
    assert missing_entries(row, tmp_path, (f"{row.images}/{corruption}".strip("/"),)) == ()
    keys = [f"{wnids[0]}/ILSVRC2012_val_{i:08d}.JPEG" for i in (2, 9)] + [f"{wnids[1]}/ILSVRC2012_val_00000007.JPEG"]
    for severity in (1, 3, 5):
        found = read_corrupted(name, corruption, severity, tmp_path)
        assert isinstance(found, ImageIndex)
        assert (list(found.keys), found.labels.tolist()) == (keys, [0, 0, 1])
        top = "cbar_download/" if name.endswith("bar") else "./"
        assert contents(found) == [files[f"{top}{corruption}/{severity}/{key}"] for key in keys]
    for bad, text in (((corruption, 2), "(has no images|is missing)"), (("snowing", 1), "no corruption 'snowing'")):
        with pytest.raises(UserError, match=text):
            read_corrupted(name, bad[0], bad[1], tmp_path)
    with pytest.raises(UserError, match="severity is 6"):
        read_corrupted(name, corruption, 6, tmp_path)
    monkeypatch.setitem(CATALOG, name, replace(row, test=4))
    with pytest.raises(UserError, match="3 images; the catalog says 4"):
        read_corrupted(name, corruption, 1, tmp_path)


def test_imagenet_c_s_compressed_tars_are_read_from_a_plain_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published .tar files are gzip files: ``fetch`` puts the tar inside beside each, and images come from that."""
    wnids = ("n01440764", "n01443537")
    monkeypatch.setitem(CATALOG, "imagenet", replace(CATALOG["imagenet"], folders=wnids, classes=("a", "b")))
    keys = [f"{wnid}/ILSVRC2012_val_{i:08d}.JPEG" for i, wnid in enumerate(wnids)]
    files = {f"zoom_blur/{severity}/{key}": picture((224, 224)) for severity in range(1, 6) for key in keys}
    place = tmp_path / "imagenet-c/blur.tar"
    pack(place, files, "w:gz")
    digest = hashlib.md5(place.read_bytes(), usedforsecurity=False).hexdigest()
    whole = CATALOG["imagenet-c"]
    (blur,) = (part for part in whole.parts if part.name == "blur.tar")
    blur = replace(blur, hash=f"md5:{digest}", bytes=place.stat().st_size)
    row = replace(whole, parts=(blur,), needs=("zoom_blur",), corruptions=("zoom_blur",), test=2)
    monkeypatch.setitem(CATALOG, "imagenet-c", row)

    assert missing_entries(row, tmp_path) == ("zoom_blur",)  # a tar that nobody could read from
    with pytest.raises(UserError, match=r"zoom_blur.* is missing .*run 'anchored data fetch imagenet-c'"):
        read_corrupted("imagenet-c", "zoom_blur", 1, tmp_path)
    plain = tmp_path / "imagenet-c/blur.tar.plain"
    assert fetch_dataset("imagenet-c", tmp_path, progress=False, offline=True) == (plain,)
    assert plain.read_bytes() == gzip.decompress(place.read_bytes())
    assert is_here(row, tmp_path)
    for severity in (1, 5):
        found = read_corrupted("imagenet-c", "zoom_blur", severity, tmp_path)
        assert isinstance(found, ImageIndex)
        assert contents(found) == [files[f"zoom_blur/{severity}/{key}"] for key in keys]
    assert verify.check_archives(row, tmp_path) == ["blur.tar is the published file"]
    written = plain.stat().st_mtime_ns
    assert fetch_dataset("imagenet-c", tmp_path, progress=False, offline=True) == (plain,)
    assert plain.stat().st_mtime_ns == written

    place.rename(tmp_path / "kept.tar")  # the archive may go once its content is there
    assert fetch_dataset("imagenet-c", tmp_path, progress=False, offline=True) == (plain,)
    (said,) = verify.check_archives(row, tmp_path)
    assert said.startswith("blur.tar.plain cannot be verified (no hash of it is published), unchanged since")
    (tmp_path / "kept.tar").rename(place)
    plain.write_bytes(plain.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"blur\.tar\.plain is not the published file"):
        verify.check_archives(row, tmp_path)
    assert fetch_dataset("imagenet-c", tmp_path, progress=False, offline=True) == (plain,)  # made anew
    assert plain.read_bytes() == gzip.decompress(place.read_bytes())
    whole_file = place.read_bytes()
    for bad in (whole_file[: len(whole_file) // 2], whole_file[:100] + b"?" + whole_file[101:]):
        place.write_bytes(bad)
        digest = hashlib.md5(bad, usedforsecurity=False).hexdigest()
        damaged = replace(row, parts=(replace(blur, hash=f"md5:{digest}", bytes=len(bad)),))
        monkeypatch.setitem(CATALOG, "imagenet-c", damaged)
        plain.unlink(missing_ok=True)
        with pytest.raises(UserError, match=r"blur\.tar is damaged") as error:
            fetch_dataset("imagenet-c", tmp_path, progress=False, offline=True)
        assert "\n" not in str(error.value)
        assert sorted(path.name for path in place.parent.iterdir() if "plain" in path.name) == [".blur.tar.plain.index"]


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("cifar10-c", True),
        ("cifar10-c", False),
        ("cifar100-c", True),
        ("cifar100-c", False),
        ("cifar10-c-bar", False),
        ("cifar100-c-bar", False),
    ],
)
def test_blocks_of_severities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, packed: bool) -> None:
    row, arrays = cifar_c(tmp_path, name, packed)
    monkeypatch.setitem(CATALOG, name, row)
    assert is_here(row, tmp_path)
    for corruption in row.corruptions:
        for severity in range(1, 6):
            found = read_corrupted(name, corruption, severity, tmp_path)
            assert isinstance(found, tuple)
            images, labels = found
            expected = arrays[corruption][4 * (severity - 1) : 4 * severity]
            assert images.dtype == np.uint8
            assert np.array_equal(images, expected.transpose(0, 3, 1, 2))
            assert isinstance(images, np.memmap)
            assert labels.dtype == np.int64
            assert labels.tolist() == arrays["labels"][:4].tolist()
    assert verify.check_blocks(row, tmp_path, np.zeros((4, 3, 32, 32), np.uint8)) == 3


def test_damaged_blocks_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, arrays = cifar_c(tmp_path, "cifar10-c", packed=False)
    monkeypatch.setitem(CATALOG, "cifar10-c", row)
    corruption, folder = row.corruptions[0], tmp_path / "cifar10-c" / row.images
    good, labels = arrays[corruption], arrays["labels"]
    objects = np.array([{}], dtype=object)
    shuffled, negative = labels.copy(), labels.copy()
    shuffled[4:8] = shuffled[4:8][::-1] + 1
    negative[:] = -1
    cases: list[tuple[str, np.ndarray, str]] = [
        (corruption, good[:-1], r"holds uint8 \(19, 32, 32, 3\), not uint8 \(20, 32, 32, 3\): five blocks of 4"),
        (corruption, good.astype(np.float32), r"gaussian_noise\.npy in .* holds float32"),
        (corruption, good.transpose(0, 3, 1, 2), r"\(20, 3, 32, 32\), not"),
        (corruption, objects, r"gaussian_noise\.npy in .* is not a whole \.npy file of numbers"),
        ("labels", labels[:-1], "not 20 whole numbers"),
        ("labels", labels.astype(np.float32), "not 20 whole numbers"),
        ("labels", shuffled, "its five blocks of 4 differ, so they are not severities 1 to 5"),
        ("labels", labels + 7, "beyond the classes of cifar10"),
        ("labels", negative, "beyond the classes of cifar10"),
    ]
    for key, array, text in cases:
        np.save(folder / f"{key}.npy", array, allow_pickle=True)
        with pytest.raises(UserError, match=text) as error:
            read_corrupted("cifar10-c", corruption, 1, tmp_path)
        assert "\n" not in str(error.value)
        np.save(folder / f"{key}.npy", arrays[key])
    path = folder / f"{corruption}.npy"
    whole = path.read_bytes()
    for bad in (whole[:-1], whole[:60], b"", b"<html></html>"):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=r"gaussian_noise\.npy in .* is not a whole \.npy file"):
            read_corrupted("cifar10-c", corruption, 1, tmp_path)
    np.save(path, good[::-1])
    with pytest.raises(UserError, match=r"its severities are not in the order 1 to 5"):
        verify.check_blocks(row, tmp_path, np.zeros((4, 3, 32, 32), np.uint8))
    np.save(path, good)
    named = replace(row, test_files=(replace(CATALOG["cifar10"].test_files[0], name="CIFAR-10-C/labels.npy"),))
    with pytest.raises(UserError, match=r"labels\.npy in .* is not the published file"):
        verify.check_blocks(named, tmp_path, None)
    path.unlink()
    with pytest.raises(UserError, match=r"CIFAR-10-C/gaussian_noise\.npy is missing .*anchored data fetch cifar10-c"):
        read_corrupted("cifar10-c", corruption, 1, tmp_path)


def test_what_nobody_offers_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"make_cifar10_c_bar\.py"):
        read_corrupted("cifar10-c-bar", "lines", 1, tmp_path)
