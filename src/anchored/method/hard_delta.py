"""Hard Δ mining: the distribution of residuals, points from its tail, and the loss on them.

While an anchored network trains, a normal distribution is fitted to the residuals Δ = x − r that it sees. Points t of
that distribution's tail are shown as ``[0, 0 − t]``, and the network is trained towards the uniform distribution on
them: ``λ · CE(uniform, F([0, 0 − t]))``. A larger λ detects out-of-distribution images better and costs accuracy under
corruption.

Letters: B batch, d = C·H·W numbers of an image, K classes, P points, k rank of the sketch, ε tail mass.
Sources: docs/explanation/method.md; virtual outlier synthesis, the same idea in feature space, arXiv 2202.01197.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import torch
from scipy.special import chdtri
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method import collectives
from anchored.method.devices import to_device

FULL_UP_TO = 4096  # largest d with a full covariance (128 MiB of float64, a factorisation of 20 GFLOP); CIFAR has 3,072

JITTER = 1e-6
"""Added to every variance, relative to their mean: pixels that never change (black borders) have none of their own."""


@dataclass(frozen=True)
class FullNormal:
    """Centred normal distribution, given by the Cholesky factor (d,d) of its covariance."""

    factor: Tensor

    def transform(self, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Standard normal noise (P,d) -> points of this distribution (P,d) and their Mahalanobis radii (P,)."""
        return noise @ self.factor.T, noise.norm(dim=1)


