"""Which processes work on a study's cells: this one, several of this machine, or those of a Ray cluster.

Each takes cells that are neither done nor held (``jobs.run_cell``). The process that started them reads the cells'
states from disk and replaces a process that was lost.
"""

import dataclasses
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from anchored.config.recipe import Recipe
from anchored.errors import UserError, told
from anchored.method.collectives import from_rank_zero
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.study import jobs
from anchored.study.progress import Display, quiet
from anchored.study.ray_cluster import RayCluster
from anchored.training import interruption

POLL = 0.5  # seconds between two reads of other processes' states
LAST_STEP = 60.0  # seconds in which a process that is asked to end finishes its step and writes a checkpoint
FILES, FILES_EACH = 16, 4  # open files of the process that starts others, and for each of those
ATTEMPTS = 3  # how many processes a cell may lose, and how many in a row may end before they hold a cell


@dataclass
class Workload:
    """Cells of a study that are left to do."""

    folder: StudyFolder
    recipe: Recipe
    left: Sequence[jobs.Job]
    display: Display
    root: Path | None = None

    def show(self, cell: jobs.Job) -> jobs.State | None:
        """Show a cell's state as it is on disk."""
        state = jobs.read_state(self.folder.run(cell.name))
        if state:
            self.display.show(cell.name, state)
        return state

    def worker_arguments(self, threads: int) -> tuple[Any, ...]:
        """The arguments of :func:`run_worker`."""
        settings = dataclasses.asdict(self.recipe)  # those of the machine too
        root = self.root or os.environ.get("ANCHORED_DATA")
        return str(self.folder.path.absolute()), settings, str(Path(root).absolute()) if root else None, threads


def run_here(workload: Workload) -> None:
    """Run cells one after another in this process (with its other ranks) until all are done or failed. Cells that
    another process holds are waited for."""
    left = workload.left
    while left:
        before, left = left, [cell for cell in left if not _run_if_free(workload, cell)]
        if len(left) == len(before):
            for cell in left:
                workload.show(cell)
            time.sleep(POLL)


def _run_if_free(workload: Workload, cell: jobs.Job) -> bool:
    """Run a cell unless another process holds it or made it fail; whether it has ended."""
    run = workload.folder.run(cell.name)
    state = from_rank_zero(lambda: jobs.read_state(run))
    if state is None or state.phase != "failed":
        show = partial(workload.display.show, cell.name)
        state = jobs.run_cell(run, cell, workload.recipe, workload.root, show)
    return state is not None


