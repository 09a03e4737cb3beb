"""Intervals of rates and areas near their ends: Wilson's against scipy, ranges, widths, and coverage."""

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from anchored.metrics.bounded import Figure, effective_size, interval_of_mean, over_changes, wilson_interval
from anchored.metrics.detection import weighted_auroc
from anchored.metrics.intervals import bootstrap, estimate, image_intervals, interval_of, ood_intervals
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.metrics.selective import RankingCurve
from anchored.metrics.weighted import WeightedMetric, weighted_mean

Z2 = 1.959963984540054**2


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def certain(count: int) -> tuple[Tensor, Tensor]:
    """Logits that are right about every image, with confidence one."""
    labels = torch.arange(count) % 2
    return 2000.0 * torch.nn.functional.one_hot(labels, 2).double(), labels


def test_wilson_by_hand() -> None:
    """All or none of n: the other end is n / (n + z²) or z² / (n + z²)."""
    assert wilson_interval(1.0, 10, 0.95) == pytest.approx((10 / (10 + Z2), 1.0))
    assert wilson_interval(0.0, 10, 0.95) == pytest.approx((0.0, Z2 / (10 + Z2)))
    half = math.sqrt(Z2 / (4 * (1 + Z2)))  # one image, right with rate ½
    assert wilson_interval(0.5, 1, 0.95) == pytest.approx((0.5 - half, 0.5 + half))


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 9), (299, 300), (700, 1400), (1400, 1400)])
def test_accuracy_has_wilsons_interval(right: int, n: int) -> None:
    logits, labels = certain(n)
    logits[right:] = logits[right:].flip(1)
    found = image_intervals(logits, labels, ["accuracy"], seeded(), 20)["accuracy"]
    wanted = binomtest(right, n).proportion_ci(method="wilson")
    assert found[1:] == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize("metric", [name for name in IMAGE_METRICS if name != "nll"])
def test_a_flawless_network_is_not_certain(metric: str) -> None:
    """Replicates are all alike: the interval has a width, holds the value, and stays in range."""
    value, low, high = image_intervals(*certain(300), [metric], seeded(), 20)[metric]
    top = 2.0 if metric == "brier" else 1.0
    assert 0 <= low <= value <= high <= top
    assert high - low >= 0.9 * Z2 / (300 + Z2)


@pytest.mark.parametrize("metric", list(OOD_METRICS))
@pytest.mark.parametrize("shift", [9.0, -9.0])
def test_a_flawless_score_is_not_certain(metric: str, shift: float) -> None:
    ins = torch.randn(200, generator=seeded(1), dtype=torch.float64).clamp(-4, 4)
    outs = torch.randn(50, generator=seeded(2), dtype=torch.float64).clamp(-4, 4) + shift
    value, low, high = ood_intervals(ins, outs, [metric], seeded(), 30)[metric]
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.001


def test_a_mean_takes_the_size_that_its_replicates_show() -> None:
    """Nineteen independent sets of figures on the same images: nineteen times the images; copies of one: as many."""
    correct = (torch.rand(500, 19, generator=seeded(3), dtype=torch.float64) < 0.7).double()
    for columns, size in ((correct, 19 * 500), (correct[:, :1].expand(-1, 19), 500)):
        draws = bootstrap(weighted_mean(columns.mean(1)), [500], seeded(), 2000)
        found = effective_size(Figure("accuracy", (500,), mean=True), float(columns.mean()), draws)
        assert found == pytest.approx(size, rel=0.15)