@dataclass(frozen=True)
class LowRankNormal:
    """The same with covariance ``directions @ directions.T + diag(diagonal)``: (d,k), (d,) float64, diagonal > 0."""

    directions: Tensor
    diagonal: Tensor

    @cached_property
    def _inner(self) -> Tensor:
        """Cholesky factor (k,k) of the lemma's inner matrix: positive definite, with nothing to check or wait for."""
        one = torch.eye(self.directions.shape[1], dtype=torch.float64, device=self.directions.device)
        inner = one + self.directions.T @ (self.directions / self.diagonal[:, None])
        factor: Tensor = torch.linalg.cholesky_ex(inner).L
        return factor

    def transform(self, noise: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """See ``FullNormal``; radii by the matrix inversion lemma, so that nothing of size d × d ever exists. In
        float64: the lemma takes the difference of two numbers that may be close."""
        count, rank = len(noise), self.directions.shape[1]
        more = torch.randn(count, rank, generator=generator, dtype=torch.float64)
        points = noise * self.diagonal.sqrt() + to_device(more, noise.device) @ self.directions.T
        scaled = points / self.diagonal
        projected = scaled @ self.directions
        squared = (points * scaled).sum(1) - (projected * torch.cholesky_solve(projected.T, self._inner).T).sum(1)
        return points, squared.clamp(min=torch.finfo(torch.float64).tiny).sqrt()


class Residuals(nn.Module):
    """Streaming fit of a normal distribution to residuals; its moments are buffers, so that a checkpoint holds them.

    Every class has a mean, and all share one covariance (one class: a plain fit, whose mean is zero in expectation).
    Moments are float64. Up to ``full_up_to`` dimensions the covariance is full. Above, it is a diagonal, exact, plus
    the leading ``rank`` directions of a sketch (frequent directions, Liberty 2013, arXiv 1206.0594).
    """

    count: Tensor  # (K,) residuals seen of each class
    sums: Tensor  # (K,d) their sums
    moment: Tensor  # (d,d) sum of outer products; or its diagonal (d,)
    sketch: Tensor  # (2k,d) rows whose outer products sum to the moment, nearly; (0,d) with a full covariance

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int = 1,
        *,
        pairs: Literal["all", "anchored"] = "all",
        full_up_to: int = FULL_UP_TO,
        rank: int = 64,
    ) -> None:
        super().__init__()
        self.shape, self.pairs, self.rank = shape, pairs, rank
        size = math.prod(shape)
        self.full = size <= full_up_to
        double = torch.float64
        self.register_buffer("count", torch.zeros(classes, dtype=double))
        self.register_buffer("sums", torch.zeros(classes, size, dtype=double))
        self.register_buffer("moment", torch.zeros((size, size) if self.full else size, dtype=double))
        self.register_buffer("sketch", torch.zeros(0 if self.full else 2 * rank, size, dtype=double))
        self.normal: FullNormal | LowRankNormal | None = None
        self.means, self.shares = torch.zeros(0), torch.zeros(0)  # (K,d) and (K,), of the last fit

    @torch.no_grad()
    def observe(self, images: Tensor, order: Tensor, labels: Tensor) -> None:
        """Add a training batch: images (B,C,H,W) whose references are ``images[order]``, with their labels (B,).

        ``pairs="anchored"`` takes these B residuals. ``"all"`` takes those of every image with every other one of its
        batch, which a random ``order`` has in expectation: the same distribution, with less noise, for the same work.
        """
        x = images.flatten(1).double()
        if self.pairs == "all":
            centred = x - x.mean(0)
            rows, mean_residuals = math.sqrt(2) * centred, centred
        else:
            rows = mean_residuals = x - x[order]
        group = labels if len(self.count) > 1 else torch.zeros_like(labels)
        self.count.index_add_(0, group, torch.ones_like(group, dtype=torch.float64))
        self.sums.index_add_(0, group, mean_residuals)
        if self.full:
            self.moment.addmm_(rows.T, rows)
        else:
            self.moment += rows.square().sum(0)
            self.sketch.copy_(_compressed(torch.cat([self.sketch, rows]), self.rank))

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the distribution to all that was observed, by all processes where several train together."""
        count, sums, moment = map(collectives.all_reduce, (self.count, self.sums, self.moment))
        total = count.sum()
        if total < 2:
            raise UserError("hard Δ mining has seen no residuals to fit a distribution to: observe batches first")
        self.means = (sums / count.clamp(min=1)[:, None]).float()
        between = sums / count.clamp(min=1).sqrt()[:, None]  # the classes' part of the moment
        if self.full:
            covariance = (moment - between.T @ between) / total
            self.normal = FullNormal(_factor(covariance).float())
        else:
            diagonal = (moment - between.square().sum(0)) / total
            self.normal = _low_rank(collectives.all_gather(self.sketch), between, total, diagonal, self.rank)
        self.shares = (count / total).cpu()  # tail() draws with them at every step, on the CPU

    def fitted(self) -> dict[str, Tensor]:
        """The last fit, which the moments no longer give once more was observed; empty before the first one."""
        if self.normal is None:
            return {}
        return {
            "means": self.means,
            "shares": self.shares,
            **{field.name: getattr(self.normal, field.name) for field in fields(self.normal)},
        }

    def refit(self, fitted: dict[str, Tensor]) -> None:
        """Restore what ``fitted`` gave, on the device of the moments."""
        if not fitted:
            return
        tensors = {name: value.to(self.sums.device) for name, value in fitted.items()}
        self.means, self.shares = tensors.pop("means"), tensors.pop("shares").cpu()
        # Columns one after another, as Cholesky leaves them: in another layout products round otherwise.
        self.normal = FullNormal(tensors["factor"].T.contiguous().T) if self.full else LowRankNormal(**tensors)

    @torch.no_grad()
    def pool(self) -> None:
        """Move what all processes observed to the first, which writes the checkpoint; the others begin anew."""
        if collectives.get_world_size() == 1:
            return
        for moments in (self.count, self.sums, self.moment):
            moments.copy_(collectives.all_reduce(moments))
        if not self.full:
            self.sketch.copy_(_compressed(collectives.all_gather(self.sketch), self.rank))
        self.keep()

    def keep(self) -> None:
        """Zero the moments of all processes but the first: what a checkpoint restored everywhere is to count once."""
        if collectives.get_rank() > 0:
            for moments in self.buffers():
                moments.zero_()

    @torch.no_grad()
    def tail(self, points: int, mass: float, generator: torch.Generator) -> Tensor:
        """Points (P,C,H,W) float32 from the tail that holds the share ``mass`` = ε of the fitted distribution.

        Exact: the radius of a normal distribution in d dimensions is χ(d) and independent of the direction, so it is
        drawn from that law beyond its upper ε quantile. (The farthest of many samples hardly leaves the shell at √d.)
        ``generator`` is a CPU generator, so that every device draws alike.
        """
        if self.normal is None:
            raise UserError("hard Δ mining has no distribution to sample from: call fit() first")
        size, device = self.sums.shape[1], self.sums.device
        group = torch.multinomial(self.shares, points, replacement=True, generator=generator)
        radius = chi_tail(size, mass, 1 - torch.rand(points, generator=generator, dtype=torch.float64))
        noise = to_device(torch.randn(points, size, generator=generator), device)
        with torch.autocast(device.type, enabled=False):  # a radius in bfloat16 would leave its tail
            sampled, norms = self.normal.transform(noise, generator)
            group, radius = (to_device(each, device) for each in (group, radius))
            tail = sampled * (radius / norms)[:, None] + self.means[group]
        return tail.float().view(points, *self.shape)


def chi_tail(dimensions: int, mass: float, uniform: Tensor) -> Tensor:
    """Radii (P,) float64 of the χ law with ``dimensions`` degrees of freedom, given that they are in its upper ε tail.

    ``mass`` = ε in (0, 1]; ``uniform`` (P,) float64 in (0, 1]. Inverts the survival function: S(radius) = ε · uniform.
    """
    if not 0 < mass <= 1:
        raise UserError(f"the tail's mass is {mass:g}: give a share of the distribution in (0, 1]")
    return torch.from_numpy(chdtri(dimensions, mass * uniform.numpy())).sqrt()


def uniform_cross_entropy(logits: Tensor) -> Tensor:
    """CE(uniform, softmax(z)) = −mean_k log softmax(z)_k, the mean over points: (P,K) -> scalar, in nats, >= ln K."""
    return -logits.log_softmax(dim=1).mean()


def _factor(covariance: Tensor) -> Tensor:
    """Lower Cholesky factor (d,d), with as little jitter as makes it exist."""
    scale = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    one = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for attempt in range(6):
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(covariance + one * (scale * JITTER * 10**attempt))
        if not int(failed):
            return factor
    raise UserError("the covariance of the residuals cannot be factorised: look for NaN or infinite training images")


def _compressed(rows: Tensor, rank: int) -> Tensor:
    """Rows (M,d), M > 2·rank -> (2·rank,d) whose outer products are nearly the same: frequent directions. The squared
    singular values are lowered by that of number 2·rank + 1, which bounds the error in every direction. On a GPU the
    host waits for ``eigh``, which looks whether it found them: once a step."""
    gram = rows @ rows.T  # (M,M): M is far below d
    values, vectors = torch.linalg.eigh(gram)
    leading = values[-2 * rank :]
    lowered = (leading - values[-2 * rank - 1]).clamp(min=0)
    safe = leading.clamp(min=torch.finfo(torch.float64).tiny)
    compressed: Tensor = (lowered / safe).sqrt()[:, None] * (vectors[:, -2 * rank :].T @ rows)
    return compressed


def _low_rank(sketch: Tensor, between: Tensor, total: Tensor, diagonal: Tensor, rank: int) -> LowRankNormal:
    """The leading directions of the sketch without the classes' share, and what the diagonal has beyond them."""
    basis, _ = torch.linalg.qr(torch.cat([sketch, between]).T)
    rows, class_rows = sketch @ basis, between @ basis
    values, vectors = torch.linalg.eigh((rows.T @ rows - class_rows.T @ class_rows) / total)
    directions = basis @ (vectors[:, -rank:] * values[-rank:].clamp(min=0).sqrt())
    rest = diagonal - directions.square().sum(1)
    floor = JITTER * diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
    return LowRankNormal(directions, rest.maximum(floor))
