"""A table as Markdown, LaTeX (booktabs) or a rich table for the terminal; every text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich import table as rich_table
from rich.text import Text

from anchored.report.tables import PAIRED, Cell, Column, Table

_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "α": r"$\alpha$",
    "λ": r"$\lambda$",
    "±": r"$\pm$",
    "≈": r"$\approx$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "C\u0304": r"\={C}",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "▲": r"$\uparrow$",
    "▼": r"$\downarrow$",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
}
_COLOURS = {"": "", "better": "green", "worse": "red", "unclear": "dim"}


def markdown(table: Table) -> str:
    """GitHub's Markdown, the caption below."""
    above = list(dict.fromkeys(title for title, _ in groups(table) if title))
    shared = above if len(above) == 1 else []  # one heading above all goes with the title, several into the columns
    lines = [
        " · ".join([f"**{_md(table.title)}**", *map(_md, shared)]),
        "",
        _md_line(
            [
                _md(f"{column.group} · " * (len(above) > 1 and bool(column.group)) + _heading(column))
                for column in table.columns
            ]
        ),
        _md_line(["---" if i < table.stubs else "---:" for i in range(len(table.columns))]),
        *(_md_line([_md(_flat(cell)) for cell in row]) for row in table.rows),
        "",
        _md(table.caption),
    ]
    return "\n".join(lines) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]|~#])", r"\\\1", " ".join(text.split()))


def _md_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _heading(column: Column) -> str:
    return f"{column.title} {column.arrow}".rstrip()


def _flat(cell: Cell) -> str:
    interval = cell.interval if cell.interval.startswith("±") else f"({cell.interval})" * bool(cell.interval)
    return " ".join(filter(None, (cell.text, interval, cell.change)))


def latex(table: Table) -> str:
    """A LaTeX table that needs only the package booktabs."""
    stubs, values = table.stubs, len(table.columns) - table.stubs
    body = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
        rf"\begin{{tabular}}{{{'l' * stubs}{'r' * values}}}",
        r"\toprule",
        *_tex_groups(table),
        _tex_line([_tex(_heading(column)) for column in table.columns]),
        r"\midrule",
        *_tex_rows(table),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(["% needs \\usepackage{booktabs}", *body]) + "\n"


def continues(row: tuple[Cell, ...]) -> bool:
    """Whether a row goes on with what the one above it is about: its first name is empty."""
    return not row[0].text


def _tex_rows(table: Table) -> Iterator[str]:
    for i, row in enumerate(table.rows):
        if i and not continues(row):
            yield r"\addlinespace"
        yield _tex_line([_tex_cell(cell) for cell in row])


def groups(table: Table) -> list[tuple[str, int]]:
    """Headings above the columns and how many columns each spans; empty where there are none."""
    spans = [(title, len(list(columns))) for title, columns in groupby(table.columns, lambda column: column.group)]
    return spans if any(title for title, _ in spans) else []


def _tex_groups(table: Table) -> list[str]:
    spans = groups(table)
    if not spans:
        return []
    cells, rules, first = [], [], 1
    for title, width in spans:
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(title)}}}")
        if title:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_tex_line(cells), " ".join(rules)]


def _tex(text: str) -> str:
    signs = re.findall(r".\u0304?", " ".join(text.split()))  # a letter keeps the bar above it
    return "".join(_TEX.get(sign, sign) for sign in signs)


def _tex_line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex_cell(cell: Cell) -> str:
    interval = cell.interval if cell.interval.startswith("±") else f"({cell.interval})" * bool(cell.interval)
    small = [rf"\scriptsize {_tex(text)}" for text in (interval, cell.change) if text]
    lines = r" \\ ".join([_tex(cell.text), *small])
    return rf"\shortstack[r]{{{lines}}}" if small else lines


def terminal(table: Table, width: int) -> list[rich_table.Table]:
    """A table for a terminal of ``width`` columns, in as many parts as it takes; columns under one heading together.

    Interval and change stand under each value, better and worse in colour and in words.
    """
    widths = [_width(table, i) for i in range(len(table.columns))]
    room = width - sum(each + 1 for each in widths[: table.stubs])
    values = range(table.stubs, len(widths))
    together = [list(part) for _, part in groupby(values, lambda i: table.columns[i].group)]
    parts = [part for group in together for part in _parts(group, widths, room)]
    return [_part(table, part, widths, last=part is parts[-1]) for part in parts]


def _width(table: Table, i: int) -> int:
    """Columns that a column's longest number takes; headings and changes wrap between words, long names anywhere."""
    cells = [row[i] for row in table.rows]
    numbers = [part for cell in cells for text in (cell.text, cell.interval) for part in text.split(PAIRED)]
    longest = max(map(len, [*_heading(table.columns[i]).split(), *numbers]))
    return min(longest, 20) if i < table.stubs else longest


def _parts(columns: list[int], widths: list[int], room: int) -> list[list[int]]:
    """Columns in as few parts as fit the room, each but the last of as many columns."""
    for count in range(1, len(columns)):
        size = -(-len(columns) // count)
        parts = [columns[i : i + size] for i in range(0, len(columns), size)]
        if all(sum(widths[i] + 1 for i in part) <= room + 1 for part in parts):
            return parts
    return [[i] for i in columns]


def _part(table: Table, columns: list[int], widths: list[int], *, last: bool) -> rich_table.Table:
    group = table.columns[columns[0]].group
    shown = rich_table.Table(
        title=Text("\n".join(filter(None, (table.title, group)))),
        caption=Text(table.caption) if last else None,
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        padding=(0, 0),
        show_edge=False,
    )
    places = [*range(table.stubs), *columns]
    for i in places:
        heading, name = Text(_heading(table.columns[i])), i < table.stubs
        shown.add_column(heading, justify="left" if name else "right", vertical="top", overflow="fold", width=widths[i])
    for row in table.rows:
        shown.add_row(*(_rich(row[i]) for i in places))
    return shown


def _rich(cell: Cell) -> Text:
    """Value, interval and change under one another; two figures of one cell likewise."""
    text = Text()
    intervals = cell.interval.split(PAIRED)
    for i, value in enumerate(cell.text.split(PAIRED)):
        text.append(f"{chr(10) * (i > 0)}{value}")
        if i < len(intervals) and intervals[i]:
            text.append(f"\n{intervals[i]}", style="dim")
    if cell.change:
        word = f" {cell.tone}" if cell.tone in ("better", "worse") else ""
        text.append(f"\n{cell.change.lstrip('▲▼ ')}{word}", style=_COLOURS[cell.tone])
    return text
