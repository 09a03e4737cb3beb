import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.benchmarks import benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom

from anchored.errors import UserError
from anchored.metrics import conformal
from anchored.metrics.classification import nll

scores_with_ties = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=60).map(torch.tensor)


def noisy_logits(n: int = 400, classes: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    return 3 * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_temperature_is_the_minimum_of_nll() -> None:
    logits, labels = noisy_logits()
    found = conformal.fit_temperature(logits, labels)
    best = minimize_scalar(lambda t: nll(logits / t, labels), bounds=(0.1, 20), method="bounded").x
    assert found == pytest.approx(best, rel=1e-4)
    assert found == pytest.approx(3, rel=0.2)
    assert conformal.fit_temperature(logits / found, labels) == pytest.approx(1, rel=1e-8)
    assert conformal.fit_temperature(logits.float(), labels.int()) == pytest.approx(found, rel=1e-5)


def test_temperature_where_nothing_bounds_it() -> None:
    labels = torch.tensor([0, 1, 1])
    all_right = torch.nn.functional.one_hot(labels, 3).double()
    assert conformal.fit_temperature(all_right, labels) == 1  # NLL falls for ever as T -> 0
    assert conformal.fit_temperature(-all_right, labels) == pytest.approx(conformal.HOTTEST)  # worse than chance
    assert conformal.fit_temperature(torch.zeros(3, 3), labels) > 0  # all logits equal
    extreme = torch.tensor([[1e4, 0.0], [1e4, 0.0], [1e4, 0.0]])
    assert 1 < conformal.fit_temperature(extreme, torch.tensor([0, 0, 1])) <= conformal.HOTTEST


def test_p_values_by_hand() -> None:
    held = torch.tensor([1.0, 2.0, 2.0, 3.0])
    p = conformal.p_values(torch.tensor([0.0, 1.0, 2.0, 2.5, 3.0, 4.0]), held)
    assert p.tolist() == [1.0, 1.0, 4 / 5, 2 / 5, 2 / 5, 1 / 5]
    smoothed = conformal.p_values(torch.tensor([2.0, 4.0]), held, torch.tensor([0.5, 0.5]))
    assert smoothed.tolist() == pytest.approx([(1 + 0.5 * 3) / 5, 0.5 / 5])


@settings(max_examples=80, deadline=None)
@given(scores_with_ties, scores_with_ties, st.integers(1, 99))
def test_an_alarm_is_a_p_value_at_or_below_the_rate(held: torch.Tensor, scores: torch.Tensor, percent: int) -> None:
    rate = percent / 100
    if len(held) < conformal.images_needed(rate):
        with pytest.raises(UserError, match=f"needs {conformal.images_needed(rate)} held-out images"):
            conformal.alarm_threshold(held, rate)
        return
    flagged = scores > conformal.alarm_threshold(held, rate)
    assert flagged.equal(conformal.p_values(scores, held) <= rate + 1e-12)


def test_the_number_of_images_that_a_level_needs() -> None:
    assert [conformal.images_needed(rate) for rate in (0.5, 0.1, 0.05, 0.01, 1 - 0.9, 0.3, 1 - 0.9999)] == [
        1,
        9,
        19,
        99,
        9,
        3,
        9999,
    ]
    assert conformal.alarm_threshold(torch.arange(19.0), 0.05) == 18
    with pytest.raises(UserError, match=r"needs 19 held-out images, and there are 18"):
        conformal.alarm_threshold(torch.arange(18.0), 0.05)
    with pytest.raises(UserError, match="share"):
        conformal.images_needed(1.0)


def test_all_scores_equal_raise_no_alarm() -> None:
    held = torch.full((50,), 3.0)
    threshold = conformal.alarm_threshold(held, 0.05)
    assert not bool((held > threshold).any())
    assert conformal.p_values(held, held).tolist() == [1.0] * 50


def test_laws_are_beta() -> None:
    low, high = conformal.alarm_interval(199, 0.05)
    assert (low, high) == pytest.approx(beta(10, 190).interval(0.95))
    low, high = conformal.coverage_interval(199, 0.9)
    assert (low, high) == pytest.approx(beta(180, 20).interval(0.95))
    few = conformal.new_images_interval((10, 199), 50)
    assert few[0] <= low
    assert few[1] - few[0] > 0.09  # wider than the Beta: the images are few too
    assert all(math.isclose(round(50 * end), 50 * end, abs_tol=1e-9) for end in few)


def test_set_scores_by_hand() -> None:
    p = torch.tensor([[0.2, 0.5, 0.3]])
    assert conformal.set_scores(p, "lac")[0].tolist() == pytest.approx([0.8, 0.5, 0.7])
    assert conformal.set_scores(p, "aps")[0].tolist() == pytest.approx([1.0, 0.5, 0.8])
    half = torch.tensor([0.5])
    assert conformal.set_scores(p, "aps", half)[0].tolist() == pytest.approx([0.9, 0.25, 0.65])
    assert conformal.set_scores(p, "raps", penalty=0.1, free=1)[0].tolist() == pytest.approx([1.2, 0.5, 0.9])
    with pytest.raises(UserError, match="the sets are 'LAC': give lac, aps, raps"):
        conformal.set_scores(p, "LAC")  # type: ignore[arg-type]


def test_sets_by_class() -> None:
    scores = torch.rand(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0] * 50 + [1] * 10)
    found = conformal.set_quantiles(scores, labels, 0.9, by_class=True)
    assert found[0] == scores[:50, 0].sort().values[46 - 1]  # ceil(0.9 * 51)
    assert found[1] == scores[50:, 1].max()  # ceil(0.9 * 11) of 10
    assert found[2] == math.inf  # no held-out image: always in the set
    assert conformal.prediction_sets(torch.full((1, 3), 9.0), found).tolist() == [[False, False, True]]
    assert conformal.set_quantiles(scores, labels, 0.95, by_class=True)[1:].isinf().all()  # 10 images, 19 are needed
    with pytest.raises(UserError, match="needs 999 held-out images of a class"):
        conformal.set_quantiles(scores, labels, 0.999, by_class=True)
    with pytest.raises(UserError, match=r"needs 99 held-out images, and there are 60"):
        conformal.set_quantiles(scores, labels, 0.99)


