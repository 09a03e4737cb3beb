"""Folders of results from Python go through the same doors as a study's: nothing of others is written over."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anchored
from anchored.config.recipe import Recipe
from anchored.config.settings import Data
from anchored.evaluation import suites
from anchored.report import cached, reading
from anchored.report.result import Result
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows, write_rows
from anchored.study import study

LEVELS = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
DATA = Data(train="test")  # as images that have no name
PAIR = (LEVELS, np.arange(40) % 3)


def model(batch: Any) -> Any:
    """Logits (B,3) that are pixels."""
    return np.asarray(batch).reshape(len(batch), -1)[:, :3]


def measured(folder: Path | None = None, severity: int = 1, **options: Any) -> Result:
    asked = {"corruptions": "contrast", "severities": [severity], "bootstrap": 100, "progress": False}
    return anchored.evaluate(model, PAIR, folder=folder, version="1", **{"name": "mine", **asked, **options})


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return measured(tmp_path_factory.mktemp("kept") / "mine")


@pytest.fixture
def copy(kept: Result, tmp_path: Path) -> Result:
    return Result(Path(shutil.copytree(kept.folder, tmp_path / "copy")))


def compared(result: Result, folder: Path) -> Result:
    return anchored.compare({"one": result, "other": result}, folder)


WRITERS: dict[str, Callable[[Result, Path], object]] = {
    "evaluate": lambda result, folder: measured(folder),
    "compare": compared,
    "save": lambda result, folder: result.save(folder),
}


def content(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != ".lock"}


@pytest.mark.parametrize("writer", WRITERS)
def test_other_studies_and_foreign_files_are_left_alone(writer: str, kept: Result, tmp_path: Path) -> None:
    other = StudyFolder(tmp_path / "other")
    study.claim_folder(other, Recipe(name="demo", data=DATA))
    files.write_text(other.results_file, "precious")
    files.write_text(tmp_path / "home" / "thesis.tex", "precious")
    before = content(tmp_path)
    for folder, message in (("other", "holds another study"), ("home", "thesis.tex")):
        with pytest.raises(anchored.UserError, match=message):
            WRITERS[writer](kept, tmp_path / folder)
    assert content(tmp_path) == before


def test_a_folder_of_python_s_is_none_of_another_model_or_of_a_study(kept: Result, copy: Result) -> None:
    before = content(copy.folder)
    with pytest.raises(anchored.UserError, match=r"holds another study \(grid.given"):
        measured(copy.folder, name="another")
    with pytest.raises(anchored.UserError, match=r"holds another study \(grid.given"):
        compared(kept, copy.folder)
    with pytest.raises(anchored.UserError, match=r"holds another study \(grid"):
        study.claim_folder(StudyFolder(copy.folder), Recipe(data=DATA))
    assert content(copy.folder) == before


def test_what_a_kill_leaves_is_shown_with_its_own_settings(copy: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(evaluator: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(suites, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(copy.folder, severity=2)
    found = reading.read_summary(StudyFolder(copy.folder))
    assert found.recipe["evaluate"]["severities"] == [1]
    assert "evaluate.severities: [1] there, [2] here" in found.notices[0]
    assert not reading.read_summary(StudyFolder(measured(copy.folder, severity=2).folder)).notices


def test_edited_results_of_python_are_said(copy: Result) -> None:
    edited = StudyFolder(copy.folder).results_file
    first, *others = read_rows(edited)
    write_rows(edited, [replace(first, value=99.9), *others])
    with pytest.warns(UserWarning, match="results.csv is not as it was written"):
        assert copy.rows[0]["value"] == 99.9
    rows = StudyFolder(copy.folder).runs()[0].rows_file
    write_rows(rows, [replace(first, value=99.9), *others])
    with pytest.raises(anchored.UserError, match=r"rows.csv is not as it was written"):
        anchored.compare({"one": copy, "other": copy})


def test_nothing_is_written_through_a_link(kept: Result, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    saved = kept.save(tmp_path / "saved")
    both = compared(kept, tmp_path / "both").folder
    for link, again in (
        (saved / "report.html", lambda: kept.save(saved)),
        (both / "examples.safetensors", lambda: compared(kept, both)),
        (both / "runs" / "given-one" / "rows.csv", lambda: compared(kept, both)),
    ):
        link.unlink()
        link.symlink_to(victim)
        with pytest.raises(anchored.UserError, match="is a symbolic link"):
            again()
    assert victim.read_text() == "precious"


def test_a_result_is_saved_again_and_into_itself(kept: Result, tmp_path: Path) -> None:
    saved = kept.save(tmp_path / "saved")
    assert kept.save(saved) == saved
    assert kept.save(kept.folder) == kept.folder
    assert content(saved).keys() == {saved / file.relative_to(kept.folder) for file in content(kept.folder)}
    assert cached.current(StudyFolder(saved))  # not drawn again


def test_two_do_not_write_into_one_folder(kept: Result, copy: Result) -> None:
    with files.locked(StudyFolder(copy.folder).runs()[0].lock_file):
        for again in (lambda: measured(copy.folder), lambda: kept.save(copy.folder)):
            with pytest.raises(anchored.UserError, match="another process works"):
                again()


def test_titles_lead_nowhere_else_and_share_no_folder(kept: Result, tmp_path: Path) -> None:
    both = anchored.compare({"..": kept, "other": kept}, tmp_path / "both")
    assert sorted(run.name for run in StudyFolder(both.folder).all_runs()) == ["given-..", "given-other"]
    assert not reading.read_summary(StudyFolder(both.folder)).notices
    with pytest.raises(anchored.UserError, match="would share the folder"):
        anchored.compare({"a b": kept, "a-b": kept})


def test_outputs_of_other_inputs_are_not_used_again(copy: Result, tmp_path: Path) -> None:
    """The same model of the same images, which are given to it otherwise."""

    def inverted(images: Any) -> Any:
        return 255 - images.float()

    again, fresh = (measured(folder, preprocess=inverted) for folder in (copy.folder, tmp_path / "fresh"))
    assert [row["value"] for row in again.rows] == [row["value"] for row in fresh.rows]
    assert files.read_json(StudyFolder(again.folder).run("given").cell_file) != files.read_json(
        StudyFolder(measured(copy.folder, mean=(0.5,)).folder).run("given").cell_file
    )


def test_a_title_of_another_set_is_measured_anew(tmp_path: Path) -> None:
    def aurocs(folder: Path, source: str, **options: Any) -> list[float]:
        found = measured(folder, ood={"x": source}, size=8, **options)
        return [row["value"] for row in found.rows if row["metric"] == "auroc"]

    first = aurocs(tmp_path / "one", "gaussian-noise")
    assert aurocs(tmp_path / "one", "blobs") == aurocs(tmp_path / "other", "blobs") != first
    suites_of = [row["dataset"] for row in measured(tmp_path / "one", ood={"x": "blobs"}, size=8, near=["x"]).rows]
    assert "mean-near" in suites_of
    assert "mean-far" not in suites_of
