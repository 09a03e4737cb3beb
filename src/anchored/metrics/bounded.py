"""Intervals of figures that lie between two ends (rates, areas under curves), which hold up near the ends.

A percentile interval of a rate fails there: 1,400 right of 1,400 is right in every resample, and the interval has no
width. Wilson's inverts the test of the rate instead; figures that are no plain rate take the number of images that a
rate with their standard error would have. Coverage of each: ``benchmarks/interval_coverage.py``.
Legend: N images, M out-of-distribution images, R replicates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import ndtri
from torch import Tensor

FEW = 10.0
"""Errors below which replicates do not know their own spread: about its s.d., 1 / √(4 · 10), is 16 %."""


RATES = ("accuracy", "false_alarm_rate", "detection_rate", "set_coverage", "accepted")
"""Plain shares of the images of a set."""


class Figure(NamedTuple):
    """One value that gets an interval: its metric, the images behind it, and whether it is a mean of such values.

    ``sizes``: (N,) of a metric of labelled images, (N, M) of a detection metric; of ``accepted_error`` those that were
    accepted, of ``misclassification_auroc`` the right and the wrong ones. Of a mean over sets, all their images; of a
    mean over changes of the same images, those images (``over_changes``).
    ``parts``: of a mean over sets, the places of the sets' own figures among those that are estimated together.
    """

    metric: str
    sizes: tuple[int, ...]
    mean: bool = False
    parts: tuple[int, ...] = ()


def wilson_interval(rate: float, size: float, level: float) -> tuple[float, float]:
    """Wilson's score interval of a ``rate`` in [0, 1] of ``size`` images: inside [0, 1], of positive width.

    (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    z = float(ndtri((1 + level) / 2))
    centre, shrink = rate + z**2 / (2 * size), 1 + z**2 / size
    half = z * math.sqrt(max(0.0, rate * (1 - rate)) / size + z**2 / (4 * size**2))
    return max(0.0, min(rate, (centre - half) / shrink)), min(1.0, max(rate, (centre + half) / shrink))


def effective_size(figure: Figure, value: float, draws: Tensor) -> float:
    """Number of images of a rate with the spread of the replicates ``draws`` (R,), which lie in [0, 1].

    That of a plain rate is known. Else v (1 − v) / s², of the replicates' mean and variance: for FPR at a TPR it thus
    holds the threshold's uncertainty. Where fewer than ``FEW`` errors, (1 − v)² / s² or v² / s², stand behind a value,
    it is not trusted beyond what ``_size_near_ends`` gives.
    """
    size = float(min(figure.sizes))
    if figure.metric in RATES and not figure.mean:
        return size
    mean, variance = float(draws.mean()), float(draws.var(correction=0))
    limit = _size_near_ends(figure, value)
    if variance <= 0 or not 0 < mean < 1:
        return limit
    found = mean * (1 - mean) / variance
    few = min(mean, 1 - mean) ** 2 / variance < FEW
    return max(1.0, min(found, limit) if few else found)


def _size_near_ends(figure: Figure, value: float) -> float:
    """Images; for areas under curves those of Hanley and McNeil's variance (1982), in Newcombe's form (2006, method 5).

    θ(1 − θ) [1 + ((N + M)/2 − 1) ((1 − θ)/(2 − θ) + θ/(1 + θ))] / (N M), https://doi.org/10.1002/sim.2324
    """
    if figure.metric not in ("auroc", "aupr", "misclassification_auroc"):
        return float(min(figure.sizes))
    n, m = figure.sizes
    return n * m / (1 + ((n + m) / 2 - 1) * ((1 - value) / (2 - value) + value / (1 + value)))


def bounded_interval(
    figure: Figure, value: float, draws: Tensor, level: float, top: float = 1.0
) -> tuple[float, float]:
    """The interval of a figure in [0, ``top``] from its replicates (R,); all of that where no image is behind it."""
    if min(figure.sizes) == 0:
        return 0.0, top
    low, high = wilson_interval(value / top, effective_size(figure, value / top, draws / top), level)
    return top * min(low, value / top), top * max(high, value / top)


def interval_of_mean(value: float, parts: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """The interval of the mean ``value`` of figures of independent samples, each given as (value, low, high).

    m − √Σ(vᵢ − lᵢ)² / k and m + √Σ(hᵢ − vᵢ)² / k: a sample whose figure is at its end, and moves in no resample, has
    the width of its own interval. Zou and Donner 2008, section 2, https://doi.org/10.1002/sim.3095
    """
    below, above = (math.hypot(*(part[0] - part[end] for part in parts)) / len(parts) for end in (1, 2))
    return value - below, value + above


def over_changes(figures: Sequence[Figure]) -> Figure:
    """A mean of one metric over changes of the same images: as many as the harmonic mean of those behind each."""
    columns = zip(*(figure.sizes for figure in figures), strict=True)
    sizes = (round(len(figures) / sum(1 / max(1, size) for size in column)) for column in columns)
    return Figure(figures[0].metric, tuple(sizes), mean=True)


def plain_figures(metrics: Sequence[str], *sizes: int) -> list[Figure]:
    """Figures of one set of images, or one pair of sets."""
    return [Figure(metric, sizes) for metric in metrics]
