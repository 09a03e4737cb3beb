"""One metric of one variant as an estimate with an interval, and the difference of two such estimates.

One seed: the value with its bootstrap interval over test images. Several seeds: mean and Student-t interval over seeds.
Seeds measured on different numbers of images are never averaged.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from anchored.metrics import intervals
from anchored.metrics.registry import METRICS
from anchored.store.rows import Row

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Estimate:
    """One metric of one variant: its rows, ordered by seed."""

    rows: tuple[Row, ...]
    kinds: frozenset[tuple[str, int | None]] = frozenset()  # corruptions and severities that a mean is over

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that were measured."""
        return tuple(row.seed for row in self.rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Distinct numbers of images; where there are several, the seeds are not averaged."""
        return tuple(sorted({row.n for row in self.rows}))

    @property
    def mixed(self) -> bool:
        """Whether the seeds were measured on different numbers of images."""
        return len(self.sizes) > 1

    @cached_property
    def interval(self) -> intervals.Interval:
        """Mean over seeds ± Student's t, or one seed's value with its interval over images; NaN where mixed."""
        if self.mixed:
            return intervals.Interval(math.nan, math.nan, math.nan)
        if len(self.rows) > 1:
            return intervals.over_seeds([row.value for row in self.rows])
        return intervals.Interval(self.rows[0].value, self.rows[0].low, self.rows[0].high)

    @property
    def value(self) -> float:
        """The mean over seeds, or the one seed's value."""
        return self.interval.value


SIGNIFICANT = 0.05  # a difference is clear where its corrected p-value is below this level

Replicates = Callable[[Row], Tensor | None]
"""Gives the bootstrap replicates (R,) of a row, or None where the run's folder has none."""


@dataclass(frozen=True)
class Difference:
    """One variant against another, on the seeds both have."""

    before: float
    after: float
    low: float  # 95 % interval of the difference after − before; NaN where only the two intervals can be compared
    high: float
    p: float  # two-sided, corrected where several are tested together; NaN as above
    clear: bool
    better: bool
    seeds: int

    @property
    def relative(self) -> float | None:
        """Relative change as a fraction; None where there is nothing to divide by."""
        return (self.after - self.before) / abs(self.before) if self.before else None


def compare_estimates(
    estimate: Estimate | None, base: Estimate | None, replicates: Replicates = lambda row: None
) -> Difference | None:
    """``estimate`` against ``base`` on common seeds; None where there are none, or the numbers of images, or
    the corruptions that they are means over, differ.

    Two or more common seeds: Student's paired t-test over seeds. One: the paired bootstrap on shared resamples of the
    test images. Without replicates, a difference is clear when the two intervals over images do not overlap (a strict
    rule: both networks saw the same images).
    """
    if estimate is None or base is None or estimate.mixed:
        return None
    if (estimate.sizes, estimate.kinds) != (base.sizes, base.kinds):
        return None
    seeds = sorted(set(estimate.seeds) & set(base.seeds))
    if not seeds:
        return None
    rows_after, rows_before = ({row.seed: row for row in e.rows if row.seed in seeds} for e in (estimate, base))
    after, before = ([rows[seed].value for seed in seeds] for rows in (rows_after, rows_before))
    low = high = p = math.nan
    one, other = rows_after[seeds[0]], rows_before[seeds[0]]
    if len(seeds) > 1:
        (_, low, high), p = intervals.paired_difference(after, before), intervals.paired_t_test(after, before)
    else:
        draws, base_draws = replicates(one), replicates(other)
        if draws is not None and base_draws is not None and len(draws) == len(base_draws):
            (_, low, high), p = intervals.resampled_difference((one.value, other.value), (draws, base_draws))
    clear = p < SIGNIFICANT if not math.isnan(p) else one.low > other.high or one.high < other.low
    means = math.fsum(before) / len(seeds), math.fsum(after) / len(seeds)
    better = (means[1] > means[0]) == METRICS[one.metric].higher_is_better
    return Difference(*means, low, high, p, clear=clear, better=better, seeds=len(seeds))


def holm_corrected(differences: Mapping[_Key, Difference]) -> dict[_Key, Difference]:
    """The differences with p-values corrected for how many are tested together (Holm)."""
    tested = [key for key, difference in differences.items() if not math.isnan(difference.p)]
    p_values = zip(tested, intervals.holm([differences[key].p for key in tested]), strict=True)
    return {**differences, **{key: replace(differences[key], p=p, clear=p < SIGNIFICANT) for key, p in p_values}}
