"""Rows over many references: ways of inference, rejection, accuracy without labels, how much references matter.

In the rows ``score`` names the way of inference, the OOD score over references, the estimate of accuracy (``all``: the
true one of the mean over all references), or the draw of references (``draw-K-i``). K references, M images, N classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from anchored.evaluation.evaluator import EvaluationSet
from anchored.evaluation.means import families, means_by_kind, rows_by_set
from anchored.evaluation.over_references import ReferencesEvaluator, Seen
from anchored.method.references import Inferred, combine
from anchored.metrics.agreement import REFERENCE_SCORES, disagreement, pair_agreement, threshold
from anchored.metrics.bounded import Figure
from anchored.metrics.classification import PerImage, per_image
from anchored.metrics.intervals import Interval
from anchored.metrics.linear_probe import STRENGTHS, linear_probe
from anchored.metrics.ood_scores import SCORES, are_log_probabilities, max_softmax
from anchored.metrics.registry import IMAGE_METRICS, METRICS, OOD_METRICS
from anchored.metrics.weighted import WeightedMetric, weighted_mean
from anchored.store.rows import Row

CONFIDENCES = (0.75, 0.9, 0.95, 0.975, 0.99, 0.995)
"""Of the sequential test, along its frontier of passes against unchanged classes."""
SIZES = (1, 2, 5, 10)
"""K of the draws of references."""
ESTIMATES = ("agreement", "agreement_threshold", "confidence", "confidence_threshold")
"""Estimates of accuracy without labels; the thresholds are fitted on held-out training images."""
Suite = Callable[[ReferencesEvaluator], Iterator[Row]]


# --- Ways of inference ----------------------------------------------------------------------------------------------


def ways(evaluator: ReferencesEvaluator) -> Iterator[Row]:
    """Accuracy, smooth ECE, passes, unchanged classes of each way: on clean images, and the mean over corruptions."""
    for dataset, corruption, sets in _places(evaluator):
        columns: list[tuple[str, str, list[WeightedMetric]]] = []
        for way in evaluator.ways:
            by_set = [_measured_way(evaluator, images, way) for images in sets]
            columns += [(metric, way, [each[metric] for each in by_set]) for metric in by_set[0]]
        yield from _image_rows(evaluator, columns, dataset, corruption, len(evaluator.outputs(sets[0]).labels))


def frontier(evaluator: ReferencesEvaluator) -> Iterator[Row]:
    """Passes and unchanged classes of adaptive inference at several confidences, on clean images."""
    if evaluator.count == 1:
        return
    seen, columns = evaluator.seen(evaluator.clean()), list[tuple[str, str, list[WeightedMetric]]]()
    for confidence in CONFIDENCES:
        answer = combine(seen.first(evaluator.most), "adaptive", confidence=confidence)
        found = _against_mean(evaluator, evaluator.clean(), answer)
        columns += [(metric, f"adaptive-{confidence:g}", [found[metric]]) for metric in found]
    title = evaluator.images.title(evaluator.subject.test)
    yield from _image_rows(evaluator, columns, title, "", len(seen.labels))


def _places(evaluator: ReferencesEvaluator) -> Iterator[tuple[str, str, list[EvaluationSet]]]:
    """Data set and corruption of the headline's rows, and the sets whose mean they are: the clean test images, then
    those under each corruption and severity, of C and of C̄."""
    yield evaluator.images.title(evaluator.subject.test), "", [evaluator.clean()]
    for dataset, kinds in families(evaluator).items():
        grid = [evaluator.corrupted(name, severity) for severity in evaluator.asked.severities for name in kinds]
        yield dataset, "mean", grid


def _measured_way(evaluator: ReferencesEvaluator, images: EvaluationSet, way: str) -> dict[str, WeightedMetric]:
    """The metrics of one way on one set."""
    answer = evaluator.answer(images, way)
    found = per_image(answer.logits, evaluator.outputs(images).labels)
    own = {metric: IMAGE_METRICS[metric](found) for metric in ("accuracy", "smooth_ece")}
    return own | _against_mean(evaluator, images, answer)


def _against_mean(evaluator: ReferencesEvaluator, images: EvaluationSet, answer: Inferred) -> dict[str, WeightedMetric]:
    """Passes, and whether the class is that of the mean over K."""
    full = evaluator.answer(images, "mean" if "mean" in evaluator.ways else "single")
    same = answer.logits.argmax(dim=1) == full.logits.argmax(dim=1)
    return {"same_class": weighted_mean(same.double()), "passes": weighted_mean(answer.used.double())}


def _image_rows(
    evaluator: ReferencesEvaluator,
    columns: Sequence[tuple[str, str, list[WeightedMetric]]],
    dataset: str,
    corruption: str,
    n: int,
) -> Iterator[Row]:
    """Rows of metrics of the same n images, each the mean over its sets: (metric, score, the metric on each set)."""

    def statistic(weights: Tensor) -> Tensor:
        return torch.stack([_average([each(weights) for each in metrics]) for _, _, metrics in columns], dim=1)

    figures = [Figure(metric, (n,), mean=len(metrics) > 1) for metric, _, metrics in columns]
    found = evaluator.estimate("references", figures, statistic, [n])
    for (metric, score, _), each in zip(columns, found, strict=True):
        yield evaluator.row(metric, each, dataset, n, corruption=corruption, score=score)


def _average(values: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean(dim=0)


# --- Rejection ------------------------------------------------------------------------------------------------------


def rejection(evaluator: ReferencesEvaluator) -> Iterator[Row]:
    """AUROC of each way by the headline's score, and of the scores that only references give; means by kind too."""
    if not evaluator.settings.ood:
        return
    scores = {name: partial(_score, evaluator, name) for name in [*evaluator.ways, *_reference_scores(evaluator)]}
    outside = [evaluator.outside(name) for name in evaluator.settings.ood]
    for name, score in scores.items():
        inside = score(evaluator.clean())
        if inside is None:
            continue
        weighted = [OOD_METRICS["auroc"](inside, other) for images in outside if (other := score(images)) is not None]
        sizes = [len(inside), *(len(evaluator.outputs(images).labels) for images in outside)]
        yield from rows_by_set(evaluator, "auroc", name, weighted, sizes, purpose="references-ood")


