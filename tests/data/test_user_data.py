"""Own data in every form: classes, splits, pixels; what cannot be used is one line naming the file."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fixtures.own_images import CLASSES, class_folders, photographs
from PIL import Image

from anchored.config.settings import Data
from anchored.data import datasets as data
from anchored.data.catalog import registry as catalog
from anchored.data.image_sets import LabelledImages
from anchored.data.image_sources import index_files, list_images
from anchored.data.preprocessing import InputFormat
from anchored.data.user_data import index as own
from anchored.errors import UserError

SORTED = tuple(sorted(CLASSES))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test in a folder of its own; nothing found before is remembered."""
    monkeypatch.chdir(tmp_path)
    own.find_user_data.cache_clear()
    return tmp_path


def opened(name: str, split: str = "train", share: float = 0.2) -> LabelledImages:
    settings = Data(name, test_share=share)
    return data.open_set(name, split, settings, data.input_format(settings))


def refusal(name: str) -> str:
    own.find_user_data.cache_clear()
    with pytest.raises(UserError) as raised:
        own.find_user_data(name, 0.2).check_learnable()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def write_csv(path: str, lines: list[tuple[str, ...]]) -> str:
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(lines)
    return path


# --- Names


@pytest.mark.parametrize(
    ("name", "title"),
    [("photos/", "photos"), ("near/images/", "near/images"), ("far/images", "far/images"), ("./images/", "images"),
     ("/a/My photos", "My photos"), ("x/cells.CSV", "cells"), ("hf:org/birds", "birds"),
     ("./a.npz", "a"), ("hf:org/birds/small", "small")],
)  # fmt: skip
def test_places_have_titles_and_file_names(name: str, title: str) -> None:
    assert catalog.is_user_data(name)
    assert catalog.dataset_title(name) == title
    assert set(catalog.dataset_file_name(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert catalog.dataset_file_name(name) != catalog.dataset_file_name("other/" + name)


def test_the_catalogs_names_stay_its_own(here: Path) -> None:
    (here / "digits").mkdir()
    (here / "mine").mkdir()
    assert not catalog.is_user_data("digits")
    assert not catalog.is_user_data("mine")
    assert (catalog.dataset_title("digits"), catalog.dataset_file_name("digits")) == ("MNIST digits", "digits")
    with pytest.raises(UserError, match="'mine' is not in the catalog; write 'mine/' for the folder of that name"):
        catalog.get_dataset("mine")


def test_linked_folders_are_followed_once(here: Path) -> None:
    class_folders(here / "images", 2)
    (here / "images" / "Trouser" / "again").symlink_to(here / "images" / "Trouser")
    (here / "elsewhere").mkdir()
    (here / "images" / "T-shirt" / "000.png").rename(here / "elsewhere" / "x.png")
    (here / "images" / "T-shirt" / "more").symlink_to(here / "elsewhere")
    assert list_images(here / "images") == [
        "Ankle boot/000.png", "Ankle boot/001.png", "T-shirt/001.png", "T-shirt/more/x.png", "Trouser/000.png",
        "Trouser/001.png",
    ]  # fmt: skip
    (here / "images" / "Trouser" / "gone.png").symlink_to(here / "nowhere.png")
    assert "cannot read images/Trouser/gone.png: no such file or directory" in refusal("images/")


# --- Folders


def test_class_folders_are_split_by_name_and_stratified(here: Path) -> None:
    class_folders(here / "images", 10)
    found = own.find_user_data("images/", 0.2)
    assert found.classes == SORTED
    assert (found.channels, found.size) == (1, 28)
    assert np.bincount(found.split("train").labels).tolist() == [8, 8, 8]
    assert np.bincount(found.split("test").labels).tolist() == [2, 2, 2]
    train, test = (set(found.split(split).keys) for split in ("train", "test"))
    assert train | test == set(found.split("ood").keys)
    assert not train & test
    assert len(found.split("ood")) == 30
    Image.new("L", (28, 28)).save(here / "images" / "Trouser" / "zzz.png")
    own.find_user_data.cache_clear()
    more = own.find_user_data("images/", 0.2)
    assert len(test & set(more.split("test").keys)) >= 5  # one more image moves one at most


def test_train_and_test_folders_are_taken_as_they_are(here: Path) -> None:
    class_folders(here / "images" / "train", 6)
    class_folders(here / "images" / "test", 3, first=6)
    train, test = opened("images/"), opened("images/", "test")
    whole = data.load_split("fashion-mini", "train")
    for images, places in ((train, range(6)), (test, range(6, 9))):
        for label, title in enumerate(SORTED):
            expected = whole.images[(whole.labels == CLASSES[title]).nonzero().squeeze(1)[list(places)]]
            chosen = (images.labels == label).nonzero().squeeze(1)
            assert torch.equal(next(images.parts([chosen])), expected)
    assert len(opened("images/", "ood")) == 9
    (here / "images" / "test").rename(here / "images" / "val")
    own.find_user_data.cache_clear()
    assert len(own.find_user_data("images/", 0.2).split("test")) == 9


def test_mean_and_deviation_are_of_the_training_images(here: Path) -> None:
    class_folders(here / "images", 10)
    settings = Data("images/")
    (pixels,) = opened("images/").parts([torch.arange(24)])
    row = data.training_row(settings)
    assert row.mean == pytest.approx([(pixels.double() / 255).mean().item()])
    assert row.std == pytest.approx([(pixels.double() / 255).std(correction=0).item()])
    assert (row.train, row.test, row.classes, row.title) == (24, 6, SORTED, "images")


def test_sizes_and_colours_follow_the_stated_rule(here: Path) -> None:
    photographs(here / "a" / "one", 3, (60, 40))
    photographs(here / "a" / "two", 3, (90, 90))
    assert (own.find_user_data("a/", 0.2).channels, own.find_user_data("a/", 0.2).size) == (
        3,
        65,
    )  # the median of 40, 40, 40, 90, 90, 90
    assert data.input_format(Data("a/")) == InputFormat(3, 65)
    assert data.input_format(Data("a/", size=112, channels=1)) == InputFormat(1, 112, 0.875)
    photographs(here / "b" / "one", 2, (900, 700))
    photographs(here / "b" / "two", 2, (900, 701))
    assert own.find_user_data("b/", 0.2).size == 224


def test_a_flat_folder_is_good_for_ood_alone(here: Path) -> None:
    photographs(here / "odd", 5)
    assert len(opened("odd/", "ood")) == 5
    assert "odd/: photo 0.jpg has no class: put each class's images in a folder of its own" in refusal("odd/")


# --- Tables, arrays, Hugging Face


def test_a_table_of_paths(here: Path) -> None:
    class_folders(here / "images", 4)
    files = [(f"images/{title}/{n:03d}.png", str(label + 9)) for title, label in CLASSES.items() for n in range(4)]
    name = write_csv("mine.csv", [("path", "label"), *files])
    found = own.find_user_data(name, 0.25)
    assert found.classes == ("9", "10", "18")  # numbers sort as numbers
    assert np.bincount(found.split("train").labels).tolist() == [3, 3, 3]
    own.find_user_data.cache_clear()
    sides = ["train", "train", "Test", "validation"] * 3
    write_csv(
        "mine.csv", [("split", "path", "label"), *((side, *file) for side, file in zip(sides, files, strict=True))]
    )
    assert np.bincount(own.find_user_data(name, 0.25).split("test").labels).tolist() == [1, 1, 1]
    whole = data.load_split("fashion-mini", "train")
    shirts = (whole.labels == 0).nonzero().squeeze(1)
    assert torch.equal(next(opened(name).parts([torch.tensor([4, 5])])), whole.images[shirts[:2]])


@pytest.mark.parametrize("order", ["NHW", "NHWC", "NCHW"])
def test_arrays(here: Path, order: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    labels = np.array([0, 1] * 6)
    kept = {"NHW": images[..., 0], "NHWC": images, "NCHW": images.transpose(0, 3, 1, 2)}[order]
    np.savez("mine.npz", images=kept, labels=labels)
    found = own.find_user_data("mine.npz", 0.5)
    assert (found.channels, found.size, found.classes) == (1 if order == "NHW" else 3, 20, ("0", "1"))
    chosen = found.split("train")
    expected = images[int(chosen.keys[0]), :, 2:22]  # the middle of 24
    expected = expected[None, ..., 0] if order == "NHW" else expected.transpose(2, 0, 1)
    assert np.array_equal(next(opened("mine.npz", share=0.5).parts([torch.tensor([0])]))[0].numpy(), expected)
    names = np.array(["cat", "dog"])[labels]
    np.savez_compressed(
        "four.npz", x_train=kept[:8], y_train=names[labels[:8]], x_test=kept[8:], y_test=names[labels[8:]]
    )
    assert own.find_user_data("four.npz", 0.5).classes == ("cat", "dog")
    assert len(opened("four.npz", "test")) == 4


def test_classes_of_hugging_face_keep_their_numbers(here: Path) -> None:
    """A model that was trained on the set elsewhere has its logits in that order."""
    datasets = pytest.importorskip("datasets")
    class_folders(here / "images", 4)
    order, contents = ["shirt", *reversed(SORTED)], []
    for name, titles in (("own", order), ("sorted", sorted(order))):
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=titles)})
        files = [str(here / "images" / title / f"{n:03d}.png") for title in SORTED for n in range(4)]
        rows = {"image": files, "label": [titles.index(title) for title in SORTED for _ in range(4)]}
        datasets.Dataset.from_dict(rows, kinds).save_to_disk(here / name)
        found = own.find_user_data(f"hf:{name}", 0.25)
        assert found.classes == tuple(title for title in titles if title in SORTED)  # "shirt" has no image
        assert [found.classes[label] for label in found.split("test").labels] == list(SORTED)
        contents.append(found.content)
    assert contents[0] != contents[1]


