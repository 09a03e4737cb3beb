"""The result of an evaluation, for Python and notebooks: rows, tables, figures and a page."""

from __future__ import annotations

import dataclasses
import shutil
import warnings
import weakref
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from anchored.errors import UserError
from anchored.report import page, style
from anchored.report.choice import find_choices
from anchored.report.comparison import Summary
from anchored.report.formats import column_groups, is_continuation, markdown
from anchored.report.reading import read_summary, recipe_record
from anchored.report.table import Table
from anchored.report.templates import template
from anchored.store import files
from anchored.store.layout import StudyFolder, study_difference


class Result:
    """What was measured: rows with intervals, shown as tables, figures and a page.

    ``folder``: where rows, outputs and the page lie; without one they are kept as long as the object is.
    """

    def __init__(self, folder: Path, *, temporary: bool = False) -> None:
        self.folder = folder
        if temporary:
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    @cached_property
    def _summary(self) -> Summary:
        summary = read_summary(StudyFolder(self.folder))
        for notice in summary.notices:
            warnings.warn(f"{self.folder}: {notice}", stacklevel=2)
        return summary

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All figures, a dictionary each with the columns of ``results.csv``: ``pandas.DataFrame(result.rows)``."""
        return [dataclasses.asdict(row) for row in self._summary.rows]

    def value(self, metric: str, dataset: str = "", **columns: Any) -> tuple[float, float, float]:
        """One figure and the ends of its 95 % interval, in the unit of the rows.

        ``metric``: a key of ``anchored.metrics.METRICS``; ``dataset``: title of the set, by default the test set; any
        other column (``severity``, ``corruption``, ``score``, ``architecture``): its value, by default empty. Raises
        ``UserError`` unless there is exactly one such row.
        """
        wanted = {"severity": None, "corruption": "", "dataset": dataset or self._summary.trained_on, **columns}
        found = [row for row in self.rows if row["metric"] == metric and all(row[k] == v for k, v in wanted.items())]
        if len(found) != 1:
            raise UserError(f"{len(found)} rows have metric '{metric}' and {wanted}: give more columns, or others")
        return found[0]["value"], found[0]["low"], found[0]["high"]

    def tables(self) -> list[Table]:
        """All tables of the page."""
        return page.all_tables(self._summary, list(find_choices(self._summary)))

    def table(self, name: str = "headline") -> ShownTable:
        """One table: its text in a terminal, HTML in a notebook. ``name``: as the files in ``tables/``.

        Raises ``UserError`` where there is none of that name.
        """
        found = {table.name: table for table in self.tables()}
        if name not in found:
            raise UserError(f"there is no table '{name}': there are {', '.join(found)}")
        return ShownTable(found[name])

    def figures(self) -> dict[str, Figure]:
        """Figures by name, drawn as on the page: matplotlib's, to be shown or saved."""
        with style.drawing():
            return {picture.name: picture.figure for picture in page.draw_pictures(self._summary)}

    def to_html(self, path: str | Path) -> Path:
        """Write the page, one file that loads nothing from elsewhere; return its path."""
        page.write(StudyFolder(self.folder))
        target = Path(path)
        files.write_bytes(target, files.read_bytes(StudyFolder(self.folder).report_file))
        return target

    def save(self, folder: str | Path) -> Path:
        """Copy rows, outputs, tables, figures and page to a folder that is new, or holds the same study; its path.

        Raises ``UserError`` where it holds other files or another study, or somebody works there.
        """
        own, target = StudyFolder(self.folder), StudyFolder(Path(folder))
        page.write(own)
        if target.path.resolve() == own.path.resolve():
            return target.path
        target.refuse_foreign()
        with files.locked(target.lock_file, wait=True):
            mark = target.study_file if target.study_file.exists() else own.study_file
            if difference := study_difference(recipe_record(mark)["recipe"], recipe_record(own.study_file)["recipe"]):
                raise UserError(f"{target.path} holds another study ({difference}): choose another folder")
            if any(files.is_locked(run.lock_file) for run in target.all_runs()):
                raise UserError(f"another process works on {target.path}: wait for it, or choose another folder")
            files.copy_file(own.study_file, target.study_file)  # first of all: with it the folder is ours
            files.copy_folder(own.path, target.path)
        return target.path

    def __repr__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


class ShownTable:
    """A table that shows itself: Markdown as text, HTML in a notebook."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __repr__(self) -> str:
        return markdown(self.table)

    def _repr_html_(self) -> str:
        context = {"column_groups": column_groups, "is_continuation": is_continuation}
        macros: Any = template("table.html.jinja").make_module(context)
        return str(macros.show_table(self.table))
