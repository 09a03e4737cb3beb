"""The rows of a study, read and checked, with what a reader must know of them."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from anchored.config.settings import GIVEN, PROTOCOLS
from anchored.errors import UserError
from anchored.metrics.registry import METRICS
from anchored.report.comparison import Summary, variant_of
from anchored.store import files
from anchored.store.layout import Run, StudyFolder, recipe_difference
from anchored.store.rows import Row, read_rows


def read_summary(folder: StudyFolder) -> Summary:
    """A study's rows and settings, checked. ``UserError`` where there are no rows, or not of one study (with line)."""
    study, record = recipe_record(folder.study_file), None
    rows, notices = _checked_rows(folder.results_file), list[str]()
    if not rows:
        raise UserError(f"{folder.results_file} has no rows: no network of this study has been evaluated yet")
    if folder.record_file.exists():
        record = recipe_record(folder.record_file)
        notices = list(_notices(folder, record, study))
    begun = study.get("made")
    names = dict.fromkeys(Path(row.run).name for row in rows)
    recipe = (record or study)["recipe"]
    return Summary(
        folder,
        recipe,
        _made(begun if isinstance(begun, dict) else {}, map(folder.run, names)),
        rows,
        notices=tuple(notices),
    )


def recipe_record(path: Path) -> dict[str, Any]:
    """The content of a file with a study's recipe; ``UserError`` where it has none."""
    content = files.read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise UserError(f"{path} does not describe a study")
    return content


def _notices(folder: StudyFolder, record: dict[str, Any], study: dict[str, Any]) -> Iterator[str]:
    """Files of rows that are not those that were written; settings that the rows are not of."""
    hashes = record.get("files")
    for name, written in hashes.items() if isinstance(hashes, dict) else ():
        file = folder.path / Path(name).name
        if file.is_file() and files.digest(files.read_bytes(file)) != written:
            yield f"{file.name} is not as it was written (edited, or a study was killed): its numbers may be wrong."
    if difference := recipe_difference(record["recipe"], study["recipe"]):
        yield (
            f"The study began again with other settings ({difference}) and has not ended: these are the rows of before."
        )


def _made(begun: dict[str, Any], runs: Iterable[Run]) -> dict[str, Any]:
    """How a study was begun, with what each run says of itself: several values where the runs differ."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for run in runs:
        for record in itertools.chain.from_iterable(run.records().values()):
            for key, value in record.items():
                values[str(key)][str(value)] = None
    kept = {key: "; ".join(found) for key, found in values.items() if key not in ("started", "command")}
    return begun | kept


def validation_of(summary: Summary) -> Summary | None:
    """The rows measured on held-out training images, if the study chooses α or λ. Raises as ``read_summary``."""
    path = summary.folder.validation_file
    if not summary.recipe.get("choose") or not path.is_file() or not (rows := _checked_rows(path)):
        return None
    return replace(summary, rows=rows, validation=True)


def references_of(summary: Summary) -> Summary | None:
    """The rows over many references, if the study measured them. Raises as ``read_summary``."""
    path = summary.folder.references_file
    asked = summary.recipe.get("references")
    if not isinstance(asked, dict) or not asked.get("count") or not path.is_file() or not (rows := _checked_rows(path)):
        return None
    return replace(summary, rows=rows)


def _checked_rows(path: Path) -> tuple[Row, ...]:
    rows = read_rows(path)
    lines: dict[tuple[object, ...], int] = {}
    for line, row in enumerate(rows, start=2):  # line 1 names the columns
        fault = _fault(row, rows[0])
        key = (variant_of(row), row.seed, row.metric, row.dataset, row.severity, row.corruption, row.score)
        if key in lines and not fault:
            fault = f"says the same as line {lines[key]}: two studies in one file?"
        if fault:
            raise UserError(f"{path}, line {line}: {fault}")
        lines[key] = line
    return tuple(rows)


def _fault(row: Row, first: Row) -> str:
    """What is wrong with a row; empty if nothing is."""
    if row.protocol not in (*PROTOCOLS, GIVEN):
        return f"protocol '{row.protocol}' is none of {', '.join((*PROTOCOLS, GIVEN))}"
    if row.metric not in METRICS:
        return f"metric '{row.metric}' is none of {', '.join(METRICS)}"
    if row.trained_on != first.trained_on:
        return f"trained on '{row.trained_on}', line 2 on '{first.trained_on}': a report is about one training set"
    for name in ("value", "low", "high"):
        number = getattr(row, name)
        if number is None or not math.isfinite(number):
            return f"{name} is {'missing' if number is None else number}: a finite number is needed"
    for name in ("seed", "n"):
        if getattr(row, name) is None:
            return f"{name} is missing"
    return "" if row.n > 0 else f"n is {row.n}: at least one image is needed"
