"""Confidence intervals and p-values, over images (bootstrap) and over seeds (Student's t).

Legend: N images, M out-of-distribution images, K classes, R replicates, Q metrics. Every draw follows from the
generator passed in, never from a global one.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, stdtr, stdtrit, xlogy  # scipy.stats takes half a second to import
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.bounded import RATES, Figure, bounded_interval, interval_of_mean, plain_figures
from anchored.metrics.classification import PerImage, per_image
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS

REPLICATES = 1000
"""Bootstrap replicates: the 2.5 % tail then holds 25 of them, its end known to some 5 % of the width."""

LEVEL = 0.95
"""Nominal coverage, a fraction."""

_CHUNK = 1 << 20
"""Weights held at once (8 MiB of float64, which malloc keeps for the next ones), whatever the number of images."""

_MANY = 10_000
"""Images from which on Poisson counts are quicker than a draw for each image."""

_ROUNDING = 1e-12
"""Differences of figures this near to one another, relative to the figures, are equal."""

GAPS = ("smooth_ece", "smooth_ece_old", "smooth_ece_scaled", "ece", "accuracy_error")
"""Metrics that sum absolute gaps: biased upwards, their replicates twice as much, since noise never cancels."""


AREAS = ("auroc", "aupr", "aurc", "augrc", "aurc_scaled", "scod_aurc", "misclassification_auroc")
BOUNDED = (*RATES, "fpr95", "accepted_error", "estimated_accuracy", "same_class", *AREAS)
"""Rates and areas under curves, in [0, 1]."""


class Interval(NamedTuple):
    """A value and its interval, in the value's unit; ``low <= value <= high``."""

    value: float
    low: float
    high: float