def test_empty_sets_are_filled_by_the_top_class() -> None:
    scores = conformal.set_scores(torch.tensor([[0.9, 0.1]]), "aps")
    quantiles = torch.tensor([0.5, 0.5])
    assert conformal.prediction_sets(scores, quantiles).tolist() == [[False, False]]
    assert conformal.prediction_sets(scores, quantiles, torch.tensor([0])).tolist() == [[True, False]]


@pytest.mark.parametrize("method", ["lac", "aps", "thr", "aps-plain", "raps-plain"])
def test_sets_equal_those_of_mapie_and_torch_uncertainty(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oracles = benchmark("decision_oracles", monkeypatch)
    theirs = json.loads(Path(__file__).with_name("decision_oracles.json").read_text("utf-8"))["sets"][method]
    held, (logits, _) = oracles.logits_and_labels(60, 0), oracles.logits_and_labels(60, 1)
    ours = oracles.ours(method, held, logits).int().tolist()
    assert ["".join(map(str, row)) for row in ours] == theirs


DRAWS = 300


def inside_by_chance(share: float) -> bool:
    """Whether a share of draws inside a 95 % interval is what chance allows, at 1 in 1,000 each side."""
    low, high = binom(DRAWS, 0.95).ppf([0.001, 0.999]) / DRAWS
    return bool(low <= share <= high)


@pytest.mark.parametrize("n", [20, 200])
def test_realised_rates_are_those_of_the_law(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decisions: Any = benchmark("decisions", monkeypatch)
    generator = torch.Generator().manual_seed(1)
    exact = [decisions.false_alarms(n, 0.05, DRAWS, generator, ties=False)]
    exact += [decisions.coverage("lac", n, 0.9, DRAWS, generator, random=False, ties=False)]
    exact += [decisions.coverage(m, n, 0.9, DRAWS, generator, random=True, ties=False) for m in ("aps", "raps")]
    assert all(inside_by_chance(found.inside) for found in exact), exact
    tied = [decisions.false_alarms(n, 0.05, DRAWS, generator, ties=True)]
    tied += [decisions.coverage("aps", n, 0.9, DRAWS, generator, random=False, ties=True)]
    assert all(found.inside >= binom(DRAWS, 0.975).ppf(0.001) / DRAWS for found in tied), tied