def test_hugging_face_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    class_folders(here / "images", 5)
    files = [str(here / "images" / title / f"{n:03d}.png") for title in SORTED for n in range(5)]
    label = datasets.ClassLabel(names=list(SORTED))
    kinds = datasets.Features({"image": datasets.Image(), "label": label, "id": datasets.Value("int64")})
    rows = {"image": files, "label": [n // 5 for n in range(15)], "id": list(range(15))}
    table = datasets.Dataset.from_dict(rows, kinds)
    table.save_to_disk(here / "saved")
    found = own.find_user_data("hf:saved", 0.2)
    assert (found.classes, found.channels, found.size) == (SORTED, 1, 28)
    assert np.bincount(found.split("test").labels).tolist() == [1, 1, 1]
    expected = np.asarray(Image.open(files[int(found.split("train").keys[3])]))
    assert np.array_equal(next(opened("hf:saved").parts([torch.tensor([3])]))[0, 0].numpy(), expected)
    datasets.DatasetDict(train=table.select(range(0, 15, 2)), test=table.select(range(1, 15, 2))).save_to_disk(
        here / "two"
    )
    assert (
        len(own.find_user_data("hf:two", 0.2).split("train")),
        len(own.find_user_data("hf:two", 0.2).split("test")),
    ) == (8, 7)
    (here / "parquet").mkdir()
    table.to_parquet(here / "parquet" / "train-0.parquet")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    before = own.find_user_data("hf:images", 0.2)
    for number, file in enumerate(files):
        Image.new("L", (28, 28), 10 * number).save(file)
    own.find_user_data.cache_clear()
    after = own.find_user_data("hf:images", 0.2)  # the table is the same: it holds paths
    assert (after.classes, after.content != before.content) == (before.classes, True)
    assert own.find_user_data("hf:./parquet", 0.2).classes == SORTED
    table.remove_columns("image").save_to_disk(here / "none")
    assert "has no column of images: it has label, id" in refusal("hf:none")
    assert "cannot have hf:nobody/nothing from Hugging Face" in refusal("hf:nobody/nothing")


# --- Pixels


def decoded(image: Image.Image, name: str, **options: object) -> npt.NDArray[np.uint8]:
    """The pixels as they come back from a file."""
    image.save(name, **options)  # type: ignore[arg-type]
    back = index_files([Path(name)]).decode(0)
    assert back.mode in ("L", "RGB")
    return np.asarray(back)


def test_colours_become_grey_or_rgb() -> None:
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.stack([grey, grey[::-1], grey.T], -1)
    assert np.array_equal(decoded(Image.fromarray(grey), "l.png"), grey)
    assert np.array_equal(decoded(Image.fromarray(colours), "rgb.png"), colours)
    assert np.array_equal(decoded(Image.fromarray(grey > 100), "1.png"), np.where(grey > 100, 255, 0))
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(decoded(Image.fromarray(deep), "deep.png"), grey)
    assert np.array_equal(decoded(Image.fromarray(deep - (deep > 0)), "deep.tif"), np.where(grey > 0, grey, 0))
    palette = Image.fromarray(colours).quantize(8)
    assert np.array_equal(decoded(palette, "p.png"), np.asarray(palette.convert("RGB")))
    assert decoded(Image.fromarray(colours).convert("CMYK"), "cmyk.jpg").shape == (16, 16, 3)


def test_transparent_pixels_are_white() -> None:
    alpha = np.zeros((2, 2, 4), np.uint8)
    alpha[0, 0] = (255, 0, 0, 255)
    alpha[1, 1] = (0, 0, 0, 51)  # a fifth of black
    assert decoded(Image.fromarray(alpha), "a.png").tolist() == [
        [[255, 0, 0], [255, 255, 255]],
        [[255, 255, 255], [204, 204, 204]],
    ]
    two = Image.new("LA", (1, 1), (0, 0))
    assert decoded(two, "la.png").tolist() == [[255]]
    marked = Image.new("P", (2, 1))
    marked.putpalette([0, 0, 0, 9, 9, 9])
    marked.putpixel((1, 0), 1)
    assert decoded(marked, "t.png", transparency=0).tolist() == [[[255, 255, 255], [9, 9, 9]]]


def test_images_are_turned_as_the_camera_says() -> None:
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, :2] = 255  # the left edge
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise: the left edge becomes the top
    turned = decoded(Image.fromarray(pixels), "turned.png", exif=exif)
    assert turned.shape == (8, 4)
    assert turned[:2].min() == 255
    assert turned[2:].max() == 0


def test_what_is_no_image_is_one_line_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("text.png").write_text("not an image")
    Image.new("RGB", (40, 40)).save("cut.png")
    Path("cut.png").write_bytes(Path("cut.png").read_bytes()[:60])
    Image.fromarray(np.zeros((3, 3), np.float32)).save("float.tif")
    Image.new("L", (100, 100)).save("huge.png")
    for name, said in (
        ("text.png", "text.png is not an image"),
        ("cut.png", r"cut.png is not a whole image \("),
        ("float.tif", "floating-point"),
        ("gone.png", r"gone.png cannot be read \(No such file"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            index_files([Path(name)]).decode(0)
        assert "\n" not in str(raised.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6_000)
    assert index_files([Path("huge.png")]).decode(0).size == (100, 100)  # Pillow would only warn
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4_000)
    with pytest.raises(UserError, match=r"huge\.png has too many pixels"):
        index_files([Path("huge.png")]).decode(0)


# --- Refusals


def _empty() -> str:
    Path("empty").mkdir()
    return "empty"


def _empty_file() -> str:
    Path("b.png").touch()
    return "b.png"


def _notes() -> str:
    class_folders(Path("notes"), 2)
    (Path("notes") / "Zebra").mkdir()
    (Path("notes") / "Zebra" / "list.txt").write_text("none")
    return "notes"


def _one_class() -> str:
    photographs(Path("one") / "cats", 4)
    return "one"


def _one_image() -> str:
    class_folders(Path("few"), 2)
    (Path("few") / "Trouser" / "001.png").unlink()
    return "few"


def _only_tested() -> str:
    class_folders(Path("sides") / "train", 2)
    class_folders(Path("sides") / "test", 2, first=2)
    for file in (Path("sides") / "train" / "Trouser").iterdir():
        file.unlink()
    (Path("sides") / "train" / "Trouser").rmdir()
    return "sides"


def _loose() -> str:
    class_folders(Path("loose"), 2)
    (Path("loose") / "Trouser" / "001.png").rename(Path("loose") / "001.png")
    return "loose"


def _all_broken() -> str:
    for name in ("a", "b"):
        (Path("broken") / name).mkdir(parents=True)
        for number in range(2):
            (Path("broken") / name / f"{number}.png").write_text("x")
    return "broken"


def _npz(**arrays: object) -> Callable[[], str]:
    def write() -> str:
        np.savez("bad.npz", **arrays)  # type: ignore[arg-type]
        return "bad.npz"

    return write


def _damaged_npz() -> str:
    Path("bad.npz").write_bytes(b"PK\x03\x04 and nothing more")
    return "bad.npz"


IMAGES = np.zeros((4, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: "nowhere/", "nowhere/ is not a folder (looked in "),
        (_empty, "empty holds no images (.jpg"),
        (_notes, "class folder notes/Zebra holds no images"),
        (_one_class, "one has one class ('cats'): a classifier needs two or more"),
        (_one_image, "few: class 'Trouser' has one image"),
        (_only_tested, "sides: class 'Trouser' has test images but no training images"),
        (_loose, "loose: 001.png has no class: put each class's images in a folder of its own"),
        (_all_broken, "and 3 others looked at are not images"),
        (lambda: "gone.csv", "cannot read gone.csv: no such file"),
        (lambda: write_csv("a.csv", [("file", "class")]), "must name the columns path,label"),
        (lambda: write_csv("a.csv", [("path", "label"), ("no.png", "cat")]), "a.csv, line 2: there is no file no.png"),
        (lambda: write_csv("a.csv", [("path", "label")]), "a.csv holds no images"),
        (lambda: write_csv("a.csv", [("path", "label"), ("a.csv", "")]), "a.csv, line 2: a.csv has no label"),
        (
            lambda: write_csv("a.csv", [("path", "label", "split"), ("a.csv", "x", "later")]),
            "a.csv, line 2: split is 'later': give train or test",
        ),
        (
            lambda: write_csv("a.csv", [("path", "label", "split"), ("a.csv", "x", "train"), (_empty_file(), "x", "")]),
            "says of some images whether they are for training or testing, but not of b.png",
        ),
        (_npz(pixels=IMAGES), "has no arrays 'images' and 'labels'"),
        (_npz(images=IMAGES.astype(np.float32), labels=[0, 1, 0, 1]), "is float32 (4, 8, 8): give uint8"),
        (_npz(images=IMAGES, labels=[0, 1]), "has 4 images in 'images', but 2 labels in 'labels'"),
        (_npz(images=np.array([object()] * 4), labels=[0, 1, 0, 1]), "not an npz of plain arrays"),
        (_damaged_npz, "cannot read bad.npz"),
        (lambda: "gone.npz", "cannot read gone.npz: no such file"),
    ],
)
def test_refusals_are_one_line(make: Callable[[], str], said: str) -> None:
    assert said in refusal(make())


# --- Content


def test_a_changed_folder_is_noticed(here: Path) -> None:
    class_folders(here / "images", 4)
    settings = data.with_content_hash(Data("images/"))
    assert len(settings.content) == 16
    assert data.with_content_hash(settings) == settings
    victim = here / "images" / "Trouser" / "002.png"
    before = victim.read_bytes()

    def now() -> str:
        return data.with_content_hash(Data("images/")).content

    os.utime(victim, (1, 1))
    assert now() == settings.content  # small sets: what is in the files, not when they were written
    victim.write_bytes(before[:-1] + b"?")
    assert now() != settings.content
    with pytest.raises(UserError, match=r"images of images/ are not those that this training began with"):
        data.open_set("images/", "train", settings, data.input_format(settings))
    victim.write_bytes(before)
    assert now() == settings.content
    victim.rename(victim.with_name("other.png"))
    assert now() != settings.content


def test_large_sets_are_known_by_sizes_and_times(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class_folders(here / "images", 4)
    monkeypatch.setattr(own, "_READ_WHOLE", 100)
    before = data.with_content_hash(Data("images/")).content
    os.utime(here / "images" / "Trouser" / "002.png", (1, 1))
    assert data.with_content_hash(Data("images/")).content != before
