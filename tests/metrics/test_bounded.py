"""Intervals of rates and areas near their ends: Wilson's against scipy, ranges, widths, and coverage."""

import math

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from anchored.metrics.bounded import Figure, effective_size, wilson_interval
from anchored.metrics.detection import weighted_auroc
from anchored.metrics.intervals import bootstrap, image_intervals, interval_of, ood_intervals
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.metrics.weighted import weighted_mean

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
