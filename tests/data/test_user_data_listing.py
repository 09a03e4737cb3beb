"""Classes and splits of user data, by one rule in every form; what could be read in two ways is refused in one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from anchored.data.catalog.registry import dataset_file_name
from anchored.data.user_data import index
from anchored.data.user_data.index import UserData
from anchored.errors import UserError
from anchored.store import files


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(name: str) -> UserData:
    index.find_user_data.cache_clear()
    return index.find_user_data(name, 0.5)


def test_a_class_folder_may_be_called_nan() -> None:
    classes("food", names=("nan", "roti"))
    assert found("food").classes == ("nan", "roti")


def refusal(name: str) -> str:
    with pytest.raises(UserError) as raised:
        found(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def counts(data: UserData) -> dict[str, int]:
    return {split: len(data.splits[split]) for split in ("train", "test") if split in data.splits}


def draw(*files: str) -> None:
    """Small images, each of its own content."""
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.frombuffer(file.encode("utf-8", "surrogateescape").ljust(400, b"\0")[:400], np.uint8)
        Image.fromarray(pixels.reshape(20, 20)).save(file, "PNG")


def classes(top: str, images: int = 2, names: tuple[str, ...] = ("cat", "dog")) -> None:
    draw(*(f"{top}/{name}/{number}.png" for name in names for number in range(images)))


def table(text: str) -> str:
    Path("a.csv").write_text(text, encoding="utf-8", newline="")
    return "a.csv"


def arrays(**values: Any) -> str:
    np.savez("a.npz", **values)
    return "a.npz"


PIXELS = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


# --- Splits, one rule


@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training_set"])
@pytest.mark.parametrize("test", ["test", "Test", "test-set", "testing", "Val", "validation", "dev"])
def test_split_folders_in_any_case_and_usual_words(train: str, test: str) -> None:
    classes(f"photos/{train}")
    classes(f"photos/{test}", 1)
    assert found("photos/").classes == ("cat", "dog")
    assert counts(found("photos/")) == {"train": 4, "test": 2}


def _folders() -> str:
    for split, images in (("train", 3), ("Val", 2), ("test", 1)):
        classes(f"photos/{split}", images)
    return "photos/"


def _table() -> str:
    lines = ["path,label,split"]
    for split, images in (("train", 3), ("Val", 2), ("test", 1)):
        files = [f"{split}-{name}-{number}.png" for name in ("cat", "dog") for number in range(images)]
        draw(*files)
        lines += [f"{file},{file.split('-')[1]},{split}" for file in files]
    return table("\n".join(lines))


def _arrays() -> str:
    whole = np.arange(12 * 64).reshape(12, 8, 8).astype(np.uint8)
    names = np.array(["cat", "dog"] * 6)
    return arrays(
        x_train=whole[:6], y_train=names[:6], x_val=whole[6:10] + 3, y_val=names[:4], x_test=whole[10:] + 5,
        y_test=names[:2],
    )  # fmt: skip


def _hugging_face() -> str:
    datasets = pytest.importorskip("datasets")
    tables = {}
    for split, images in (("train", 3), ("validation", 2), ("test", 1)):
        files = [f"{split}/{name}/{number}.png" for name in ("cat", "dog") for number in range(images)]
        draw(*files)
        rows = {"image": files, "label": [file.split("/")[1] for file in files]}
        tables[split] = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    datasets.DatasetDict(tables).save_to_disk("saved")
    return "hf:saved"


@pytest.mark.parametrize("form", [_folders, _table, _arrays, _hugging_face])
def test_validation_images_are_set_aside_beside_test_images(form: Callable[[], str]) -> None:
    assert counts(found(form())) == {"train": 6, "test": 2}
    assert len(found(form()).splits["ood"]) == 2


def test_a_test_split_without_classes_gives_way_to_validation() -> None:
    classes("photos/train", 3)
    classes("photos/val", 1)
    draw("photos/test/0.png", "photos/test/1.png")
    assert counts(found("photos/")) == {"train": 6, "test": 2}
    assert all(key.startswith("val/") for key in found("photos/").split("test").keys)
    draw("0.png", "1.png", "2.png")
    assert counts(found(table("path,label,split\n0.png,cat,train\n1.png,cat,val\n2.png,,test\n"))) == {
        "train": 1,
        "test": 1,
    }


def test_a_class_may_be_called_train() -> None:
    draw("photos/train/0.png", "photos/train/1.png", "photos/plane/0.png", "photos/plane/1.png")
    assert found("photos/").classes == ("plane", "train")


def test_two_folders_of_one_split_or_a_split_beside_a_class_are_refused() -> None:
    classes("photos/train")
    classes("photos/Training")
    assert "Training/ and train/, both for the train split" in refusal("photos/")
    classes("mixed/train")
    draw("mixed/plane/0.png")
    assert "mixed has train/ with class folders in it, as a split, beside plane/, as a class" in refusal("mixed/")
    (Path("other/notes")).mkdir(parents=True)
    classes("other/train")
    assert found("other/").classes == ("cat", "dog")  # a folder without images is no class


# --- Classes, one rule


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([b"cat", b"dog"] * 2), ("cat", "dog")),
        (np.array(["o\u0308", "\u00f6", "a", "a"]), ("a", "\u00f6")),
        (np.array([10.0, 2.0, 2.0, 10.0]), ("2", "10")),
        (np.array([10.5, 2, 2, 10.5]), ("2", "10.5")),
        (np.array(["10.0", "2.0"] * 2), ("2.0", "10.0")),
        (np.array(["-1", "1e1"] * 2), ("-1", "1e1")),
        (np.array(["9" * 5000, "10"] * 2), ("10", "9" * 5000)),
        (np.array(["9", "10", "x", "x"]), ("10", "9", "x")),
        (np.array([True, False] * 2), ("False", "True")),
    ],
)
def test_labels_of_arrays(labels: Any, expected: tuple[str, ...]) -> None:
    assert found(arrays(images=PIXELS, labels=labels)).classes == expected


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([0, 1, np.nan, 1]), "a.npz, image 2 has no label (nan)"),
        (np.array(["cat", "cat", "cat", np.nan]), "a.npz, image 3 has no label (nan)"),
        (np.array([b"\xff", b"a", b"a", b"a"]), "a.npz, image 0: its label b'\\xff' is not UTF-8"),
        (np.array([1j, 2, 2, 1]), "a.npz, image 0: its label is a complex"),
        (np.array(["1", "1.0", "2", "2"]), "the classes '1' and '1.0' are one number"),
        (np.array(["a\nb", "c", "c", "c"]), "signs in its name that cannot be shown"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Any, said: str) -> None:
    assert said in refusal(arrays(images=PIXELS, labels=labels))


@pytest.mark.parametrize(
    "name",
    ["می\u200cخواهم", "ශ්\u200dරී ලංකා", "日本\u3000猫", "chat\u202f: noir", "pain\u00a0au lait", "soft\u00adware"],
)
def test_joiners_and_wide_spaces_are_class_names(name: str) -> None:
    classes("photos", names=(name, "other"))
    assert name in found("photos/").classes


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\u202eb", "a\u2028b", os.fsdecode(b"caf\xe9")])
def test_class_names_that_cannot_be_shown_are_refused(name: str) -> None:
    classes("photos", names=(name, "other"))
    assert "signs in its name that cannot be shown: rename it" in refusal("photos/")


def test_two_spellings_of_one_class_are_one() -> None:
    draw("photos/caf\u00e9/0.png", "photos/cafe\u0301/1.png", "photos/tea/0.png", "photos/tea/1.png")
    assert found("photos/").classes == ("caf\u00e9", "tea")
    assert counts(found("photos/")) == {"train": 2, "test": 2}


def test_files_whose_names_are_not_utf_8_are_read() -> None:
    odd = os.fsdecode(b"\xe9")
    draw(f"{odd}/cat/{odd}.png", f"{odd}/cat/1.png", f"{odd}/dog/{odd}.png", f"{odd}/dog/1.png")
    assert counts(found(f"{odd}/")) == {"train": 2, "test": 2}
    assert dataset_file_name(f"{odd}/").isascii()
    files.write_json(Path("request.json"), {"source": f"{odd}/"})
    assert files.read_json(Path("request.json")) == {"source": f"{odd}/"}


def test_what_systems_leave_is_passed_over() -> None:
    classes("photos", names=("cat", "dog", "__MACOSX", "@eaDir"))
    draw("photos/cat/@eaDir/0.png", "photos/dog/__MACOSX/0.png")
    Path("photos/cat/0.png").rename("photos/cat/0.JFIF")
    assert found("photos/").classes == ("cat", "dog")
    assert sum(counts(found("photos/")).values()) == 4


# --- Tables


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "path,label\n0.png,cat, black\n",
            'a.csv, line 2 has 3 fields, the first line 2: put fields with a comma in "',
        ),
        ("path,label,split\n0.png,cat\n", "a.csv, line 2 has 2 fields, the first line 3"),
        ('path,label\n0.png,"cat\n1.png,dog\n', "a.csv, line 3: unexpected end of data"),
        ("path,label,label\n0.png,cat,dog\n", "must name the columns path,label"),
        ("path,label\n0.png,cat\n./0.png,dog\n", "a.csv, line 3: ./0.png stands with another label in line 2"),
        ("path,label\n0.png,cat\n0.png,cat\n", "a.csv, line 3: 0.png stands with it in line 2"),
        (
            "path,label,split\n0.png,cat,train\nlink.png,cat,test\n",
            "line 3: link.png stands with another split in line 2",
        ),
        ("path,label\n0.png,nan\n", "a.csv, line 2: 0.png has no label (nan)"),
        ("path,label\n.,cat\n", "a.csv, line 2: there is no file"),
    ],
)
def test_tables_that_could_be_read_in_two_ways_are_refused(text: str, said: str) -> None:
    draw("0.png", "1.png")
    Path("link.png").symlink_to("0.png")
    assert said in refusal(table(text))


@pytest.mark.parametrize(
    "text",
    [
        "path, label\n0.png, cat\n1.png, dog\n",
        'Path ,LABEL\n"0.png",cat\r\n1.png ,dog\r\n\r\n',
        "label,path\ncat,.\\sub\\..\\0.png\ndog,sub\\..\\1.png\n",
        "\ufeffpath,label,split\n0.png,cat,Train\n1.png,dog,train\n",
    ],
)
def test_tables_as_people_write_them(text: str) -> None:
    Path("sub").mkdir()
    draw("0.png", "1.png")
    assert found(table(text)).classes == ("cat", "dog")


# --- Copies


def test_the_same_content_in_training_and_test_or_two_classes_is_warned_of() -> None:
    classes("photos/train", 2)
    classes("photos/test", 1, names=("cat", "dog"))
    found("photos/")  # no warning
    copy = Path("photos/train/cat/0.png").read_bytes()
    Path("photos/test/cat/0.png").write_bytes(copy)
    with pytest.warns(UserWarning, match=r"1 of its images are there again in training and test, as .*test/cat/0\.png"):
        found("photos/")
    draw("photos/test/cat/0.png")
    Path("photos/train/dog/9.png").write_bytes(copy)
    with pytest.warns(UserWarning, match=r"in two classes, as .*train/cat/0\.png and .*train/dog/9\.png"):
        found("photos/")
    with pytest.warns(UserWarning, match=r"in two classes, as a\.npz, image 0 and a\.npz, image 3"):
        found(arrays(images=PIXELS[[0, 1, 2, 0]], labels=[0, 0, 1, 1]))


# --- Hugging Face


def _saved(columns: dict[str, Any], kinds: dict[str, Any]) -> str:
    datasets = pytest.importorskip("datasets")
    draw("0.png", "1.png")
    datasets.Dataset.from_dict(columns, datasets.Features(kinds)).save_to_disk("saved", max_shard_size="1GB")
    return "hf:saved"


def test_columns_called_image_and_label_come_first() -> None:
    datasets = pytest.importorskip("datasets")
    photo, kind = datasets.Image(), datasets.ClassLabel(names=["x", "y"])
    files = ["0.png", "1.png"]
    both: dict[str, Any] = {"mask": photo, "image": photo, "source": kind, "label": datasets.Value("string")}
    name = _saved({"mask": files[::-1], "image": files, "source": [0, 1], "label": ["cat", "dog"]}, both)
    assert found(name).classes == ("cat", "dog")
    listed = found(name).splits["ood"].source
    assert listed.read("0") == Path("0.png").read_bytes()
    for columns, said in (
        ({"image": "photo", "label": "label"}, "several columns of images: mask, photo: rename the one that you mean"),
        ({"image": "image", "label": "fine"}, "several columns of classes: source, fine: rename the one that you mean"),
    ):
        kinds = {"mask": photo, columns["image"]: photo, "source": kind, columns["label"]: kind}
        rows = {"mask": files, columns["image"]: files, "source": [0, 1], columns["label"]: [0, 1]}
        assert said in refusal(_saved(rows, kinds))


@pytest.mark.parametrize(
    ("labels", "said"),
    [([0.0, float("nan")], "row 1 has no label (nan)"), ([0.0, None], "row 1 has no label"), ([[1], [2]], "is a list")],
)
def test_rows_without_a_label_are_refused(labels: list[Any], said: str) -> None:
    datasets = pytest.importorskip("datasets")
    kind = datasets.Sequence(datasets.Value("int64")) if said == "is a list" else datasets.Value("float64")
    assert said in refusal(
        _saved({"image": ["0.png", "1.png"], "label": labels}, {"image": datasets.Image(), "label": kind})
    )


def test_a_row_without_an_image_is_refused() -> None:
    datasets = pytest.importorskip("datasets")
    kinds = {"image": datasets.Image(), "label": datasets.Value("string")}
    assert "hf:saved, row 1 has no image" in refusal(_saved({"image": ["0.png", None], "label": ["a", "b"]}, kinds))


def test_splits_with_other_features_are_joined_by_class_names() -> None:
    datasets = pytest.importorskip("datasets")
    draw("0.png", "1.png", "2.png", "3.png")

    def part(files: list[str], column: str, names: list[str], **more: list[int]) -> Any:
        kinds = {column: datasets.Image(), "label": datasets.ClassLabel(names=names)}
        kinds |= {key: datasets.Value("int64") for key in more}
        return datasets.Dataset.from_dict({column: files, "label": [0, 1], **more}, datasets.Features(kinds))

    train = part(["0.png", "1.png"], "image", ["cat", "dog"], size=[1, 2])
    test = part(["2.png", "3.png"], "img", ["dog", "cat"])
    datasets.DatasetDict(train=train, test=test).save_to_disk("saved")
    data = found("hf:saved")
    assert data.classes == ("cat", "dog")
    assert data.split("test").labels.tolist() == [1, 0]
    assert data.split("test").source.read(data.split("test").keys[0]) == Path("2.png").read_bytes()
    datasets.DatasetDict(fold1=train, fold2=train).save_to_disk("folds")
    assert "hf:folds has the splits fold1, fold2: save it with the splits train and test alone" in refusal("hf:folds")


# --- What is no regular file


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["photos/cat/9.png", "a.csv", "a.npz", "9.png"])
def test_pipes_and_devices_are_refused_before_they_are_opened(name: str, kind: str) -> None:
    classes("photos")
    if kind == "pipe":
        os.mkfifo(name)
    else:
        Path(name).symlink_to("/dev/zero")
    source = {"photos/cat/9.png": "photos/", "9.png": "b.csv"}.get(name, name)
    Path("b.csv").write_text("path,label\n9.png,cat\n")
    assert f"{name} is not a regular file but a pipe, a device or a socket" in refusal(source)