def test_intervals_near_one_hold_the_truth() -> None:
    """300 data sets; the percentile interval holds it in 45 % (accuracy) and 73 % (AUROC) of them."""
    held, draws = {"accuracy": 0, "auroc": 0}, seeded(5)
    shift = 5.5021  # of normal scores with AUROC 0.99995
    for _ in range(300):
        correct = (torch.rand(300, generator=draws, dtype=torch.float64) < 0.998).double()
        metric = weighted_mean(correct)
        value = interval_of(Figure("accuracy", (300,)), float(correct.mean()), bootstrap(metric, [300], draws, 20))
        held["accuracy"] += value.low <= 0.998 <= value.high
        ins, outs = torch.randn(200, generator=draws), torch.randn(100, generator=draws) + shift
        area = weighted_auroc(ins, outs)
        plain = float(area(torch.ones(1, 200, dtype=torch.float64), torch.ones(1, 100, dtype=torch.float64)))
        value = interval_of(Figure("auroc", (200, 100)), plain, bootstrap(area, [200, 100], draws, 20))
        held["auroc"] += value.low <= 0.99995 <= value.high
    assert min(held.values()) >= 0.93 * 300


def test_no_image_is_no_knowledge() -> None:
    """Of no error, or of no accepted image, a figure is anything."""
    same = torch.zeros(20, dtype=torch.float64)
    assert interval_of(Figure("misclassification_auroc", (300, 0)), 0.5, same + 0.5)[1:] == (0, 1)
    assert interval_of(Figure("accepted_error", (0,)), 0.0, same)[1:] == (0, 1)
    assert interval_of(Figure("accepted_error", (40,)), 0.0, same)[1:] == wilson_interval(0.0, 40, 0.95)


def test_few_errors_rank_as_few_outliers_do() -> None:
    """200 data sets with some six errors; with all 1,400 images as the limit the truth is in 78 % of them."""
    held, draws, shift = 0, seeded(7), 3.2897  # of normal scores with AUROC 0.99
    for _ in range(200):
        correct = (torch.rand(1400, generator=draws, dtype=torch.float64) < 1 - 6 / 1400).double()
        right = int(correct.sum())
        ranking = RankingCurve(torch.randn(1400, generator=draws, dtype=torch.float64) + shift * correct, correct)

        def area(weights: Tensor, ranking: RankingCurve = ranking) -> Tensor:
            return ranking(weights)[:, 2:]

        figure = Figure("misclassification_auroc", (right, 1400 - right))
        (found,), _ = estimate(area, [figure], [1400], draws, 50)
        held += found.low <= 0.99 <= found.high
    assert held >= 0.93 * 200


def test_interval_of_a_mean_by_hand() -> None:
    """Two figures: the ends are √(0.3² + 0.4²) / 2 away, and above nothing but the second's 0.2 / 2."""
    assert interval_of_mean(0.75, [(1.0, 0.7, 1.0), (0.5, 0.1, 0.7)]) == pytest.approx((0.5, 0.85))


def test_over_changes_by_hand() -> None:
    """2 / (1/10 + 1/40) = 16; a change with no image behind it counts as one."""
    figures = [Figure("misclassification_auroc", sizes) for sizes in ((10, 0), (40, 1))]
    assert over_changes(figures) == Figure("misclassification_auroc", (16, 1), mean=True)


def test_a_mean_over_sets_knows_how_little_the_small_one_says() -> None:
    """200 times a set of 100 images (mostly without error) beside one of 2,000: 79 % by the mean's replicates alone."""
    held, draws = 0, seeded(9)
    figures = [Figure("accuracy", (100,)), Figure("accuracy", (2000,)), Figure("accuracy", (2100,), True, (0, 1))]
    for _ in range(200):
        sets = [weighted_mean((torch.rand(n, generator=draws) < p).double()) for n, p in ((100, 0.99), (2000, 0.95))]

        def means(*weights: Tensor, sets: list[WeightedMetric] = sets) -> Tensor:
            each = torch.stack([metric(own) for metric, own in zip(sets, weights, strict=True)], dim=1)
            return torch.cat([each, each.mean(1, keepdim=True)], dim=1)

        found = estimate(means, figures, [100, 2000], draws, 50)[0][2]
        held += found.low <= 0.97 <= found.high
    assert held >= 0.93 * 200
