"""One training of a study: held by one process at a time, its progress and its error on disk.

A process that works on a cell holds the lock of its folder, which the system releases however the process ends. So any
number of processes, on one machine or on several that share a disk, can work on one study: each takes what is neither
done nor held. Progress is read from the states on disk.
"""

import contextlib
import dataclasses
import json
import logging
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from anchored.config.recipe import AfterCell, Cell, GivenCell, Recipe, canonical
from anchored.config.settings import Evaluation, Number
from anchored.config.validation import parse, settings_class
from anchored.errors import UserError, told
from anchored.evaluation import holdout, reference_suites, suites
from anchored.evaluation.after_training import after_evaluator
from anchored.evaluation.evaluator import Evaluator, Progress, Split, evaluator_of
from anchored.evaluation.given_models import given_evaluator
from anchored.evaluation.over_references import references_evaluator
from anchored.method.collectives import from_rank_zero, get_rank, get_world_size
from anchored.store import files
from anchored.store.layout import Run
from anchored.study import provenance
from anchored.training.preconditions import Diverged, claim_run

Phase = Literal["training", "evaluating", "done", "failed"]
WRITE_INTERVAL = 2.0  # seconds between two writes of a state, at least


@settings_class
class State:
    """How far a cell is: ``state.json`` in its folder."""

    phase: Phase
    share: Number = 0.0  # of the phase, in [0, 1]
    what: str = ""  # a word on what is being done
    seconds: dict[str, Number] = field(default_factory=dict)  # that each finished phase took, in this process
    worker: str = ""  # host and process
    updated: Number = 0.0  # seconds since 1970 by the clock of that host
    error: str = ""  # of a failed cell, one line
    trace: str = ""  # traceback of a failure that is not bad input

    @property
    def ended(self) -> bool:
        """Whether the cell is done or failed."""
        return self.phase in ("done", "failed")


def read_state(run: Run) -> State | None:
    """A cell's state, or None where it has none, or none that can be read."""
    try:
        state: State = parse(State, files.read_json(run.state_file))
    except UserError:
        return None
    return state


def is_free(run: Run) -> bool:
    """Whether no process works on a cell."""
    return not files.is_locked(run.lock_file)


Job = Cell | GivenCell | AfterCell
"""What a study works on: a training, a model that was trained elsewhere, or what is done after training."""


def trainings_of(run: Run, cell: Job) -> list[Run]:
    """The runs beside a cell's own whose trainings it uses: of what is done after training."""
    return [Run(run.path.with_name(each.name)) for each in cell.members] if isinstance(cell, AfterCell) else []


def is_ready(run: Run, cell: Job) -> bool:
    """Whether a cell can be begun: what is done after training waits for its trainings to be measured, or to fail."""
    return all(is_free(each) and (each.rows_file.exists() or _failed(each)) for each in trainings_of(run, cell))


def _failed(run: Run) -> bool:
    state = read_state(run)
    return state is not None and state.phase == "failed"


def is_done(run: Run, cell: Job, recipe: Recipe) -> bool:
    """Whether a cell is trained and measured as the recipe says. ``UserError`` where its folder holds another cell."""
    if not run.cell_file.exists():  # weights alone are no run: nothing says what they were trained on
        run.refuse_foreign()
        return False
    if not all(each.weights_file.exists() for each in trainings_of(run, cell)):
        return False
    return claim(run, cell) and not _unmeasured(run, cell, recipe) and not _references_left(run, cell, recipe)


def claim(run: Run, cell: Job) -> bool:
    """Claim a folder for a cell; whether there is nothing to train (left). ``UserError`` where it holds another."""
    if isinstance(cell, Cell):
        return claim_run(run, cell)
    settings = json.loads(canonical(cell)) if isinstance(cell, GivenCell) else cell.digests()
    run.claim(settings, lambda found: found, "model", "choose another folder, or another title")
    return True


def evaluator(
    run: Run,
    cell: Job,
    settings: Evaluation,
    progress: Progress = lambda share, what: None,
    root: Path | None = None,
    split: Split = "test",
) -> Evaluator:
    """The evaluator of a cell."""
    if isinstance(cell, GivenCell):
        return given_evaluator(run, cell, settings, progress, root)
    if isinstance(cell, AfterCell):
        return after_evaluator(run, cell, trainings_of(run, cell), settings, progress, root)
    return evaluator_of(run, cell, settings, progress, root, split)


def _unmeasured(run: Run, cell: Job, recipe: Recipe) -> list[tuple[Split, Evaluation]]:
    """What is left to measure on a trained cell: its test, and what α or λ is chosen on."""
    return [
        (split, settings)
        for split, settings in holdout.measured(recipe)
        if (split == "test" or isinstance(cell, Cell))
        and not suites.is_evaluated(evaluator(run, cell, settings, split=split))
    ]