def _reference_scores(evaluator: ReferencesEvaluator) -> list[str]:
    return list(REFERENCE_SCORES) if evaluator.count > 1 else []


def _score(evaluator: ReferencesEvaluator, name: str, images: EvaluationSet) -> Tensor | None:
    """An OOD score of a set's images; None where the way's logits hold no energy, being logarithms of probabilities."""
    if name in REFERENCE_SCORES:
        return REFERENCE_SCORES[name](evaluator.seen(images).first(evaluator.most))
    logits, score = evaluator.answer(images, name).logits, evaluator.settings.score
    if score == "energy" and are_log_probabilities(logits):
        return None
    return SCORES[score](logits)


# --- Accuracy without labels ----------------------------------------------------------------------------------------


def label_free(evaluator: ReferencesEvaluator) -> Iterator[Row]:
    """Estimates of accuracy without labels, by agreement over all references and by confidence, and their errors.

    True accuracy is that of the mean over all references. Thresholds: of average thresholded confidence, fitted on
    held-out training images.
    """
    truth, held = partial(_true, evaluator), evaluator.held() if evaluator.subject.held_out else None
    names = [name for name in ESTIMATES if "agreement" not in name or evaluator.count > 1]
    least: dict[str, float | None] = dict.fromkeys(names)
    for name in [name for name in names if name.endswith("threshold")]:
        if held is None:
            del least[name]
        else:
            least[name] = threshold(_certainty(evaluator, name, held), truth(held).correct)
    errors: dict[str, dict[str, list[WeightedMetric]]] = {}
    for dataset, images in ((dataset, images) for dataset, _, sets in _places(evaluator) for images in sets):
        found, n = truth(images), len(evaluator.outputs(images).labels)
        right, columns = weighted_mean(found.correct), list[tuple[str, str, list[WeightedMetric]]]()
        for name, limit in least.items():
            estimate = weighted_mean(_estimated(_certainty(evaluator, name, images), limit))
            columns.append(("estimated_accuracy", name, [estimate]))
            if images.corruption:
                errors.setdefault(dataset, {}).setdefault(name, []).append(partial(_gap, estimate, right))
        rows = _image_rows(evaluator, [("accuracy", "all", [right]), *columns], dataset, images.corruption, n)
        yield from (replace(row, severity=images.severity or None) for row in rows)
    for dataset, found_errors in errors.items():
        columns = [("accuracy_error", name, metrics) for name, metrics in found_errors.items()]
        yield from _image_rows(evaluator, columns, dataset, "mean", n)


def _true(evaluator: ReferencesEvaluator, images: EvaluationSet) -> PerImage:
    seen = evaluator.seen(images)
    return per_image(seen.logits.mean(dim=0), seen.labels)


def _certainty(evaluator: ReferencesEvaluator, name: str, images: EvaluationSet) -> Tensor:
    """How sure the network is of each image (M,), float64, by an estimate's own measure."""
    logits = evaluator.seen(images).logits
    if name == "agreement":
        return pair_agreement(logits)
    return -disagreement(logits) if name == "agreement_threshold" else -max_softmax(logits.mean(dim=0))


def _estimated(certainty: Tensor, least: float | None) -> Tensor:
    """What is averaged over images: the certainty itself, or whether it reaches a threshold."""
    return certainty if least is None else (certainty >= least).double()


def _gap(one: WeightedMetric, other: WeightedMetric, weights: Tensor) -> Tensor:
    return (one(weights) - other(weights)).abs()


# --- Sensitivity ----------------------------------------------------------------------------------------------------


