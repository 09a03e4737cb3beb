"""Every set of encoded images, read from a small copy in its original layout, and from damaged copies."""

import io
import itertools
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.catalog_copies import ADAPTATION, by_class, dtd, imagenet_kit, pack, picture, places, ucf101, write
from PIL import Image
from torchvision import datasets

from anchored.config.settings import Data
from anchored.data import image_sources
from anchored.data.catalog import registry as catalog
from anchored.data.catalog.registry import CATALOG
from anchored.data.catalog.row import DataSet
from anchored.data.decoding import decode_image, open_encoded
from anchored.data.given import relabelled
from anchored.data.image_sets import ImageStream
from anchored.data.image_sources import FileSource, ImageIndex, ZipSource
from anchored.data.preprocessing import InputFormat
from anchored.data.readers import tars, verify
from anchored.data.readers.files import is_here
from anchored.data.readers.layouts import read_index
from anchored.errors import UserError
from anchored.evaluation.overlap import shares_images


def refused(row: DataSet, root: Path, text: str, split: str = "test") -> None:
    with pytest.raises(UserError, match=text) as error:
        read_index(row, split, root)
    assert "\n" not in str(error.value)


def content_of(index: ImageIndex, i: int) -> bytes:
    assert isinstance(index.source, FileSource)
    return index.source.read(index.keys[i])


def content(index: ImageIndex) -> list[tuple[str, int]]:
    return list(zip(index.keys, index.labels.tolist(), strict=True))


# --- ODIN's archives, scenes, textures, NINCO


@pytest.mark.parametrize(
    ("name", "folder", "ending"),
    [
        ("lsun-c", "LSUN/test", "jpg"),
        ("lsun-r", "LSUN_resize/LSUN_resize", "jpg"),
        ("isun", "iSUN/iSUN_patches", "jpeg"),
        ("tiny-imagenet-r", "Imagenet_resize/Imagenet_resize", "jpg"),
    ],
)
def test_odin(tmp_path: Path, name: str, folder: str, ending: str) -> None:
    row = replace(catalog.get_dataset(name), test=3)
    for number in range(3):
        write(tmp_path / f"{name}/{folder}/{number}.{ending}", picture((32, 32)))
    write(tmp_path / f"{name}/{folder}/._0.{ending}", b"what macOS leaves")
    packed = pickle.dumps(read_index(row, "test", tmp_path))  # as worker processes get it
    found = pickle.loads(packed)  # noqa: S301
    assert content(found) == [(f"{number}.{ending}", 0) for number in range(3)]
    assert [found.decode(i).size for i in range(3)] == [(32, 32)] * 3
    assert verify.check_images(row, found, every=True) == 3
    refused(replace(row, test=4), tmp_path, "has 3 test images; the catalog says 4")
    write(tmp_path / f"{name}/{folder}/1.{ending}", picture((36, 36)))
    if not row.varied:
        with pytest.raises(UserError, match=rf"1\.{ending} is 36 × 36, not 32 × 32"):
            verify.check_images(row, found, every=True)


def test_places365_is_read_from_its_tar_by_the_list(tmp_path: Path) -> None:
    row = places(tmp_path)
    assert len(set(catalog.get_dataset("places365").subset)) == 10_000
    assert is_here(row, tmp_path)
    found = read_index(row, "test", tmp_path)
    assert found.keys == row.subset
    with tarfile.open(tmp_path / "places365/test_256.tar") as tar:
        for i, key in enumerate(found.keys):
            inside = tar.extractfile(f"test_256/{key}")
            assert inside is not None
            assert content_of(found, i) == inside.read()
    again = read_index(row, "test", tmp_path)  # by the index that the first pass left
    assert [content_of(again, i) for i in range(3)] == [content_of(found, i) for i in range(3)]
    refused(
        replace(row, subset=("Places365_test_00000002.jpg",)), tmp_path, r"test_00000002\.jpg is missing, but Places365"
    )


