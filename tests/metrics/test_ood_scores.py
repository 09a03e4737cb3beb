import math

import pytest
import scipy.special
import torch

from anchored.errors import UserError
from anchored.metrics.ood_scores import SCORES


@pytest.mark.parametrize(
    ("name", "value"),
    [("energy", -math.log(4)), ("max_softmax", -0.5), ("max_logit", -math.log(2)), ("entropy", 1.5 * math.log(2))],
)
def test_hand_case_half_quarter_quarter(name: str, value: float) -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log()
    assert SCORES[name](logits).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", SCORES)
def test_confident_is_less_out_of_distribution_than_flat(name: str) -> None:
    confident, flat = SCORES[name](torch.tensor([[9.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert confident < flat


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_stable_at_ten_thousand(name: str, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, 1e4, -1e4]], dtype=dtype)
    wanted = {
        "energy": [-1e4, -1e4 - math.log(2)],
        "max_softmax": [-1.0, -0.5],
        "max_logit": [-1e4, -1e4],
        "entropy": [0.0, math.log(2)],
    }[name]
    torch.testing.assert_close(SCORES[name](logits), torch.tensor(wanted, dtype=torch.float64), atol=1e-9, rtol=1e-12)


def test_against_scipy_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchored.metrics.ood_scores._BLOCK", 50)
    logits = torch.randn(33, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    p = scipy.special.softmax(logits.numpy(), axis=1)
    wanted = {
        "energy": -scipy.special.logsumexp(logits.numpy(), axis=1),
        "max_softmax": -p.max(1),
        "max_logit": -logits.numpy().max(1),
        "entropy": scipy.special.entr(p).sum(1),
    }
    for name, score in SCORES.items():
        torch.testing.assert_close(score(logits), torch.from_numpy(wanted[name]), atol=1e-12, rtol=1e-12)


def test_float64_keeps_confident_images_apart() -> None:
    first, second = SCORES["max_softmax"](torch.tensor([[20.0, 0.0], [21.0, 0.0]]))
    assert first != second  # both are exactly one in float32


@pytest.mark.parametrize(
    "bad", [torch.zeros(3), torch.zeros(3, 0), torch.tensor([[0.0, math.nan]]), torch.tensor([[math.inf, 0]])]
)
@pytest.mark.parametrize("name", SCORES)
def test_refuses(name: str, bad: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"^logits (must|hold)"):
        SCORES[name](bad)
