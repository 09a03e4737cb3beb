"""The folders of results: the only module that knows the names of their files.

A study's folder::

    study.json      the recipe, resolved, and how it was begun (versions, revision, machine)
    results.csv     all rows; validation.csv those of held-out training images, references.csv those over many
                    references; results.json what they are of
    report.html     figures/  tables/  examples.safetensors
    runs/CELL/      cell.json  made.json  recipe.json  model.json  weights.safetensors  training.csv  state.json
                    decision.json
                    outputs/*.safetensors  evaluation.json  rows.csv  validation/ (the same on held-out training images)
                    references/ (the same over many references)
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anchored.errors import UserError
from anchored.store import files

HELD_OUT = "held-out"
"""Name of the outputs on the images that decisions are fitted on."""

CHANGEABLE = ("name", "grid", "evaluate", "title", "choose", "validate", "references")
"""Sections of a recipe that may change between two runs in one folder."""

IN_PYTHON = "python"  # grid.given.TITLE.model of what Python gave: such a folder stays that of these models


class _Folder(Protocol):
    @property
    def path(self) -> Path: ...


class _Entry:
    """An attribute of a folder: the path of the file or folder ``name`` in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: _Folder, owner: type) -> Path:
        return folder.path / self.name


class _Subfolder(_Entry):
    """A folder in a folder; ``UserError`` where it is a symbolic link."""

    def __get__(self, folder: _Folder, owner: type) -> Path:
        return _within(folder.path, self.name)


def _within(folder: Path, *names: str) -> Path:
    """``folder/NAME/NAME ...``; ``UserError`` where one of the names is a symbolic link."""
    for name in names:
        folder = files.refuse_link(folder / name)
    return folder


@dataclass(frozen=True)
class Run:
    """The folder of one trained network."""

    path: Path

    cell_file = _Entry("cell.json")  # the settings that decide the weights
    state_file = _Entry("state.json")  # how far its training and evaluation are
    lock_file = _Entry(".lock")  # locked by the process that works on it
    made_file = _Entry("made.json")  # by phase: versions, revision, processor, threads ..., each time they changed
    recipe_file = _Entry("recipe.json")  # the whole recipe that the run belongs to
    model_file = _Entry("model.json")  # what is needed to rebuild the module: network, protocol, preprocessing, classes
    weights_file = _Entry(
        "weights.safetensors"
    )  # final weights, references; there when training is complete, only then
    decision_file = _Entry("decision.json")  # thresholds, sets and abstention, fitted on held-out images
    card_file = _Entry("README.md")  # the model card
    checkpoint_file = _Entry("checkpoint.safetensors")  # of an unfinished training; removed when training is complete
    log_file = _Entry("training.csv")  # one line per epoch: loss, accuracy, learning rate, seconds
    rows_file = _Entry("rows.csv")  # the run's rows; there exactly when evaluation is complete
    replicates_file = _Entry("replicates.safetensors")  # bootstrap replicates (rows,R) in the rows' order and unit
    evaluation_file = _Entry("evaluation.json")  # the settings that made the rows, the hashes of weights and rows

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def refuse_foreign(self) -> None:
        """``UserError`` where the folder holds files, but not those of a training."""
        files.refuse_foreign_folder(self.cell_file, "a training")

    def claim(self, settings: Any, as_now: Callable[[Any], Any], what: str, advice: str) -> None:
        """Claim the folder for what the settings describe; ``UserError`` where it holds something else.

        ``as_now`` turns settings that were found there into what this version would have written; ``what`` and
        ``advice`` are words of the refusal.
        """
        with files.os_errors_as_user_errors(self.path, "read"):
            claimed = self.cell_file.exists()
        if not claimed:
            self.refuse_foreign()
            files.write_json(self.cell_file, settings)
        elif difference := first_difference(as_now(files.read_json(self.cell_file)), settings):
            raise UserError(f"{self.path} holds another {what} ({difference}): {advice}")

    def refuse_removed(self) -> None:
        """``UserError`` where the folder of a training that is under way was removed or emptied."""
        if not self.cell_file.exists():
            raise UserError(f"{self.path} was removed meanwhile: the same command begins it again")

    def records(self) -> dict[str, list[dict[str, Any]]]:
        """Phase -> how it was made, one record after another; without what is none in a file changed by hand."""
        made = files.read_json(self.made_file) if self.made_file.is_file() else {}
        lists = (
            ((phase, each) for phase, each in made.items() if isinstance(each, list)) if isinstance(made, dict) else ()
        )
        return {phase: [record for record in each if isinstance(record, dict)] for phase, each in lists}

    def rows_are_intact(self) -> bool:
        """Whether the rows are those that were written, by the hash that was written with them, if any was."""
        if not (self.rows_file.exists() and self.evaluation_file.exists()):
            return False
        record = files.read_json(self.evaluation_file)
        written = record.get("rows") if isinstance(record, dict) else None
        return written in (None, files.digest(files.read_bytes(self.rows_file)))

    @property
    def model_folder_files(self) -> tuple[Path, ...]:
        """The files that make a model folder: all that is needed to use the network elsewhere, and its decision."""
        return self.model_file, self.weights_file, self.card_file, self.decision_file

    @property
    def last_good(self) -> "Run":
        """A model folder with the last finite weights, where training diverged."""
        return Run(_within(self.path, "last-good"))

    @property
    def validation(self) -> "Run":
        """What was measured on held-out training images: rows, replicates, their settings and outputs, no network."""
        return Run(_within(self.path, "validation"))

    @property
    def references(self) -> "Run":
        """What was measured over many references: rows, replicates, their settings and outputs, no network."""
        return Run(_within(self.path, "references"))

    def outputs_file(self, name: str) -> Path:
        """Logits, features and labels on one set."""
        return _within(self.path, "outputs") / f"{name}.safetensors"

    def parts_folder(self, name: str) -> Path:
        """Outputs on one set while a pass over it goes on; ``UserError`` where it is a symbolic link."""
        return _within(self.path, "outputs", f"{name}.parts")

    def part_file(self, name: str, start: int) -> Path:
        """Outputs on the images from ``start`` on."""
        return self.parts_folder(name) / f"{start:09d}.safetensors"

    def part_files(self, name: str) -> dict[int, Path]:
        """The parts that are there, by their first image."""
        parts = sorted(self.parts_folder(name).glob(f"{'[0-9]' * 9}.safetensors"))
        return {int(file.stem): file for file in parts}

    def remove_parts(self, name: str) -> None:
        """Remove the parts, what a killed process left beside them, and their folder if it holds nothing else."""
        folder = self.parts_folder(name)
        if not folder.is_dir():
            return
        files.remove_unfinished(folder, recursive=False)
        with files.os_errors_as_user_errors(folder, "remove"):
            for file in self.part_files(name).values():
                file.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()


