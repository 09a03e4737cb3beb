import math
from typing import Any

import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.classification import accuracy, brier, nll, per_image


def random_logits(count: int = 300, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, classes, generator=generator)
    return logits, torch.randint(classes, (count,), generator=generator)


def test_accuracy_zero_half_one() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
    for labels, value in (([1, 0], 0.0), ([0, 0], 0.5), ([0, 1], 1.0)):
        assert accuracy(logits, torch.tensor(labels)) == value


def test_first_class_wins_a_tie() -> None:
    assert accuracy(torch.zeros(1, 3), torch.tensor([0])) == 1.0


def test_brier_and_nll_hand_cases() -> None:
    flat, label = torch.zeros(1, 2), torch.tensor([1])
    assert brier(flat, label) == pytest.approx(0.5, abs=1e-15)
    assert nll(flat, label) == pytest.approx(math.log(2), abs=1e-15)
    sure = torch.tensor([[-1e4, 1e4]], dtype=torch.float16)
    assert brier(sure, label) == 0.0
    assert nll(sure, label) == 0.0
    assert brier(sure, 1 - label) == 2.0
    assert nll(sure, 1 - label) == pytest.approx(20000)


def test_brier_and_nll_equal_scikit_learn() -> None:
    logits, labels = random_logits()
    p = logits.double().softmax(1).numpy()
    assert nll(logits, labels) == pytest.approx(log_loss(labels.numpy(), p, labels=range(5)), abs=1e-12)
    assert brier(logits, labels) == pytest.approx(
        brier_score_loss(labels.numpy(), p, labels=list(range(5)), scale_by_half=False), abs=1e-12
    )


def test_confidence_is_the_softmax_of_the_guess() -> None:
    logits, labels = random_logits()
    confidence, correct, *_ = per_image(logits, labels)
    torch.testing.assert_close(confidence, logits.double().softmax(1).amax(1), atol=1e-14, rtol=0)
    assert torch.equal(correct, (logits.argmax(1) == labels).double())


def test_blocks_change_nothing() -> None:
    logits, labels = random_logits(300, 2000)  # three blocks
    found = per_image(logits, labels)
    for image in (0, 130, 131, 299):
        one = per_image(logits[image : image + 1], labels[image : image + 1])
        for column, value in zip(found, one, strict=True):
            torch.testing.assert_close(column[image : image + 1], value, atol=1e-14, rtol=1e-14)


LOGITS, LABELS = torch.zeros(2, 3), torch.tensor([0, 2])


@pytest.mark.parametrize("metric", [accuracy, brier, nll, per_image])
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.tensor([[math.nan, 0, 0]] * 2), LABELS, "logits hold NaN"),
        (torch.zeros(2), LABELS, "logits must have shape"),
        (torch.zeros(0, 3), LABELS[:0], "logits must have shape"),
        (LOGITS, LABELS[:1], "labels must have shape"),
        (LOGITS, LABELS.float(), "integer dtype"),
        (LOGITS, torch.tensor([0, 3]), "labels run from 0 to 3, but the logits have 3 classes"),
        (LOGITS, torch.tensor([-1, 0]), "labels run from -1"),
    ],
)
def test_labelled_metrics_refuse(metric: Any, logits: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message):
        metric(logits, labels)
