"""The forms in which users give images (folder, CSV, npz, Hugging Face), each listed by one function."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.data.decoding import IMAGE_ENDINGS, error_text, open_encoded
from anchored.data.image_sources import FileSource, ImageSource, is_image_name, list_images
from anchored.errors import UserError

TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Names of the test split, the first one that is there."""

_SPLITS = {"train": "train", **dict.fromkeys(TEST_FOLDERS, "test")}


@dataclass(frozen=True, eq=False)
class Listing:
    """Every image (N) of a data set in its canonical order, before it is split."""

    source: ImageSource
    names: Sequence[str]  # keys in the source
    labels: Sequence[str]  # the class of each; "" where none is stated
    splits: Sequence[str]  # "train" or "test"; "" where none is stated
    files: Sequence[Path]  # what the images are read from


# --- Files ------------------------------------------------------------------------------------------------------------


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _list_folder(name: str) -> Listing:
    """Class folders, below train/ and test/ or not; images beside them, or without any, have no class."""
    path = Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"{name} is not a folder (looked in {path.absolute()})")
    subfolders = {folder.name: folder for folder in _folders(path)}
    tests = [subfolders[test] for test in TEST_FOLDERS if test in subfolders]
    if "train" not in subfolders:
        tops = [("", path)]
    else:
        tops = [("train", subfolders["train"]), ("test", tests[0])] if tests else [("", subfolders["train"])]
    names, labels, splits = [], [], []
    for split, top in tops:
        images_of = {folder.name: list_images(folder, path) for folder in _folders(top)}
        for title, images in images_of.items():
            if not images:
                raise UserError(
                    f"class folder {top / title} holds no images ({' '.join(IMAGE_ENDINGS)}): fill or move it"
                )
        loose = sorted(file.name for file in top.iterdir() if file.is_file() and is_image_name(file.name))
        images_of[""] = [(top / file).relative_to(path).as_posix() for file in loose if not file.startswith(".")]
        for title, images in images_of.items():
            names += images
            labels += [title] * len(images)
            splits += [split] * len(images)
    return Listing(FileSource(path), names, labels, splits, [path / image for image in names])


def _list_csv(name: str) -> Listing:
    """A CSV with a header and the columns path, label and perhaps split; paths are relative to its folder."""
    path = Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not UTF-8 text'}") from error
    reader = csv.DictReader(io.StringIO(text))
    try:
        columns, lines = tuple(reader.fieldnames or ()), [(line, reader.line_num) for line in reader]
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    if "path" not in columns:
        raise UserError(f"{path}: its first line must name the columns path,label (and split, if you like)")
    names, labels, splits = [], [], []
    for line, number in lines:
        image, label, split = ((line.get(column) or "").strip() for column in ("path", "label", "split"))
        where, split = f"{path}, line {number}", split.lower()
        if not (path.parent / image).is_file():
            raise UserError(f"{where}: there is no file {path.parent / image}")
        if "label" in columns and not label:
            raise UserError(f"{where}: {image} has no label")
        if split and split not in _SPLITS:
            raise UserError(f"{where}: split is '{split}': give train or test")
        names.append(image)
        labels.append(label)
        splits.append(_SPLITS.get(split, ""))
    return Listing(FileSource(path.parent), names, labels, splits, [path, *(path.parent / image for image in names)])


# --- Arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in arrays (N,H,W) or (N,H,W,3) uint8; keys are their numbers, from 0, through all arrays."""

    path: str
    arrays: tuple[npt.NDArray[np.uint8], ...]

    def where(self, key: str) -> str:
        """Return the file and the number."""
        return f"{self.path}, image {int(key)}"

    def open(self, key: str) -> Image.Image:
        """Return the image."""
        number = int(key)
        for array in self.arrays:
            if number < len(array):
                return Image.fromarray(array[number])
            number -= len(array)
        raise IndexError(key)


def _numbered(count: int) -> list[str]:
    return [f"{number:09d}" for number in range(count)]


_PAIRS = (("images", "labels", ""), ("x_train", "y_train", "train"), ("x_test", "y_test", "test"))


