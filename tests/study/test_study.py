"""A study over several processes: the same rows, lost workers, failed cells, two studies in one folder."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_studies import TINY, same_study
from rich.console import Console

from anchored.cli.main import main
from anchored.config.settings import Grid
from anchored.errors import UserError
from anchored.store import files, layout
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows
from anchored.study import jobs, study, workers
from anchored.training import fit

WORDS = [
    "study", "demo", "--scale", "0.02", "--grid.protocols", "[standard, ram]", "--grid.tail_weights", "[0.0]",
    "--grid.seeds", "[0]", "--train.accelerator", "cpu",
    "--evaluate.bootstrap", "100", "--evaluate.corruptions", "[contrast]", "--evaluate.severities", "[1]",
    "--evaluate.ood", "[blobs]", "--evaluate.adaptation", "[]",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads here as in each of two workers: sums come out the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    folder = StudyFolder(tmp_path_factory.mktemp("study") / "alone")
    study.study(TINY, folder.path, Console())
    return folder


def test_two_workers_give_the_same_rows_though_one_is_killed(
    alone: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, show = StudyFolder(tmp_path / "two"), workers.Workload.show
    killed: dict[str, str] = {}  # cell -> its process

    def kill_once(work: workers.Workload, cell: Any) -> jobs.State | None:
        found = show(work, cell)
        if found and found.phase == "training" and not killed:
            killed[cell.name] = found.worker
            os.kill(int(found.worker.rpartition(":")[2]), signal.SIGKILL)
        return found

    monkeypatch.setattr(workers.Workload, "show", kill_once)
    study.study(TINY, folder.path, Console(), workers=2)
    assert killed
    assert same_study(alone, folder)
    states = {cell.name: state for cell in TINY.cells() if (state := jobs.read_state(folder.run(cell.name)))}
    assert all(states[name].worker != worker for name, worker in killed.items())  # done by another
    assert not any(state.worker.endswith(f":{os.getpid()}") for state in states.values())


def test_workers_measure_anew_what_was_measured_otherwise(alone: StudyFolder, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "again")
    shutil.copytree(alone.path, folder.path)
    changed = replace(TINY, evaluate=replace(TINY.evaluate, severities=(1, 2)))
    study.study(changed, folder.path, Console(), workers=2)
    rows = read_rows(folder.results_file)
    assert {(row.run, row.severity) for row in rows if row.corruption == "contrast"} == {
        (cell.name, severity) for cell in TINY.cells() for severity in (1, 2)
    }
    assert not any(
        run.weights_file.read_bytes() != alone.run(run.name).weights_file.read_bytes() for run in folder.runs()
    )


def test_a_failed_cell_is_kept_and_does_not_stop_the_others(
    alone: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = StudyFolder(tmp_path / "failing"), fit.train

    def failing(run: layout.Run, cell: Any, *rest: Any, **more: Any) -> None:
        if cell.protocol == "standard" and cell.seed == 0:
            raise ZeroDivisionError("of all things")
        real(run, cell, *rest, **more)

    monkeypatch.setattr(fit, "train", failing)
    said = r"1 of 4 trainings failed: small · standard · seed 0: ZeroDivisionError: of all things; the others are in"
    with pytest.raises(UserError, match=said):
        study.study(TINY, folder.path, Console())
    assert len({row.run for row in read_rows(folder.results_file)}) == 3
    assert folder.report_file.exists()
    console = Console(width=200, record=True)
    console.print(study.status(folder.path))
    lines = [line.split() for line in console.export_text().splitlines()[1:]]
    assert [words[words.index("seed") + 2] for words in lines] == ["failed", "done", "done", "done"]
    failed = jobs.read_state(folder.run("small-standard-seed0"))
    assert failed is not None
    assert "in failing" in failed.trace
    monkeypatch.undo()
    study.study(TINY, folder.path, Console())  # the same command again: only what failed is done anew
    assert same_study(alone, folder)


def test_status_needs_no_right_to_write(alone: StudyFolder) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        folder = StudyFolder(Path(name) / "study")
        shutil.copytree(alone.path, folder.path)
        folder.run("small-standard-seed0").lock_file.unlink(missing_ok=True)
        places = [Path(name), folder.path, *folder.path.rglob("*")]
        for place in places:
            place.chmod(0o555 if place.is_dir() else 0o444)
        before = sorted(folder.path.rglob("*"))
        user = os.geteuid()
        os.seteuid(user or 65534)  # root may write anywhere
        try:
            with pytest.raises(OSError, match="denied"):
                (folder.path / "new").touch()
            table = study.status(folder.path)
        finally:
            os.seteuid(user)
            for place in places:
                place.chmod(0o755)
        assert list(table.columns[1].cells) == ["done"] * 4
        assert sorted(folder.path.rglob("*")) == before


def test_two_studies_in_one_folder_share_the_work(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "shared")
    code = "import sys; from anchored.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *WORDS, "-o", str(folder.path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({row.run for row in read_rows(folder.results_file)}) == 2


def test_workers_end_with_their_study(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "orphans")
    code = "import sys; from anchored.cli.main import main; sys.exit(main())"
    longer = ["--train.epochs", "5000", "--workers", "2", "-o", str(folder.path)]
    process = subprocess.Popen([sys.executable, "-c", code, *WORDS, *longer], stdout=subprocess.DEVNULL)
    pids: set[int] = set()
    while len(pids) < 2 and process.poll() is None:
        states = [jobs.read_state(run) for run in map(folder.run, ("small-standard-seed0", "small-ram-0.25-seed0"))]
        pids = {int(each.worker.rpartition(":")[2]) for each in states if each}
        time.sleep(0.1)
    process.kill()  # without a chance to tell them
    process.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(pids) == 2
    assert not any(map(alive, pids))


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and waits to be fetched by its parent does not."""
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_what_a_kill_left_half_written_is_swept_away(alone: StudyFolder, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "killed")
    shutil.copytree(alone.path, folder.path)
    left = [place / f".x.abc{files.UNFINISHED}" for place in (folder.path, folder.tables, folder.figures)]
    for file in left:
        file.write_text("half")
    run = next(iter(folder.runs()))
    others = run.path / f".x.abc{files.UNFINISHED}"
    others.write_text("somebody's who works on that cell")
    with files.locked(run.lock_file):
        study.study(TINY, folder.path, Console())
    assert not any(file.exists() for file in left)
    assert others.exists()


