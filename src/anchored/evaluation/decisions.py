"""What deciding is worth: the rule of the held-out images, and what it does on each set, as metrics of weights.

The rule is fitted once; intervals are over the images that it meets then, resampled as for all other figures.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from anchored.config.settings import Evaluation
from anchored.errors import UserError
from anchored.evaluation.evaluator import Evaluator
from anchored.evaluation.inference import Outputs
from anchored.evaluation.means import averages, corruption_grid, families, rows_by_set
from anchored.metrics.bounded import Figure, over_changes, plain_figures
from anchored.metrics.classification import PerImage, per_image
from anchored.metrics.ood_scores import SCORES, refuse_no_energy
from anchored.metrics.registry import IMAGE_METRICS
from anchored.metrics.selective import RankingCurve, weighted_scod_aurc
from anchored.metrics.weighted import WeightedMetric, WeightedOODMetric, weighted_mean
from anchored.models.decision import Decided, Decision, fit_decision
from anchored.store.rows import Row

RANKING = ("aurc", "augrc", "misclassification_auroc")
DECIDED = ("false_alarm_rate", "set_coverage", "set_size")
ABSTAINING = ("accepted", "accepted_error")

Measured = tuple[list[Figure], Callable[[Tensor], Tensor]]
"""Q figures, and a function of weights (R,N) to their values (R,Q)."""


def fitted_rule(held_out: Outputs, settings: Evaluation) -> Decision | None:
    """The rule of held-out images; without abstention where its error cannot be shown with them, and None where they
    are too few for anything."""
    for error in (settings.error, None):
        with contextlib.suppress(UserError):
            return fit_decision(
                held_out.logits,
                held_out.labels,
                false_alarms=settings.false_alarms,
                coverage=settings.coverage,
                error=error,
                score=settings.score,
                seed=settings.seed,
            )
    return None


def measures(found: Outputs, rule: Decision | None, scaled: tuple[str, ...]) -> list[Measured]:
    """What is measured on labelled images: how confidence ranks them, and, with a rule, what it decides and what its
    temperature does (``scaled``, of ``SCALED``)."""
    images = per_image(found.logits, found.labels)
    n, right = len(images.correct), int(images.correct.sum())
    ranking = [*plain_figures(RANKING[:2], n), *plain_figures(RANKING[2:], right, n - right)]
    parts: list[Measured] = [(ranking, RankingCurve(images.confidence, images.correct))]
    if rule is not None:
        parts += [_decided(found, rule), _after_temperature(found, rule.temperature.value, scaled)]
    return parts


def _decided(found: Outputs, rule: Decision) -> Measured:
    decided = rule.decide(found.logits)
    columns = [
        alarms(rule, decided),
        decided.sets.gather(1, found.labels[:, None].long())[:, 0].double(),
        decided.sets.sum(1).double(),
    ]
    figures = plain_figures(DECIDED, len(found.labels))
    if rule.abstention is None:
        return figures, lambda weights: weights @ torch.stack(columns, 1) / weights.sum(1, keepdim=True)
    wrong = decided.accepted & (decided.labels != found.labels)
    values = torch.stack([*columns, decided.accepted.double(), wrong.double()], 1)

    def shares(weights: Tensor) -> Tensor:
        means = weights @ values / weights.sum(1, keepdim=True)
        means[:, -1] /= means[:, -2].clamp(min=1e-300)  # of those given a class; of none, none is wrong
        return means

    abstaining = [Figure(ABSTAINING[0], (len(found.labels),)), Figure(ABSTAINING[1], (int(decided.accepted.sum()),))]
    return [*figures, *abstaining], shares


def alarms(rule: Decision, decided: Decided) -> Tensor:
    """Which images (N,) are unknown for their score, 1 or 0, float64."""
    return (decided.score > rule.alarm.threshold).double()


def _after_temperature(found: Outputs, temperature: float, names: tuple[str, ...]) -> Measured:
    images = per_image(found.logits.double() / temperature, found.labels)
    metrics = [_SCALED[name](images) for name in names]
    figures = plain_figures(names, len(found.labels))
    return figures, lambda weights: torch.stack([each(weights) for each in metrics], dim=1)


def _aurc(images: PerImage) -> WeightedMetric:
    ranking = RankingCurve(images.confidence, images.correct)
    return lambda weights: ranking(weights)[:, 0]


_SCALED: dict[str, Callable[[PerImage], WeightedMetric]] = {
    "smooth_ece_scaled": IMAGE_METRICS["smooth_ece"],
    "nll_scaled": IMAGE_METRICS["nll"],
    "aurc_scaled": _aurc,
}
SCALED = tuple(_SCALED)


def decisions(evaluator: Evaluator) -> Iterator[Row]:
    """How confidence ranks right before wrong answers; with held-out images also what the rule that they give decides:
    false alarms, sets, abstention, detection, and figures after their temperature."""
    held_out, tested = evaluator.held_out(), evaluator.outputs(evaluator.clean())
    rule = None
    if held_out is not None:
        refuse_no_energy(evaluator.settings.score, tested.logits)
        rule = fitted_rule(evaluator.outputs(held_out), evaluator.settings)
    title, n = evaluator.images.title(evaluator.subject.test), len(tested.labels)
    for figures, statistic in measures(tested, rule, SCALED):
        found = evaluator.estimate("images", figures, statistic, [n])
        for figure, each in zip(figures, found, strict=True):
            yield evaluator.row(figure.metric, each, title, n)
    for dataset, kinds in families(evaluator).items():
        yield from _decided_under(evaluator, tested, dataset, kinds, rule)
    if evaluator.settings.ood:
        yield from _decided_outside(evaluator, tested, rule)


def _decided_under(
    evaluator: Evaluator, tested: Outputs, dataset: str, kinds: Sequence[str], rule: Decision | None
) -> Iterator[Row]:
    """The means over corruptions of what is decided."""
    grid = corruption_grid(evaluator, kinds)
    sets = (evaluator.outputs(evaluator.corrupted(kind, severity)) for severity, kind in grid)  # one at a time
    measured, n = [measures(each, rule, SCALED[:1]) for each in sets], len(tested.labels)
    averaged, shares = averages(grid, {"mean": kinds})
    for parts in zip(*measured, strict=True):

        def statistic(weights: Tensor, parts: Sequence[Measured] = parts) -> Tensor:
            single = torch.stack([each(weights) for _, each in parts], dim=2)  # (R, metrics, sets)
            return (single @ shares).flatten(1)

        by_metric = zip(*(figures for figures, _ in parts), strict=True)
        figures = [
            over_changes([each for each, there in zip(of_sets, share, strict=True) if there])
            for of_sets in by_metric
            for share in (shares > 0).T.tolist()
        ]
        found = evaluator.estimate("images", figures, statistic, [n])
        for figure, each, (severity, mean) in zip(
            figures, found, averaged * (len(figures) // len(averaged)), strict=True
        ):
            yield evaluator.row(figure.metric, each, dataset, n, severity=severity, corruption=mean)


def _decided_outside(evaluator: Evaluator, tested: Outputs, rule: Decision | None) -> Iterator[Row]:
    """What of each OOD set is called unknown for its score, and risk and coverage with its images mixed in."""
    outputs = [evaluator.outputs(evaluator.outside(name)) for name in evaluator.settings.ood]
    sizes = [len(tested.labels), *(len(each.labels) for each in outputs)]
    right = per_image(tested.logits, tested.labels).correct
    for score, of in SCORES.items():
        mixed = [weighted_scod_aurc(of(tested.logits), right, of(each.logits)) for each in outputs]
        yield from rows_by_set(evaluator, "scod_aurc", score, mixed, sizes, behind=lambda n, m: (n + m,))
    if rule is not None:
        found = [_of_outside(weighted_mean(alarms(rule, rule.decide(each.logits)))) for each in outputs]
        yield from rows_by_set(evaluator, "detection_rate", rule.alarm.score, found, sizes, behind=lambda n, m: (m,))


def _of_outside(metric: WeightedMetric) -> WeightedOODMetric:
    return lambda inner, outer: metric(outer)