def test_an_index_of_another_tar_is_not_used(tmp_path: Path) -> None:
    row = places(tmp_path)
    read_index(row, "test", tmp_path)
    path = tmp_path / "places365/test_256.tar"
    other = {f"test_256/{name}": picture() for name in reversed(row.subset)}
    pack(path, {"test_256/first.jpg": picture((50, 50)), **other})
    tars.members.cache_clear()
    found = read_index(row, "test", tmp_path)
    assert [content_of(found, i) for i in range(3)] == [other[f"test_256/{key}"] for key in row.subset]
    path.write_bytes(path.read_bytes()[:1500])
    tars.members.cache_clear()
    refused(row, tmp_path, r"test_256\.tar is (cut short|not a whole tar file)")


@pytest.mark.parametrize(
    ("name", "folder"), [("dtd-textures", "dtd/dtd/images"), ("ninco", "ninco/NINCO/NINCO_OOD_classes")]
)
def test_class_folders(tmp_path: Path, name: str, folder: str) -> None:
    row = catalog.get_dataset(name)
    expected = by_class(tmp_path, folder, row.classes)
    row = replace(row, test=len(expected))
    assert content(read_index(row, "test", tmp_path)) == expected
    write(tmp_path / folder / "stray" / "x.jpg")
    refused(row, tmp_path, r"stray/x\.jpg is in no class folder")
    (tmp_path / folder / "stray" / "x.jpg").unlink()
    for path in (tmp_path / folder / row.classes[3]).iterdir():
        path.unlink()
    refused(row, tmp_path, f"no images of class '{row.classes[3]}'")


# --- Shifted images of ImageNet's classes, DomainNet


