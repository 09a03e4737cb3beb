"""Small copies of data sets in the originals' layout and naming, for tests."""

import io
import itertools
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from anchored.data.catalog import registry as catalog
from anchored.data.catalog.row import DataSet

Fixture = Callable[[Path], DataSet]  # writes a small copy below a data root, and returns the row that describes it
numbers = itertools.count(1)


def picture(size: tuple[int, int] = (9, 7), kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded image unlike all others."""
    number = next(numbers)
    colour = (37 * number % 251, 91 * number % 241, 53 * number % 239) if mode == "RGB" else 37 * number % 251
    stream = io.BytesIO()
    Image.new(mode, size, colour).save(stream, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return stream.getvalue()


def write(path: Path, content: bytes | str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = picture() if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def pack(path: Path, files: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def places(root: Path) -> DataSet:
    names = [f"Places365_test_{number:08d}.jpg" for number in (1, 13, 28, 60)]
    pack(root / "places365/test_256.tar", {f"test_256/{name}": picture() for name in names})
    return replace(catalog.get("places365"), test=3, subset=(names[1], names[2], names[3]))


def by_class(root: Path, folder: str, classes: tuple[str, ...], each: int = 2) -> list[tuple[str, int]]:
    """Write images of every class, in an order that is not the sorted one; return their keys and labels."""
    expected = []
    for label, name in reversed(list(enumerate(classes))):
        for number in range(each):
            write(root / folder / name / f"{name}_{number}.jpg")
            expected.append((f"{name}/{name}_{number}.jpg", label))
    return sorted(expected, key=lambda pair: (pair[1], pair[0]))


def imagenet_kit(folder: Path, wnids: tuple[str, ...], numbers: list[int]) -> dict[int, str]:
    """Write the development kit's meta.mat, whose ids are in an order of their own, and its ground truth."""
    order = [*wnids[1:], wnids[0]]
    kind = np.dtype([(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")])
    synsets = np.zeros(len(order) + 1, kind)
    for i, wnid in enumerate(order):
        synsets[i] = (i + 1, wnid, f"name of {wnid}, other name", "gloss", 0)
    synsets[-1] = (len(order) + 1, "n00000000", "a parent", "gloss", 2)
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{number}\n" for number in numbers))
    return {i + 1: wnid for i, wnid in enumerate(order)}


def dtd(root: Path) -> DataSet:
    classes = ("banded", "blotchy", "braided")
    keys = {name: [f"{name}/{name}_{i:04d}.jpg" for i in range(3)] for name in classes}
    for key in itertools.chain(*keys.values()):
        write(root / "dtd/dtd/images" / key)
    for i, part in enumerate(("train", "val", "test")):
        write(root / f"dtd/dtd/labels/{part}1.txt", "".join(f"{keys[name][i]}\n" for name in reversed(classes)))
    return replace(catalog.get("dtd"), classes=classes, file_classes=3, train=6, test=3)


def food(root: Path) -> DataSet:
    classes = ("apple_pie", "baklava")
    for part, each in (("train", (11, 12)), ("test", (21,))):
        names = {label: [f"{label}/{number}" for number in each] for label in classes}
        for name in itertools.chain(*names.values()):
            write(root / f"food101/food-101/images/{name}.jpg")
        write(root / f"food101/food-101/meta/{part}.txt", "\n".join(itertools.chain(*names.values())))
        write(root / f"food101/food-101/meta/{part}.json", str(names).replace("'", '"'))
    return replace(catalog.get("food101"), classes=classes, file_classes=2, train=4, test=2)


def pets(root: Path) -> DataSet:
    head = "#Image CLASS-ID SPECIES BREED ID\n"
    lists = {
        "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_2 2 2 1", "Abyssinian_101 1 1 1"],
        "test": ["american_bulldog_3 2 2 1", "Abyssinian_1 1 1 1"],
    }
    for part, lines in lists.items():
        write(root / f"oxford-pets/annotations/{part}.txt", "".join(f"{line}\n" for line in lines))
        for line in lines:
            write(root / f"oxford-pets/images/{line.split()[0]}.jpg")
    write(root / "oxford-pets/annotations/list.txt", head * 6 + "\n".join(itertools.chain(*lists.values())))
    write(root / "oxford-pets/images/Abyssinian_100.mat", b"not an image")
    return replace(
        catalog.get("oxford-pets"), classes=("Abyssinian", "american_bulldog"), file_classes=2, train=3, test=2
    )


def flowers(root: Path) -> DataSet:
    folder = root / "flowers102"
    folder.mkdir(parents=True)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": np.array([[2, 1, 1, 2, 3, 1, 2]], np.uint8)})
    splits = {"trnid": [[5, 6]], "valid": [[7, 1]], "tstid": [[4, 2, 3]]}
    scipy.io.savemat(folder / "setid.mat", {key: np.array(value, np.uint16) for key, value in splits.items()})
    for number in range(1, 8):
        write(folder / f"jpg/image_{number:05d}.jpg")
    return replace(catalog.get("flowers102"), classes=("a", "b", "c"), file_classes=3, train=4, test=3)


def cars(root: Path) -> DataSet:
    folder = root / "stanford-cars"
    (folder / "devkit").mkdir(parents=True)
    boxes = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
    kind = np.dtype([(name, object) for name in (*boxes, "class", "fname")])
    for name, part, classes in (
        ("devkit/cars_train_annos.mat", "cars_train", (2, 1, 2)),
        ("cars_test_annos_withlabels.mat", "cars_test", (1, 2)),
    ):
        lines = np.zeros(len(classes), kind)
        for i, label in enumerate(classes):
            lines[i] = (1, 2, 30, 40, label, f"{i + 1:05d}.jpg")
            write(folder / part / f"{i + 1:05d}.jpg")
        scipy.io.savemat(folder / name, {"annotations": lines.reshape(1, -1)})
    names = np.array([["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]], object)
    scipy.io.savemat(folder / "devkit/cars_meta.mat", {"class_names": names})
    return replace(catalog.get("stanford-cars"), classes=("a", "b"), file_classes=2, train=3, test=2)


def ucf101(root: Path, takes: int = 1) -> DataSet:
    classes = ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    trained = ("ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c", "HandstandPushups/v_HandStandPushups_g08_c")
    videos = {
        "train": [f"{name}{take:02d}" for name in trained for take in range(1, takes + 1)],
        "test": ["YoYo/v_YoYo_g01_c01", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01"],
    }
    renamed = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups", "YoYo": "Yo_Yo"}
    for split, names in videos.items():
        numbered = [f"{name}.avi {classes.index(name.split('/')[0]) + 1}" for name in names]
        lines = numbered if split == "train" else [line.split()[0] for line in numbered]
        write(root / f"ucf101/ucfTrainTestlist/{split}list01.txt", "".join(f"{line}\r\n" for line in lines))
    with zipfile.ZipFile(root / "ucf101/UCF-101-midframes.zip", "w") as packed:
        for name in itertools.chain(*videos.values()):
            action, video = name.split("/")
            packed.writestr(f"UCF-101-midframes/{renamed[action]}/{video}.jpg", picture())
        packed.writestr("__MACOSX/UCF-101-midframes/._x.jpg", b"")
    return replace(catalog.get("ucf101"), classes=classes, file_classes=3, train=2 * takes, test=2)


ADAPTATION: dict[str, Fixture] = {
    "dtd": dtd,
    "food101": food,
    "oxford-pets": pets,
    "flowers102": flowers,
    "stanford-cars": cars,
    "ucf101": ucf101,
}


def cifar_c(root: Path, name: str, packed: bool, count: int = 4) -> tuple[DataSet, dict[str, np.ndarray]]:
    """Five blocks of ``count`` images whose distance from black grows with the severity; the row for them."""
    row = replace(catalog.get(name), test=count, corruptions=catalog.get(name).corruptions[:2], test_files=())
    generator = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for corruption in row.corruptions:
        block = generator.integers(0, 40, (5 * count, 32, 32, 3), dtype=np.uint8)
        arrays[corruption] = block + np.repeat(np.arange(5, dtype=np.uint8) * 40, count)[:, None, None, None]
    arrays["labels"] = np.tile(generator.integers(0, 10, count, dtype=np.int64), 5)
    files = {}
    for key, array in arrays.items():
        stream = io.BytesIO()
        np.save(stream, array)
        files[f"{row.images}/{key}.npy"] = stream.getvalue()
    if packed:
        pack(root / name / row.parts[0].name, {f"{row.images}/README.txt": b"CIFAR-C", **files})
    else:
        for key, data in files.items():
            write(root / name / key, data)
    return row, arrays
