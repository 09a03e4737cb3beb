"""Folders that are not ours, links, edited rows, other machines, signals: nothing is lost, nothing wrong is shown."""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.small_studies import TINY
from fixtures.small_trainings import cell, same_weights
from rich.console import Console

from anchored.cli.main import main
from anchored.config.settings import Grid, Training
from anchored.errors import UserError
from anchored.evaluation import suites
from anchored.evaluation.evaluator import evaluator_of
from anchored.report import reading
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import read_rows, write_rows
from anchored.study import jobs, provenance, study
from anchored.training import fit, interruption
from anchored.training.preconditions import claim_run

ONE = replace(TINY, grid=Grid(networks=("small",), protocols=("standard",), seeds=(0,)))
(CELL,) = ONE.cells()
OTHER = replace(ONE, evaluate=replace(ONE.evaluate, severities=(2,)))
PLAIN = cell(Training(epochs=2, batch_size=16, accelerator="cpu"), tail_weight=0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = StudyFolder(tmp_path_factory.mktemp("made") / "study")
    study.study(ONE, folder.path, Console(quiet=True))
    return folder


@pytest.fixture
def copy(made: StudyFolder, tmp_path: Path) -> StudyFolder:
    shutil.copytree(made.path, tmp_path / "study")
    return StudyFolder(tmp_path / "study")


def again(folder: StudyFolder, recipe: Any = ONE) -> None:
    study.study(recipe, folder.path, Console(quiet=True))


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


# --- folders ------------------------------------------------------------------------------------------------------

THEIRS = ("model.json", "recipe.json", "state.json", "training.csv", "predictions.csv", "gallery.html", "weights.txt")
SMALL = ["--scale", "0.02", "--grid.protocols", "[standard]", "--train.accelerator", "cpu"]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "demo", *SMALL],
        ["study", "demo", *SMALL],
        ["predict", "RUN", "PHOTO"],
        ["corrupt", "PHOTO/..", "--corruptions", "[contrast]", "--severities", "[1]"],
        ["convert", "RUN"],
        ["export", "RUN"],
    ],
    ids=lambda words: words[0],
)
def test_no_verb_writes_into_a_folder_that_is_not_ours(
    words: list[str], made: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    photo, home = tmp_path / "photos" / "a.png", tmp_path / "home"
    photo.parent.mkdir()
    Image.new("RGB", (32, 32)).save(photo)
    home.mkdir()
    for name in THEIRS:
        (home / name).write_text("precious")
    places = {"RUN": str(made.run(CELL.name).path), "PHOTO": str(photo), "PHOTO/..": str(photo.parent)}
    target = [str(home)] if words[0] == "export" else ["-o", str(home)]
    said = refused([*(places.get(word, word) for word in words), *target], capsys)
    assert str(home) in said
    assert {file.name: file.read_text() for file in home.iterdir()} == dict.fromkeys(THEIRS, "precious")


@pytest.mark.parametrize("linked", ["outputs/ood-blobs.parts", "outputs"])
def test_evaluate_leaves_files_behind_links_alone(
    linked: str, copy: StudyFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, victim = copy.run(CELL.name), tmp_path / "victim"
    for name in ("thesis.tex", "000000000.safetensors", f".x.abc{files.UNFINISHED}"):
        files.write_text(victim / name, "precious")
    shutil.rmtree(run.path / "outputs")
    link = run.path / linked
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(victim)
    assert "is a symbolic link" in refused(["evaluate", str(run.path), "--evaluate.ood", "[blobs]"], capsys)
    assert len([file for file in victim.iterdir() if file.read_text() == "precious"]) == 3
    assert len(list(victim.iterdir())) == 3


@pytest.mark.parametrize("linked", ["figures", "tables", "runs"])
def test_a_study_writes_through_no_link(linked: str, copy: StudyFolder, tmp_path: Path) -> None:
    shutil.move(copy.path / linked, tmp_path / "elsewhere")
    (copy.path / linked).symlink_to(tmp_path / "elsewhere")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "elsewhere").rglob("*")}
    with pytest.raises(UserError, match=f"{linked} is a symbolic link"):
        again(copy)
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "elsewhere").rglob("*")}


