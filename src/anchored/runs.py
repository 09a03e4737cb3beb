"""Folders and files: the only module that knows names on disk.

A study's folder::

    study.json      the recipe, resolved, and how it was run (versions, revision, machine)
    results.csv     all rows
    report.html     figures/  tables/  examples.safetensors
    runs/CELL/      cell.json  recipe.json  model.json  weights.safetensors  training.csv  outputs/*.safetensors
                    evaluation.json  rows.csv  state.json

Every file appears whole or not at all (written beside its place, then renamed). Nothing is pickled or unpickled.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import os
import struct
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from anchored.errors import UserError


@dataclass(frozen=True)
class Row:
    """One measured number: a line of ``results.csv``. The first eight columns are those of the paper's tables."""

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


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
UNFINISHED = ".part"  # end of the names of files that are being written
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


@contextlib.contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Within it, this process alone holds the lock file ``path``; gives False where another one does, or waits for it.

    The system gives the lock back however the process ends, so nothing is ever left locked.
    """
    with mending(path, "lock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            mine = False
        else:
            mine = True
    try:
        yield mine
    finally:
        lock.release()


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


@contextlib.contextmanager
def mending(path: Path, action: str) -> Iterator[None]:
    """Turn the system's refusals about ``path`` (full disk, no permission ...) into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {(error.strerror or str(error)).lower()}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with writing(path) as stream:
        stream.write(content)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a file that appears whole or not at all: beside its place first, flushed to disk, then renamed."""
    with mending(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
        try:
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written below ``folder``; nobody else may be writing there."""
    for file in folder.rglob(f".*{UNFINISHED}"):
        with mending(file, "remove"):
            file.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextlib.contextmanager
def placing(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Gives a path in a new folder beside ``path`` to write a file or folder to; it is moved to its place at the end.

    Where the body raises, nothing is left. Raises ``UserError`` where something is there already, unless ``force``
    (then it is replaced; a folder only where it is empty).
    """
    taken = any(path.iterdir()) if path.is_dir() else path.exists() and not force
    if taken:
        hint = "choose another place" if path.is_dir() else "choose another place, or replace it with --force"
        raise UserError(f"{path} exists already: {hint}")
    with mending(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            made = Path(folder) / path.name
            yield made
            made.replace(path)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON that people can read."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; ``UserError`` where the file is missing or is not JSON."""
    with mending(path, "read"):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): it was changed by hand or cut short") from error


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
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{path}: the first line must name the columns {','.join(COLUMNS)}")
    try:
        return [_row(fields) for fields in reader]
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


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write named tensors (any device; copied to CPU) and text as one safetensors file, atomically."""
    # clone: safetensors refuses tensors that share memory, and views of larger ones would be saved whole.
    write_bytes(path, save({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, metadata))


def join_tensors(path: Path, parts: Sequence[Path], metadata: dict[str, str]) -> None:
    """Write the tensors of several files one after another, along their first axis, as one file.

    Only one tensor of one part is in memory at a time. The format is github.com/huggingface/safetensors#format: eight
    bytes with the header's length, a JSON header, the data.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(safe_open(part, framework="pt")) for part in parts]
        names, end = list(opened[0].keys()), 0
        for name in names:
            slices = [part.get_slice(name) for part in opened]
            shape = [sum(each.get_shape()[0] for each in slices), *slices[0].get_shape()[1:]]
            size = sum(part.get_tensor(name).nbytes for part in opened)
            header[name] = {"dtype": slices[0].get_dtype(), "shape": shape, "data_offsets": [end, end + size]}
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with writing(path) as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for name in names:
                for part in opened:
                    stream.write(part.get_tensor(name).numpy().tobytes())


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: named CPU tensors, and the text kept with them."""
    try:
        with mending(path, "read"), safe_open(path, framework="pt") as stored:
            return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): remove it and run again") from error


def save_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists, tuples, tensors and plain values (a training checkpoint) as one safetensors file."""
    tensors: dict[str, Tensor] = {}

    def packed(node: Any) -> Any:
        match node:
            case Tensor():
                tensors[f"t{len(tensors)}"] = node
                return {"tensor": f"t{len(tensors) - 1}"}
            case dict():  # as pairs, since keys may be numbers
                return {"dict": [[packed(key), packed(value)] for key, value in node.items()]}
            case tuple():
                return {"tuple": [packed(value) for value in node]}
            case list():
                return [packed(value) for value in node]
            case None | bool() | int() | float() | str():
                return node
        raise TypeError(f"a checkpoint cannot hold a {type(node).__name__}")

    text = json.dumps(packed(tree))
    save_tensors(path, tensors, {"tree": text})


def load_tree(path: Path) -> Any:
    """Read what ``save_tree`` wrote."""
    tensors, metadata = load_tensors(path)

    def unpacked(node: Any) -> Any:
        match node:
            case {"tensor": name}:
                return tensors[name]
            case {"dict": pairs}:
                return {unpacked(key): unpacked(value) for key, value in pairs}
            case {"tuple": values}:
                return tuple(unpacked(value) for value in values)
            case list():
                return [unpacked(value) for value in node]
        return node

    try:
        return unpacked(json.loads(metadata["tree"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is not a checkpoint of anchored: remove it to train from the start") from error
