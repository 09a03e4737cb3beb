"""Rows: read back equal, refused in one line."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from anchored.errors import UserError
from anchored.store.rows import Row, read_rows, write_rows

ROW = Row(
    "CIFAR-10", "ResNet-18", "ram", 0.25, "auroc", "LSUN (C)", None, 97.4, None, 3, "", "energy", 97.0, 97.8, 10, "r"
)


def test_rows_survive(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, alpha=None, severity=5, value=0.1 + 0.2, dataset='a,"b"\nc')]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows


def test_methods_are_a_column_only_where_a_row_has_one(tmp_path: Path) -> None:
    """A study without methods has the file that it had before there were any."""
    file = tmp_path / "rows.csv"
    write_rows(file, [ROW])
    assert file.read_text().splitlines()[0].endswith(",n,run")
    rows = [ROW, replace(ROW, method="augmix")]
    write_rows(file, iter(rows))
    assert file.read_text().splitlines()[0].endswith(",n,run,method")
    assert read_rows(file) == rows


@pytest.mark.parametrize("text", ["=1+1", "+x", "-x", "@x", "\tx", "\rx", "'=x", "''-x", "'x", "a=1", ""])
def test_no_text_is_a_formula_of_a_spreadsheet(text: str, tmp_path: Path) -> None:
    rows = [replace(ROW, trained_on=text, dataset=text, architecture=text, run=text, value=-1.5)]
    write_rows(tmp_path / "rows.csv", rows)
    assert read_rows(tmp_path / "rows.csv") == rows
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        (cells,) = list(csv.reader(file))[1:]
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in cells)
    assert [cell for cell in cells if cell.startswith("-")] == ["-1.5"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("97.4", "lots"), "line 2: could not convert string to float: 'lots'"),
        (lambda text: text.replace("trained_on", "on"), "the first line must name the columns"),
        (lambda text: text.rpartition(",")[0], "line 2: expected 16 fields"),
        (lambda text: "", "the first line must name the columns"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, change: object, said: str) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, [ROW])
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(UserError, match=said) as raised:
        read_rows(path)
    assert str(path) in str(raised.value)
