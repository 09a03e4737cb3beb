"""Where own images lie, and how they are listed: one reader for each way of giving them."""

from __future__ import annotations

import csv
import io
import os
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from anchored.data.readers.images import IMAGE_ENDINGS
from anchored.errors import UserError

TEST_FOLDERS = ("test", "val", "valid", "validation")
"""Names of the test split, the first one that is there."""

_SIDES = {"train": "train", **dict.fromkeys(TEST_FOLDERS, "test")}


class Source(Protocol):
    """Where own images lie, by number; picklable, for worker processes."""

    def where(self, number: int) -> str:
        """Return the place of an image, for messages."""
        ...

    def open(self, number: int) -> Image.Image:
        """Return an image as stored, perhaps not yet decoded; OSError and the like where that is impossible."""
        ...


@dataclass(frozen=True, eq=False)
class Listing:
    """Every image of a data set in its canonical order, before it is split."""

    source: Source
    names: Sequence[str]
    labels: Sequence[str]  # the class of each; "" where none is stated
    sides: Sequence[str]  # "train" or "test"; "" where none is stated
    files: Sequence[Path]  # what the images are read from


# --- Pixels -----------------------------------------------------------------------------------------------------------

_BOMB = Image.DecompressionBombError
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, zlib.error, _BOMB)


