"""Lines of ``cpu.py`` on the command itself: how long it takes to start, to answer, and to show all it can."""

from __future__ import annotations

import atexit
import functools
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from bench import Bench, Figures, Line, spread
from PIL import Image
from timing import seconds

ANCHORED = [sys.executable, "-m", "anchored"]
TINY = ["--evaluate.ood", "[]", "--evaluate.adaptation", "[]", "--evaluate.corruptions", "[contrast]"]
SMALL = ["--grid.protocols", "[anchored]", "--evaluate.severities", "[3]"]


def lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    yield "import anchored", partial(_timed, bench, [sys.executable, "-c", "import anchored"], 0.1, bare=True)
    yield "anchored --help", partial(_timed, bench, [*ANCHORED, "--help"], 0.4)
    yield "anchored predict, one image", partial(_predict, bench)
    yield "anchored report of a study, drawn anew", partial(_report, bench, anew=True)
    yield "anchored report of a study, nothing changed", partial(_report, bench, anew=False)
    if not bench.tiny:  # the tests run the demo
        yield "anchored study demo (make demo), minutes", _demo


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()[-200:]}")


def _timed(bench: Bench, words: list[str], goal: float, bare: bool = False) -> Figures:
    """On the wall; ``bare``: less what Python takes to start."""
    _run(words)
    found = [seconds(lambda: _run(words)) for _ in range(bench.turns)]
    start = statistics.median(seconds(lambda: _run([sys.executable, "-c", ""])) for _ in range(bench.turns))
    return {"s": spread([each - start * bare for each in found]), "goal": goal}


@functools.cache
def _study(tiny: bool) -> Path:
    """A small finished study; removed when the process ends."""
    place = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    size = ["--scale", "0.01", *TINY] if tiny else ["--scale", "0.05"]
    _run([*ANCHORED, "study", "demo", "-o", f"{place}/study", *SMALL, *size])
    return Path(place) / "study"


def _predict(bench: Bench) -> Figures:
    study = _study(bench.tiny)
    run, image, seen = next((study / "runs").iterdir()), study.parent / "image.png", study.parent / "seen"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)).save(image)
    return _timed(bench, [*ANCHORED, "predict", str(run), str(image), "-o", str(seen)], 4.0)


def _report(bench: Bench, anew: bool) -> Figures:
    """``anew``: each turn in a copy without what was drawn before."""
    if not anew:
        return _timed(bench, [*ANCHORED, "report", str(_study(bench.tiny))], 4.0)
    found = []
    for turn in range(bench.turns):
        copy = _study(bench.tiny).parent / f"copy{turn}"
        shutil.copytree(
            _study(bench.tiny), copy, ignore=shutil.ignore_patterns("figures", "report.html", ".report.json")
        )
        found.append(seconds(lambda copy=copy: _run([*ANCHORED, "report", str(copy)])))  # type: ignore[misc]
    return {"s": spread(found), "goal": 4.0}


def _demo() -> Figures:
    """Once: it takes minutes."""
    with tempfile.TemporaryDirectory() as place:
        return {"minutes": seconds(lambda: _run([*ANCHORED, "study", "demo", "-o", f"{place}/demo"])) / 60, "goal": 5.0}
