"""Which figures are averaged in rows: over corruptions, by severity, and over the OOD sets of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from anchored.corruptions.registry import CORRUPTIONS
from anchored.evaluation.evaluator import Evaluator

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
