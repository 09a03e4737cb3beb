"""A table: one structure that the page, Markdown, LaTeX and the terminal all render."""

from dataclasses import dataclass
from typing import Literal

Tone = Literal["", "better", "worse", "unclear"]


@dataclass(frozen=True)
class Column:
    """A column's heading: its title, which way is better, and the heading above it."""

    title: str
    arrow: str = ""
    group: str = ""


@dataclass(frozen=True)
class TableCell:
    """A cell: the value, its interval, and its difference from the base with a tone."""

    text: str
    interval: str = ""
    change: str = ""
    tone: Tone = ""


@dataclass(frozen=True)
class Table:
    """A table: columns, rows of as many cells, and a caption. The first ``stubs`` columns are names."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[TableCell, ...], ...]
    caption: str
    stubs: int = 1


MISSING = TableCell("—")
PAIR_SEPARATOR = " / "  # between two values in one cell
