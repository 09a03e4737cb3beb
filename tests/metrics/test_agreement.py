"""Agreement over references, by hand: none, half, all; and against independent code."""

import math

import pytest
import torch

import anchored
from anchored.metrics.agreement import disagreement, mean_spread, pair_agreement, threshold

BIG = 60.0  # a logit that is certain


def logits(*classes: list[int]) -> torch.Tensor:
    """Certain answers: for each image the classes by reference, of three."""
    return BIG * torch.nn.functional.one_hot(torch.tensor(classes), 3).transpose(0, 1).double()


def test_by_hand_all_half_and_none_agree() -> None:
    views = logits([0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 0])
    assert pair_agreement(views).tolist() == pytest.approx([1, 4 / 12, 2 / 12])
    assert disagreement(views).tolist() == pytest.approx([0, math.log(2), 1.5 * math.log(2)], abs=1e-9)
    # Logistic of 60 is 1, of 0 is ½: by class 1, ½, ½ or 1 ... : s.d. of two of each is ½ √(4/3) / 2.
    half = 0.5 * math.sqrt(1 / 3)
    assert mean_spread(views)[:2].tolist() == pytest.approx([0, 2 * half / 3])


def test_one_reference_agrees_with_itself() -> None:
    one = torch.randn(1, 5, 4)
    assert pair_agreement(one).tolist() == [1] * 5
    assert disagreement(one).tolist() == pytest.approx([0] * 5, abs=1e-12)
    assert mean_spread(one).tolist() == [0] * 5


def test_disagreement_is_the_mean_divergence_from_the_mean() -> None:
    views = torch.randn(6, 9, 4, generator=torch.Generator().manual_seed(0)).double()
    p = views.softmax(2)
    divergence = (p * (p / p.mean(0)).log()).sum(2).mean(0)
    torch.testing.assert_close(disagreement(views), divergence)
    pairs = [(views[i].argmax(1) == views[j].argmax(1)).double() for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(pair_agreement(views), torch.stack(pairs).mean(0))


def test_the_threshold_keeps_as_many_as_are_right() -> None:
    scores, correct = torch.tensor([0.9, 0.2, 0.7, 0.4]), torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert threshold(scores, correct) == pytest.approx(0.7)
    assert (scores >= threshold(scores, torch.ones(4))).all()
    assert not (scores >= threshold(scores, torch.zeros(4))).any()


@pytest.mark.parametrize("function", [mean_spread, disagreement, pair_agreement])
def test_refusals(function: object) -> None:
    assert callable(function)
    with pytest.raises(anchored.UserError, match="K, N, C"):
        function(torch.zeros(3, 2))
    with pytest.raises(anchored.UserError, match="NaN"):
        function(torch.full((2, 1, 2), math.nan))
    with pytest.raises(anchored.UserError, match="each image"):
        threshold(torch.zeros(2), torch.zeros(3))