def sensitivity(evaluator: ReferencesEvaluator) -> Iterator[Row]:
    """Figures of the headline for many draws of K references, for several K; ``low`` and ``high`` are the value."""
    if evaluator.count == 1:
        return
    sets = list(_places(evaluator))
    outside = [evaluator.outside(name) for name in evaluator.settings.ood]
    seen = {images: evaluator.seen(images) for images in (*(each for _, _, some in sets for each in some), *outside)}
    draws, probes = list(_draws(evaluator)), [_Probe(evaluator, task) for task in evaluator.tasks]
    for number, (name, places) in enumerate(draws):
        evaluator.progress(1.0, f"evaluating, draws of references, {number} of {len(draws)}")
        logits = {images: each.logits[places].mean(dim=0) for images, each in seen.items()}
        figures = [
            figure
            for dataset, corruption, images_ in sets
            for figure in _drawn(logits, seen, images_, dataset, corruption)
        ]
        figures += [*_drawn_auroc(evaluator, logits, outside), *_drawn_adaptation(probes, places)]
        for metric, dataset, corruption, value, n in figures:
            yield _plain_row(evaluator, metric, dataset, corruption, value, n, name)


def _drawn(
    logits: dict[EvaluationSet, Tensor], seen: dict[EvaluationSet, Seen], sets: list[EvaluationSet], *place: str
) -> Iterator[tuple[str, str, str, float, int]]:
    """Accuracy and smooth ECE, means over sets: metric, data set and corruption (``place``), value, images of a set."""
    measured = [per_image(logits[images], seen[images].labels) for images in sets]
    n = len(measured[0].correct)
    ones = torch.ones(1, n, dtype=torch.float64)
    for metric in ("accuracy", "smooth_ece"):
        values = [float(IMAGE_METRICS[metric](each)(ones)) for each in measured]
        dataset, corruption = place
        yield metric, dataset, corruption, sum(values) / len(values), n


def _draws(evaluator: ReferencesEvaluator) -> Iterator[tuple[str, Tensor]]:
    """Name and places (K,) of each draw: every reference alone, then draws without replacement."""
    for size in (size for size in SIZES if size < evaluator.count):
        order = evaluator.generator("draws", str(size))
        for i in range(min(evaluator.asked.draws, evaluator.count) if size == 1 else evaluator.asked.draws):
            places = torch.tensor([i]) if size == 1 else torch.randperm(evaluator.count, generator=order)[:size]
            yield f"draw-{size}-{i}", places


def _drawn_auroc(
    evaluator: ReferencesEvaluator, logits: dict[EvaluationSet, Tensor], outside: Sequence[EvaluationSet]
) -> Iterator[tuple[str, str, str, float, int]]:
    """AUROC by the headline's score, means over near and far sets."""
    score, inside = SCORES[evaluator.settings.score], logits[evaluator.clean()]
    ones = torch.ones(1, len(inside), dtype=torch.float64)
    values = [
        float(OOD_METRICS["auroc"](score(inside), score(logits[each]))(ones, torch.ones(1, len(logits[each])).double()))
        for each in outside
    ]
    for kind, some in means_by_kind(evaluator).items():
        if kind in ("mean-near", "mean-far"):
            n = len(inside) + sum(len(logits[outside[i]]) for i in some)
            yield "auroc", kind, "", sum(values[i] for i in some) / len(some), n


class _Probe:
    """A task's linear probe on features under some of the references."""

    def __init__(self, evaluator: ReferencesEvaluator, name: str) -> None:
        self.train, self.labels = evaluator.features(name, "train")
        self.test, self.truth = evaluator.features(name, "test")
        self.classes, self.generator = evaluator.images.classes(name), partial(evaluator.generator, "probe", name)
        self.strength: float | None = None

    def accuracy(self, places: Tensor) -> float:
        """Accuracy in [0, 1] by the mean features of the references ``places``. The first call chooses the strength,
        which later ones keep: choosing takes ten times as long as fitting."""
        strengths = STRENGTHS if self.strength is None else (self.strength,)
        train, test = (features[places].mean(dim=0) for features in (self.train, self.test))
        found = linear_probe(train, self.labels, test, self.classes, self.generator(), strengths)
        self.strength = found.strength
        return float((found.logits.argmax(dim=1) == self.truth).double().mean())


def _drawn_adaptation(probes: Sequence[_Probe], places: Tensor) -> Iterator[tuple[str, str, str, float, int]]:
    """Accuracy of the probes, mean over tasks, as in the headline."""
    if probes:
        n = sum(len(probe.truth) for probe in probes)
        yield "linear_probe_accuracy", "mean", "", sum(p.accuracy(places) for p in probes) / len(probes), n


def _plain_row(
    evaluator: ReferencesEvaluator, metric: str, dataset: str, corruption: str, value: float, n: int, score: str
) -> Row:
    """A row without an interval, whose replicates are its value."""
    unit = 100.0 if METRICS[metric].percent else 1.0
    evaluator.draws.append(torch.full((evaluator.settings.bootstrap, 1), value * unit, dtype=torch.float64))
    return evaluator.row(metric, Interval(value, value, value), dataset, n, corruption=corruption, score=score)


SUITES: tuple[Suite, ...] = (ways, frontier, rejection, label_free, sensitivity)
