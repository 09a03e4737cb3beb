"""Rows of results: one measured number each, read from and written to ``results.csv``."""

import csv
import dataclasses
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchored.errors import UserError
from anchored.store.files import read_bytes, write_text


@dataclass(frozen=True)
class Row:
    """One measured number: a line of ``results.csv``. The first eight columns are those of the paper's tables; the last
    is there only where a row has one."""

    trained_on: str  # title of the training set, e.g. CIFAR-10
    architecture: str  # title of the network, e.g. ResNet-18
    protocol: str  # standard, anchored or ram
    alpha: float | None  # mask probability of ram, else None
    metric: str  # a key of anchored.metrics.METRICS
    dataset: str  # title of the set measured on
    severity: int | None  # 1..5 for corruptions, else None
    value: float  # percent for accuracies, AUROC, FPR, AUPR; plain for calibration errors
    tail_weight: float | None  # λ of hard-Δ mining, None without
    seed: int
    corruption: str  # one corruption's name; "mean" for the mean over corruptions; "" elsewhere
    score: str  # OOD score, "" elsewhere
    low: float  # ends of the 95 % interval over images
    high: float
    n: int  # test images behind the value
    run: str  # name of the run's folder
    method: str = ""  # of grid.methods, "" for the recipe as it is


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
WITHOUT_METHODS = COLUMNS[:-1]
_INTEGERS = {"severity", "seed", "n"}
_NUMBERS = {"alpha", "value", "tail_weight", "low", "high"}


FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r")
"""What a cell begins with that a spreadsheet would run as a formula."""


def spreadsheet_safe(cell: object) -> object:
    """A cell of CSV: text that begins like a formula, after apostrophes if any, gets an apostrophe before it."""
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip("'").startswith(FORMULA_SIGNS) else cell


def _as_given(text: str) -> str:
    """Undo ``spreadsheet_safe``."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(FORMULA_SIGNS) else text


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV."""
    write_text(path, rows_text(rows))


def rows_text(rows: Iterable[Row]) -> str:
    """Rows as CSV; None is an empty field, floats keep their full precision, no text is a spreadsheet's formula."""
    rows = list(rows)
    shown = COLUMNS if any(row.method for row in rows) else WITHOUT_METHODS
    return "".join(csv_line(cells[: len(shown)]) for cells in (shown, *map(dataclasses.astuple, rows)))


def csv_line(cells: Iterable[object]) -> str:
    """One line of CSV: None is empty, no text is a spreadsheet's formula, a line feed or carriage return within a cell
    is quoted, which csv does for ends of lines."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerow(map(spreadsheet_safe, cells))
    return text.getvalue().removesuffix("\r\n") + "\n"


def read_rows(path: Path) -> list[Row]:
    """Read rows; ``UserError`` naming file and line where a field is missing or not a number."""
    text = read_bytes(path).decode("utf-8", "replace")
    reader = csv.DictReader(io.StringIO(text))
    try:
        if tuple(reader.fieldnames or ()) not in (COLUMNS, WITHOUT_METHODS):
            raise UserError(f"{path}: the first line must name the columns {','.join(WITHOUT_METHODS)}")
        return [_row(fields) for fields in reader]
    except UserError:
        raise
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _row(fields: dict[str, str]) -> Row:
    def value(name: str) -> Any:
        text = fields[name]
        if text is None or None in fields:
            raise ValueError(f"expected {len(fields)} fields")
        if name in _INTEGERS | _NUMBERS and text == "":
            return None
        return int(text) if name in _INTEGERS else float(text) if name in _NUMBERS else _as_given(text)

    return Row(**{name: value(name) for name in COLUMNS if name in fields})
