"""A study with what is done after training: rows against the trainings' outputs on disk, and its order of work."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.small_studies import TINY
from rich.console import Console

from anchored.config.recipe import AfterCell
from anchored.config.settings import Data, Grid
from anchored.errors import UserError
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, read_rows
from anchored.study import jobs, study, workers

OWN: Any = {"dropout": {"dropout": 0.3}}
AFTER = replace(
    TINY,
    data=Data("fashion-mini-known", 0.02, validation=0.3),
    grid=Grid(
        networks=("small",),
        protocols=("ram",),
        methods=("temperature", "ensemble", "mc_dropout"),
        per_method=OWN,
        seeds=(0, 1),
    ),
    train=replace(TINY.train, epochs=3, learning_rate=0.2),
    evaluate=replace(TINY.evaluate, dropout_passes=3, shifted=("fashion-mini-known",)),
).check()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    made = StudyFolder(tmp_path_factory.mktemp("after") / "study")
    study.study(AFTER, made.path, Console(quiet=True))
    return made


def outputs(run: Run, name: str) -> dict[str, np.ndarray]:
    return {key: each.double().numpy() for key, each in files.load_tensors(run.outputs_file(name))[0].items()}


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max(1, keepdims=True))
    shares: np.ndarray = exp / exp.sum(1, keepdims=True)
    return shares


def nll(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels.astype(int)]).mean())


def value(rows: list[Row], method: str, metric: str, seed: int = 0, score: str = "") -> float:
    (row,) = [
        row
        for row in rows
        if (row.method, row.metric, row.seed, row.score) == (method, metric, seed, score)
        and row.corruption == ""
        and row.dataset != "mean" and not row.dataset.startswith("mean-")
    ]  # fmt: skip
    return row.value


def test_every_axis_has_rows_of_every_method(folder: StudyFolder) -> None:
    rows = read_rows(folder.results_file)

    def axes(method: str, seed: int) -> list[tuple[object, ...]]:
        own = [row for row in rows if row.method == method and row.seed == seed]
        return [(row.metric, row.dataset, row.severity, row.corruption, row.score) for row in own]

    assert {row.method for row in rows} == {"", "dropout", "temperature", "ensemble", "mc_dropout"}
    for method in ("dropout", "temperature", "ensemble", "mc_dropout"):
        assert axes(method, 0) == axes("", 0)
    assert axes("ensemble", 1) == []  # one ensemble, under its first seed


def test_a_shifted_set_that_is_the_test_set_has_its_figures(folder: StudyFolder) -> None:
    rows = read_rows(folder.results_file)
    for method in ("", "ensemble", "mc_dropout"):
        for metric in ("accuracy", "smooth_ece"):
            name = {"accuracy": "shifted_accuracy", "smooth_ece": "shifted_ece"}[metric]
            assert value(rows, method, name) == pytest.approx(value(rows, method, metric))
    assert "On other images of the same classes" in folder.report_file.read_text(encoding="utf-8")


def test_an_ensemble_s_rows_are_those_of_the_mean_probability(folder: StudyFolder) -> None:
    rows = read_rows(folder.results_file)
    parts = [outputs(folder.run(f"small-ram-0.25-seed{seed}"), "test") for seed in (0, 1)]
    labels, mean = parts[0]["labels"], np.mean([softmax(part["logits"]) for part in parts], axis=0)
    assert value(rows, "ensemble", "accuracy") == pytest.approx(100 * (mean.argmax(1) == labels).mean())
    assert value(rows, "ensemble", "nll") == pytest.approx(nll(mean, labels), rel=1e-5)
    kept = outputs(folder.run("small-ensemble-ram-0.25-seed0-to-1"), "test")
    energies = [np.log(np.exp(part["logits"]).sum(1)) for part in parts]
    assert np.log(np.exp(kept["logits"]).sum(1)) == pytest.approx(np.mean(energies, axis=0), rel=1e-5)
    assert np.array_equal(kept["features"], np.concatenate([part["features"] for part in parts], axis=1))


def test_a_temperature_is_the_best_of_the_held_out_images_and_changes_no_answer(folder: StudyFolder) -> None:
    rows, run = read_rows(folder.results_file), folder.run("small-ram-0.25-seed1")
    held, test = outputs(run, "held-out"), outputs(run, "test")
    scaled = outputs(folder.run("small-temperature-ram-0.25-seed1"), "test")["logits"]
    temperature = float(np.median(test["logits"] / scaled))
    grid = np.exp(np.linspace(np.log(temperature) - 1, np.log(temperature) + 1, 201))
    best = grid[np.argmin([nll(softmax(held["logits"] / each), held["labels"]) for each in grid])]
    assert best == pytest.approx(temperature)  # the middle of the grid
    assert temperature != pytest.approx(1, abs=0.01)
    assert value(rows, "temperature", "accuracy", 1) == value(rows, "", "accuracy", 1)
    found, before = (value(rows, each, "auroc", 1, "max_logit") for each in ("temperature", ""))
    assert found == before  # other scores are of another distribution
    after = nll(softmax(test["logits"] / temperature), test["labels"])
    assert value(rows, "temperature", "nll", 1) == pytest.approx(after, rel=1e-5)


def test_mc_dropout_s_rows_differ_from_those_of_its_network(folder: StudyFolder) -> None:
    rows = read_rows(folder.results_file)
    assert value(rows, "mc_dropout", "nll") != value(rows, "dropout", "nll")
    once, passes = (outputs(folder.run(f"small-{each}-ram-0.25-seed0"), "test") for each in ("dropout", "mc_dropout"))
    assert passes["features"].shape == once["features"].shape
    assert np.corrcoef(passes["logits"].ravel(), once["logits"].ravel())[0, 1] > 0.8


def test_the_report_says_what_they_cost(folder: StudyFolder) -> None:
    page = folder.report_file.read_text(encoding="utf-8")
    assert "A deep ensemble is the networks of 2 seeds" in page
    assert "MC dropout takes 3 passes an image" in page
    assert all(title in page for title in ("Temperature scaling + RAM α=0.25", "Deep ensemble + RAM α=0.25"))


def test_the_same_command_does_nothing_again_and_another_number_of_passes_one_thing(folder: StudyFolder) -> None:
    cells = AFTER.jobs()
    assert all(jobs.is_done(folder.run(cell.name), cell, AFTER) for cell in cells)
    more = replace(AFTER, evaluate=replace(AFTER.evaluate, dropout_passes=4))
    (changed,) = {
        cell.method
        for cell in cells
        if isinstance(cell, AfterCell)
        and jobs.evaluator(folder.run(cell.name), cell, AFTER.evaluate).subject.weights
        != jobs.evaluator(folder.run(cell.name), cell, more.evaluate).subject.weights
    }
    assert changed == "mc_dropout"


def test_what_is_done_after_training_waits_for_it_and_fails_with_it(tmp_path: Path) -> None:
    there = StudyFolder(tmp_path / "waits")
    cell = next(each for each in AFTER.after_cells() if each.method == "ensemble")
    run = there.run(cell.name)
    assert not jobs.is_ready(run, cell)
    assert jobs.run_cell(run, cell, AFTER) is None
    assert not run.path.joinpath("cell.json").exists()
    for member in jobs.trainings_of(run, cell):
        jobs.claim(member, next(each for each in cell.members if each.name == member.name))
        jobs.StateWriter(member).end("failed", "lost")
    state = jobs.run_cell(run, cell, AFTER)
    assert state is not None
    assert (state.phase, state.error) == ("failed", "small-ram-0.25-seed0 failed, which it is made of")


def test_a_worker_is_not_started_for_what_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else processes begin and end, over and over, while others train."""
    cell = next(each for each in AFTER.after_cells() if each.method == "ensemble")
    there, started = StudyFolder(tmp_path / "none"), list[int]()

    class Idle:
        exitcode = 0

        def is_alive(self) -> bool:
            return False

        def terminate(self) -> None: ...

        def join(self, timeout: float) -> None: ...

        def kill(self) -> None: ...

    def start() -> Idle:
        started.append(1)
        return Idle()

    class Ended(Exception):
        pass

    polls = iter(range(6))

    def sleep(seconds: float) -> None:
        if next(polls) == 5:
            raise Ended

    monkeypatch.setattr(time, "sleep", sleep)
    work = workers.Workload(there, AFTER, [cell], display=None)  # type: ignore[arg-type]
    with pytest.raises(Ended):
        workers._supervise(work, start, 2)
    assert len(started) == 1  # the first one, which found nothing


def test_a_network_without_dropout_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    none = replace(AFTER, grid=replace(AFTER.grid, methods=("mc_dropout:plain",)))
    with pytest.raises(UserError, match="MC dropout needs a network that is trained with dropout"):
        study.prepare(none, StudyFolder(tmp_path / "x"))
