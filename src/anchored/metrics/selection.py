"""Choosing one of several trainings by several figures at once: the Pareto front, one pick, and its regret.

Legend: C candidates, A aims. Every figure is an error here: a fraction, lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from anchored.errors import UserError
from anchored.metrics.registry import METRICS

Errors = Sequence[Sequence[float]]
"""C rows of A errors."""


def error(metric: str, value: float, n: int) -> float:
    """A figure of ``n`` images in rows' units as an error: 1 − share for accuracies and rates, else the figure itself.

    At least 1 / (2n), half an image: a figure without any error has a logarithm too.
    """
    row = METRICS[metric]
    share = value / 100 if row.percent else value
    return max(1 - share if row.higher_is_better else share, 1 / (2 * n))


def pareto(errors: Errors) -> list[bool]:
    """Whether each candidate is on the front: no other one is as good in every aim and better in one.

    Equal candidates do not shut each other out. Raises ``UserError`` for rows of different lengths.
    """
    if len({len(row) for row in errors}) > 1:
        raise UserError("a Pareto front needs every candidate's figure of every aim")

    def beats(other: Sequence[float], row: Sequence[float]) -> bool:
        return all(a <= b for a, b in zip(other, row, strict=True)) and list(other) != list(row)

    return [not any(beats(other, row) for other in errors) for row in errors]


def mean_error(errors: Sequence[float]) -> float:
    """Geometric mean of one candidate's errors.

    A ratio of two candidates' means is the mean ratio of their errors: halving one aim's error counts as halving
    another's, whatever their units and sizes, and neither a reference nor further candidates change the order.
    """
    return math.exp(math.fsum(math.log(each) for each in errors) / len(errors))


def pick(errors: Errors, clean: Sequence[float], least: float = -math.inf) -> int | None:
    """The candidate of the least ``mean_error`` out of those whose ``clean`` accuracy is at least ``least``.

    None where there is none; of equal ones the first. It is always on the front of those that are let in.
    """
    allowed = [place for place, accuracy in enumerate(clean) if accuracy >= least]
    return min(allowed, key=lambda place: mean_error(errors[place]), default=None)


def regret(errors: Errors, picked: int) -> float:
    """How far the picked candidate's ``mean_error`` is above the least of all, as a fraction of it; 0 for the best."""
    means = [mean_error(row) for row in errors]
    return means[picked] / min(means) - 1
