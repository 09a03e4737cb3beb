"""One training of a study: held by one process at a time, its progress on disk, its failure kept and not spread.

A process that works on a cell holds the lock of its folder, which the system gives back however the process ends. So
any number of processes, on one machine or on several that share a disk, can work on one study: each takes what is
neither done nor held. Who wants to know how far they are reads the states on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import field, replace
from pathlib import Path
from typing import Literal

from anchored.config.recipe import Cell, Recipe, canonical
from anchored.config.settings import Evaluation, Number
from anchored.config.validation import parse, settings_class
from anchored.errors import UserError, told
from anchored.evaluation import holdout, suites
from anchored.evaluation.evaluator import Split
from anchored.store import files
from anchored.store.layout import Run
from anchored.training import fit
from anchored.training.distributed import Lost

Phase = Literal["training", "evaluating", "done", "failed"]
EVERY = 2.0
"""Seconds between two writes of a state, at least."""


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
    trace: str = ""  # where a failure that is not bad input came from

    @property
    def ended(self) -> bool:
        """Whether nothing more will be done to the cell, for good or ill."""
        return self.phase in ("done", "failed")


def state(run: Run) -> State | None:
    """A cell's state, or None where it has none, or none that can be read."""
    try:
        found: State = parse(State, files.read_json(run.state_file))
    except UserError:
        return None
    return found


def worker() -> str:
    """Name of this process, for states."""
    return f"{socket.gethostname()}:{os.getpid()}"


def free(run: Run) -> bool:
    """Whether nobody works on a cell."""
    if not run.path.exists():
        return True
    with files.locked(run.lock_file) as nobody:
        return nobody


def done(run: Run, cell: Cell, recipe: Recipe) -> bool:
    """Whether a cell is trained and measured as the recipe says. ``UserError`` where its folder holds another cell."""
    if run.cell_file.exists():
        fit.bind(run, cell)
    return run.weights_file.exists() and not list(_unmeasured(run, cell, recipe))


def _unmeasured(run: Run, cell: Cell, recipe: Recipe) -> Iterator[tuple[Split, Evaluation]]:
    """What is left to measure on a trained cell: its test, and what a knob is chosen on."""
    for split, settings in holdout.measured(recipe):
        if not suites.is_evaluated(run, cell, settings, split):
            yield split, settings


def work(
    run: Run, cell: Cell, recipe: Recipe, root: Path | None = None, show: Callable[[State], None] = lambda state: None
) -> State | None:
    """Train and measure a cell; its last state, or None where another process holds it.

    An error ends the cell, not the study: it is kept in the state. Being interrupted is no error.
    """
    with files.locked(run.lock_file) as mine:
        if not mine:
            return None
        keeper = Keeper(run, show)
        try:
            files.remove_unfinished(run.path)
            if not done(run, cell, recipe):
                files.write_json(run.recipe_file, json.loads(canonical(recipe)))
                with keeper.phase("training"):
                    fit.train(run, cell, keeper.update, root)
                with keeper.phase("evaluating"):
                    for split, settings in _unmeasured(run, cell, recipe):
                        suites.evaluate(run, cell, settings, keeper.update, root, split)
            return keeper.end("done")
        except Exception as error:
            trace = "" if isinstance(error, UserError) else traceback.format_exc()
            end = keeper.end("failed", told(error), trace)
            if isinstance(error, Lost):  # without the other processes nothing goes on
                raise
            return end


class Keeper:
    """Keeps a cell's state on disk, and shows it."""

    def __init__(self, run: Run, show: Callable[[State], None]) -> None:
        self.run, self.show = run, show
        self.state = State("training", worker=worker())
        self._written = float("-inf")

    @contextlib.contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """Training or evaluating."""
        began = time.monotonic()
        self.state = replace(self.state, phase=phase, share=0.0, what=phase)
        self._keep(now=True)
        yield
        self.state = replace(self.state, seconds={**self.state.seconds, phase: time.monotonic() - began})
        self._keep(now=True)

    def update(self, share: float, what: str) -> None:
        """How far the phase is, share in [0, 1]; written to disk now and then."""
        self.state = replace(self.state, share=share, what=what)
        self._keep(now=False)

    def end(self, phase: Phase, error: str = "", trace: str = "") -> State:
        """The last state."""
        self.state = replace(self.state, phase=phase, share=1.0, what="", error=error, trace=trace)
        self._keep(now=True)
        return self.state

    def _keep(self, now: bool) -> None:
        self.show(self.state)
        if now or time.monotonic() - self._written >= EVERY:
            self._written = time.monotonic()
            self.state = replace(self.state, updated=time.time())
            with contextlib.suppress(UserError):  # a full disk ends the cell where its results are written, not here
                files.write_json(self.run.state_file, dataclasses.asdict(self.state))
