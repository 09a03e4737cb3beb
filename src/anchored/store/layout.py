"""A run's and a study's folders, and their rows: the only module that knows names on disk.

A study's folder::

    study.json      the recipe, resolved, and how it was run (versions, revision, machine)
    results.csv     all rows; validation.csv those of held-out training images
    report.html     figures/  tables/  examples.safetensors
    runs/CELL/      cell.json  recipe.json  model.json  weights.safetensors  training.csv  outputs/*.safetensors
                    evaluation.json  rows.csv  state.json  validation/ (the same on held-out training images)
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchored.errors import UserError
from anchored.store.files import mending, write_text


@dataclass(frozen=True)
class Row:
    """One measured number: a line of ``results.csv``. The first eight columns are those of the paper's tables."""

    trained_on: str  # title of the training set, e.g. CIFAR-10
    architecture: str  # title of the network, e.g. ResNet-18
    protocol: str  # standard, anchored or ram
    alpha: float | None  # mask probability of ram, else None
    metric: str  # a key of anchored.metrics.registry.METRICS
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


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
_INTEGERS = {"severity", "seed", "n"}
_NUMBERS = {"alpha", "value", "tail_weight", "low", "high"}


@dataclass(frozen=True)
class Run:
    """The folder of one trained network."""

    path: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def cell_file(self) -> Path:
        """The settings that decide the weights."""
        return self.path / "cell.json"

    @property
    def state_file(self) -> Path:
        """How far its training and evaluation are."""
        return self.path / "state.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the process that works on it."""
        return self.path / ".lock"

    @property
    def recipe_file(self) -> Path:
        """The whole recipe that the run belongs to."""
        return self.path / "recipe.json"

    @property
    def model_file(self) -> Path:
        """What is needed to rebuild the module: network, protocol, preprocessing, classes."""
        return self.path / "model.json"

    @property
    def weights_file(self) -> Path:
        """Final weights and references; there exactly when training is complete."""
        return self.path / "weights.safetensors"

    @property
    def card_file(self) -> Path:
        """The model card, for those whom the folder is given to."""
        return self.path / "README.md"

    @property
    def shared(self) -> tuple[Path, Path, Path]:
        """The files that make a model folder: all that is needed to use the network elsewhere."""
        return self.model_file, self.weights_file, self.card_file

    @property
    def checkpoint_file(self) -> Path:
        """State of an unfinished training; removed when training is complete."""
        return self.path / "checkpoint.safetensors"

    @property
    def last_good(self) -> Run:
        """A model folder with the last weights that were numbers, where training diverged."""
        return Run(self.path / "last-good")

    @property
    def log_file(self) -> Path:
        """One line per epoch: loss, accuracy, learning rate, seconds."""
        return self.path / "training.csv"

    @property
    def rows_file(self) -> Path:
        """The run's rows; there exactly when evaluation is complete."""
        return self.path / "rows.csv"

    @property
    def replicates_file(self) -> Path:
        """Replicates of every row (rows,R), in the rows' order and unit: what paired comparisons are made from."""
        return self.path / "replicates.safetensors"

    @property
    def evaluation_file(self) -> Path:
        """The settings that made the rows, and the hash of the weights they were made from."""
        return self.path / "evaluation.json"

    @property
    def validation(self) -> Run:
        """What was measured on held-out training images: rows, replicates, their settings and outputs, no network."""
        return Run(self.path / "validation")

    def outputs_file(self, name: str) -> Path:
        """Logits, features and labels on one set."""
        return self.path / "outputs" / f"{name}.safetensors"

    def part_file(self, name: str, start: int) -> Path:
        """Outputs on the images from ``start`` on, while a pass over a large set goes on."""
        return self.path / "outputs" / f"{name}.parts" / f"{start:09d}.safetensors"

    def part_files(self, name: str) -> dict[int, Path]:
        """The parts that are there, by their first image."""
        files = sorted(self.part_file(name, 0).parent.glob("[0-9]*.safetensors"))
        return {int(file.stem): file for file in files}

    def remove_parts(self, name: str) -> None:
        """Remove the parts, and whatever a killed process left beside them."""
        folder = self.part_file(name, 0).parent
        with mending(folder, "remove"):
            for file in folder.glob("*") if folder.is_dir() else ():
                file.unlink(missing_ok=True)
            if folder.is_dir():
                folder.rmdir()


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    path: Path

    @property
    def lock_file(self) -> Path:
        """Locked by the process that writes the study's own files."""
        return self.path / ".lock"

    @property
    def study_file(self) -> Path:
        """The resolved recipe and how it was run."""
        return self.path / "study.json"

    @property
    def results_file(self) -> Path:
        """All rows of all runs."""
        return self.path / "results.csv"

    @property
    def validation_file(self) -> Path:
        """All rows that were measured on held-out training images, to choose α or λ; the columns of results.csv."""
        return self.path / "validation.csv"

    @property
    def report_file(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def examples_file(self) -> Path:
        """Example images (uint8): clean (M,C,H,W), corruption/NAME (S,C,H,W) by severity, ood/NAME (M,C,H,W)."""
        return self.path / "examples.safetensors"

    @property
    def figures(self) -> Path:
        """Figures as PNG and PDF."""
        return self.path / "figures"

    @property
    def tables(self) -> Path:
        """Tables as Markdown and LaTeX."""
        return self.path / "tables"

    def run(self, name: str) -> Run:
        """The run of one cell."""
        return Run(self.path / "runs" / name)

    def runs(self) -> list[Run]:
        """Runs that have been evaluated, by name."""
        return [Run(rows.parent) for rows in sorted(self.path.glob("runs/*/rows.csv"))]


@dataclass(frozen=True)
class CorruptedFolder:
    """The folder of a corrupted copy of an image set."""

    path: Path

    @property
    def request_file(self) -> Path:
        """What was asked for."""
        return self.path / "request.json"

    @property
    def done_file(self) -> Path:
        """How many of the images are done."""
        return self.path / "done.json"

    @property
    def sheet_file(self) -> Path:
        """The contact sheet."""
        return self.path / "contact-sheet.png"

    @property
    def labels_file(self) -> Path:
        """Labels of all blocks, int64 (5 N,)."""
        return self.path / "labels.npy"

    def blocks_file(self, corruption: str) -> Path:
        """One corruption's five blocks of images, uint8 (5 N,H,W,C)."""
        return self.path / f"{corruption}.npy"

    def part_file(self, corruption: str) -> Path:
        """The same while they are not complete."""
        return self.path / f".{corruption}.part.npy"

    def image_file(self, corruption: str, severity: int, name: str) -> Path:
        """One image; ``name`` is class/file without ending."""
        return self.path / corruption / str(severity) / f"{name}.JPEG"


def difference(there: Any, here: Any, name: str = "") -> str:
    """The first setting in which two resolved settings differ: ``train.epochs: 10 there, 12 here``; "" where equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = (difference(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in {**there, **here})
        return next(filter(None, parts), "")
    return "" if there == here else f"{name}: {json.dumps(there)} there, {json.dumps(here)} here"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV; None is an empty field, floats keep their full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """Read rows; ``UserError`` naming file and line where a field is missing or not a number."""
    with mending(path, "read"):
        text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.DictReader(io.StringIO(text))
    try:
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: the first line must name the columns {','.join(COLUMNS)}")
        return [_row(fields) for fields in reader]
    except UserError:
        raise
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}") from error


def _row(fields: dict[str, str]) -> Row:
    def value(name: str) -> Any:
        text = fields[name]
        if text is None or None in fields:
            raise ValueError(f"expected {len(COLUMNS)} fields")
        if name in _INTEGERS | _NUMBERS and text == "":
            return None
        return int(text) if name in _INTEGERS else float(text) if name in _NUMBERS else text

    return Row(**{name: value(name) for name in COLUMNS})
