"""Machines that fail: a full disk, a folder that may not be written to, a clock that jumps. Nothing is lost."""

import contextlib
import importlib
import io
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from fixtures.small_trainings import cell, same_weights
from rich.console import Console

from anchored.cli.main import main
from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid, Training
from anchored.errors import UserError
from anchored.store import files
from anchored.store.layout import Run
from anchored.study import jobs, study
from anchored.training import fit
from anchored.training.preconditions import claim_run

PLAIN = cell(Training(epochs=2, batch_size=32, accelerator="cpu", checkpoint_minutes=0), tail_weight=0.0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# What fails runs in a process of its own, forked from a server that has done nothing but import: in a fork of this
# process, whose other threads are gone, torch and whatever ran before may wait for them for ever.
APART = multiprocessing.get_context("forkserver")
LOADED = ["anchored.cli.main", "anchored.study.study", "anchored.training.fit", "importlib.readers"]
APART.set_forkserver_preload(LOADED)


def said(work: Callable[[], object], before: Callable[[], object]) -> str:
    """What work is refused with, or prints, in a process of its own, after ``before`` spoilt that process."""
    answer, text = APART.Pipe(duplex=False)
    child = APART.Process(target=_attempt, args=(text, work, before))
    child.start()
    text.close()
    found: str = answer.recv()
    child.join()
    return found


def _attempt(answer: Connection, work: Callable[[], object], before: Callable[[], object]) -> None:
    printed = io.StringIO()
    try:
        before()
        with contextlib.redirect_stderr(printed):
            work()
    except UserError as error:
        answer.send(str(error))
    except BaseException as error:
        answer.send(f"{type(error).__name__}: {error}")
    else:
        answer.send(printed.getvalue() or "no error")


def quiet_study(recipe: Recipe, folder: Path) -> None:
    """A study that prints nothing."""
    study.study(recipe, folder, Console(quiet=True))


def small_files() -> None:
    """A disk that is full for this process alone: files of 10 kB and no more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def nobody() -> None:
    """A user without any rights, who may not read the modules either."""
    for name in LOADED:
        importlib.import_module(name)
    if os.geteuid() == 0:
        os.setegid(65534)
        os.seteuid(65534)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f.bin"
    files.write_bytes(path, b"old")
    assert said(partial(files.write_bytes, path, b"x" * 50_000), small_files) == f"cannot write {path}: file too large"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    fit.train(whole, PLAIN)
    text = said(partial(fit.train, run, PLAIN), small_files)
    assert text == f"cannot write {run.checkpoint_file}: file too large"
    assert [file.name for file in run.path.iterdir()] == ["cell.json"]
    fit.train(run, PLAIN)
    assert same_weights(run, whole)


def test_a_full_disk_fails_the_cell_and_not_the_study(tmp_path: Path) -> None:
    recipe = Recipe(
        data=Data("fashion-mini-known", 0.02),
        grid=Grid(networks=("small",), protocols=("standard",)),
        train=Training(epochs=1, batch_size=32, accelerator="cpu"),
        evaluate=Evaluation(bootstrap=100),
    )
    text = said(partial(quiet_study, recipe, tmp_path), small_files)
    assert text.startswith("1 of 1 trainings failed: small · standard · seed 0: cannot write ")
    assert text.endswith("file too large")
    quiet_study(recipe, tmp_path)  # with room, the same command goes on
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["read-only", "closed"])
def test_a_folder_that_may_not_be_written_to_is_one_line(place: Path, mode: int) -> None:
    place.chmod(mode)
    text = said(partial(fit.train, Run(place / "run"), PLAIN), nobody)
    there = f"write {place / 'run' / 'cell.json'}" if mode else f"read {place / 'run'}"
    assert text == f"cannot {there}: permission denied"


@pytest.mark.parametrize("words", [["report"], ["study", "demo", "--status", "-o"], ["evaluate"]], ids=str)
def test_a_closed_folder_is_one_line(place: Path, words: list[str]) -> None:
    place.chmod(0)
    told = said(partial(main, [*words, str(place / "run")]), nobody)
    assert told.count("\n") == 1
    assert "permission denied" in told


def test_results_that_may_not_be_read_are_one_line(place: Path) -> None:
    run = Run(place / "run")
    claim_run(run, PLAIN)
    run.cell_file.chmod(0)
    text = said(partial(fit.train, run, PLAIN), nobody)
    assert text == f"cannot read {run.cell_file}: permission denied"


def test_no_decision_rests_on_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1e9, 2e9, -5.0, 0.0] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(times))
    claim_run(Run(tmp_path), PLAIN)
    keeper = jobs.StateWriter(Run(tmp_path), lambda state: None)
    with keeper.phase("training"):
        keeper.update(0.5, "training")
    found = jobs.read_state(Run(tmp_path))
    assert found is not None
    assert 0 <= found.seconds["training"] < 60


TRIAL = [
    "study", "demo", "--scale", "0.02", "--grid.protocols", "[standard, ram]", "--grid.tail_weights", "[0.0]",
    "--train.accelerator", "cpu",
    "--evaluate.bootstrap", "100", "--evaluate.corruptions", "[contrast]", "--evaluate.severities", "[1]",
    "--evaluate.ood", "[blobs]", "--evaluate.adaptation", "[]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "words", "told"),
    [
        ((resource.RLIMIT_NOFILE, 7), [], "too many open files"),
        ((resource.RLIMIT_NOFILE, 20), ["--workers", "2"], "--workers 2 need 24 open files, of which 20 are allowed"),
        ((resource.RLIMIT_FSIZE, 1000), [], "file too large"),
        ((resource.RLIMIT_FSIZE, 1000), ["--workers", "2"], "file too large"),
    ],
    ids=str,
)
def test_a_limit_of_the_system_is_one_line(limit: tuple[int, int], words: list[str], told: str, tmp_path: Path) -> None:
    def limited() -> None:
        resource.setrlimit(limit[0], (limit[1], limit[1]))

    command = [sys.executable, "-m", "anchored", *TRIAL, *words, "-o", str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def no_more_processes() -> None:
    """A user who may start nothing; root itself has no such limit."""
    for name in (
        *LOADED,
        "anchored.study.workers",
        "multiprocessing.popen_forkserver",
        "multiprocessing.resource_tracker",
    ):
        importlib.import_module(name)
    if os.getuid() == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def test_a_limit_of_processes_is_one_line(place: Path) -> None:
    place.chmod(0o777)
    text = said(partial(main, [*TRIAL, "--workers", "2", "-o", str(place / "study")]), no_more_processes)
    assert text.startswith("anchored: no further process can be started (")
    assert "ulimit -u" in text
    assert text.count("\n") == 1
