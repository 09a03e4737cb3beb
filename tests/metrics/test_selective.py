import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.benchmarks import benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from anchored.errors import UserError
from anchored.metrics import selective
from anchored.metrics.detection import auroc

pairs = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40)


def test_curve_by_hand() -> None:
    confidence, correct = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 1, 0])
    coverage, risk = selective.risk_coverage(confidence, correct)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert risk.tolist() == pytest.approx([0, 1 / 2, 1 / 3, 1 / 2])
    assert selective.aurc(confidence, correct) == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert selective.augrc(confidence, correct) == pytest.approx((0.5 * 0 + 0.5 + 1 + 1.5) / 16)


def test_ties_share_their_errors() -> None:
    confidence, correct = torch.ones(4), torch.tensor([1, 0, 1, 0])
    assert selective.risk_coverage(confidence, correct)[1].tolist() == [0.5] * 4
    assert selective.aurc(confidence, correct.flip(0)) == 0.5


@settings(max_examples=80, deadline=None)
@given(pairs)
def test_augrc_is_its_closed_form(drawn: list[tuple[int, bool]]) -> None:
    confidence, correct = (torch.tensor(column, dtype=torch.float64) for column in zip(*drawn, strict=True))
    accuracy = float(correct.mean())
    right, wrong = confidence[correct == 1], confidence[correct == 0]
    ranked = auroc(wrong, right) if len(right) and len(wrong) else 0.5
    expected = (1 - ranked) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert selective.augrc(confidence, correct) == pytest.approx(expected, abs=1e-12)


def test_areas_equal_torch_uncertainty(monkeypatch: pytest.MonkeyPatch) -> None:
    oracles: Any = benchmark("decision_oracles", monkeypatch)
    theirs = json.loads(Path(__file__).with_name("decision_oracles.json").read_text("utf-8"))["areas"]
    assert oracles.our_areas(*oracles.logits_and_labels(60, 1)) == pytest.approx(theirs, abs=1e-6)


def test_threshold_by_hand() -> None:
    assert selective.accepted_needed(0.05, 0.95) == 59
    assert selective.accepted_needed(0.01, 0.95) == 299
    confidence = torch.arange(200, 0, -1).double()
    correct = torch.ones(200)
    correct[100:] = 0
    found = selective.selective_threshold(confidence, correct, 0.05)
    last = max(m for m in range(101, 200) if all(binom.cdf(i - 100, i, 0.05) <= 0.05 for i in range(101, m + 1)))
    assert found[:3] == (float(confidence[last - 1]), last, last - 100)
    assert found.bound == pytest.approx(beta.ppf(0.95, last - 99, 100))
    assert found.bound <= 0.05
    everything = selective.selective_threshold(confidence, torch.ones(200), 0.05)
    assert everything[:3] == (1.0, 200, 0)


def test_threshold_of_awkward_images() -> None:
    with pytest.raises(UserError, match=r"needs 299 held-out images, and there are 298"):
        selective.selective_threshold(torch.arange(298.0), torch.ones(298), 0.01)
    equal = torch.full((100,), 0.5)  # all or none
    assert selective.selective_threshold(equal, torch.ones(100), 0.05).accepted == 100
    assert selective.selective_threshold(equal, torch.arange(100) % 2, 0.05) == (math.inf, 0, 0, 1.0)
    with pytest.raises(UserError, match="0 or 1"):
        selective.aurc(torch.rand(3), torch.tensor([0, 2, 1]))


def test_the_error_is_above_its_promise_in_few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    decisions: Any = benchmark("decisions", monkeypatch)
    generator, draws = torch.Generator().manual_seed(1), 200
    for options in ({}, {"ties": True}, {"misled": True}):
        found = decisions.abstention(300, 0.1, draws, generator, **options)
        assert found.mean <= binom(draws, 0.05).ppf(0.999) / draws, found


weighted = st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30)


@settings(max_examples=80, deadline=None)
@given(weighted)
def test_weights_are_images_drawn_so_often(drawn: list[tuple[int, bool, int]]) -> None:
    confidence, correct, counts = (torch.tensor(column, dtype=torch.float64) for column in zip(*drawn, strict=True))
    counts[0] += 1
    places = torch.arange(len(counts)).repeat_interleave(counts.long())
    curve = selective.RankingCurve(confidence, correct)
    found = curve(counts[None])[0]
    again, right = confidence[places], correct[places]
    ranked = auroc(again[right == 0], again[right == 1]) if 0 < right.mean() < 1 else 0.5
    expected = [selective.aurc(again, right), selective.augrc(again, right), ranked]
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    coverage, risk = selective.risk_coverage(again, right)
    assert curve.risk(counts[None], coverage)[0].tolist() == pytest.approx(risk.tolist(), abs=1e-9)


def test_areas_with_other_images_by_hand() -> None:
    correct, inside, outside = torch.tensor([1, 0]), torch.tensor([0.0, 1.0]), torch.tensor([2.0, 2.0, 2.0])
    metric = selective.weighted_scod_aurc(inside, correct, outside)
    ones = torch.ones(1, 2, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)
    # five images, of which the two tested ones stand for 1.25 each and the others for 5/6 each
    harmonic = [
        float(torch.digamma(torch.tensor(x + 1.0, dtype=torch.float64))) + 0.5772156649015329 for x in (1.25, 2.5, 5)
    ]
    second = 1.25 - 1.25 * (harmonic[1] - harmonic[0])
    third = 2.5 + (1.25 - 2.5) * (harmonic[2] - harmonic[1])
    assert float(metric(*ones)) == pytest.approx((0 + second + third) / 5)
    many = torch.arange(2000.0)
    best = selective.weighted_scod_aurc(many, torch.ones(2000), torch.full((500,), 3000.0))
    sizes = torch.ones(1, 2000, dtype=torch.float64), torch.ones(1, 500, dtype=torch.float64)
    assert float(best(*sizes)) == pytest.approx((1 - math.log(2)) / 2, abs=1e-3)
    assert float(best(sizes[0], 7 * sizes[1])) == pytest.approx(
        float(best(*sizes))
    )  # half and half, whatever the counts