def bootstrap(
    statistic: Callable[..., Tensor],
    sizes: Sequence[int],
    generator: torch.Generator,
    replicates: int = REPLICATES,
    device: torch.device | str = "cpu",
    progress: Callable[[float], object] | None = None,
) -> Tensor:
    """Replicates of a statistic of resampled images.

    Each sample of ``sizes`` (one or more, independent) is drawn with replacement at its own size; ``statistic`` gets,
    for r replicates at a time, one (r, size) float64 tensor of counts per sample and returns (r,) or (r, Q). At most
    about 8 MiB of counts exist at once, and a few times as much while they are drawn. Returns (replicates,) or
    (replicates, Q) float64. ``progress`` is told the share that is done, in (0, 1], after each part.
    Efron & Tibshirani 1993, chapter 6, https://doi.org/10.1201/9780429246593
    """
    if replicates < 2 or min(sizes, default=0) < 1:
        raise UserError(f"a bootstrap needs at least 2 replicates ({replicates}) of at least one image ({list(sizes)})")
    rows = max(1, min(replicates, _CHUNK // sum(sizes)))
    parts = list[Tensor]()
    for done in range(0, replicates, rows):
        count = min(rows, replicates - done)
        parts.append(statistic(*(resample(size, count, generator, device) for size in sizes)))
        if progress:
            progress((done + count) / replicates)
    return torch.cat(parts)


def resample(size: int, rows: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """How often each of ``size`` images was drawn: (rows, size) float64, each row summing to ``size``."""
    seed = torch.randint(1 << 62, (1,), generator=generator, device=generator.device)
    draw = np.random.Generator(np.random.SFC64(int(seed)))
    if size < _MANY:
        images = draw.integers(size, size=(rows, size)) + size * np.arange(rows)[:, None]
        weights = np.bincount(images.ravel(), minlength=rows * size).reshape(rows, size).astype(np.float64)
    else:
        weights, table = np.empty((rows, size)), _Poisson(1 - 4 / math.sqrt(size))
        for row in weights:
            while (missing := size - table.fill(row, draw)) < 0:  # once in 30,000 rows
                pass
            np.add.at(row, draw.integers(size, size=missing), 1.0)
    return torch.from_numpy(weights).to(device)


class _Poisson:
    """Independent Poisson counts of one mean, most of them from eight random bits, exactly.

    Given their total, such counts are multinomial. So a mean a little below one, with the few missing draws made one by
    one, gives the counts of a bootstrap resample without a draw for every image.
    Devroye 1986, chapter X.1, https://doi.org/10.1007/978-1-4613-8643-8

    A count k gets the whole 256ths of its probability as values of a byte; the few values left over stand for the
    remainders of all probabilities, and there a second draw decides.
    """

    def __init__(self, mean: float) -> None:
        counts = np.arange(40)  # beyond 40, 1e-48
        shares = 256 * np.exp(xlogy(counts, mean) - gammaln(counts + 1) - mean)
        ends = np.floor(shares).cumsum()
        self.cuts = [np.uint8(end) for end in ends[: int((shares >= 1).sum())]]
        self.remainder = (shares - np.floor(shares)).cumsum()

    def fill(self, row: NDArray[np.float64], draw: np.random.Generator) -> int:
        """Fill a row (N,) with counts, and give their sum."""
        bits = draw.bit_generator.random_raw(len(row) // 8 + 1).view(np.uint8)[: len(row)]
        counts = (bits >= self.cuts[0]).view(np.uint8)
        for cut in self.cuts[1:]:
            counts += (bits >= cut).view(np.uint8)
        row[:] = counts
        left = np.flatnonzero(counts == len(self.cuts))
        row[left] = np.searchsorted(self.remainder, draw.random(len(left)) * self.remainder[-1])
        return int(row.sum())


def estimate(
    statistic: Callable[..., Tensor],
    figures: Sequence[Figure],
    sizes: Sequence[int],
    generator: torch.Generator,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    device: torch.device | str = "cpu",
    progress: Callable[[float], object] | None = None,
) -> tuple[list[Interval], Tensor]:
    """Values and intervals of the Q values of one statistic of resampled images, and their replicates (R,Q).

    ``statistic``, ``sizes`` and ``progress`` are those of ``bootstrap``, giving (r, Q); the values are those at equal
    weights.
    ``figures`` (Q) says which metric each value is (or is a mean of), and so which kind of interval it gets.
    Raises ``UserError`` for ``level`` outside (0, 1), and as ``bootstrap``.
    """
    _check_level(level)
    values = statistic(*(torch.ones(1, size, dtype=torch.float64, device=device) for size in sizes))[0]
    draws = bootstrap(statistic, sizes, generator, replicates, device, progress)
    columns = zip(figures, values.tolist(), draws.unbind(1), strict=True)
    found = [interval_of(figure, value, replicas, level) for figure, value, replicas in columns]
    return [_widened(figure, each, found) for figure, each in zip(figures, found, strict=True)], draws


def _widened(figure: Figure, own: Interval, found: Sequence[Interval]) -> Interval:
    """The interval of a mean over sets, which holds that of independent sets: one without errors has no replicates."""
    if not figure.parts or figure.metric not in BOUNDED:
        return own
    low, high = interval_of_mean(own.value, [found[i] for i in figure.parts])
    return Interval(own.value, max(0.0, min(own.low, low)), min(1.0, max(own.high, high)))


def interval_of(figure: Figure, value: float, draws: Tensor, level: float = LEVEL) -> Interval:
    """The interval of a ``value`` from its replicates ``draws`` (R,), by the rule for its metric.

    Rates and areas: ``bounded.bounded_interval``. ``GAPS``: see ``image_intervals``; the upper end is no lower than
    that of a rate, since errors that a confident network has not shown yet are in no resample. Brier scores and NLL are
    means of unlike terms: the percentile interval, for Brier scores widened to that of a rate likewise.
    """
    _, low, high = percentile_interval(value, draws, level)
    if figure.metric in (*GAPS, "brier"):
        top = 2.0 if figure.metric == "brier" else 1.0
        high = max(high, bounded_interval(figure, value, draws, level, top)[1])
        if figure.metric in GAPS:
            low = min(low, math.sqrt(max(0.0, 2 * value**2 - high**2)))
    elif figure.metric in BOUNDED:
        ends = bounded_interval(figure, value, draws, level)
        # A threshold's uncertainty is not symmetric either: the percentile interval sees that away from the ends.
        low, high = (min(low, ends[0]), max(high, ends[1])) if figure.metric == "fpr95" else ends
    return Interval(value, low, high)


def percentile_interval(value: float, draws: Tensor, level: float = LEVEL) -> Interval:
    """The middle ``level`` of the draws (R,), extended to hold the value where a tiny set's draws do not."""
    low, high = (float(draws.quantile(p)) for p in ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, min(low, value), max(high, value))


def image_intervals(
    logits: Tensor,
    labels: Tensor,
    names: Sequence[str],
    generator: torch.Generator,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Metrics of one labelled set with bootstrap intervals over its images: all on the same resamples.

    ``logits`` (N, K), ``labels`` (N,); ``names`` out of ``registry.IMAGE_METRICS``. Raises ``UserError`` for another
    name, ``level`` outside (0, 1), and as ``classification.per_image``.

    Accuracy: Wilson's interval. Brier, NLL: percentile. Calibration errors (``GAPS``) add noise in squares: about
    E θ̂² = θ² + s², and again + s² in a replicate. A percentile interval then lies above the truth: for perfectly
    calibrated data its coverage is 0 (95 % aimed at), and it often misses the estimate itself. The lower end is
    therefore √max(0, 2 θ̂² − upper²), the percentile interval's reflected in squares; the upper end is the
    percentile's, or that of a rate where it is higher. Zero, "calibrated as far as one can tell", can be inside.
    Coverage measured by ``python benchmarks/smooth_ece.py --coverage`` (200 data sets each, 200 replicates; truths 0,
    0.012, 0.023, 0.070): 500 images 0.990, 1.000, 1.000, 0.945; 2,000 images 0.985, 0.995, 0.980, 0.960; 10,000 images
    0.955, 0.975, 0.945, 0.940. The percentile interval's: 0.000, 0.000, 0.900, 0.935; 0.000, 0.225, 0.915, 0.930;
    0.000, 0.910, 0.910, 0.925.
    """
    _check_names(names, IMAGE_METRICS)
    images = per_image(logits, labels)
    order = images.confidence.argsort()  # smooth ECE then need not reorder every replicate's weights
    images = PerImage(*(column[order] for column in images))
    weighted = [IMAGE_METRICS[name](images) for name in names]
    return _estimate_each(weighted, names, [len(labels)], generator, replicates, level, logits.device)


def ood_intervals(
    in_scores: Tensor,
    out_scores: Tensor,
    names: Sequence[str],
    generator: torch.Generator,
    replicates: int = REPLICATES,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Detection metrics with intervals, both sets resampled independently: {name: Interval}.

    ``in_scores`` (N,), ``out_scores`` (M,), higher = more out-of-distribution; ``names`` from ``registry.OOD_METRICS``.
    The scores are sorted once, whatever the number of replicates. Raises ``UserError`` for another name, ``level``
    outside (0, 1), and as ``detection.auroc``.
    """
    _check_names(names, OOD_METRICS)
    weighted = [OOD_METRICS[name](in_scores, out_scores) for name in names]
    sizes = [len(in_scores), len(out_scores)]
    return _estimate_each(weighted, names, sizes, generator, replicates, level, in_scores.device)


def _estimate_each(
    weighted: Sequence[Callable[..., Tensor]], names: Sequence[str], sizes: Sequence[int], *settings: Any
) -> dict[str, Interval]:
    def statistic(*weights: Tensor) -> Tensor:
        return torch.stack([metric(*weights) for metric in weighted], 1)

    return dict(zip(names, estimate(statistic, plain_figures(names, *sizes), sizes, *settings)[0], strict=True))


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds and Student's t interval, mean ± t_{n−1} · s / √n, in the values' unit.

    Raises ``UserError`` for fewer than two values (one seed says nothing about the spread), or NaN or infinite ones.
    Student 1908, https://doi.org/10.1093/biomet/6.1.1
    """
    _check_level(level)
    if len(values) < 2:
        raise UserError(f"an interval over seeds needs at least two seeds, not {len(values)}")
    if not all(math.isfinite(value) for value in values):
        raise UserError("a value over seeds is NaN or infinite; recompute that run before averaging")
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds of first − second, seed by seed, with Student's t interval; the same seeds in the same order.

    Sharing seeds (data order, initial weights) removes their part of the spread. Positive: the first is higher.
    Raises ``UserError`` for different lengths, and as ``over_seeds``.
    """
    if len(first) != len(second):
        raise UserError(f"a paired difference needs the same seeds on both sides, not {len(first)} and {len(second)}")
    return over_seeds([a - b for a, b in zip(first, second, strict=True)], level)


def resampled_difference(
    values: tuple[float, float], draws: tuple[Tensor, Tensor], level: float = LEVEL
) -> tuple[Interval, float]:
    """First minus second figure of two networks on the SAME resamples of the same images, and a two-sided p-value.

    ``values``: the figures; ``draws``: their replicates (R,), (R,), drawn with equal generators, so that replicate i
    of both counts the same images. What moves both alike cancels: the interval is far shorter than two that one holds
    against each other. The differences are shifted to have the figures' difference as their mean, since replicates of
    calibration errors lie too high (see ``image_intervals``); the interval is their middle ``level``.
    The p-value is the normal law's for the difference over its bootstrap s.d.: shares of replicates end at 1 / R, too
    coarse to be corrected for many comparisons. Raises ``UserError`` for different numbers of replicates, or one.
    Davison & Hinkley 1997, chapter 4, https://doi.org/10.1017/CBO9780511802843
    """
    _check_level(level)
    first, second = (each.double() for each in draws)
    if first.shape != second.shape or first.ndim != 1 or len(first) < 2:
        raise UserError(f"a paired difference needs the same resamples twice, not {len(first)} and {len(second)}")
    difference = values[0] - values[1]
    spread = first - second
    spread = spread - spread.mean() + difference
    error = float(spread.std())
    p = 2 * float(ndtr(-abs(difference) / error)) if error else float(difference == 0)
    return percentile_interval(difference, spread, level), p


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> float:
    """Two-sided p-value of Student's paired t-test over seeds, in [0, 1]; 1 where all pairs are equal.

    It is 1 too where two seeds' differences are equal: figures that count images agree by chance, those of 600 images
    in one of sixty comparisons without a difference. (Three seeds' do in one of 3,000: that is evidence.)
    Student 1908, https://doi.org/10.1093/biomet/6.1.1
    Raises ``UserError`` as ``paired_difference``.
    """
    mean, low, _ = paired_difference(first, second)
    freedom = len(first) - 1
    standard_error = (mean - low) / float(stdtrit(freedom, (1 + LEVEL) / 2))
    least = _ROUNDING * max(map(abs, (*first, *second)))
    if standard_error <= least:
        return float(abs(mean) <= least or freedom == 1)
    return float(2 * stdtr(freedom, -abs(mean) / standard_error))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of m comparisons, corrected for their number: those below α are all right with probability 1 − α.

    The k-th smallest is multiplied by m − k + 1, and never is below a smaller one's; in the order given.
    Raises ``UserError`` for values outside [0, 1]. Holm 1979, https://www.jstor.org/stable/4615733
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise UserError(f"p-values lie in [0, 1], unlike some of {list(p_values)}")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def _check_names(names: Sequence[str], known: Collection[str]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UserError(
            f"choose metrics out of {', '.join(known)}; not known here: {', '.join(unknown) or 'nothing given'}"
        )


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"an interval's level is a fraction in (0, 1), not {level}")
