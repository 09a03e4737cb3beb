"""Kill a small study at random points, start it again until it is done, and compare with one that was left alone.

    python scripts/crash_test.py [--kills 50] [--seed 0] [--workers 1]

Every kill is a SIGKILL of the study's whole process group: at a moment drawn uniformly over half of the time that the
study takes, or, every other time, just before one of its writes (a file opened to be written, renamed or removed),
drawn among half of those that it makes; what was done before a kill is kept, so that the next one meets a later part.
After ten kills at most a study is let finish. Checkpoints are written after every step. The rows, weights, references
and the report's tables and figures must come out the same, byte for byte, and nothing half-written may be left. Exit
status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch._dynamo  # noqa: F401 -- this and two below are loaded once, here: a study is a fork of this process

from anchored.cli.main import main as anchored
from anchored.store import files as disk
from anchored.study import study  # noqa: F401
from anchored.training import fit  # noqa: F401

STUDY = [
    "study", "demo", "--scale", "0.02", "--train.epochs", "2", "--train.accelerator", "cpu",
    "--train.checkpoint_minutes", "0", "--grid.protocols", "[standard, ram]", "--grid.tail_weights", "[0.1]",
    "--evaluate.bootstrap", "100", "--evaluate.severities", "[1]", "--evaluate.corruptions", "[contrast]",
    "--evaluate.ood", "[blobs, digits]",
]  # fmt: skip
COMPARED = (
    "results.csv",
    "tables/*",
    "figures/*.png",
    "runs/*/weights.safetensors",
    "runs/*/rows.csv",
    "runs/*/cell.json",
)
POLL = 0.01  # seconds
MOST = 10  # kills of one study


@dataclass
class Writes:
    """Counts the writes of this process, and kills its group just before one of them."""

    last: float  # the number of the write that does not happen
    count: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook of Python."""
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opened or event in ("os.rename", "os.remove"):
            self.count += 1
            if self.count >= self.last:
                os.killpg(0, signal.SIGKILL)


def started(folder: Path, workers: int, last: float = float("inf")) -> int:
    """Start the study's command in a process group of its own, which ends before its ``last`` write; its number."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    said = os.open(folder.with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(said, 2)
    writes = Writes(last)
    sys.addaudithook(writes)
    status = 70
    with contextlib.suppress(BaseException):
        status = anchored([*STUDY, "-o", str(folder), "--workers", str(workers)])
    folder.with_suffix(".writes").write_text(str(writes.count))
    os._exit(status)


def ended(child: int, seconds: float = float("inf")) -> int | None:
    """The exit status of a study, negative where it was killed; after so many ``seconds`` it is killed."""
    until = time.monotonic() + seconds
    killed = False
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # its workers
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= until and not killed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            killed = True
        time.sleep(POLL)


def contents(folder: Path) -> dict[str, bytes]:
    """What is compared, by name."""
    files = sorted(file for pattern in COMPARED for file in folder.glob(pattern))
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def finished(folder: Path, kill: Callable[[], tuple[float, float]], most: int, workers: int) -> int:
    """Start a study again and again until it ends by itself; how often it was killed, ``most`` times at most."""
    kills = 0
    while True:
        last, seconds = kill() if kills < most else (float("inf"), float("inf"))
        status = ended(started(folder, workers, last), seconds)
        if status == 0:
            return kills
        if status is None or status > 0:
            raise SystemExit(f"the study ended with exit status {status}: {folder.with_suffix('.said').read_text()}")
        kills += 1


def faults(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """What differs from the study that was left alone, and what is left half-written."""
    found = contents(folder)
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    return different + [str(file.relative_to(folder)) for file in folder.rglob(f".*{disk.UNFINISHED}")]


def main() -> None:
    """Kill, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--workers", type=int, default=1, help="processes of the study")
    options = parser.parse_args()
    draw, kills, studies, failures = random.Random(options.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        began, alone = time.monotonic(), Path(place) / "alone"
        finished(alone, lambda: (float("inf"), float("inf")), 0, 1)
        whole, expected = time.monotonic() - began, contents(alone)
        writes = int(alone.with_suffix(".writes").read_text())
        print(f"left alone: {whole:.0f} s, {writes} writes, {len(expected)} files to compare", flush=True)

        def kill() -> tuple[float, float]:
            by_write = options.workers == 1 and draw.random() < 0.5
            return (
                (draw.randint(1, writes // 2), float("inf")) if by_write else (float("inf"), draw.uniform(0, whole / 2))
            )

        while kills < options.kills:
            folder = Path(place) / f"killed{studies}"
            kills += finished(folder, kill, min(MOST, options.kills - kills), options.workers)
            studies += 1
            wrong = faults(folder, expected)
            failures += bool(wrong)
            verdict = f"DIFFERS {wrong}" if wrong else "the same"
            print(f"{kills} kills, {studies} studies finished: {verdict}", flush=True)
    print(f"{kills} kills over {studies} studies in {time.monotonic() - began:.0f} s: {failures} differ")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