@dataclass(frozen=True)
class StudyFolder:
    """The folder of a study."""

    path: Path

    lock_file = _Entry(".lock")  # locked by the process that writes the study's own files
    study_file = _Entry("study.json")  # the resolved recipe and how it was run
    results_file = _Entry("results.csv")  # all rows of all runs
    record_file = _Entry("results.json")  # the recipe behind the rows, and the hashes of their files
    validation_file = _Entry("validation.csv")  # rows of held-out training images, in the columns of results.csv
    references_file = _Entry("references.csv")  # rows over many references, in the columns of results.csv
    report_file = _Entry("report.html")  # the page, with everything that it shows
    evidence_file = _Entry("evidence.html")  # what a review asks for
    examples_file = _Entry("examples.safetensors")
    """Example images (uint8): clean (M,C,H,W), corruption/NAME (S,C,H,W) by severity, ood/NAME (M,C,H,W)."""
    made_file = _Entry(".report.json")  # what the report was made of: see report/cached.py
    figures = _Subfolder("figures")  # as PNG and PDF
    tables = _Subfolder("tables")  # as Markdown and LaTeX

    def run(self, name: str) -> Run:
        """The run of one cell; ``UserError`` where its folder is a symbolic link."""
        return Run(_within(self.path, "runs", name))

    def refuse_foreign(self) -> None:
        """``UserError`` where the folder holds files, but no study's."""
        files.refuse_foreign_folder(self.study_file, "a study")

    def all_runs(self) -> list[Run]:
        """All runs that have begun, by name."""
        return [Run(cell.parent) for cell in sorted(self.path.glob("runs/*/cell.json"))]

    def runs(self) -> list[Run]:
        """Runs that have been evaluated, by name."""
        return [Run(rows.parent) for rows in sorted(self.path.glob("runs/*/rows.csv"))]


@dataclass(frozen=True)
class CorruptedFolder:
    """The folder of a corrupted copy of an image set."""

    path: Path

    lock_file = _Entry(".lock")  # locked by the process that writes into it
    request_file = _Entry("request.json")  # what was asked for
    done_file = _Entry("done.json")  # how many of the images are done
    sheet_file = _Entry("contact-sheet.png")  # the first image under every corruption and severity
    labels_file = _Entry("labels.npy")  # of all blocks, int64 (5 N,)

    def blocks_file(self, corruption: str) -> Path:
        """One corruption's five blocks of images, uint8 (5 N,H,W,C)."""
        return _within(self.path, f"{corruption}.npy")

    def part_file(self, corruption: str) -> Path:
        """The same while they are not complete."""
        return _within(self.path, f".{corruption}.part.npy")

    def image_file(self, corruption: str, severity: int, name: str) -> Path:
        """One image; ``name`` is class/file without ending."""
        return _within(self.path, corruption, str(severity), *f"{name}.JPEG".split("/"))

    def refuse_foreign(self) -> None:
        """``UserError`` where the folder holds files, but no corrupted copy."""
        files.refuse_foreign_folder(self.request_file, "a corrupted copy")


def first_difference(there: Any, here: Any, name: str = "") -> str:
    """The first setting in which two resolved settings differ: ``train.epochs: 10 there, 12 here``; "" where equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = (first_difference(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in there | here)
        return next(filter(None, parts), "")
    return "" if there == here else f"{name}: {json.dumps(there)} there, {json.dumps(here)} here"


def study_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first setting in which two resolved recipes are of two studies, which share no folder; "" where none is.

    A grid may change, since every cell stands alone, but for that of models that Python gave; and with it the further
    images that its trainings use, whose content each is bound to by itself.
    """
    fixed = "grid" if _is_in_python(there) or _is_in_python(here) else ""
    ignored = dict.fromkeys(each for each in CHANGEABLE if each != fixed)
    one, other = ({**_without_contents(each), **ignored} for each in (there, here))
    return first_difference(one, other)


def _without_contents(recipe: dict[str, Any]) -> dict[str, Any]:
    data = recipe.get("data")
    return {**recipe, "data": {**data, "contents": None}} if isinstance(data, dict) else recipe


def _is_in_python(recipe: dict[str, Any]) -> bool:
    match recipe:
        case {"grid": {"given": dict(given)}}:
            return any(isinstance(each, dict) and each.get("model") == IN_PYTHON for each in given.values())
    return False


def recipe_difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    """The first setting in which two resolved recipes differ, but for what they are called; "" where none does."""
    ignored = dict.fromkeys(("name", "title"))
    return first_difference({**there, **ignored}, {**here, **ignored})
