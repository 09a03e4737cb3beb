"""A report that is there already: what it was made of is hashed, so that an unchanged study's is not drawn again.

Imports neither torch nor matplotlib, which take longer than all that is done here.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from rich import table as rich_table

from anchored.config.validation import parse
from anchored.errors import UserError
from anchored.report import formats
from anchored.report.table import Table
from anchored.store import files
from anchored.store.layout import StudyFolder

_HASHED = 16_000_000  # bytes up to which a file is hashed; of larger ones size and time of change count
_PACKAGES = ("anchored", "numpy", "scipy", "matplotlib", "jinja2")
_SOURCES = ("report", "metrics")  # rooms that decide what a report says


@dataclasses.dataclass(frozen=True)
class Made:
    """``.report.json``: the hash of what a report was made of, those of its files, and the terminal's tables."""

    inputs: str
    outputs: dict[str, str]
    tables: tuple[Table, ...]
    notices: tuple[str, ...] = ()  # what readers must know before they trust the rows


def current(folder: StudyFolder) -> Made | None:
    """Return what the report that is there says on the terminal, or None where it has to be written (again)."""
    if not folder.made_file.is_file():
        return None
    try:
        made: Made = parse(Made, files.read_json(folder.made_file))
        whole = made.inputs == _inputs(folder) and made.outputs == _hashes(folder.path, _outputs(folder))
    except (UserError, OSError):
        return None
    return made if whole else None


def current_tables(folder: StudyFolder) -> tuple[Table, ...] | None:
    """Return the terminal's tables of the report that is there, or None where it has to be written (again)."""
    made = current(folder)
    return None if made is None else made.tables


def terminal_tables(folder: StudyFolder, width: int) -> list[rich_table.Table]:
    """The headline, choices and the paper's tables, for a terminal of ``width`` columns; none without a report."""
    return [part for table in current_tables(folder) or () for part in formats.terminal(table, width)]


def current_notices(folder: StudyFolder) -> tuple[str, ...]:
    """What readers must know before they trust the rows; none without a report."""
    made = current(folder)
    return made.notices if made else ()


def keep(folder: StudyFolder, tables: Sequence[Table], notices: Sequence[str]) -> None:
    """Write down what the report that has just been written was made of."""
    made = Made(_inputs(folder), _hashes(folder.path, _outputs(folder)), tuple(tables), tuple(notices))
    files.write_json(folder.made_file, dataclasses.asdict(made))


def _outputs(folder: StudyFolder) -> list[Path]:
    return [folder.report_file, *_below(folder.figures), *_below(folder.tables)]


def _below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))


def _inputs(folder: StudyFolder) -> str:
    own = Path(__file__).parents[1]
    sources = [file for room in _SOURCES for file in sorted((own / room).glob("*.*"))]
    data = [folder.study_file, folder.results_file, folder.record_file, folder.validation_file]
    data += [folder.references_file, folder.examples_file]
    data += _below(folder.path / "runs")
    versions = [metadata.version(name) for name in _PACKAGES]
    return hashlib.sha256(repr([versions, _hashes(own, sources), _hashes(folder.path, data)]).encode()).hexdigest()


def _hashes(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    return {str(path.relative_to(root)): _state(path) for path in paths if path.is_file()}


def _state(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > _HASHED or path.suffix == ".safetensors":
        return f"{stat.st_size} {stat.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()