def _list_npz(name: str) -> Listing:
    """An npz of images and labels, or of x_train, y_train, x_test and y_test."""
    path = Path(name).expanduser()
    images, labels, splits = [], list[str](), list[str]()
    try:
        with path.open("rb") as file, np.load(file) as stored:  # NumPy's default refuses arrays of objects
            for key, label, split in (pair for pair in _PAIRS if pair[0] in stored):
                images.append(_channels_last(stored[key], f"'{key}' in {path}"))
                count = len(images[-1])
                texts = [str(value) for value in stored[label].ravel().tolist()] if label in stored else [""] * count
                if len(texts) != count:
                    raise UserError(f"{path} has {count} images in '{key}', but {len(texts)} labels in '{label}'")
                labels += texts
                splits += [split] * count
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file leads to
        problem = getattr(error, "strerror", None) or "not an npz of plain arrays"
        raise UserError(f"cannot read {path}: {problem}") from error
    if not images:
        raise UserError(f"{path} has no arrays 'images' and 'labels', nor 'x_train', 'y_train', 'x_test' and 'y_test'")
    return Listing(ArraySource(str(path), tuple(images)), _numbered(len(labels)), labels, splits, [path])


def _channels_last(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    """Return (N,H,W) or (N,H,W,3) of grey or RGB images in either order of axes."""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what} is {array.dtype} {array.shape}: give uint8 (N,H,W), (N,H,W,3) or (N,3,H,W)")
    return np.ascontiguousarray(array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TableSource:
    """Rows of a ``datasets`` table whose image column is not decoded; keys are their numbers, from 0."""

    name: str
    table: Any
    column: str

    def where(self, key: str) -> str:
        """Return the data set and the row."""
        return f"{self.name}, row {int(key)}"

    def open(self, key: str) -> Image.Image:
        """Return the image, its header read."""
        cell = self.table[int(key)][self.column]
        return open_encoded(Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"])


def _list_hugging_face(name: str) -> Listing:
    """``hf:NAME[/config]`` on the hub, or ``hf:FOLDER`` as ``save_to_disk`` or parquet files leave it."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"{name} needs the package 'datasets': pip install 'anchored[datasets]'") from error
    tables = _tables(name)
    splits = [split for split in ("train", *TEST_FOLDERS) if split in tables]
    splits = splits[:2] if "train" in splits else list(tables)[:1]
    joined = datasets.concatenate_datasets([tables[split] for split in splits])
    kinds = joined.features
    column = next((key for key, kind in kinds.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UserError(f"{name} has no column of images: it has {', '.join(kinds)}")
    label = next((key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)), "label")
    labels = [""] * len(joined)
    if label in kinds:
        values = joined.select_columns([label])[:][label]
        if any(value is None or value == -1 for value in values):
            raise UserError(f"{name}: some rows have no label; leave them out")
        labels = [*map(kinds[label].int2str if isinstance(kinds[label], datasets.ClassLabel) else str, values)]
    split_of_row = [
        _SPLITS.get(split, "") if len(splits) > 1 else "" for split in splits for _ in range(len(tables[split]))
    ]
    encoded = joined.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [Path(file["filename"]) for split in splits for file in tables[split].cache_files]
    return Listing(TableSource(name, encoded, column), _numbered(len(joined)), labels, split_of_row, files)


def _tables(name: str) -> dict[str, Any]:
    """Return the splits of a Hugging Face data set; UserError where it cannot be had."""
    import datasets

    rest = name.removeprefix("hf:")
    folder = Path(rest).expanduser()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            tables = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            tables = datasets.load_dataset(str(folder.absolute()))  # a bare name could be a loader's
        else:
            parts = rest.split("/")
            tables = datasets.load_dataset("/".join(parts[:2]), *parts[2:3])
    except Exception as error:  # the package raises whatever its own dependencies raise
        raise UserError(f"cannot have {name} from Hugging Face: {error_text(error)}") from error
    return dict(tables) if isinstance(tables, dict) else {"": tables}


def list_user_data(name: str) -> Listing:
    """Return every image of a user's data set, in whichever form; UserError, one line, where it cannot be used.

    Nothing is decoded or unpickled, and no code of a data set is run.
    """
    list_form: Callable[[str], Listing] = _list_folder
    if name.startswith("hf:"):
        list_form = _list_hugging_face
    elif name.lower().endswith((".csv", ".npz")):
        list_form = _list_csv if name.lower().endswith(".csv") else _list_npz
    try:
        listing = list_form(name)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or name}: {error_text(error).lower()}") from error
    if not listing.names:
        raise UserError(f"{name} holds no images ({', '.join(IMAGE_ENDINGS)})")
    return listing
