"""Who works on a study's cells: what becomes of cells whose processes are lost."""

import contextlib
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from fixtures.small_studies import TINY
from rich.console import Console

from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.study import jobs, workers
from anchored.study.progress import Display
from anchored.training.preconditions import claim_run


@dataclass
class Ended:
    """A process that has ended."""

    exitcode: int | None

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    def join(self, timeout: float) -> None:
        pass

    def kill(self) -> None:
        pass


def of_tiny(path: Path) -> workers.Workload:
    left, folder = list(TINY.cells()), StudyFolder(path)
    for cell in left:
        claim_run(folder.run(cell.name), cell)
    return workers.Workload(folder, TINY, left, Display(Console(), {cell.name: "" for cell in left}))


def test_a_machine_lost_with_many_processes_is_one_loss(tmp_path: Path) -> None:
    work = of_tiny(tmp_path)
    left = work.left
    keepers = [jobs.StateWriter(work.folder.run(cell.name), lambda state: None) for cell in left]
    starts = 0

    def start() -> workers.WorkerProcess:
        nonlocal starts
        starts += 1
        if starts > len(left):  # the one that comes after the loss
            for keeper in keepers:
                keeper.end("done")
            return Ended(0)
        keeper = keepers[starts - 1]
        keeper.state = replace(keeper.state, worker=f"lost:{starts}")
        keeper.update(0.5, "")
        return Ended(-9)

    with work.display:
        workers._supervise(work, start, len(left))
    assert starts == 2 * len(left)  # all of them were replaced
    assert all(
        state and not state.error for state in map(jobs.read_state, map(work.folder.run, (c.name for c in left)))
    )


def test_nobody_is_started_for_what_another_study_works_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, waits, starts = of_tiny(tmp_path), list[float](), list[Ended]()
    others = [work.folder.run(cell.name) for cell in work.left]

    def start() -> workers.WorkerProcess:
        starts.append(Ended(0))  # it finds nothing to do
        return starts[-1]

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 10:
            for run in others:
                jobs.StateWriter(run, lambda state: None).end("done")

    monkeypatch.setattr(time, "sleep", wait)
    with work.display, contextlib.ExitStack() as held:
        for run in others:
            assert held.enter_context(files.locked(run.lock_file))
        workers._supervise(work, start, len(others))
    assert len(waits) == 10
    assert len(starts) == len(others)