def _references_left(run: Run, cell: Job, recipe: Recipe) -> bool:
    """Whether the recipe asks for figures over many references that are not measured on a trained cell."""
    if not recipe.references.count or not isinstance(cell, Cell):
        return False
    return not suites.is_evaluated(references_evaluator(run, cell, recipe))


@contextlib.contextmanager
def run_locked(run: Run) -> Iterator[bool]:
    """Hold a cell's lock, on rank 0; False, on every rank, where another process holds it."""
    with contextlib.ExitStack() as stack:
        yield from_rank_zero(lambda: stack.enter_context(files.locked(run.lock_file)))


def run_cell(
    run: Run, cell: Job, recipe: Recipe, root: Path | None = None, show: Callable[[State], None] = lambda state: None
) -> State | None:
    """Train and measure a cell, on every rank; its last state, or None where another process holds it or its trainings.

    An error fails the cell, not the study: it is kept in the state. With several ranks, which may not have it alike,
    it is raised instead, unless it is a loss that diverges.
    """
    with run_locked(run) as mine:
        if not mine or not from_rank_zero(lambda: is_ready(run, cell)):
            return None
        writer = StateWriter(run, show)
        try:
            if failed := [each.name for each in trainings_of(run, cell) if _failed(each)]:
                raise UserError(f"{failed[0]} failed, which it is made of")
            if not from_rank_zero(lambda: _begin(run, cell, recipe)):
                if isinstance(cell, Cell):
                    from anchored.training.fit import train  # on first use: Lightning takes longer to import than torch

                    with writer.phase("training"):
                        train(run, cell, writer.update, root)
                with writer.phase("evaluating"):
                    for split, settings in from_rank_zero(lambda: _unmeasured(run, cell, recipe)):
                        suites.measure(evaluator(run, cell, settings, writer.update, root, split))
                    if isinstance(cell, Cell) and from_rank_zero(lambda: _references_left(run, cell, recipe)):
                        over_many = references_evaluator(run, cell, recipe, writer.update, root)
                        suites.measure(over_many, reference_suites.SUITES)
            return writer.end("done")
        except Exception as error:
            if get_world_size() > 1 and not isinstance(error, Diverged):
                raise
            trace = "" if isinstance(error, UserError) else traceback.format_exc()
            with contextlib.suppress(UserError):  # somebody may have removed the folder
                claim(run, cell)
            return writer.end("failed", told(error), trace)


def sweep(run: Run) -> None:
    """Remove what killed processes left in the folder of a cell whose lock this process holds."""
    files.remove_unfinished(run.path)
    if run.cell_file.exists() and run.weights_file.exists():  # killed between the last two steps of a training
        run.checkpoint_file.unlink(missing_ok=True)


def _begin(run: Run, cell: Job, recipe: Recipe) -> bool:
    """Prepare a cell's folder, unless the cell is done; whether it is."""
    claim(run, cell)
    sweep(run)
    done = is_done(run, cell, recipe)
    if not done:
        files.write_json(run.recipe_file, json.loads(canonical(recipe)))
    return done


class StateWriter:
    """Writes a cell's state to its folder, on rank 0, unless that was removed, and passes it to ``show``."""

    def __init__(self, run: Run, show: Callable[[State], None] = lambda state: None) -> None:
        self.run, self.show = run, show
        self.state = State("training", worker=f"{socket.gethostname()}:{os.getpid()}")
        self._written = float("-inf")

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Training or evaluating; the seconds that it takes are kept, and how it is made."""
        began = time.monotonic()
        if get_rank() == 0 and (changed := provenance.record(self.run, phase)):
            logging.getLogger(__name__).warning(
                "%s: goes on from a checkpoint made otherwise (%s): its weights can differ from an uninterrupted "
                "training's",
                self.run.path,
                changed,
            )
        self._set(now=True, phase=phase, share=0.0, what=phase)
        yield
        self._set(now=True, seconds={**self.state.seconds, phase: time.monotonic() - began})

    def update(self, share: float, what: str) -> None:
        """How far the phase is, share in [0, 1]; written to disk now and then."""
        self._set(now=False, share=share, what=what)

    def end(self, phase: Phase, error: str = "", trace: str = "") -> State:
        """Write the last state, and return it."""
        self._set(now=True, phase=phase, share=1.0, what="", error=error, trace=trace)
        return self.state

    def _set(self, now: bool, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.show(self.state)
        if (
            get_rank() == 0
            and self.run.cell_file.exists()
            and (now or time.monotonic() - self._written >= WRITE_INTERVAL)
        ):
            self._written = time.monotonic()
            self.state = replace(self.state, updated=time.time())
            with contextlib.suppress(UserError):  # a full disk ends the cell where its results are written, not here
                files.write_json(self.run.state_file, dataclasses.asdict(self.state))
