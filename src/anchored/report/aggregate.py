"""A figure of one variant, and how it changes to another's.

One seed: the value and its bootstrap interval over test images. Several: mean and Student-t interval over seeds.
Different numbers of images are never averaged.
"""

from __future__ import annotations

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
    """One figure of one variant: the rows of its seeds, by seed."""

    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds behind the figure."""
        return tuple(row.seed for row in self.rows)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Distinct numbers of images behind the figure; more than one is not averaged."""
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
        """The figure."""
        return self.interval.value


SIGNIFICANT = 0.05
"""Below it a corrected p-value makes a difference clear."""

Replicates = Callable[[Row], Tensor | None]
"""The replicates (R,) of a row's figure, where the run's folder has them."""


@dataclass(frozen=True)
class Change:
    """One variant against another on the same seeds."""

    before: float
    after: float
    low: float  # 95 % interval of the difference after − before; NaN where only the two intervals can be compared
    high: float
    p: float  # two-sided, corrected where the change is one of a table's; NaN as above
    clear: bool
    better: bool
    seeds: int

    @property
    def relative(self) -> float | None:
        """Relative change as a fraction; None where there is nothing to divide by."""
        return (self.after - self.before) / abs(self.before) if self.before else None


def compare(mine: Estimate | None, base: Estimate | None, replicates: Replicates = lambda row: None) -> Change | None:
    """``mine`` against ``base`` on the seeds both have; None where there is none, or the numbers of images differ.

    With two or more common seeds: Student's paired t-test over them. With one: the paired bootstrap on the resamples
    that both share. Without replicates a difference is clear when the two intervals over images do not overlap (strict:
    both networks saw the same images).
    """
    if mine is None or base is None or mine.mixed or mine.sizes != base.sizes:
        return None
    common = sorted(set(mine.seeds) & set(base.seeds))
    if not common:
        return None
    ours, theirs = ({row.seed: row for row in each.rows} for each in (mine, base))
    after, before = ([rows[seed].value for seed in common] for rows in (ours, theirs))
    low = high = p = math.nan
    one, other = ours[common[0]], theirs[common[0]]
    draws = [replicates(row) for row in (one, other)] if len(common) == 1 else []
    if len(common) > 1:
        (_, low, high), p = intervals.paired_difference(after, before), intervals.paired_t_test(after, before)
    elif draws[0] is not None and draws[1] is not None and len(draws[0]) == len(draws[1]):
        (_, low, high), p = intervals.resampled_difference((one.value, other.value), (draws[0], draws[1]))
    clear = p < SIGNIFICANT if not math.isnan(p) else one.low > other.high or one.high < other.low
    means = math.fsum(before) / len(common), math.fsum(after) / len(common)
    better = (means[1] > means[0]) == METRICS[mine.rows[0].metric].higher_is_better
    return Change(*means, low, high, p, clear=clear, better=better, seeds=len(common))


def corrected(changes: Mapping[_Key, Change]) -> dict[_Key, Change]:
    """Changes that are looked at together, with p-values corrected for their number (Holm)."""
    tested = [key for key, change in changes.items() if not math.isnan(change.p)]
    p_values = intervals.holm([changes[key].p for key in tested])
    better = {key: replace(changes[key], p=p, clear=p < SIGNIFICANT) for key, p in zip(tested, p_values, strict=True)}
    return {**changes, **better}
