"""What the benchmarks share: times of two things in turn in one process, as medians of ratios with their range."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

Clock = Callable[[], float]


def options_of(doc: str | None, turns: int | None = None) -> argparse.ArgumentParser:
    """The parser of a benchmark: its docstring as help, and ``--turns`` where a default is given."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if turns is not None:
        parser.add_argument("--turns", type=int, default=turns, help="turns behind each median (%(default)s)")
    return parser


def case_options(doc: str | None, turns: int, cases: Iterable[str]) -> argparse.ArgumentParser:
    """The parser of a benchmark of several networks."""
    parser = options_of(doc, turns=turns)
    parser.add_argument("--quick", action="store_true", help="a few turns only, to see that it runs")
    parser.add_argument("--only", choices=list(cases), help="one network")
    return parser


def begin(options: argparse.Namespace, cases: Iterable[str]) -> tuple[list[str], int]:
    """Seed torch and say its version: the networks that were asked for, and the turns."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    return [options.only] if options.only else list(cases), 3 if options.quick else options.turns


def seconds(work: Callable[[], Any], clock: Clock = time.perf_counter) -> float:
    """Seconds of one call."""
    start = clock()
    work()
    return clock() - start


def median_and_range(ratios: Iterable[float], digits: int = 3) -> str:
    """``median [least, greatest]``."""
    values: Sequence[float] = sorted(ratios)
    return f"{statistics.median(values):.{digits}f}  [{values[0]:.{digits}f}, {values[-1]:.{digits}f}]"


def turned(turns: int, *works: Callable[[], float], warm_up: int = 1) -> list[list[float]]:
    """Seconds as the works tell them, in turn, forwards and backwards, after ``warm_up`` turns that do not count."""
    found: list[list[float]] = [[] for _ in works]
    for turn in range(turns + warm_up):
        for place in range(len(works))[:: -1 if turn % 2 else 1]:
            found[place].append(works[place]())
    return [each[warm_up:] for each in found]


def paired(
    first: Callable[[], float], second: Callable[[], float], turns: int, *, warm_up: int = 1, digits: int = 3
) -> str:
    """``median [least, greatest]`` of first / second."""
    ratios = (a / b for a, b in zip(*turned(turns, first, second, warm_up=warm_up), strict=True))
    return f"{median_and_range(ratios, digits)}  ({turns} turns)"