def decoded(source: Source, number: int) -> Image.Image:
    """Return one image, "L" or "RGB"; UserError naming it where it is not a whole image that can be shown."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with source.open(number) as image:
                image.load()
                return _plain(ImageOps.exif_transpose(image))
    except _BOMB as error:
        raise UserError(f"{source.where(number)} has too many pixels (178 million at most): shrink it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{source.where(number)} is not an image: replace or remove it") from error
    except UNREADABLE as error:
        said = " ".join((getattr(error, "strerror", None) or str(error)).split())
        raise UserError(f"{source.where(number)} is not a whole image ({said}): replace or remove it") from error


def _plain(image: Image.Image) -> Image.Image:
    """Return ``image`` as 8-bit grey or RGB."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise ValueError("its levels are not those of 16 bits")
        return Image.fromarray(((levels * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers, give 8 or 16 bits")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La", "1")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


# --- Files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Files:
    """Image files by their path below a folder (or absolute)."""

    folder: Path
    names: Sequence[str]

    def where(self, number: int) -> str:
        """Return the file's path."""
        return str(self.folder / self.names[number])

    def open(self, number: int) -> Image.Image:
        """Return the image, its header read."""
        return Image.open(io.BytesIO((self.folder / self.names[number]).read_bytes()))  # leaves no file open


def listed(folder: Path, below: Path | None = None) -> list[str]:
    """Return the image files below a folder, sorted, as paths relative to ``below`` (the folder itself by default).

    Linked folders are followed, each one once. OSError where one cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    found, seen = [], set[tuple[int, int]]()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        stat = Path(place).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            folders.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [(Path(place) / name).relative_to(below or folder).as_posix() for name in files if _is_image(name)]
    return sorted(found)


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _folder(name: str) -> Listing:
    """Class folders, below train/ and test/ or not; images beside them, or without any, have no class."""
    path = Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"{name} is not a folder (looked in {path.absolute()})")
    roots = {folder.name: folder for folder in _folders(path)}
    tests = [roots[test] for test in TEST_FOLDERS if test in roots]
    if "train" not in roots:
        tops = [("", path)]
    else:
        tops = [("train", roots["train"]), ("test", tests[0])] if tests else [("", roots["train"])]
    names, labels, sides = [], [], []
    for side, top in tops:
        classes = _folders(top)
        for folder in classes:
            found = listed(folder, path)
            if not found:
                raise UserError(f"class folder {folder} holds no images ({' '.join(IMAGE_ENDINGS)}): fill or remove it")
            names += found
            labels += [folder.name] * len(found)
            sides += [side] * len(found)
        loose = [file.name for file in sorted(top.iterdir()) if file.is_file() and _is_image(file.name)]
        names += [(top / file).relative_to(path).as_posix() for file in loose]
        labels += [""] * len(loose)
        sides += [side] * len(loose)
    return Listing(Files(path, names), names, labels, sides, [path / each for each in names])


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_ENDINGS)


def _table(name: str) -> Listing:
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
    names, labels, sides = [], [], []
    for line, number in lines:
        names.append((line["path"] or "").strip())
        labels.append((line.get("label") or "").strip())
        side = (line.get("split") or "").strip().lower()
        where = f"{path}, line {number}"
        if not (path.parent / names[-1]).is_file():
            raise UserError(f"{where}: there is no file {path.parent / names[-1]}")
        if "label" in columns and not labels[-1]:
            raise UserError(f"{where}: {names[-1]} has no label")
        if side and side not in _SIDES:
            raise UserError(f"{where}: split is '{side}': give train or test")
        sides.append(_SIDES.get(side, ""))
    files = [path, *(path.parent / each for each in names)]
    return Listing(Files(path.parent, names), names, labels, sides, files)


# --- Arrays -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images in arrays (N,H,W) or (N,H,W,3) uint8."""

    path: str
    arrays: tuple[npt.NDArray[np.uint8], ...]

    def where(self, number: int) -> str:
        """Return the file and the number."""
        return f"{self.path}, image {number}"

    def open(self, number: int) -> Image.Image:
        """Return the image."""
        for array in self.arrays:
            if number < len(array):
                return Image.fromarray(array[number])
            number -= len(array)
        raise IndexError(number)


_PAIRS = (("images", "labels", ""), ("x_train", "y_train", "train"), ("x_test", "y_test", "test"))


def _archive(name: str) -> Listing:
    """An npz of images and labels, or of x_train, y_train, x_test and y_test."""
    path = Path(name).expanduser()
    images, labels, sides = [], list[str](), list[str]()
    try:
        with path.open("rb") as file, np.load(file) as stored:  # NumPy's default refuses arrays of objects
            for key, label, side in (pair for pair in _PAIRS if pair[0] in stored):
                images.append(_channels_last(stored[key], f"'{key}' in {path}"))
                many = len(images[-1])
                texts = [str(each) for each in stored[label].ravel().tolist()] if label in stored else [""] * many
                if len(texts) != many:
                    raise UserError(f"{path} has {many} images in '{key}', but {len(texts)} labels in '{label}'")
                labels += texts
                sides += [side] * many
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file leads to
        said = getattr(error, "strerror", None) or "not an npz of plain arrays"
        raise UserError(f"cannot read {path}: {said}") from error
    if not images:
        raise UserError(f"{path} has no arrays 'images' and 'labels', nor 'x_train', 'y_train', 'x_test' and 'y_test'")
    names = [f"{number:09d}" for number in range(len(labels))]
    return Listing(Arrays(str(path), tuple(images)), names, labels, sides, [path])


def _channels_last(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    """Return (N,H,W) or (N,H,W,3) of grey or RGB images in either order of axes."""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what} is {array.dtype} {array.shape}: give uint8 (N,H,W), (N,H,W,3) or (N,3,H,W)")
    return np.ascontiguousarray(array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array)


# --- Hugging Face -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a ``datasets`` table whose image column is not decoded."""

    name: str
    table: Any
    column: str

    def where(self, number: int) -> str:
        """Return the data set and the row."""
        return f"{self.name}, row {number}"

    def open(self, number: int) -> Image.Image:
        """Return the image, its header read."""
        cell = self.table[number][self.column]
        content = Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]
        return Image.open(io.BytesIO(content))


def _hub(name: str) -> Listing:
    """``hf:NAME[/config]`` on the hub, or ``hf:FOLDER`` as ``save_to_disk`` or parquet files leave it."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"{name} needs the package 'datasets': pip install 'anchored[datasets]'") from error
    tables = _tables(name)
    sides = [side for side in ("train", *TEST_FOLDERS) if side in tables]
    sides = sides[:2] if "train" in sides else list(tables)[:1]
    joined = datasets.concatenate_datasets([tables[side] for side in sides])
    column = next((key for key, kind in joined.features.items() if isinstance(kind, datasets.Image)), None)
    if column is None:
        raise UserError(f"{name} has no column of images: it has {', '.join(joined.features)}")
    kinds = joined.features
    label = next((key for key, kind in kinds.items() if isinstance(kind, datasets.ClassLabel)), "label")
    labels = [""] * len(joined)
    if label in kinds:
        values = joined[:][label] if len(kinds) == 1 else joined.select_columns([label])[:][label]
        named = kinds[label].int2str if isinstance(kinds[label], datasets.ClassLabel) else str
        if any(value is None or value == -1 for value in values):
            raise UserError(f"{name}: some rows have no label; leave them out")
        labels = [named(value) for value in values]
    of_row = [_SIDES.get(side, "") if len(sides) > 1 else "" for side in sides for _ in range(len(tables[side]))]
    pictures = joined.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    files = [Path(file["filename"]) for side in sides for file in tables[side].cache_files]
    names = [f"{number:09d}" for number in range(len(joined))]
    return Listing(Rows(name, pictures, column), names, labels, of_row, files)


def _tables(name: str) -> dict[str, Any]:
    """Return the splits of a Hugging Face data set; UserError where it cannot be had."""
    import datasets

    rest = name.removeprefix("hf:")
    folder = Path(rest).expanduser()
    datasets.disable_progress_bars()
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
            found = datasets.load_from_disk(str(folder))
        elif folder.is_dir():
            found = datasets.load_dataset(str(folder.absolute()))  # a bare name could be a loader's
        else:
            parts = rest.split("/")
            found = datasets.load_dataset("/".join(parts[:2]), *parts[2:3])
    except Exception as error:  # the package raises whatever its own dependencies raise
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"cannot have {name} from Hugging Face: {said}") from error
    return dict(found) if isinstance(found, dict) else {"": found}


#: How own data may be given: does a name look like it, and its reader. The first one that fits.
FORMATS: tuple[tuple[Callable[[str], bool], Callable[[str], Listing]], ...] = (
    (lambda name: name.startswith("hf:"), _hub),
    (lambda name: name.lower().endswith(".csv"), _table),
    (lambda name: name.lower().endswith(".npz"), _archive),
    (lambda name: True, _folder),
)
