import math
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.linear_probe import linear_probe, stratified


def blobs(count: int, seed: int, classes: int = 4, features: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, features, generator=torch.Generator().manual_seed(99))
    scales = torch.logspace(-2, 2, features)
    return (centres[labels] + 1.5 * torch.randn(count, features, generator=generator)) * scales + 3, labels


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("strength", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("classes", [2, 4])
def test_probabilities_equal_scikit_learn(strength: float, classes: int) -> None:
    (x, y), (test, _) = blobs(400, 0, classes), blobs(100, 1, classes)
    found = linear_probe(x, y, test, classes, seeded(), strengths=[strength])
    scaler = StandardScaler().fit(x.double().numpy())
    # With two classes scikit-learn fits one vector, w₁ − w₀: its ‖w‖² is twice the sum of our two halves' norms.
    c = 1 / (len(x) * strength) * (2 if classes == 2 else 1)
    peer = LogisticRegression(C=c, tol=1e-9, max_iter=5000).fit(scaler.transform(x.double().numpy()), y.numpy())
    wanted = torch.from_numpy(peer.predict_proba(scaler.transform(test.double().numpy())))
    assert (found.logits.softmax(1) - wanted).abs().max() < 1e-4
    assert found.strength == strength
    assert found.held_out == {}


def test_strength_is_chosen_on_held_out_training_images() -> None:
    generator = seeded(3)
    x, y = torch.randn(200, 60, generator=generator), torch.arange(200) % 2
    x[:, 0] += y  # one weak feature among noise: too little L2 overfits
    found = linear_probe(x, y, x[:5], 2, seeded())
    assert found.held_out[found.strength] == min(found.held_out.values())
    assert found.strength >= 1e-2
    assert found.held_out[min(found.held_out)] > 1.05 * found.held_out[found.strength]  # and there the search ended


def test_held_out_losses_are_those_of_finished_fits() -> None:
    """A fit that ends early overfits less: a weak strength would look better than it is."""
    x, y = blobs(400, 0)
    kept, held = stratified(y, 4, seeded(5))
    scaler = StandardScaler().fit(x[kept].double().numpy())
    inside, outside = (scaler.transform(x[each].double().numpy()) for each in (kept, held))
    found = linear_probe(x, y, x[:5], 4, seeded(5), strengths=[1e-5, 1e-3])
    for strength, loss in found.held_out.items():
        peer = LogisticRegression(C=1 / (len(kept) * strength), tol=1e-9, max_iter=5000).fit(inside, y[kept].numpy())
        assert loss == pytest.approx(log_loss(y[held].numpy(), peer.predict_proba(outside)), abs=5e-4)


def test_test_features_never_matter_for_the_fit() -> None:
    (x, y), (test, _) = blobs(200, 0), blobs(50, 1)
    one = linear_probe(x, y, test, 4, seeded())
    other = linear_probe(x, y, torch.cat([test[:1], test[1:] * 1e3]), 4, seeded())
    torch.testing.assert_close(one.logits[0], other.logits[0], atol=0, rtol=1e-12)


def test_same_seed_same_probe() -> None:
    (x, y), (test, _) = blobs(200, 0), blobs(50, 1)
    first, second = (linear_probe(x, y, test, 4, seeded(7)) for _ in range(2))
    assert torch.equal(first.logits, second.logits)
    assert first.held_out == second.held_out
    assert linear_probe(x, y, test, 4, seeded(8)).held_out != first.held_out


def test_constant_features_have_no_say() -> None:
    (x, y), (test, _) = blobs(200, 0), blobs(50, 1)
    plain = linear_probe(x, y, test, 4, seeded(), [1e-3]).logits
    constant = torch.cat([x, torch.full((200, 2), 0.1)], 1)
    wild = torch.cat([test, torch.full((50, 1), 0.1), torch.full((50, 1), 1e6)], 1)
    torch.testing.assert_close(linear_probe(constant, y, wild, 4, seeded(), [1e-3]).logits, plain, atol=1e-4, rtol=1e-4)


def test_absent_and_single_image_classes() -> None:
    x, y = blobs(60, 0, classes=2)
    y[0] = 4  # class 2 and 3 absent, class 4 once
    logits = linear_probe(x, y, x, 5, seeded()).logits
    assert bool(torch.isfinite(logits).all())
    assert logits.shape == (60, 5)
    assert (logits.argmax(1) == y).double().mean() > 0.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_features": torch.full((4, 2), math.nan)}, "train_features hold NaN"),
        ({"test_features": torch.full((1, 2), math.inf)}, "test_features hold NaN"),
        ({"test_features": torch.zeros(1, 3)}, "training images have 2 features, test images 3"),
        ({"test_features": torch.zeros(0, 2)}, "test_features must have shape"),
        ({"train_labels": torch.tensor([0, 1, 2, 0])}, "labels run from 0 to 2"),
        ({"train_labels": torch.tensor([0, -1, 1, 0])}, "labels run from -1 to 1"),
        ({"train_labels": torch.tensor([0, 1])}, "must be 4 class numbers"),
        ({"train_labels": torch.tensor([0.0, 1, 0, 1])}, "integer dtype"),
        ({"train_labels": torch.tensor([1, 1, 1, 1])}, "at least two classes"),
        ({"strengths": [0.0]}, "must be positive"),
        ({"strengths": []}, "must be positive"),
        ({"train_features": torch.eye(2), "train_labels": torch.tensor([0, 1])}, "give a single L2 strength"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "train_features": torch.eye(4)[:, :2],
        "train_labels": torch.tensor([0, 1, 0, 1]),
        "test_features": torch.ones(1, 2),
        "classes": 2,
        "generator": seeded(),
    }
    with pytest.raises(UserError, match=message):
        linear_probe(**(good | change))
