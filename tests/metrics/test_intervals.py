import math
import statistics
from typing import Any

import numpy as np
import pytest
import relplot
import scipy.stats
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics import bounded, calibration, classification, detection, intervals
from anchored.metrics.classification import per_image
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.metrics.weighted import weighted_mean


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labelled(count: int = 400, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = seeded(seed)
    labels = torch.randint(3, (count,), generator=generator)
    return 2 * torch.randn(count, 3, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 3), labels


def test_counts_are_multinomial() -> None:
    counts = intervals.resample(50, 4000, seeded(), "cpu")
    assert bool((counts.sum(1) == 50).all())
    assert counts.mean() == 1
    assert counts.var() == pytest.approx(1 - 1 / 50, rel=0.02)


@pytest.mark.parametrize("many", [1000, 10_000_000])
def test_counts_of_many_images_are_multinomial_too(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """By Poisson counts and by one draw each: single counts, sums of neighbours, and what two images have in common."""
    monkeypatch.setattr(intervals, "_MANY", many)
    size, rows = 1000, 3000
    counts = intervals.resample(size, rows, seeded(), "cpu").numpy()
    assert (counts.sum(1) == size).all()
    assert (counts == counts.round()).all()
    found = np.bincount(counts.astype(int).ravel(), minlength=8)
    law = scipy.stats.binom.pmf(np.arange(8), size, 1 / size)
    found, law = np.append(found[:7], found[7:].sum()), np.append(law[:7], 1 - law[:7].sum())
    assert scipy.stats.chisquare(found, law * size * rows).pvalue > 1e-3
    part = counts[:, :300].sum(1)
    assert scipy.stats.kstest(part + seeded_uniform(rows), binomial_cdf(size, 0.3)).pvalue > 1e-3
    other = counts[:, 300:600].sum(1)
    assert np.corrcoef(part, other)[0, 1] == pytest.approx(-3 / 7, abs=0.06)  # −√(p q / (1 − p)(1 − q))


def seeded_uniform(count: int) -> Any:
    return np.random.default_rng(0).random(count)


def binomial_cdf(size: int, share: float) -> Any:
    """Of a binomial number plus a uniform one, which has no ties."""

    def cdf(x: Any) -> Any:
        below = np.floor(x)
        law = scipy.stats.binom(size, share)
        return law.cdf(below - 1) + (x - below) * law.pmf(below)

    return cdf


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_smooth_ece_of_many_resampled_images_equals_relplot(power: float) -> None:
    """Calibrated (narrow kernels, finer grids) and overconfident; Poisson counts; replicates share a start."""
    rng = np.random.default_rng(1)
    f = torch.from_numpy(rng.beta(5, 1.2, 12_000))
    y = torch.from_numpy((rng.random(len(f)) < f.numpy() ** power) * 1.0)
    found = intervals.bootstrap(calibration.weighted_smooth_ece(f, y), [len(f)], seeded(), 9)
    counts = intervals.resample(len(f), 9, seeded(), "cpu").long()
    wanted = [relplot.smECE(f.repeat_interleave(c).numpy(), y.repeat_interleave(c).numpy()) for c in counts]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9, rtol=0)


def test_smooth_ece_of_resamples_equals_relplot() -> None:
    logits, labels = labelled()
    f, y, *_ = per_image(logits, labels)
    found = intervals.bootstrap(calibration.weighted_smooth_ece(f, y), [len(f)], seeded(), 12)
    counts = intervals.resample(len(f), 12, seeded(), "cpu").long()
    wanted = [relplot.smECE(f.repeat_interleave(c).numpy(), y.repeat_interleave(c).numpy()) for c in counts]
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [64, 1 << 22])
def test_auroc_of_resamples_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(intervals, "_CHUNK", chunk)  # 64: one replicate at a time, memory bounded
    ins, outs = torch.randn(60, generator=seeded(1)), torch.randn(40, generator=seeded(2)) + 1
    seen: list[tuple[Tensor, Tensor]] = []
    metric = OOD_METRICS["auroc"](ins, outs)

    def statistic(a: Tensor, b: Tensor) -> Tensor:
        seen.append((a.long(), b.long()))
        return metric(a, b)

    found = intervals.bootstrap(statistic, [60, 40], seeded(), 9)
    assert len(found) == 9
    pairs = [pair for a, b in seen for pair in zip(a, b, strict=True)]
    for value, (a, b) in zip(found, pairs, strict=True):
        scores = torch.cat([ins.repeat_interleave(a), outs.repeat_interleave(b)])
        assert float(value) == pytest.approx(roc_auc_score([0] * 60 + [1] * 40, scores.numpy()), abs=1e-12)


