"""Who works on a study's cells: what becomes of cells whose processes are lost."""

from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from test_study import TINY

from anchored import cells, workers
from anchored.display import Display
from anchored.runs import StudyFolder


@dataclass
class Ended:
    """A process that has ended."""

    exitcode: int | None

    def is_alive(self) -> bool:
        return False

    def terminate(self) -> None:
        pass

    def join(self) -> None:
        pass


def test_a_machine_lost_with_many_processes_is_one_loss(tmp_path: Path) -> None:
    left = list(TINY.cells())
    work = workers.Work(StudyFolder(tmp_path), TINY, left, Display(Console(), {cell.name: "" for cell in left}))
    keepers = [cells.Keeper(work.folder.run(cell.name), lambda state: None) for cell in left]
    starts = 0

    def start() -> workers.Worker:
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
    assert all(state and not state.error for state in map(cells.state, map(work.folder.run, (c.name for c in left))))
