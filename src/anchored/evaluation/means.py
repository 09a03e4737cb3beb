"""Which figures are averaged in rows: over corruptions, by severity, and over the OOD sets of a kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from anchored.corruptions.registry import CORRUPTIONS
from anchored.evaluation.evaluator import Evaluator
from anchored.metrics.bounded import Figure
from anchored.metrics.weighted import WeightedOODMetric
from anchored.store.rows import Row

OOD_KINDS = ("near", "far", "synthetic")

Place = tuple[int | None, str]
"""A severity, or None for all of them, and the name of a corruption or of a mean."""


def families(evaluator: Evaluator) -> dict[str, list[str]]:
    """Title of each corrupted set -> its corruptions: C and C̄ are two sets. Empty where no severity is measured."""
    title, found = evaluator.images.title(evaluator.subject.test), dict[str, list[str]]()
    for family, sign in (("c", "C"), ("c-bar", "C̄")) if evaluator.settings.severities else ():
        if kinds := [name for name in evaluator.corruptions if family in CORRUPTIONS[name].families]:
            found[f"{title}-{sign}"] = kinds
    return found


def corruption_grid(evaluator: Evaluator, kinds: Sequence[str]) -> list[tuple[int, str]]:
    """The corrupted sets of some corruptions: (severity, corruption)."""
    return [(severity, kind) for severity in evaluator.settings.severities for kind in kinds]


def averages(grid: Sequence[tuple[int, str]], means: Mapping[str, Sequence[str]]) -> tuple[list[Place], Tensor]:
    """Places of means over corruptions, at each severity and over all, and the weights (sets, places) that make them of
    the grid's figures; ``means``: name -> its corruptions."""
    severities = tuple(dict.fromkeys(severity for severity, _ in grid))
    places: list[Place] = [(severity, name) for name in means for severity in (*severities, None)]
    shares = torch.zeros(len(grid), len(places), dtype=torch.float64)
    for column, (severity, name) in enumerate(places):
        chosen = [i for i, (at, kind) in enumerate(grid) if severity in (at, None) and kind in means[name]]
        shares[chosen, column] = 1 / len(chosen)
    return places, shares


def means_by_kind(evaluator: Evaluator) -> dict[str, list[int]]:
    """Data set of a mean's rows -> places of its sets: near, far and synthetic ones ("mean-near" ...), and all."""
    names = evaluator.settings.ood
    kinds = [evaluator.images.kind(name) for name in names]
    means = {f"mean-{kind}": [i for i, each in enumerate(kinds) if each == kind] for kind in OOD_KINDS}
    return {**{name: some for name, some in means.items() if some}, "mean": list(range(len(names)))}


def rows_by_set(
    evaluator: Evaluator,
    metric: str,
    score: str,
    weighted: Sequence[WeightedOODMetric],
    sizes: Sequence[int],
    *,
    purpose: str = "ood",
    behind: Callable[[int, int], tuple[int, ...]] = lambda inside, outside: (inside, outside),
) -> Iterator[Row]:
    """Rows of one metric of each OOD set, and of its means over near, far, synthetic and all sets.

    ``weighted``: the metric of each set; ``sizes``: images of the test set, then of each set; ``behind``: from those
    of the test set and of a row's sets to those that its interval is over.
    """
    means = means_by_kind(evaluator)
    # Outliers made of the test images are resampled with them, image by image.
    own = [
        bool(evaluator.outside(name).outlier) and size == sizes[0]
        for name, size in zip(evaluator.settings.ood, sizes[1:], strict=True)
    ]
    titles = [*map(evaluator.images.title, evaluator.settings.ood), *means]
    groups = [*([i] for i in range(len(weighted))), *means.values()]

    def statistic(inner: Tensor, *others: Tensor) -> Tensor:
        rest = iter(others)
        outer = [inner if same else next(rest) for same in own]
        single = torch.stack([each(inner, weights) for each, weights in zip(weighted, outer, strict=True)], dim=1)
        return torch.stack([single[:, some].mean(1) for some in groups], dim=1)

    images = [behind(sizes[0], sum(sizes[1 + i] for i in some)) for some in groups]
    parts = [tuple(some) if len(some) > 1 else () for some in groups]
    figures = [Figure(metric, size, bool(some), some) for size, some in zip(images, parts, strict=True)]
    drawn = [sizes[0], *(size for size, same in zip(sizes[1:], own, strict=True) if not same)]
    found = evaluator.estimate(purpose, figures, statistic, drawn)
    for title, size, each in zip(titles, images, found, strict=True):
        yield evaluator.row(metric, each, title, sum(size), score=score)
