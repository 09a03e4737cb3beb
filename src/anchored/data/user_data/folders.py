"""User data in files: a folder of class folders, or a CSV of paths and labels."""

import csv
import io
import stat
from pathlib import Path
from unicodedata import normalize

from anchored.data.decoding import IMAGE_ENDINGS
from anchored.data.image_sources import FileSource, is_image_name, is_passed_over, list_images
from anchored.data.user_data.listing import FolderName, Listing, split_of_name
from anchored.errors import UserError
from anchored.store import files


def list_folder(name: str) -> Listing:
    """Class folders, below folders of splits or not; images beside them, or without any, have no class."""
    path = files.expand_home(name)
    if not path.is_dir():
        raise UserError(f"{name} is not a folder (looked in {path.absolute()})")
    names, labels, splits = [], [], []
    for split, top in _tops(path):
        images_of: dict[str | None, list[str]] = {folder.name: list_images(folder, path) for folder in _folders(top)}
        for title, images in images_of.items():
            if not images:
                raise UserError(
                    f"class folder {top / str(title)} holds no images ({' '.join(IMAGE_ENDINGS)}): fill or move it"
                )
        images_of[None] = [file.relative_to(path).as_posix() for file in _loose(top)]
        for title, images in images_of.items():
            names += images
            labels += [title and FolderName(title)] * len(images)
            splits += [split] * len(images)
    return Listing(FileSource(path), names, labels, splits)


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not is_passed_over(entry.name))


def _loose(top: Path) -> list[Path]:
    names = (entry.name for entry in top.iterdir() if not entry.is_dir())
    return [top / file for file in sorted(names) if is_image_name(file) and not is_passed_over(file)]


def _tops(path: Path) -> list[tuple[str, Path]]:
    """Return the folders of splits below a folder, or itself.

    A folder called after a split is one if it holds class folders, or if no other folder here holds images; with images
    of its own beside other classes it is a class. UserError where it may be either, or two are one split.
    """
    folders = _folders(path)
    splits = [(split_of_name(folder.name), folder) for folder in folders if split_of_name(folder.name)]
    others = [folder for folder in folders if not split_of_name(folder.name) and list_images(folder)]
    nested = [folder for _, folder in splits if not _loose(folder) and _folders(folder)]
    if not splits or (others and not nested):
        return [("", path)]
    if others:
        raise UserError(
            f"{path} has {nested[0].name}/ with class folders in it, as a split, beside {others[0].name}/, as a class: "
            "put the splits into a folder of their own, or give a CSV with the columns path,label,split"
        )
    there: dict[str, Path] = {}
    for split, top in splits:
        if split in there:
            raise UserError(f"{path} has {there[split].name}/ and {top.name}/, both for the {split} split: join them")
        there[split] = top
    return [("", there["train"])] if list(there) == ["train"] else list(there.items())


def list_csv(name: str) -> Listing:
    """A CSV with a header and the columns path, label and perhaps split; paths are relative to its folder."""
    path = files.expand_home(name)
    labelled, rows = _read_csv(path)
    names, labels, splits, stated_at = [], list[object](), [], []
    seen: dict[tuple[int, int], tuple[str, str, str]] = {}
    for line, image, label, written in rows:
        image, file = _find_image(path, line, image)
        split = split_of_name(written)
        if written and not split:
            raise UserError(f"{line}: split is '{written}': give train or test")
        before, first_label, first_split = seen.setdefault(file, (line, label, split))
        if before != line:
            what = "another label" if label != first_label else "another split" if split != first_split else "it"
            raise UserError(f"{line}: {image} stands with {what} in {before.rpartition(', ')[2]}: leave it there once")
        names.append(image)
        labels.append(label if labelled else None)
        splits.append(split)
        stated_at.append(f"{line}: {image}")
    return Listing(FileSource(path.parent), names, labels, splits, [path], stated_at)


def _read_csv(path: Path) -> tuple[bool, list[tuple[str, str, str, str]]]:
    """Return whether there is a column of labels, and of each line its place, path, label and split."""
    try:
        text = files.read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: not UTF-8 text") from error
    rows = []
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        columns = [column.strip().lower() for column in next(reader, [])]
        if "path" not in columns or len(set(columns)) < len(columns):
            raise UserError(
                f"{path}: its first line must name the columns path,label (and split, if you like), each once"
            )
        for fields in reader:
            line = f"{path}, line {reader.line_num}"
            if len(fields) > len(columns):
                raise UserError(
                    f'{line} has {len(fields)} fields, the first line {len(columns)}: put fields with a comma in "..."'
                )
            if 0 < len(fields) < len(columns):
                raise UserError(f"{line} has {len(fields)} fields, the first line {len(columns)}: give all of them")
            values = dict(zip(columns, (field.strip() for field in fields), strict=False))
            if values:
                rows.append((line, values["path"], values.get("label", ""), values.get("split", "")))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error
    return "label" in columns, rows


def _find_image(table: Path, line: str, image: str) -> tuple[str, tuple[int, int]]:
    """Return an image's path as it is on this disk, and which file that is; UserError where there is none."""
    # As it was written, with Windows' separators, and with accents in either form of Unicode.
    paths = (image, image.replace("\\", "/"))
    for spelling in (form for path in paths for form in (path, normalize("NFC", path), normalize("NFD", path))):
        try:
            state = (table.parent / spelling).stat()
        except (OSError, ValueError):
            continue
        if image and not stat.S_ISDIR(state.st_mode):
            return spelling, (state.st_dev, state.st_ino)
    raise UserError(f"{line}: there is no file {table.parent / image}")