def test_values_are_the_plain_metrics() -> None:
    logits, labels = labelled()
    confidence, correct, *_ = per_image(logits, labels)
    found = intervals.image_intervals(logits, labels, list(IMAGE_METRICS), seeded(), 100)
    wanted = {
        "accuracy": classification.accuracy(logits, labels),
        "smooth_ece": calibration.smooth_ece(confidence, correct),
        "smooth_ece_old": calibration.smooth_ece(confidence, correct, "reflect_old"),
        "ece": calibration.ece(confidence, correct),
        "brier": classification.brier(logits, labels),
        "nll": classification.nll(logits, labels),
    }
    for name, value in wanted.items():
        assert found[name].value == pytest.approx(value, abs=1e-12)
        assert found[name].low <= found[name].value <= found[name].high
    ins, outs = torch.randn(300, generator=seeded(1)), torch.randn(200, generator=seeded(2)) + 1
    ood = intervals.ood_intervals(ins, outs, list(OOD_METRICS), seeded(), 100)
    for name, value in {
        "auroc": detection.auroc(ins, outs),
        "fpr95": detection.fpr_at_tpr(ins, outs),
        "aupr": detection.aupr(ins, outs),
    }.items():
        assert ood[name].value == pytest.approx(value, abs=1e-12)
        assert ood[name].low < ood[name].value < ood[name].high


def test_widths_equal_the_known_standard_errors() -> None:
    logits, labels = labelled(2000)
    found = intervals.image_intervals(logits, labels, ["accuracy", "nll"], seeded(), 2000)
    images = per_image(logits, labels)
    for name, column in (("accuracy", images.correct), ("nll", images.log_loss)):
        wide = 2 * 1.96 * float(column.std(correction=0)) / math.sqrt(2000)
        assert found[name].high - found[name].low == pytest.approx(wide, rel=0.1)
    ins, outs = torch.randn(500, generator=seeded(1)), torch.randn(300, generator=seeded(2)) + 1
    area = intervals.ood_intervals(ins, outs, ["auroc"], seeded(), 2000)["auroc"]
    # DeLong et al. 1988: the variance from each image's own placement.
    above = (outs[None, :] > ins[:, None]).double()
    delong = math.sqrt(above.mean(1).var() / 500 + above.mean(0).var() / 300)
    assert area.high - area.low == pytest.approx(2 * 1.96 * delong, rel=0.1)


def test_same_seed_same_interval_and_global_generator_untouched() -> None:
    logits, labels = labelled()
    before = torch.get_rng_state()
    first, second, other = (intervals.image_intervals(logits, labels, ["nll"], seeded(s), 50) for s in (3, 3, 4))
    assert first == second
    assert first != other
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("power", "known"), [(1.0, 0.0), (0.0, None)])
def test_smooth_ece_interval_holds_the_truth(power: float, known: float | None) -> None:
    """Calibrated data (truth 0), and logits twice too large; the full figures: benchmarks/smooth_ece.py."""
    sharp = 1.0 if power else 2.0
    generator = seeded(5)
    if known is None:
        z = 2 * torch.randn(400_000, generator=generator, dtype=torch.float64).abs()
        f, p = (sharp * z).sigmoid().sort().values, z.sort().values.sigmoid()
        known = float(calibration.weighted_smooth_ece(f, p)(torch.ones(1, len(f), dtype=torch.float64)))
        assert known > 0.05
    held, sets = 0, 60
    for _ in range(sets):
        z = 2 * torch.randn(500, generator=generator, dtype=torch.float64).abs()
        labels = (torch.rand(500, generator=generator, dtype=torch.float64) >= z.sigmoid()).long()
        logits = torch.stack([sharp * z, torch.zeros_like(z)], 1)
        found = intervals.image_intervals(logits, labels, ["smooth_ece"], generator, 100)["smooth_ece"]
        held += found.low <= known <= found.high
    assert held >= 0.88 * sets


