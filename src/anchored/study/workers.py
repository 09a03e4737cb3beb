"""Who works on a study's cells: this process, several on this machine, or those of a Ray cluster.

All do the same: take a cell that is neither done nor held (``cells.work``). Nobody tells them what; whoever started
them reads the cells' states from disk, and replaces a process that was lost.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from anchored.config.recipe import Cell, Recipe
from anchored.errors import UserError
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.study import jobs
from anchored.study.progress import Display, quiet
from anchored.study.ray_cluster import Cluster

POLL = 0.5  # seconds between two looks at what other processes do
ATTEMPTS = 3  # how often a cell's process may be lost, and how many times they may end before they hold any


@dataclass
class Work:
    """Cells of a study that are left to do."""

    folder: StudyFolder
    recipe: Recipe
    left: Sequence[Cell]
    display: Display
    root: Path | None = None

    def show(self, cell: Cell) -> jobs.State | None:
        """Show a cell's state as it is on disk."""
        found = jobs.state(self.folder.run(cell.name))
        if found:
            self.display.show(cell.name, found)
        return found

    def serving(self, threads: int) -> tuple[Any, ...]:
        """The arguments of :func:`serve` for a process that is to work on this."""
        settings = dataclasses.asdict(self.recipe)  # those of the machine too
        root = self.root or os.environ.get("ANCHORED_DATA")
        return str(self.folder.path.absolute()), settings, str(Path(root).absolute()) if root else None, threads


def alone(work: Work) -> None:
    """Work on cells one after another, but for those that another process holds, until all are done or failed."""
    left = work.left
    while left:
        before, left = left, [cell for cell in left if not _attempt(work, cell)]
        if len(left) == len(before):
            for cell in left:
                work.show(cell)
            time.sleep(POLL)


def _attempt(work: Work, cell: Cell) -> bool:
    """Work on a cell unless another process holds it or made it fail; whether nothing is left of it to do."""
    run = work.folder.run(cell.name)
    found = jobs.state(run)
    if found is None or found.phase != "failed":
        found = jobs.work(run, cell, work.recipe, work.root, lambda state: work.display.show(cell.name, state))
    return found is not None


def on_this_machine(work: Work, count: int) -> None:
    """Work in ``count`` processes, each with its share of the threads."""
    count = min(count, len(work.left))
    arguments = work.serving(max(1, torch.get_num_threads() // count))
    context: Any = multiprocessing.get_context("spawn")
    if "forkserver" in multiprocessing.get_all_start_methods():
        # Processes are forked from one that has imported what they need, which takes seconds, and done nothing else.
        context = multiprocessing.get_context("forkserver")
        # Torch's optimizers import the latter.
        context.set_forkserver_preload(["anchored.study.workers", "torch._dynamo"])

    def start() -> Worker:
        process = context.Process(target=serve, args=arguments, daemon=False)
        process.start()
        worker: Worker = process
        return worker

    _supervise(work, start, count)


def on_cluster(work: Work, address: str, count: int | None = None) -> None:
    """Work in processes of the Ray cluster at ``address``: ``count``, or as many as it has room for."""
    with Cluster(address, work.recipe.cluster.cpus, work.recipe.cluster.gpus) as cluster:
        arguments = work.serving(work.recipe.cluster.cpus)
        room = min(count or cluster.room, len(work.left))
        _supervise(work, lambda: cluster.start(serve, arguments), room)


class Worker(Protocol):
    """A process somewhere, as ``multiprocessing`` and :class:`~anchored.cluster.Task` have it."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; 0 when it has done all it could."""

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""

    def terminate(self) -> None:
        """End it."""

    def join(self) -> None:
        """Wait until it has ended."""


def _supervise(work: Work, start: Callable[[], Worker], count: int) -> None:
    """Keep ``count`` processes at work until every cell is done or failed."""
    losses, running, satisfied = Losses(work), list[Worker](), False
    try:
        while left := [cell for cell in work.left if not _ended(work, cell)]:
            ended = [each for each in running if not each.is_alive()]
            for process in ended:
                running.remove(process)
            if lost := [each.exitcode for each in ended if each.exitcode != 0]:
                losses.note(lost[-1])
            satisfied |= len(lost) < len(ended)
            room = min(count, len(left)) - len(running)
            if satisfied and room > 0:  # one found nothing to do: another study may hold what is left
                room = min(room, sum(jobs.free(work.folder.run(cell.name)) for cell in left))
            running += [start() for _ in range(room)]
            time.sleep(POLL)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _ended(work: Work, cell: Cell) -> bool:
    found = work.show(cell)
    return found is not None and found.ended


@dataclass
class Losses:
    """What lost processes were at: a cell that lost its process again and again has failed."""

    work: Work
    lost: dict[str, set[str]] = field(default_factory=dict)  # cell -> the processes that it lost
    idle: int = 0  # how many times in a row processes ended that had held nothing

    def note(self, exitcode: int | None) -> None:
        """Processes were lost, perhaps all of a machine. ``UserError`` where they hold no cell, time and again."""
        before = sum(map(len, self.lost.values()))
        for cell in self.work.left:
            run = self.work.folder.run(cell.name)
            found = jobs.state(run)
            if found is None or found.ended:
                continue
            with files.locked(run.lock_file) as free:  # by nobody, though its state says that it is worked on
                if free:
                    self._lose(cell, found, exitcode)
        self.idle = 0 if sum(map(len, self.lost.values())) > before else self.idle + 1
        if self.idle >= ATTEMPTS:
            raise UserError(f"{ATTEMPTS} workers ended before they began a training (exit status {exitcode})")

    def _lose(self, cell: Cell, found: jobs.State, exitcode: int | None) -> None:
        lost = self.lost.setdefault(cell.name, set())
        lost.add(found.worker)
        if len(lost) >= ATTEMPTS:
            keeper = jobs.Keeper(self.work.folder.run(cell.name), lambda state: None)
            how = f"exit status {exitcode}; -9 is often a full memory"
            keeper.end("failed", f"its process was lost {ATTEMPTS} times ({how})")


def serve(path: str, settings: dict[str, Any], root: str | None, threads: int) -> None:
    """What a worker does: cells that nobody holds, one after another. ``UserError`` if it cannot see the study."""
    folder, recipe = StudyFolder(Path(path)), Recipe.parse(settings)
    if not folder.study_file.exists():
        host = socket.gethostname()
        raise UserError(f"{host} does not see {path}: give -o a folder on a disk that all machines share")
    quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    for cell in recipe.cells():
        run = folder.run(cell.name)
        found = jobs.state(run)
        if not (found and found.ended):
            jobs.work(run, cell, recipe, Path(root) if root else None)


def _end_with_parent() -> None:
    """End this worker when the study that started it has ended, however it did: nobody would see what it does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
