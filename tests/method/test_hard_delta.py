"""The residuals' distribution, its tail and the loss, against known laws and NumPy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from anchored import anchor
from anchored.errors import UserError
from anchored.method.hard_delta import FullNormal, LowRankNormal, Residuals, chi_tail, uniform_cross_entropy
from anchored.models import registry as networks


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, size: int = 3, seed: int = 0) -> Tensor:
    """Correlated pixels (count,1,size,size) with a mean, from a covariance of full rank."""
    d = size * size
    mix = torch.randn(d, d, generator=generator(99), dtype=torch.float64) + 2 * torch.eye(d)
    noise = torch.randn(count, d, generator=generator(seed), dtype=torch.float64)
    return (noise @ mix.T + 5).view(count, 1, size, size)


def observed(residuals: Residuals, x: Tensor, labels: Tensor | None = None, batch: int = 50) -> Residuals:
    draw = generator(1)
    labels = torch.zeros(len(x), dtype=torch.int64) if labels is None else labels
    for part, own in zip(torch.split(x, batch), torch.split(labels, batch), strict=True):
        residuals.observe(part, torch.randperm(len(part), generator=draw), own)
    residuals.fit()
    return residuals


def covariance(residuals: Residuals) -> Tensor:
    """What was fitted, from the points it draws: E z zᵀ of standard normal noise pushed through it."""
    d = residuals.sums.shape[1]
    normal = residuals.normal
    assert normal is not None
    points, _ = normal.transform(torch.randn(200_000, d, generator=generator(3)), generator(4))
    return points.double().T @ points.double() / len(points)


def test_the_covariance_of_residuals_is_recovered() -> None:
    x = images(100_000)
    expected = 2 * torch.from_numpy(np.cov(x.flatten(1).numpy().T))
    for residuals in (Residuals((1, 3, 3)), Residuals((1, 3, 3), pairs="anchored")):
        found = covariance(observed(residuals, x, batch=500))
        assert float((found - expected).norm() / expected.norm()) < 0.02


def test_every_pair_of_a_batch_by_hand() -> None:
    x = torch.tensor([0.0, 1.0, 5.0]).view(3, 1, 1, 1)
    residuals = observed(Residuals((1, 1, 1)), x)
    differences = [(a - b) ** 2 for a in (0, 1, 5) for b in (0, 1, 5)]  # every image with every one, itself included
    assert float(residuals.moment) / float(residuals.count) == pytest.approx(sum(differences) / 9)
    anchored = Residuals((1, 1, 1), pairs="anchored")
    anchored.observe(x, torch.tensor([1, 2, 0]), torch.zeros(3, dtype=torch.int64))  # 0 − 1, 1 − 5, 5 − 0
    assert float(anchored.moment) == 1 + 16 + 25


@pytest.mark.parametrize("full_up_to", [100, 1])
@pytest.mark.parametrize("mass", [1e-4, 0.05, 1.0])
def test_radii_follow_the_conditioned_chi_law(full_up_to: int, mass: float) -> None:
    residuals = observed(Residuals((1, 3, 3), full_up_to=full_up_to, rank=9), images(5_000))
    tail = residuals.tail(4_000, mass, generator(7)).flatten(1).double()
    assert tail.shape == (4_000, 9)
    sigma = covariance_fitted(residuals)
    radii = (tail * torch.linalg.solve(sigma, tail.T).T).sum(1).sqrt()
    edge = stats.chi.isf(mass, 9)
    assert float(radii.min()) > edge - 1e-3
    law = stats.kstest(radii.numpy(), lambda r: 1 - stats.chi.sf(r, 9) / mass)
    assert law.pvalue > 0.01
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(sigma), tail.T, upper=False).T / radii[:, None]
    spread = whitened.T @ whitened / len(whitened)  # of uniform directions: the identity over d
    assert float((spread - torch.eye(9) / 9).abs().max()) < 0.02


def covariance_fitted(residuals: Residuals) -> Tensor:
    """The fitted covariance itself (d,d)."""
    match residuals.normal:
        case FullNormal(factor):
            square: Tensor = factor.double() @ factor.double().T
            return square
        case LowRankNormal(directions, diagonal):
            both: Tensor = directions @ directions.T + torch.diag(diagonal)
            return both
    raise AssertionError


def test_low_rank_plus_diagonal_recovers_its_own_kind() -> None:
    d, rank = 64, 3
    strong = 5 * torch.linalg.qr(torch.randn(d, rank, generator=generator(5), dtype=torch.float64))[0]
    noise = torch.randn(40_000, rank + d, generator=generator(6), dtype=torch.float64)
    x = noise[:, :rank] @ strong.T + noise[:, rank:] * torch.linspace(0.2, 0.4, d)
    residuals = observed(Residuals((1, 8, 8), full_up_to=10, rank=rank), x.view(-1, 1, 8, 8), batch=200)
    expected = 2 * torch.from_numpy(np.cov(x.numpy().T))
    found = covariance_fitted(residuals)
    assert float((found - expected).norm() / expected.norm()) < 0.01
    torch.testing.assert_close(found.diagonal(), expected.diagonal(), rtol=0.01, atol=0)


def test_classes_have_their_means_and_share_a_covariance() -> None:
    labels = torch.arange(6_000) % 3
    centres = torch.tensor([-4.0, 0.0, 1.0], dtype=torch.float64)
    x = images(6_000) + centres[labels].view(-1, 1, 1, 1)
    for full_up_to in (100, 1):
        residuals = observed(Residuals((1, 3, 3), 3, full_up_to=full_up_to, rank=9), x, labels, batch=300)
        expected_means = (centres - centres.mean())[:, None].expand(3, 9)
        assert float((residuals.means - expected_means).abs().max()) < 0.25
        # Within a class: the image's own spread, and the reference's, which has the classes' centres in it too.
        within = torch.from_numpy(np.cov(images(6_000).flatten(1).numpy().T))
        expected = 2 * within + centres.var(correction=0) * torch.ones(9, 9)
        found = covariance_fitted(residuals)
        assert float((found - expected).norm() / expected.norm()) < 0.03
        chosen = residuals.tail(30_000, 1.0, generator()).mean(0)
        assert float(chosen.abs().max()) < 0.15  # classes are drawn as often as they are seen


def test_pixels_that_never_change_do_not_stop_it() -> None:
    x = images(500)
    x[:, :, 0] = 3.0
    for full_up_to in (100, 1):
        tail = observed(Residuals((1, 3, 3), full_up_to=full_up_to, rank=4), x).tail(100, 1e-4, generator())
        assert bool(torch.isfinite(tail).all())
        assert float(tail[:, :, 0].abs().max()) < 0.1 < float(tail[:, :, 1:].abs().max())


def test_chi_tail_inverts_the_survival_function() -> None:
    uniform = torch.tensor([1e-9, 0.25, 1.0], dtype=torch.float64)
    for d in (1, 3_072, 150_528):
        radii = chi_tail(d, 1e-4, uniform)
        assert stats.chi.sf(radii.numpy(), d) == pytest.approx((1e-4 * uniform).numpy(), rel=1e-6)
        assert list(radii) == sorted(radii, reverse=True)
    for mass in (0.0, 1.5, math.nan):
        with pytest.raises(UserError, match="the tail's mass is"):
            chi_tail(3, mass, uniform)


def test_nothing_observed_nothing_fitted() -> None:
    with pytest.raises(UserError, match="has seen no residuals"):
        Residuals((1, 2, 2)).fit()
    with pytest.raises(UserError, match=r"call fit\(\) first"):
        Residuals((1, 2, 2)).tail(2, 0.1, generator())


def test_uniform_cross_entropy_by_hand() -> None:
    assert float(uniform_cross_entropy(torch.zeros(5, 4))) == pytest.approx(math.log(4))
    p = torch.tensor([[0.5, 0.25, 0.25]])
    assert float(uniform_cross_entropy(p.log())) == pytest.approx(-(math.log(0.5) + 2 * math.log(0.25)) / 3)


def test_the_loss_raises_entropy_on_tails_and_leaves_statistics_alone() -> None:
    model = anchor(networks.build_network("small", channels=1, classes=5, seed=0), 0.25).train()
    with torch.no_grad():
        model.network.get_parameter("head.weight").mul_(10)  # sure of itself, as a trained network is
    residuals = observed(Residuals((1, 8, 8)), images(400, size=8))
    statistics = {name: value.clone() for name, value in model.named_buffers() if "running" in name}

    def entropy() -> float:
        with torch.no_grad():
            p = model.masked_pass(-residuals.tail(64, 1e-4, generator(11))).softmax(1)
        return float(-(p * p.log()).sum(1).mean())

    before, optimizer, draw = entropy(), torch.optim.SGD(model.parameters(), 0.1, 0.9), generator(12)
    for _ in range(60):
        optimizer.zero_grad()
        uniform_cross_entropy(model.masked_pass(-residuals.tail(32, 1e-4, draw))).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = entropy()
    assert before < 0.8 * math.log(5)
    assert after > 0.97 * math.log(5)
    assert all(torch.equal(value, statistics[name]) for name, value in model.named_buffers() if "running" in name)


def test_shown_with_the_batch_tails_are_unsure_in_evaluation_and_shown_alone_they_are_not() -> None:
    x = images(400, size=8)
    x = ((x - x.mean()) / x.std()).float()
    labels, residuals = (x.flatten(1)[:, :32].mean(1) > 0).long(), observed(Residuals((1, 8, 8)), x)

    def entropy(joint: bool) -> float:
        """Of tail points in evaluation, as a share of the most, after 60 steps."""
        model = anchor(networks.build_network("small", channels=1, classes=2, seed=0), 0.25).train()
        optimizer, draw = torch.optim.SGD(model.parameters(), 0.1, 0.9), generator(12)
        for _ in range(60):
            some, far = torch.randint(400, (64,), generator=draw), -residuals.tail(32, 1e-4, draw)
            logits = model(x[some], far) if joint else torch.cat([model(x[some]), model.masked_pass(far)])
            loss = nn.functional.cross_entropy(logits[:64], labels[some]) + uniform_cross_entropy(logits[64:])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        with torch.no_grad():
            p = model.eval().masked_pass(-residuals.tail(256, 1e-4, generator(11))).softmax(1)
        return float(-(p * p.log()).sum(1).mean()) / math.log(2)

    assert entropy(joint=True) > 0.95
    assert entropy(joint=False) < 0.9  # batch norm gave them away by their own statistics


def test_the_loop_in_the_docs_runs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
    (loop,) = [part.partition("```")[0] for part in text.split("```python")[1:] if "Residuals" in part]
    batches = [(torch.randn(8, 3, 32, 32, generator=generator(i)), torch.arange(8)) for i in range(2)]
    model = anchor(networks.build_network("small", channels=3, classes=10, seed=0), 0.25).train()
    names = {"torch": torch, "model": model, "loader": batches, "epochs": 2}
    names |= {"cross_entropy": nn.functional.cross_entropy}
    exec(loop, names)
    assert names["far"].shape == (32, 3, 32, 32)  # type: ignore[attr-defined]
    assert names["loss"].isfinite()  # type: ignore[attr-defined]


def test_the_same_generator_draws_the_same_points() -> None:
    residuals = observed(Residuals((1, 3, 3)), images(300))
    assert torch.equal(residuals.tail(8, 0.01, generator(2)), residuals.tail(8, 0.01, generator(2)))
    again = Residuals((1, 3, 3))
    again.load_state_dict(residuals.state_dict())  # as a checkpoint does
    again.fit()
    assert torch.equal(residuals.tail(8, 0.01, generator(2)), again.tail(8, 0.01, generator(2)))


def test_masked_pass_is_the_zero_reference_with_the_residual() -> None:
    class Seen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen = x
            logits: Tensor = self.conv(x).flatten(1)
            return logits

    model = anchor(Seen())
    assert isinstance(model.network, Seen)
    residual = torch.randn(3, 1, 2, 2, generator=generator())
    expected = torch.cat([torch.zeros_like(residual), residual], dim=1)
    model.masked_pass(residual)
    assert torch.equal(model.network.seen, expected)
    batch = torch.randn(5, 1, 2, 2, generator=generator(1))
    assert model.train()(batch, residual).shape == (8, 4)
    assert torch.equal(model.network.seen[5:], expected)
    torch.testing.assert_close(model.network.seen[:5].sum(1, keepdim=True), batch)
    with pytest.raises(UserError, match="far residuals are 1×2×1, images 1×2×2"):
        model(batch, residual[..., :1])
    with pytest.raises(UserError, match="in training only"):
        model.eval()(batch, residual)