def test_the_interval_of_a_gap_of_accuracies_holds_none() -> None:
    """Errors of estimated accuracies, means of |estimate − truth| over sets: zero here, which no resample says."""
    draw = seeded(5)
    ends = list[tuple[bool, bool]]()
    for _ in range(40):
        right, guessed = ((torch.rand(2, 10, 400, generator=draw) < 0.8).double()).unbind(0)

        def gap(weights: Tensor, right: Tensor = right, guessed: Tensor = guessed) -> Tensor:
            return ((weights @ (right - guessed).T) / weights.sum(1, keepdim=True)).abs().mean(1, keepdim=True)

        figure = bounded.Figure("accuracy_error", (400,), mean=True)
        ((value, low, high),), draws = intervals.estimate(gap, [figure], [400], seeded(), 200)
        assert low <= value <= high
        ends.append((low == 0, float(draws.quantile(0.025)) == 0))
    assert sum(own for own, _ in ends) >= 38  # 95 % of 40
    assert not any(percentile for _, percentile in ends)


def test_over_seeds_equals_scipy() -> None:
    values = [0.91, 0.93, 0.90, 0.95]
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert intervals.over_seeds(values) == pytest.approx((statistics.fmean(values), low, high), abs=1e-12)
    assert intervals.over_seeds([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_paired_difference_removes_the_seeds_part() -> None:
    found = intervals.paired_difference([0.9, 0.5, 0.7], [0.8, 0.4, 0.6])
    assert found == pytest.approx((0.1, 0.1, 0.1), abs=1e-12)
    assert intervals.paired_difference([1.0, 2.0], [3.0, 3.0]).value == -1.5


def test_resampled_difference_is_narrower_than_two_intervals() -> None:
    first = (torch.rand(2000, generator=seeded(1)) < 0.8).double()
    second = first.clone()
    second[:40] = 0
    draws = [intervals.bootstrap(weighted_mean(correct), [2000], seeded(5), 2000) for correct in (first, second)]
    values = float(first.mean()), float(second.mean())
    found, _ = intervals.resampled_difference(values, (draws[0], draws[1]))
    assert found.value == pytest.approx(float(first[:40].sum()) / 2000)
    error = float((first - second).std(correction=0)) / math.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: intervals.over_seeds([1.0]), "at least two seeds"),
        (lambda: intervals.over_seeds([1.0, math.nan]), "NaN"),
        (lambda: intervals.over_seeds([1.0, 2.0], 95), "fraction"),
        (lambda: intervals.paired_difference([1.0, 2.0], [1.0]), "same seeds"),
        (lambda: intervals.image_intervals(*labelled(9), ["auroc"], seeded()), "choose metrics out of accuracy"),
        (lambda: intervals.image_intervals(*labelled(9), [], seeded()), "nothing given"),
        (lambda: intervals.image_intervals(*labelled(9), ["nll"], seeded(), 1), "at least 2 replicates"),
        (lambda: intervals.ood_intervals(torch.ones(2), torch.ones(0), ["auroc"], seeded()), "out_scores must"),
    ],
)
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def pair_of_models(count: int, seed: int, gain: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two networks that err on much the same images, and labels."""
    draw = seeded(seed)
    labels = torch.randint(3, (count,), generator=draw)
    shared = 2 * torch.randn(count, 3, generator=draw) + 2 * torch.nn.functional.one_hot(labels, 3)
    own = 0.3 * torch.randn(2, count, 3, generator=draw)
    return shared + own[0] + gain * torch.nn.functional.one_hot(labels, 3), shared + own[1], labels


def replicates(name: str, logits: Tensor, labels: Tensor, count: int = 400) -> tuple[float, Tensor]:
    metric = IMAGE_METRICS[name](per_image(logits, labels))
    value = float(metric(torch.ones(1, len(labels), dtype=torch.float64)))
    return value, intervals.bootstrap(metric, [len(labels)], seeded(5), count)


def test_resampled_difference_of_accuracy_is_the_paired_bootstrap() -> None:
    first, second, labels = pair_of_models(500, 0, 0.5)
    (a, a_draws), (b, b_draws) = (replicates("accuracy", logits, labels) for logits in (first, second))
    found, p = intervals.resampled_difference((a, b), (a_draws, b_draws))
    correct = [(logits.argmax(1) == labels) for logits in (first, second)]
    difference = correct[0].double() - correct[1].double()
    both = intervals.bootstrap(weighted_mean(difference), [500], seeded(5), 400)  # in one statistic
    wanted = intervals.percentile_interval(float(difference.mean()), both)
    assert found == pytest.approx(wanted, abs=0.003)
    exact = scipy.stats.binomtest(
        int((correct[0] & ~correct[1]).sum()), int((correct[0] != correct[1]).sum())
    ).pvalue  # McNemar's test
    assert p == pytest.approx(exact, abs=0.03)


@pytest.mark.parametrize("name", ["accuracy", "smooth_ece"])
def test_resampled_difference_holds_the_truth_as_often_as_it_says(name: str) -> None:
    first, second, labels = pair_of_models(200_000, 99, 0.4)
    truth = replicates(name, first, labels, 2)[0] - replicates(name, second, labels, 2)[0]
    held = 0
    for seed in range(60):
        one, other, own = pair_of_models(600, seed, 0.4)
        (a, a_draws), (b, b_draws) = (replicates(name, logits, own, 100) for logits in (one, other))
        found, _ = intervals.resampled_difference((a, b), (a_draws, b_draws))
        held += found.low <= truth <= found.high
    assert held > 51  # 57 expected; 51 or fewer happen once in 300 tries


def test_no_difference_is_no_evidence() -> None:
    draws = torch.randn(50, generator=seeded())
    assert intervals.resampled_difference((0.5, 0.5), (draws, draws)) == (intervals.Interval(0, 0, 0), 1.0)
    far, p = intervals.resampled_difference((5.0, 0.0), (torch.full((50,), 5.0), torch.zeros(50)))
    assert list(far) == [5, 5, 5]
    assert p == 0
    with pytest.raises(UserError, match="the same resamples twice, not 50 and 49"):
        intervals.resampled_difference((0.5, 0.5), (draws, draws[1:]))


def test_paired_t_test_equals_scipy() -> None:
    first, second = [0.81, 0.84, 0.79, 0.88, 0.80], [0.79, 0.85, 0.75, 0.86, 0.77]
    assert intervals.paired_t_test(first, second) == pytest.approx(scipy.stats.ttest_rel(first, second).pvalue)
    assert intervals.paired_t_test(first, first) == 1
    assert intervals.paired_t_test([2.0, 3.0, 5.0], [1.0, 2.0, 4.0]) == 0
    assert intervals.paired_t_test([2.0, 3.0], [1.0, 2.0]) == 1  # two seeds that agree
    assert intervals.paired_t_test([0.8, 0.9], [0.7, 0.8]) == 1  # equal but for rounding
    assert intervals.paired_t_test([0.0, 0.0], [0.0, 0.0]) == 1


def test_equal_differences_of_two_seeds_are_no_evidence() -> None:
    """Networks without a difference, two seeds each, 600 images: no p-value that any correction would call clear."""
    draw = np.random.default_rng(0)
    rates = draw.binomial(600, 0.9, (2000, 2, 2)) / 600
    p = np.array([intervals.paired_t_test(*networks) for networks in rates])
    assert (rates[:, 0, 0] - rates[:, 0, 1] == rates[:, 1, 0] - rates[:, 1, 1]).any()
    assert (p < 0.05 / 87).mean() < 0.005


def test_holm_by_hand() -> None:
    # 0.01 · 4, then 0.02 · 3, 0.03 · 2 (raised to 0.06), 0.5 · 1.
    assert intervals.holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert intervals.holm([0.7, 0.9]) == [1.0, 1.0]
    assert intervals.holm([]) == []
    with pytest.raises(UserError, match="p-values lie in"):
        intervals.holm([1.1])