def test_a_folder_with_nothing_but_a_lock_is_a_new_one(tmp_path: Path) -> None:  # killed before its first write
    folder = StudyFolder(tmp_path)
    folder.lock_file.touch()
    (tmp_path / f".study.json.abc{files.UNFINISHED}").touch()
    study.claim_folder(folder, TINY)
    assert folder.study_file.exists()


def test_a_held_cell_is_left_alone(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "held")
    one = replace(TINY, grid=Grid(networks=("small",), protocols=("standard",), seeds=(0,)))
    (cell,) = one.cells()
    run = folder.run(cell.name)
    with files.locked(run.lock_file) as mine:
        assert mine
        assert jobs.run_cell(run, cell, TINY) is None
        with pytest.raises(UserError, match="another process works on"):
            study.train_one(one, run, Console())
    assert not run.weights_file.exists()


def test_a_process_lost_three_times_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, show = StudyFolder(tmp_path / "lost"), workers.Workload.show
    grid, longer = Grid(networks=("small",), protocols=("standard",), seeds=(0, 1)), replace(TINY.train, epochs=150)
    recipe = replace(TINY, grid=grid, train=longer)  # long enough to be met while training

    def kill(work: workers.Workload, cell: Any) -> jobs.State | None:
        found = show(work, cell)
        if found and found.phase == "training" and cell.seed == 0:
            with_pid = int(found.worker.rpartition(":")[2])
            try:
                os.kill(with_pid, signal.SIGKILL)
            except ProcessLookupError:
                time.sleep(0.01)
        return found

    monkeypatch.setattr(workers.Workload, "show", kill)
    with pytest.raises(UserError, match=r"1 of 2 trainings failed: .*its process was lost 3 times \(exit status -9"):
        study.study(recipe, folder.path, Console(), workers=2)
    assert len({row.run for row in read_rows(folder.results_file)}) == 1


def test_workers_that_cannot_begin_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.Workload, "worker_arguments", lambda work, threads: ("not enough arguments",))
    with pytest.raises(UserError, match="3 workers ended before they began a training"):
        study.study(TINY, tmp_path / "none", Console(), workers=2)


def test_no_workers_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "--workers", "0"]) == 2
    assert "anchored: --workers is 0: give processes from 1" in capsys.readouterr().err


def test_a_damaged_state_is_no_state(tmp_path: Path) -> None:
    run = layout.Run(tmp_path)
    for text in ("", "[]", '{"phase": "asleep"}', '{"phase": "done", "more": 1}', "\xff"):
        run.state_file.write_text(text, encoding="latin-1")
        assert jobs.read_state(run) is None
