"""User data as a Hugging Face data set: on the hub, or a folder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from anchored.data.decoding import error_text, open_encoded
from anchored.data.user_data.listing import Listing, split_of_name
from anchored.errors import UserError
from anchored.store import files


@dataclass(frozen=True, eq=False)
class TableSource:
    """Rows of a ``datasets`` table whose column "image" is not decoded; keys are their numbers, from 0."""

    name: str
    table: Any

    def where(self, key: str) -> str:
        """Return the data set and the row."""
        return f"{self.name}, row {int(key)}"

    def open(self, key: str) -> Image.Image:
        """Return the image, its header read."""
        return open_encoded(self.read(key))

    def read(self, key: str) -> bytes:
        """Return the encoded image; UserError where the row has none."""
        return encoded(self.table[int(key)]["image"], self.where(key))


def encoded(cell: dict[str, Any] | None, where: str) -> bytes:
    """Return the encoded image of a cell that is not decoded; UserError where there is none."""
    cell = cell or {"bytes": None, "path": None}
    if cell["bytes"] is None and cell["path"] is None:
        raise UserError(f"{where} has no image: leave the row out")
    content: bytes = files.read_bytes(Path(cell["path"])) if cell["bytes"] is None else cell["bytes"]
    return content


def undecoded(table: Any) -> Any:
    """Return a ``datasets.Dataset`` whose images are not decoded by its own choice of a decoder; as it is where its
    owner's code takes them decoded (``set_transform``), and any other object."""
    kinds = getattr(table, "features", None)
    if not isinstance(kinds, dict) or not hasattr(table, "cast_column") or table.format["type"] == "custom":
        return table
    names = [name for name, kind in kinds.items() if type(kind).__name__ == "Image" and hasattr(kind, "decode")]
    table = table.with_format(None) if names else table
    for name in names:
        table = table.cast_column(name, replace(kinds[name], decode=False))
    return table


def list_hugging_face(name: str) -> Listing:
    """``hf:NAME[/config]`` on the hub, or ``hf:FOLDER`` as ``save_to_disk`` or parquet files leave it."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(f"{name} needs the package 'datasets': pip install 'anchored[datasets]'") from error
    tables = _tables(name)
    if len(tables) > 1:
        tables = {split: table for split, table in tables.items() if split_of_name(split)} or tables
        known = {split_of_name(split) for split in tables}
        if len(known) < len(tables) or "" in known:
            raise UserError(f"{name} has the splits {', '.join(tables)}: save it with the splits train and test alone")
    images, labels, splits, orders = [], list[object](), list[str](), set[tuple[str, ...]]()
    for split, table in tables.items():
        where = f"{name}, split {split}" if split else name
        column = _column(table, where, "image", "of images", lambda kind: isinstance(kind, datasets.Image))
        if column is None:
            raise UserError(f"{where} has no column of images: it has {', '.join(table.features)}")
        encoded = table.select_columns([column]).rename_column(column, "image") if column != "image" else table
        images.append(encoded.select_columns(["image"]).cast_column("image", datasets.Image(decode=False)))
        found, names = _labels(table, where)
        labels += found
        orders.add(names)
        splits += [split_of_name(split) if len(tables) > 1 else ""] * len(table)
    joined = TableSource(name, datasets.concatenate_datasets(images))
    numbers = [f"{number:09d}" for number in range(len(labels))]
    for number in numbers if joined.table.data.column("image").null_count else ():
        joined.read(number)  # refuses the first row without an image
    containers = [Path(file["filename"]) for table in tables.values() for file in table.cache_files]
    order = orders.pop() if len(orders) == 1 else ()  # splits that number their classes otherwise have no one order
    return Listing(joined, numbers, labels, splits, [*containers, *_image_files(joined.table)], classes=order)


def _image_files(table: Any) -> list[Path]:
    """The files of cells that hold a path and no bytes, as those of folders of images do."""
    import pyarrow.compute as arrow  # type: ignore[import-untyped]

    column = table.data.column("image")
    named = arrow.struct_field(column, "path").filter(arrow.is_null(arrow.struct_field(column, "bytes")))
    return sorted(Path(path) for path in named.unique().to_pylist() if path)


def _column(table: Any, where: str, name: str, what: str, fits: Callable[[object], bool]) -> str | None:
    """Return the column called ``name``, or the only one that fits; None where none does, UserError for several."""
    fitting = [key for key, kind in table.features.items() if fits(kind)]
    if name in fitting or len(fitting) < 2:
        return name if name in fitting else next(iter(fitting), None)
    raise UserError(
        f"{where} has several columns {what}: {', '.join(fitting)}: rename the one that you mean to '{name}' "
        "(datasets: rename_column, save_to_disk)"
    )


def _labels(table: Any, where: str) -> tuple[list[object], tuple[str, ...]]:
    """Return the label of each row, by the column "label" or the only one of classes, None where there is neither; and
    the classes in the order of their numbers, where the column says it."""
    import datasets

    kinds = table.features
    column = "label" if "label" in kinds else None
    column = column or _column(table, where, "label", "of classes", lambda kind: isinstance(kind, datasets.ClassLabel))
    if column is None:
        return [None] * len(table), ()
    values: list[object] = table.select_columns([column])[:][column]
    if isinstance(kinds[column], datasets.ClassLabel):  # −1 stands for a label that is not given
        names = kinds[column].names
        titles = [names[value] if isinstance(value, int) and 0 <= value < len(names) else "" for value in values]
        return titles, tuple(names)
    return ["" if value is None else value for value in values], ()


def _tables(name: str) -> dict[str, Any]:
    """Return the splits of a Hugging Face data set; UserError where it cannot be had."""
    import datasets

    rest = name.removeprefix("hf:")
    folder = files.expand_home(rest)
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
