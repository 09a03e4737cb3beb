"""Linear probe: how much a frozen network's features tell about another data set, by logistic regression on them.

Legend: N training images, M test images, D features, K classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchored.errors import UserError

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""L2 strengths tried, relative to the mean loss per image: scikit-learn's C is 1 / (N · strength)."""

HELD_OUT = 0.2
"""Share of each class's training images that chooses the strength."""


CHOSEN, FITTED = 1e-6, 1e-7
"""The greatest derivative (nats an image) where fits end that choose the strength, and the last one. Looser, a weak
strength's fit ends before it overfits, and is chosen for that."""


class Probe(NamedTuple):
    """Test ``logits`` (M, K) float64, the chosen L2 ``strength``, and the held-out loss (nats) of each one tried."""

    logits: Tensor
    strength: float
    held_out: dict[float, float]


class _Scale(NamedTuple):
    """x ↦ (x − mean) · factor, (D,) each; a feature that is constant in training gets factor 0 and so no say."""

    mean: Tensor
    factor: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.mean) * self.factor


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    classes: int,
    generator: torch.Generator,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Multinomial logistic regression on standardised frozen features: (N, D), (N,) integer, (M, D) -> ``Probe``.

    Minimises mean_i −ln softmax(W x_i + b)[y_i] + strength/2 · ‖W‖² (b is free) by L-BFGS, in float32 and then in
    float64 until no derivative is above 1e-7. The strength is the one with the least loss on a seeded, stratified fifth
    of the TRAINING images (a proper score, which does not tie as accuracy does); the probe is then fitted anew on all
    of them. The test features are only ever predicted.
    Deterministic: the same generator state gives the same probe. Works on the features' device.

    Raises ``UserError`` for other shapes, NaN or infinite features, labels outside [0, classes), fewer than two classes
    present, strengths that are not positive, or (with several strengths) no class with two images to hold one out.
    Protocol: Kornblith et al. 2019, https://arxiv.org/abs/1805.08974
    """
    _check(train_features, train_labels, test_features, classes, strengths)
    labels = train_labels.to(train_features.device).long()
    strength, start, losses = float(strengths[0]), None, {}
    if len(set(strengths)) > 1:
        kept, held = stratified(labels, classes, generator)
        found = _held_out(train_features, labels, kept, held, classes, sorted(set(strengths), reverse=True))
        losses = {each: loss for each, (loss, _) in found.items()}
        strength = min(losses, key=losses.__getitem__)
        start = found[strength][1]  # of four fifths of the images: close
    scale = _scale(train_features)
    weights = _fit(_rotated(scale(train_features)), labels, classes, strength, start, FITTED)
    return Probe(_logits(scale(test_features), weights), strength, losses)


def _check(train: Tensor, labels: Tensor, test: Tensor, classes: int, strengths: Sequence[float]) -> None:
    for name, features in (("train_features", train), ("test_features", test)):
        if features.ndim != 2 or 0 in features.shape:
            raise UserError(f"{name} must have shape (images, features), neither zero, not {tuple(features.shape)}")
        if not bool(torch.isfinite(features).all()):
            raise UserError(f"{name} hold NaN or infinite values; look at the network's outputs before probing them")
    if train.shape[1] != test.shape[1]:
        raise UserError(f"training images have {train.shape[1]} features, test images {test.shape[1]}")
    if labels.shape != train.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise UserError(f"train_labels must be {len(train)} class numbers of an integer dtype")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise UserError(f"train_labels run from {int(labels.min())} to {int(labels.max())}, outside 0 to {classes - 1}")
    if len(torch.unique(labels)) < 2:
        raise UserError("a linear probe needs training images of at least two classes")
    if not strengths or not all(math.isfinite(s) and s > 0 for s in strengths):
        raise UserError(f"L2 strengths must be positive numbers, at least one, not {tuple(strengths)}")


def stratified(labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels (N,) -> (kept, held out) image numbers: HELD_OUT of each class, at least one of two, never its last."""
    shuffled = torch.randperm(len(labels), generator=generator, device=generator.device).to(labels.device)
    held = []
    for label in range(classes):
        own = shuffled[labels[shuffled] == label]
        held.append(own[: min(max(1, round(HELD_OUT * len(own))), max(len(own) - 1, 0))])
    out = torch.cat(held)
    if not len(out):
        raise UserError("every class has one training image: none can be held out; give a single L2 strength")
    mask = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    mask[out] = False
    return mask.nonzero()[:, 0], out


