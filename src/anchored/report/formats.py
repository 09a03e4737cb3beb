"""A table as Markdown, LaTeX (booktabs) or rich tables for the terminal; all text is escaped."""

import re
import unicodedata
from collections.abc import Iterator
from itertools import groupby

from rich import box
from rich import table as rich_table
from rich.text import Text

from anchored.report.table import PAIR_SEPARATOR, Column, Table, TableCell

_TEX_SIGNS = {
    "\\": r"\textbackslash{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"}, "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", '"': "{''}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "*": "{*}",  # after the end of a row a bracket would begin an argument, and a star would be one
    "\u00a0": "~", "–": "--", "—": "---", "‐": "-", "‑": "-", "’": "'", "‘": "`", "“": "``", "”": "''",
    "…": r"\dots{}", "†": r"\dag{}", "‡": r"\ddag{}", "−": "$-$", "°": r"$^{\circ}$", "▲": r"$\uparrow$",
    "▼": r"$\downarrow$", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "ı": r"\i{}",
    **{
        sign: rf"$\{name}$"
        for sign, name in {
            "α": "alpha", "β": "beta", "γ": "gamma", "Δ": "Delta", "ε": "varepsilon", "λ": "lambda", "μ": "mu",
            "µ": "mu", "π": "pi", "σ": "sigma", "±": "pm", "×": "times", "·": "cdot", "≈": "approx", "≤": "leq",
            "≥": "geq", "≠": "neq", "→": "to", "↑": "uparrow", "↓": "downarrow", "∞": "infty",
        }.items()
    },
}  # fmt: skip
"""Signs that pdflatex does not take as they are -> commands that need no package."""
_TEX_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c",
}  # fmt: skip
"""Combining marks -> LaTeX's accents."""
_COLOURS = {"": "", "better": "green", "worse": "red", "unclear": "dim"}


def column_groups(table: Table) -> list[tuple[str, int]]:
    """Headings above the columns and how many columns each spans; empty where there are none."""
    spans = [(title, len(list(columns))) for title, columns in groupby(table.columns, lambda column: column.group)]
    return spans if any(title for title, _ in spans) else []


def is_continuation(row: tuple[TableCell, ...]) -> bool:
    """Whether a row belongs to the one above it: its first name is empty."""
    return not row[0].text


def _heading(column: Column) -> str:
    return f"{column.title} {column.arrow}".rstrip()


def _lines(cell: TableCell) -> list[str]:
    """The value, its interval (in brackets unless it begins with ±) and the difference, where there are any."""
    interval = cell.interval if cell.interval.startswith("±") else f"({cell.interval})" * bool(cell.interval)
    return [cell.text, *filter(None, (interval, cell.change))]


def markdown(table: Table) -> str:
    """GitHub's Markdown, the caption below."""
    groups = list(dict.fromkeys(title for title, _ in column_groups(table) if title))
    one = len(groups) == 1  # a single heading above the columns goes into the title, several into the columns
    headings = [md_escaped(("" if one or not c.group else f"{c.group} · ") + _heading(c)) for c in table.columns]
    lines = [
        " · ".join([f"**{md_escaped(table.title)}**", *map(md_escaped, groups * one)]),
        "",
        _md_line(headings),
        _md_line(["---" if i < table.stubs else "---:" for i in range(len(table.columns))]),
        *(_md_line([md_escaped(" ".join(_lines(cell))) for cell in row]) for row in table.rows),
        "",
        md_escaped(table.caption),
    ]
    return "\n".join(lines) + "\n"


def md_escaped(text: str) -> str:
    """Return text for Markdown, its signs escaped, on one line."""
    return re.sub(r"([\\`*_<>\[\]|~#])", r"\\\1", " ".join(text.split()))


def _md_line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(table: Table) -> str:
    """A LaTeX table in ASCII that needs only the package booktabs."""
    body = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex_escaped(f'{table.title}. {table.caption}')}}}",
        rf"\label{{tab:{re.sub('[^a-z0-9]+', '-', table.name.lower())}}}",
        rf"\begin{{tabular}}{{{'l' * table.stubs}{'r' * (len(table.columns) - table.stubs)}}}",
        r"\toprule",
        *_tex_groups(table),
        _tex_line([tex_escaped(_heading(column)) for column in table.columns]),
        r"\midrule",
        *_tex_rows(table),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(["% needs \\usepackage{booktabs}", *body]) + "\n"


