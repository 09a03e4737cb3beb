"""Names of data sets as people write them, and what their folders must not hold."""

from collections.abc import Iterable
from pathlib import Path

from anchored.data.catalog import registry as catalog
from anchored.data.readers.files import data_root
from anchored.errors import UserError
from anchored.store import files

_CATALOG = "catalog:"  # before a name: the catalog's set, though a folder is called so too


def resolve_name(name: str | Path) -> str:
    """Return the name of a data set without ``catalog:``, once, where somebody has written it.

    UserError where a folder here is called as a set of the catalog, unless it is where that set was downloaded to.
    """
    name = str(name)
    if name.startswith(_CATALOG):
        return catalog.get_dataset(name.removeprefix(_CATALOG)).name
    folder = files.expand_home(name)
    if name in catalog.CATALOG and folder.is_dir() and folder.resolve() != (data_root() / name).resolve():
        raise UserError(
            f"'{name}' is a folder here and a set of the catalog: write '{name}/' for the folder, "
            f"'{_CATALOG}{name}' for the set"
        )
    return name


def refuse_inside(output: Path, names: Iterable[str]) -> None:
    """``UserError`` where results would lie in a folder of own images: the next call would read them as images."""
    for name in names:
        folder = files.expand_home(name)
        if catalog.is_user_data(name) and folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{output} is in {name}, whose images are read: choose a folder for results outside of it")