class _Rotated(NamedTuple):
    """Standardised images turned so that their features are uncorrelated, and what turned them.

    Scaled there by ``sizes``, features and penalty together have the identity for a covariance: L-BFGS would otherwise
    take thousands of steps at small strengths. Nothing is scaled but the weights, so one rotation serves all strengths.
    """

    images: Tensor  # (n, D) float64
    variances: Tensor  # (D,)
    directions: Tensor  # (D, D), a column each

    def sizes(self, strength: float) -> Tensor:
        """(D,): what the weights are multiplied by."""
        return (self.variances.clamp(min=0) + strength).sqrt()


def _rotated(x: Tensor) -> _Rotated:
    variances, directions = torch.linalg.eigh(x.T @ x / len(x))
    return _Rotated(x @ directions, variances, directions)


def _held_out(
    features: Tensor, labels: Tensor, kept: Tensor, held: Tensor, classes: int, strengths: Sequence[float]
) -> dict[float, tuple[float, Tensor]]:
    """Held-out loss and weights of each strength, the strongest first, until weaker ones overfit."""
    scale = _scale(features[kept])
    inside, outside = _rotated(scale(features[kept])), scale(features[held])
    found: dict[float, tuple[float, Tensor]] = {}
    weights = None
    for strength in strengths:  # strongest first: each solution is a good start for the next, weaker one
        weights = _fit(inside, labels[kept], classes, strength, weights, CHOSEN)
        loss = float(torch.nn.functional.cross_entropy(_logits(outside, weights), labels[held]))
        found[strength] = loss, weights
        if loss > 1.05 * min(loss for loss, _ in found.values()):
            break
    return found


def _scale(features: Tensor) -> _Scale:
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0)
    # The mean of equal numbers can miss them by a rounding error: that is no variance.
    constant = deviation <= 1e-10 * mean.abs()
    return _Scale(mean, torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, deviation)))


def _logits(x: Tensor, weights: Tensor) -> Tensor:
    """x (n, D), weights (D + 1, K), the last row the bias -> (n, K)."""
    return torch.addmm(weights[-1], x, weights[:-1])


def _fit(
    inside: _Rotated, labels: Tensor, classes: int, strength: float, start: Tensor | None, tolerance: float
) -> Tensor:
    """Weights (D + 1, K) float64 of standardised features at the regularised minimum."""
    sizes, directions = inside.sizes(strength)[:, None], inside.directions
    if start is None:
        start = sizes.new_zeros(len(directions) + 1, classes)
    u = torch.cat([sizes * (directions.T @ start[:-1]), start[-1:]])
    # Single precision finds the neighbourhood in half the time, on many graphics cards in a thirtieth.
    u = _minimum(inside.images.float(), labels, u.float(), sizes.float(), strength, 1e-5, 1e-7).double()
    u = _minimum(inside.images, labels, u, sizes, strength, tolerance, 1e-12)
    return torch.cat([directions @ (u[:-1] / sizes), u[-1:]])


def _minimum(
    x: Tensor, labels: Tensor, u: Tensor, sizes: Tensor, strength: float, gradient: float, change: float
) -> Tensor:
    """From ``u`` (D + 1, K), weights times ``sizes`` (D, 1) and the bias, to where the loss is least.

    (torch's L-BFGS: on a CPU, SciPy's would have its threads and torch's wait for each other at every step.)
    """
    penalty, rows = strength / sizes.square(), torch.arange(len(x), device=x.device)
    u = u.clone().requires_grad_()

    @torch.no_grad()
    def loss_and_gradient() -> Tensor:
        log_p = _logits(x, torch.cat([u[:-1] / sizes, u[-1:]])).log_softmax(1)
        loss: Tensor = -log_p[rows, labels].double().mean() + (penalty * u[:-1].square()).double().sum() / 2
        error = log_p.exp_()
        error[rows, labels] -= 1
        error /= len(x)
        u.grad = torch.cat([x.T @ error / sizes + penalty * u[:-1], error.sum(0, keepdim=True)])
        return loss

    optimizer = torch.optim.LBFGS(
        [u],
        max_iter=1000,
        max_eval=2000,
        history_size=20,
        tolerance_grad=gradient,
        tolerance_change=change,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return u.detach()