def test_weights_alone_are_no_run(copy: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy.run(CELL.name)
    run.cell_file.unlink()  # as in a converted folder
    weights = run.weights_file.read_bytes()
    said = refused(["train", "demo", *SMALL, "-o", str(run.path)], capsys)
    assert "is not empty" in said
    assert "not the folder of a training" in said
    with pytest.raises(UserError, match="not the folder of a training"):
        again(copy)
    assert run.weights_file.read_bytes() == weights


@pytest.mark.parametrize("module", [fit, suites], ids=["training", "evaluating"])
def test_a_run_that_is_removed_meanwhile_is_said_and_done_again(
    module: Any, made: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = StudyFolder(tmp_path / "study"), "train" if module is fit else "save_examples"
    real, run = getattr(module, name), folder.run(CELL.name)

    def remove(*arguments: Any, **named: Any) -> None:
        shutil.rmtree(run.path, ignore_errors=True)

    def train(run: Run, cell: Any, progress: Callable[[float, str], None], *rest: Any) -> None:
        real(run, cell, remove, *rest)

    monkeypatch.setattr(module, name, train if module is fit else remove)
    if module is fit:
        with pytest.raises(UserError, match=r"1 of 1 trainings failed: .* was removed meanwhile"):
            again(folder)
        monkeypatch.undo()
    again(folder)
    assert folder.results_file.read_bytes() == made.results_file.read_bytes()


# --- rows and their settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [0, 1, 2], ids=["replicates", "rows", "settings"])
def test_rows_of_two_measurements_are_measured_again(
    writes: int, copy: StudyFolder, made: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, count = copy.run(CELL.name), 0
    real = files.write_bytes

    def killed(path: Path, content: bytes) -> None:
        nonlocal count
        if path in (run.replicates_file, run.rows_file, run.evaluation_file):
            count += 1
            if count > writes:
                raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(files, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        suites.measure(evaluator_of(run, CELL, OTHER.evaluate))
    monkeypatch.undo()
    assert jobs.is_done(run, CELL, OTHER) is False
    assert jobs.is_done(run, CELL, ONE) is (writes == 0)
    again(copy)
    assert copy.results_file.read_bytes() == made.results_file.read_bytes()
    assert run.rows_file.read_bytes() == made.run(CELL.name).rows_file.read_bytes()


def test_rows_are_shown_with_the_settings_that_they_are_of(copy: StudyFolder) -> None:
    study.claim_folder(copy, OTHER)  # and killed
    found = reading.read_summary(copy)
    assert found.recipe["evaluate"]["severities"] == [1]
    assert "evaluate.severities: [1] there, [2] here" in found.notices[0]


def test_edited_results_are_said(copy: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert not reading.read_summary(copy).notices
    first, *others = read_rows(copy.results_file)
    write_rows(copy.results_file, [replace(first, value=99.9), *others])
    assert main(["report", str(copy.path)]) == 0
    assert "anchored: results.csv is not as it was written" in capsys.readouterr().err
    assert "results.csv is not as it was written" in copy.report_file.read_text()


def test_edited_rows_of_a_run_are_measured_again(copy: StudyFolder, made: StudyFolder) -> None:
    run = copy.run(CELL.name)
    run.rows_file.write_text(run.rows_file.read_text().replace(",0,", ",7,"))
    assert not run.rows_are_intact()
    again(copy)
    assert copy.results_file.read_bytes() == made.results_file.read_bytes()
    assert run.rows_are_intact()


def test_a_study_with_other_settings_waits_its_turn(copy: StudyFolder) -> None:
    before = copy.study_file.read_bytes()
    with (
        files.locked(copy.run(CELL.name).lock_file),
        pytest.raises(UserError, match=r"works on .* with other settings"),
    ):
        again(copy, OTHER)
    assert copy.study_file.read_bytes() == before


def test_a_study_that_another_one_overtook_keeps_its_results(
    copy: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = copy.results_file.read_bytes()
    monkeypatch.setattr(study, "run_here", lambda workload: study.claim_folder(copy, OTHER))
    with pytest.raises(UserError, match=r"another study began .*evaluate.severities"):
        again(copy)
    assert copy.results_file.read_bytes() == before


# --- how it was made ----------------------------------------------------------------------------------------------


def test_a_run_says_how_it_was_made(made: StudyFolder) -> None:
    records = files.read_json(made.run(CELL.name).made_file)
    assert set(records) == {"training", "evaluating"}
    assert {"torch", "processor", "threads", "device", "revision", "started"} <= records["training"][0].keys()
    assert '<th scope="row">processor</th>' in made.report_file.read_text()


def test_a_training_that_goes_on_otherwise_is_warned_of_and_both_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, here = Run(tmp_path), provenance.provenance()
    claim_run(run, PLAIN)
    assert provenance.record(run, "training") == ""
    files.write_text(run.checkpoint_file, "")
    assert provenance.record(run, "training") == ""
    monkeypatch.setattr(provenance, "provenance", lambda: {**here, "torch": "9.9", "threads": "64"})
    said = provenance.record(run, "training")
    assert f"torch: {here['torch']} then, 9.9 now" in said
    assert "threads: " in said
    assert [entry["torch"] for entry in files.read_json(run.made_file)["training"]] == [here["torch"], "9.9"]
    run.checkpoint_file.unlink()  # from the start
    assert provenance.record(run, "training") == ""
    assert len(files.read_json(run.made_file)["training"]) == 1


# --- signals, terminals, leftovers --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_training_with_a_checkpoint_of_the_step(number: signal.Signals, tmp_path: Path) -> None:
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def send(share: float, what: str) -> None:
        if 0.5 < share < 0.9:  # within the second epoch
            os.kill(os.getpid(), number)

    with pytest.raises(interruption.Interrupted) as raised, interruption.handled():
        fit.train(run, PLAIN, send)
    assert raised.value.number == number
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    fit.train(whole, PLAIN)
    epochs = len(whole.log_file.read_text().splitlines()) - 1
    assert len(run.log_file.read_text().splitlines()) - 1 < epochs  # it did not end with an epoch
    fit.train(run, PLAIN)
    assert same_weights(run, whole)


def test_a_terminal_that_lacks_a_sign_does_not_end_a_command(
    made: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for encoding in ("ascii", "cp1252"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        assert main(["report", str(made.path)]) == 0
        stream.flush()
        assert b"Report: " in stream.buffer.getvalue()


def test_what_kills_left_in_finished_runs_is_swept_away(copy: StudyFolder) -> None:
    run = copy.run(CELL.name)
    left = [run.checkpoint_file, run.path / f".x.abc{files.UNFINISHED}"]
    for file in left:
        file.touch()
    with files.locked(run.lock_file):  # somebody's who works there
        again(copy)
    assert all(file.exists() for file in left)
    again(copy)
    assert not any(file.exists() for file in left)


def test_a_pipe_in_a_run_is_one_line(copy: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run = copy.run(CELL.name)
    run.cell_file.unlink()
    os.mkfifo(run.cell_file)
    assert "is not a regular file" in refused(["evaluate", str(run.path)], capsys)
    os.mkfifo(copy.path / "recipe.yaml")
    assert "is not a regular file" in refused(["study", str(copy.path / "recipe.yaml")], capsys)


def test_a_lost_study_file_is_one_line(copy: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    copy.study_file.unlink()
    assert "cannot read" in refused(["report", str(copy.path)], capsys)
    with pytest.raises(UserError, match="not the folder of a study"):
        again(copy)


def test_a_moved_study_goes_on(made: StudyFolder, copy: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    again(copy)
    assert json.loads(copy.study_file.read_text()) == json.loads(made.study_file.read_text())
    assert main(["report", str(copy.path)]) == 0