def tex_escaped(text: str) -> str:
    """Text as LaTeX in ASCII: known signs as commands, accents on their letters, any other letter as its code point."""
    parts: list[str] = []
    for sign in unicodedata.normalize("NFC", " ".join(re.split(r"[ \t\r\n\f\v]+", text.strip()))):
        for part in sign if sign in _TEX_SIGNS else unicodedata.normalize("NFD", sign):
            if part in _TEX_ACCENTS and parts:
                parts[-1] = rf"\{_TEX_ACCENTS[part]}{{{parts[-1]}}}"
            else:
                parts.append(_TEX_SIGNS.get(part, part if " " <= part <= "~" else f"{{[}}U+{ord(part):04X}]"))
    return "".join(parts)


def _tex_rows(table: Table) -> Iterator[str]:
    for i, row in enumerate(table.rows):
        if i and not is_continuation(row):
            yield r"\addlinespace"
        yield _tex_line([_tex_cell(cell) for cell in row])


def _tex_groups(table: Table) -> list[str]:
    cells, rules, first = [], [], 1
    for title, width in column_groups(table):
        cells.append(rf"\multicolumn{{{width}}}{{c}}{{{tex_escaped(title)}}}")
        if title:
            rules.append(rf"\cmidrule(lr){{{first}-{first + width - 1}}}")
        first += width
    return [_tex_line(cells), " ".join(rules)] if cells else []


def _tex_line(cells: list[str]) -> str:
    return rf"{' & '.join(cells)} \\"


def _tex_cell(cell: TableCell) -> str:
    value, *small = map(tex_escaped, _lines(cell))
    lines = r" \\ ".join([value, *(rf"\scriptsize {text}" for text in small)])
    return rf"\shortstack[r]{{{lines}}}" if small else lines


def terminal(table: Table, width: int) -> list[rich_table.Table]:
    """A table for a terminal of ``width`` columns, split into as many parts as needed; column groups stay together.
    Interval and difference stand below each value, better and worse in colour and in words."""
    widths = [_width(table, i) for i in range(len(table.columns))]
    room = width - sum(stub + 1 for stub in widths[: table.stubs])
    groups = groupby(range(table.stubs, len(widths)), lambda i: table.columns[i].group)
    parts = [part for _, group in groups for part in _parts(list(group), widths, room)]
    return [_part(table, part, widths, last=part is parts[-1]) for part in parts]


def _width(table: Table, i: int) -> int:
    """Width of a column's longest number; headings and differences wrap between words, long names anywhere."""
    cells = [row[i] for row in table.rows]
    numbers = [part for cell in cells for text in (cell.text, cell.interval) for part in text.split(PAIR_SEPARATOR)]
    longest = max(map(len, [*_heading(table.columns[i]).split(), *numbers]))
    return min(longest, 20) if i < table.stubs else longest


def _parts(columns: list[int], widths: list[int], room: int) -> list[list[int]]:
    """Split columns into as few parts of equal size (but the last) as fit the room."""
    for count in range(1, len(columns)):
        size = -(-len(columns) // count)
        parts = [columns[i : i + size] for i in range(0, len(columns), size)]
        if all(sum(widths[i] + 1 for i in part) <= room + 1 for part in parts):
            return parts
    return [[i] for i in columns]


def _part(table: Table, columns: list[int], widths: list[int], *, last: bool) -> rich_table.Table:
    part = rich_table.Table(
        title=Text("\n".join(filter(None, (table.title, table.columns[columns[0]].group)))),
        caption=Text(table.caption) if last else None, box=box.SIMPLE_HEAD, caption_justify="left", padding=(0, 0),
        show_edge=False,
    )  # fmt: skip
    places = [*range(table.stubs), *columns]
    for i in places:
        heading, stub = Text(_heading(table.columns[i])), i < table.stubs
        part.add_column(heading, justify="left" if stub else "right", vertical="top", overflow="fold", width=widths[i])
    for row in table.rows:
        part.add_row(*(_terminal_cell(row[i]) for i in places))
    return part


def _terminal_cell(cell: TableCell) -> Text:
    """Value, interval and difference below one another; two values of one cell likewise."""
    text = Text()
    intervals = cell.interval.split(PAIR_SEPARATOR)
    for i, value in enumerate(cell.text.split(PAIR_SEPARATOR)):
        text.append(f"{chr(10) * (i > 0)}{value}")
        if i < len(intervals) and intervals[i]:
            text.append(f"\n{intervals[i]}", style="dim")
    if cell.change:
        word = f" {cell.tone}" if cell.tone in ("better", "worse") else ""
        text.append(f"\n{cell.change.lstrip('▲▼ ')}{word}", style=_COLOURS[cell.tone])
    return text