def run_in_processes(workload: Workload, count: int) -> None:
    """Work in ``count`` processes of this machine, each with its share of the threads."""
    count = min(count, len(workload.left))
    _refuse_few_files(count)
    arguments = workload.worker_arguments(max(1, torch.get_num_threads() // count))
    context = process_context()

    def start() -> WorkerProcess:
        process = context.Process(target=run_worker, args=arguments, daemon=False)
        try:
            process.start()
        except (OSError, EOFError, RuntimeError) as error:  # the latter from the process that forks the others
            raise UserError(
                f"no further process can be started ({told(error)}): allow more processes and open files (ulimit -u, "
                "ulimit -n), or ask for fewer --workers"
            ) from error
        worker: WorkerProcess = process
        return worker

    _supervise(workload, start, count)


def process_context() -> Any:
    """What starts processes. Where the system can, they are forked from one that has imported what they need, which
    takes seconds, and done nothing else."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # Torch's optimizers import the last.
    context.set_forkserver_preload(["anchored.study.workers", "anchored.training.fit", "torch._dynamo"])
    return context


def _refuse_few_files(count: int) -> None:
    """``UserError`` where the system gives this process too few open files for pipes to so many others."""
    if sys.platform == "win32":
        return
    import resource

    files, needed = resource.getrlimit(resource.RLIMIT_NOFILE)[0], FILES + FILES_EACH * count
    if resource.RLIM_INFINITY != files < needed:
        raise UserError(f"--workers {count} need {needed} open files, of which {files} are allowed: raise ulimit -n")


def run_on_ray(workload: Workload, address: str, count: int | None = None) -> None:
    """Work in processes of the Ray cluster at ``address``: ``count``, or as many as it has room for."""
    with RayCluster(address, workload.recipe.cluster.cpus, workload.recipe.cluster.gpus) as cluster:
        arguments = workload.worker_arguments(workload.recipe.cluster.cpus)
        room = min(count or cluster.room, len(workload.left))
        _supervise(workload, lambda: cluster.start(run_worker, arguments), room)


class WorkerProcess(Protocol):
    """A process somewhere, as ``multiprocessing`` and :class:`~anchored.study.ray_cluster.Task` have it."""

    @property
    def exitcode(self) -> int | None:
        """None while it runs; 0 when it has done all it could."""

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""

    def terminate(self) -> None:
        """Ask it to end."""

    def join(self, timeout: float) -> None:
        """Wait until it has ended, so many seconds at most."""

    def kill(self) -> None:
        """End it at once, if it has not ended yet."""


def _supervise(workload: Workload, start: Callable[[], WorkerProcess], count: int) -> None:
    """Keep ``count`` processes at work until every cell is done or failed."""
    losses, running, idle = LostWorkers(workload), list[WorkerProcess](), False
    try:
        while left := [cell for cell in workload.left if not ((state := workload.show(cell)) and state.ended)]:
            ended = [process for process in running if not process.is_alive()]
            running = [process for process in running if process not in ended]
            if lost := [process.exitcode for process in ended if process.exitcode != 0]:
                losses.record(lost[-1])
            idle |= len(lost) < len(ended)
            room = min(count, len(left)) - len(running)
            if idle and room > 0:  # one found nothing to do: another study may hold what is left
                runs = [(workload.folder.run(cell.name), cell) for cell in left]
                room = min(room, sum(jobs.is_free(run) and jobs.is_ready(run, cell) for run, cell in runs))
            running += [start() for _ in range(room)]
            time.sleep(POLL)
    finally:
        for process in running:
            process.terminate()
        try:
            for process in running:
                process.join(LAST_STEP)
        finally:  # also where a second signal comes
            for process in running:
                process.kill()


@dataclass
class LostWorkers:
    """The processes that each cell has lost; a cell that loses ``ATTEMPTS`` of them has failed."""

    workload: Workload
    lost: dict[str, set[str]] = field(default_factory=dict)  # cell -> names of processes
    without_cell: int = 0  # how many times in a row processes ended that had held no cell

    def record(self, exitcode: int | None) -> None:
        """Processes were lost, perhaps all of a machine. ``UserError`` where they held no cell, several times."""
        before = sum(map(len, self.lost.values()))
        for cell in self.workload.left:
            run = self.workload.folder.run(cell.name)
            state = jobs.read_state(run)
            if state is not None and not state.ended:
                with files.locked(run.lock_file) as free:  # by nobody, though its state says that it is worked on
                    if free:
                        self._record_loss(cell, state.worker, exitcode)
        self.without_cell = 0 if sum(map(len, self.lost.values())) > before else self.without_cell + 1
        if self.without_cell >= ATTEMPTS:
            raise UserError(f"{ATTEMPTS} workers ended before they began a training (exit status {exitcode})")

    def _record_loss(self, cell: jobs.Job, worker: str, exitcode: int | None) -> None:
        lost = self.lost.setdefault(cell.name, set())
        lost.add(worker)
        if len(lost) >= ATTEMPTS:
            how = f"exit status {exitcode}; -9 is often a full memory"
            error = f"its process was lost {ATTEMPTS} times ({how})"
            jobs.StateWriter(self.workload.folder.run(cell.name)).end("failed", error)


def run_worker(path: str, settings: dict[str, Any], root: str | None, threads: int) -> None:
    """Run the cells that no process holds, one after another. ``UserError`` if the study's folder is not seen here."""
    folder, recipe = StudyFolder(Path(path)), Recipe.parse(settings)
    if not folder.study_file.exists():
        host = socket.gethostname()
        raise UserError(f"{host} does not see {path}: give -o a folder on a disk that all machines share")
    quiet()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:  # Ctrl-C reaches this process and its parent, which then asks it to end: once is enough
        with interruption.handled(repeats=False):
            _run_cells(folder, recipe, Path(root) if root else None)
    except KeyboardInterrupt as error:
        sys.exit(128 + interruption.number_of(error))


def _run_cells(folder: StudyFolder, recipe: Recipe, root: Path | None) -> None:
    for cell in recipe.jobs():
        run = folder.run(cell.name)
        state = jobs.read_state(run)
        if not (state and state.ended):
            jobs.run_cell(run, cell, recipe, root)


def _end_with_parent() -> None:
    """End this worker when the study that started it has ended, however it did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