@pytest.mark.parametrize("packed", [True, False])
def test_imagenet_r_is_read_from_its_tar_or_its_folder(tmp_path: Path, packed: bool) -> None:
    whole = catalog.get_dataset("imagenet-r")
    wnids = whole.folders[:2]
    names = [f"imagenet-r/{wnid}/{kind}_{i}.jpg" for wnid in reversed(wnids) for i, kind in enumerate(("art", "toy"))]
    files = {**{name: picture() for name in names}, "imagenet-r/README.txt": b"renditions"}
    if packed:
        pack(tmp_path / "imagenet-r/imagenet-r.tar", files)
    else:
        for name, each in files.items():
            write(tmp_path / "imagenet-r" / name, each)
    row = replace(whole, classes=whole.classes[:2], folders=wnids, file_classes=2, test=4)
    assert is_here(row, tmp_path)
    found = read_index(row, "test", tmp_path)
    assert content(found) == [(name.removeprefix("imagenet-r/"), i // 2) for i, name in enumerate(sorted(names))]
    assert content_of(found, 0) == files[sorted(names)[0]]


def test_imagenet_r_and_sketch_have_labels_of_imagenet() -> None:
    """The places that ImageNet-R's authors list begin with 1, 2, 4, 6, 8 and end with 980, 981, 983, 988."""
    imagenet, rendered, drawn = (catalog.get_dataset(name) for name in ("imagenet", "imagenet-r", "imagenet-sketch"))
    places_of = [imagenet.folders.index(wnid) for wnid in rendered.folders]
    assert (places_of[:5], places_of[-4:]) == ([1, 2, 4, 6, 8], [980, 981, 983, 988])
    assert [imagenet.classes[i] for i in places_of] == list(rendered.classes)
    assert (drawn.folders, drawn.classes) == (imagenet.folders, imagenet.classes)
    images = ImageStream("rendered", ImageIndex(FileSource(Path()), ("a",), np.array([1]), "r"), rendered.classes[:2],
                         InputFormat(3, 64), torch.arange(1), 0)  # fmt: skip
    assert relabelled(images, imagenet.classes).labels.tolist() == [2]
    plain = replace(images, classes=("frog",))
    with pytest.raises(UserError, match=r"class 'frog' of .* is none of the network's"):
        relabelled(plain, ("tree frog", "frog orchid"))  # a word of a name is another thing


def test_imagenet_sketch_is_read_from_its_zip(tmp_path: Path) -> None:
    whole = catalog.get_dataset("imagenet-sketch")
    names = [f"sketch/{wnid}/sketch_{i}.JPEG" for wnid in whole.folders[:3] for i in (0, 1)]
    (tmp_path / "imagenet-sketch").mkdir()
    with zipfile.ZipFile(tmp_path / "imagenet-sketch/ImageNet-Sketch.zip", "w") as file:
        for name in names:
            file.writestr(name, picture())
    row = replace(whole, classes=whole.classes[:3], folders=whole.folders[:3], file_classes=3, test=6)
    assert content(read_index(row, "test", tmp_path)) == [
        (name.removeprefix("sketch/"), i // 2) for i, name in enumerate(names)
    ]
    refused(replace(row, test=7), tmp_path, "has 6 test images; the catalog says 7")


def test_a_domain_of_domainnet_is_read_from_its_zip_by_its_lists(tmp_path: Path) -> None:
    whole = catalog.get_dataset("domainnet-clipart")
    assert (len(whole.classes), whole.classes.index("t-shirt"), whole.classes.index("axe")) == (345, 327, 11)
    lists = {
        "train": ["clipart/t-shirt/clipart_328_000001.jpg 327", "clipart/axe/clipart_012_000001.jpg 11"],
        "test": ["clipart/The_Mona_Lisa/clipart_311_000002.png 310"],
    }
    (tmp_path / "domainnet").mkdir()
    with zipfile.ZipFile(tmp_path / "domainnet/clipart.zip", "w") as file:
        for line in [*lists["train"], *lists["test"], "clipart/axe/clipart_012_000009.jpg 11"]:
            file.writestr(line.split()[0], picture())
    for split, lines in lists.items():
        write(tmp_path / f"domainnet/clipart_{split}.txt", "".join(f"{line}\n" for line in lines))
    row = replace(whole, train=2, test=1)
    assert is_here(row, tmp_path)
    assert content(read_index(row, "train", tmp_path)) == [
        ("t-shirt/clipart_328_000001.jpg", 327), ("axe/clipart_012_000001.jpg", 11),
    ]  # fmt: skip
    assert content(read_index(row, "test", tmp_path)) == [("The_Mona_Lisa/clipart_311_000002.png", 310)]
    write(tmp_path / "domainnet/clipart_test.txt", "clipart/axes/clipart_012_000001.jpg 11\n")
    refused(row, tmp_path, "its list names 'axes/clipart_012_000001.jpg', which is in none of its classes")
    write(tmp_path / "domainnet/clipart_test.txt", "real/axe/real_012_000001.jpg 11\n")
    refused(row, tmp_path, "has the line 'real/axe/real_012_000001.jpg', which is no image of clipart/ and its class")
    write(tmp_path / "domainnet/clipart_test.txt", "clipart/axe/clipart_012_000007.jpg 11\n")
    refused(row, tmp_path, r"clipart_012_000007\.jpg is missing, but DomainNet clipart's list has it")


def test_domains_of_domainnet_share_no_images() -> None:
    names = [name for name in CATALOG if name.startswith("domainnet-")]
    assert len(names) == 6
    totals = {name: CATALOG[name].train + CATALOG[name].test for name in names}
    assert list(totals.values()) == [48_129, 51_605, 72_266, 172_500, 172_947, 69_128]  # as its authors' page counts
    assert not any(shares_images(one, other, Data()) for one, other in itertools.combinations(names, 2))


def test_places_of_mos_has_no_labels(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a/1.jpg"):
        write(tmp_path / "places-mos/Places" / name)
    row = replace(catalog.get_dataset("places-mos"), test=2)
    assert content(read_index(row, "test", tmp_path)) == [("a/1.jpg", 0), ("b/2.jpg", 0)]


# --- ImageNet


def test_imagenet_by_wordnet_id_with_either_kind_of_validation_folder(tmp_path: Path) -> None:
    whole = catalog.get_dataset("imagenet")
    assert list(whole.folders) == sorted(whole.folders)
    assert (whole.folders[0], whole.classes[0], whole.folders[999], whole.classes[999]) == (
        "n01440764",
        "tench",
        "n15075141",
        "toilet tissue",
    )
    wnids = (whole.folders[0], whole.folders[7], whole.folders[500])
    row = replace(whole, folders=wnids, classes=("a", "b", "c"), train=6, test=4)
    expected = by_class(tmp_path, "imagenet/train", wnids)
    assert content(read_index(row, "train", tmp_path)) == expected
    numbers = [2, 3, 2, 1]  # of images 1 to 4, in the kit's own order of classes
    wnid_of = imagenet_kit(tmp_path / "imagenet/ILSVRC2012_devkit_t12/data", wnids, numbers)
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in range(4)]
    pairs = sorted((wnids.index(wnid_of[number]), name) for name, number in zip(names, numbers, strict=True))
    for name in names:
        write(tmp_path / "imagenet/val" / name)
    flat = read_index(row, "test", tmp_path)
    assert content(flat) == [(name, label) for label, name in pairs]
    for label, name in pairs:
        place = tmp_path / "imagenet/val" / wnids[label]
        place.mkdir(exist_ok=True)
        (tmp_path / "imagenet/val" / name).rename(place / name)
    sorted_in = read_index(row, "test", tmp_path)
    assert content(sorted_in) == [(f"{wnids[label]}/{name}", label) for label, name in pairs]
    refused(replace(row, train=7), tmp_path, "6 train images; the catalog says 7", "train")


def test_imagenet_with_damaged_validation_labels(tmp_path: Path) -> None:
    whole = catalog.get_dataset("imagenet")
    row = replace(whole, folders=whole.folders[:2], classes=("a", "b"), train=0, test=2)
    for i in (1, 2):
        write(tmp_path / f"imagenet/val/ILSVRC2012_val_{i:08d}.JPEG")
    refused(row, tmp_path, r"devkit_t12/data/meta\.mat is missing .*log in at image-net\.org")
    kit = tmp_path / "imagenet/ILSVRC2012_devkit_t12/data"
    imagenet_kit(kit, row.folders, [1])
    refused(row, tmp_path, "has 2 images, its ground truth 1 labels")
    write(kit / "ILSVRC2012_validation_ground_truth.txt", "1\n3\n")
    refused(row, tmp_path, "names no class by")
    write(kit / "meta.mat", b"MATLAB 5.0 MAT-file" + bytes(300))
    refused(row, tmp_path, r"meta\.mat is not a MATLAB file with 'synsets'")


# --- sets to adapt to, against torchvision's readers of the same copies


def torchvision_s(name: str, root: Path, split: str) -> list[tuple[str, int]]:
    """The images and labels of a split as torchvision reads the same copy: DTD and Food-101 by class and name."""
    parts = {"train": ("train", "val"), "test": ("test",)}[split]
    set_: Any
    if name == "dtd":
        sets = [datasets.DTD(root, split=part) for part in parts]
        return [(f"{p.parent.name}/{p.name}", y) for s in sets for p, y in zip(s._image_files, s._labels, strict=True)]
    if name == "food101":
        set_ = datasets.Food101(root / "food101", split=split)
        return [(f"{p.parent.name}/{p.name}", y) for p, y in zip(set_._image_files, set_._labels, strict=True)]
    if name == "oxford-pets":
        set_ = datasets.OxfordIIITPet(root, split="trainval" if split == "train" else "test")
        return [(p.name, y) for p, y in zip(set_._images, set_._labels, strict=True)]
    if name == "flowers102":
        sets = [datasets.Flowers102(root, split=part) for part in parts]
        return [(p.name, y) for s in sets for p, y in zip(s._image_files, s._labels, strict=True)]
    set_ = datasets.StanfordCars(root, split=split)
    return [(Path(p).name, y) for p, y in set_._samples]


THEIRS = {"oxford-pets": "oxford-iiit-pet", "flowers102": "flowers-102", "stanford-cars": "stanford_cars"}


@pytest.mark.parametrize("name", [name for name in ADAPTATION if name != "ucf101"])
def test_the_same_images_and_labels_as_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    row = ADAPTATION[name](tmp_path)
    if name in THEIRS:
        (tmp_path / THEIRS[name]).symlink_to(tmp_path / name)
    unchecked = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", unchecked)  # the hashes of the real lists
    for split in ("train", "test"):
        found = read_index(row, split, tmp_path)
        assert content(found) == torchvision_s(name, tmp_path, split)
        assert verify.check_images(row, found, every=True) == len(found)


def test_ucf101_middle_frames(tmp_path: Path) -> None:
    row = ucf101(tmp_path)
    train, test = (read_index(row, split, tmp_path) for split in ("train", "test"))
    assert content(train) == [
        ("Apply_Eye_Makeup/v_ApplyEyeMakeup_g08_c01.jpg", 0),
        ("Handstand_Pushups/v_HandStandPushups_g08_c01.jpg", 1),
    ]
    assert content(test) == [("Yo_Yo/v_YoYo_g01_c01.jpg", 2), ("Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg", 0)]
    from_zip = [content_of(pickle.loads(pickle.dumps(test)), i) for i in range(2)]  # noqa: S301
    with zipfile.ZipFile(tmp_path / "ucf101/UCF-101-midframes.zip") as packed:
        packed.extractall(tmp_path / "ucf101")
    unpacked = read_index(row, "test", tmp_path)
    assert not isinstance(unpacked.source, ZipSource)
    assert [content_of(unpacked, i) for i in range(2)] == from_zip
    names = set(catalog.get_dataset("ucf101").classes)
    assert {"HandstandPushups", "YoYo", "TaiChi", "BasketballDunk"} < names


def test_class_lists_have_the_published_numbers_of_classes() -> None:
    counts = {"ucf101": 101, "food101": 101, "flowers102": 102, "stanford-cars": 196, "oxford-pets": 37, "dtd": 47}
    assert {name: len(catalog.get_dataset(name).classes) for name in counts} == counts
    assert datasets.Flowers102.classes == list(catalog.get_dataset("flowers102").classes)
    for name in ("food101", "dtd", "ninco"):
        assert list(catalog.get_dataset(name).classes) == sorted(catalog.get_dataset(name).classes)
    actions = catalog.get_dataset("ucf101").classes
    assert (actions[34], actions[35], actions[36]) == ("Hammering", "HammerThrow", "HandstandPushups")


def first(folder: Path, pattern: str) -> Path:
    return next(iter(sorted(folder.rglob(pattern))))


DAMAGE: list[tuple[str, Callable[[Path], object], str]] = [
    ("dtd", lambda root: first(root, "test1.txt").write_text("zigzag/x.jpg\n"), "'zigzag/x.jpg', which is in none"),
    ("dtd", lambda root: first(root, "test1.txt").unlink(), r"dtd/labels/test1\.txt is missing .*fetch dtd"),
    ("dtd", lambda root: first(root, "test1.txt").write_bytes(b"\xff\xfe"), r"test1\.txt is not a list in UTF-8"),
    (
        "dtd",
        lambda root: first(root, "banded_0002.jpg").unlink(),
        r"banded_0002\.jpg is missing, but DTD's list has it",
    ),
    ("food101", lambda root: first(root, "test.txt").write_text("pizza/1\n"), "'pizza/1', which is in none"),
    (
        "food101",
        lambda root: first(root, "test.txt").write_text("baklava/21\n"),
        "has 1 test images; the catalog says 2",
    ),
    ("oxford-pets", lambda root: first(root, "test.txt").write_text("x_1 3 1 1\n"), r"names class 3; there are 1 to 2"),
    ("oxford-pets", lambda root: first(root, "Abyssinian_1.jpg").unlink(), r"Abyssinian_1\.jpg is missing, but"),
    ("flowers102", lambda root: first(root, "setid.mat").write_bytes(b"no MATLAB file"), r"setid\.mat is not a MATLAB"),
    ("flowers102", lambda root: first(root, "imagelabels.mat").unlink(), r"imagelabels\.mat is missing"),
    ("flowers102", lambda root: first(root, "image_00003.jpg").unlink(), r"image_00003\.jpg is missing, but"),
    ("stanford-cars", lambda root: first(root, "cars_test_annos_withlabels.mat").unlink(), "official server no longer"),
    (
        "stanford-cars",
        lambda root: first(root / "stanford-cars/cars_test", "00002.jpg").unlink(),
        r"00002\.jpg is missing",
    ),
    (
        "ucf101",
        lambda root: first(root, "testlist01.txt").write_text("YoYo/v.avi 2"),
        r"testlist01\.txt numbers YoYo 2, not 3",
    ),
    ("ucf101", lambda root: first(root, "testlist01.txt").write_text("Juggling/v.avi\n"), "'Juggling/v.avi', which is"),
    (
        "ucf101",
        lambda root: first(root, "testlist01.txt").write_text("YoYo/v_YoYo_g09_c09.avi"),
        r"g09_c09\.jpg is missing",
    ),
]


@pytest.mark.parametrize(("name", "damage", "text"), DAMAGE)
def test_a_damaged_set_is_one_line(tmp_path: Path, name: str, damage: Callable[[Path], object], text: str) -> None:
    row = ADAPTATION[name](tmp_path)
    damage(tmp_path)
    refused(row, tmp_path, text)


def test_a_damaged_image_is_one_line_that_names_it(tmp_path: Path) -> None:
    row = dtd(tmp_path)
    found = read_index(row, "test", tmp_path)
    path = Path(found.where(1))
    good = path.read_bytes()
    for bad in (good[: len(good) // 2], b"", b"<html>moved</html>", b"\x89PNG\r\n\x1a\n" + good[8:]):
        path.write_bytes(bad)
        with pytest.raises(UserError, match=rf"{path.name} is not (a whole|an) image") as error:
            verify.check_images(row, found, every=True)
        assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=rf"{path.name} cannot be read \(No such file or directory\)"):
        found.decode(1)


def test_a_damaged_zip_is_one_line(tmp_path: Path) -> None:
    row = ucf101(tmp_path)
    found = read_index(row, "test", tmp_path)
    path = tmp_path / "ucf101/UCF-101-midframes.zip"
    data = bytearray(path.read_bytes())
    image = content_of(found, 0)
    data[data.find(image) + len(image) // 2] ^= 255
    path.write_bytes(data)
    image_sources._open_zip.cache_clear()
    with pytest.raises(UserError, match=r"v_YoYo_g01_c01\.jpg cannot be read \(Bad CRC-32"):
        found.decode(0)


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [("RGB", "JPEG", "RGB"), ("L", "JPEG", "L"), ("CMYK", "JPEG", "RGB"), ("RGBA", "PNG", "RGB"), ("P", "PNG", "RGB")],
)
def test_images_of_every_mode_become_grey_or_rgb(tmp_path: Path, mode: str, kind: str, expected: str) -> None:
    image = Image.new("RGB", (5, 4), (200, 10, 60)).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **({"transparency": bytes([0, 255])} if mode == "P" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(lambda: open_encoded(stream.getvalue()), "here", "", as_published=True)
    assert (decoded.mode, decoded.size) == (expected, (5, 4))
