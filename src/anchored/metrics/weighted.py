"""What all metrics share: the form that takes weights of images, and the check of per-image values.

A metric of N images is computed from weights w (R, N): how often each image counts in each of R replicates. The plain
metric is R = 1 with all weights one; a bootstrap replicate (``intervals.py``) is the same code with multinomial counts.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from anchored.errors import UserError

BLOCK = 1 << 18
"""Elements processed at once where a loop bounds memory: 2 MiB of float64, about a core's cache."""

WeightedMetric = Callable[[Tensor], Tensor]
"""Weights (R, N) float64, each row's total positive -> values (R,) float64."""
WeightedOODMetric = Callable[[Tensor, Tensor], Tensor]
"""Weights (R, N) of the in-distribution and (R, M) of the other images, float64 -> values (R,) float64."""


def weighted_mean(values: Tensor) -> WeightedMetric:
    """Values (N,) -> the metric Σ_i w_i v_i / Σ_i w_i."""
    return lambda weights: weights @ values / weights.sum(1)


def unweighted(metric: Callable[..., Tensor], *samples: Tensor) -> float:
    """A weighted metric at weights of one, for samples whose lengths and device are those of ``samples``."""
    return float(metric(*(torch.ones(1, len(x), dtype=torch.float64, device=samples[0].device) for x in samples)))


def check_values(values: Tensor, name: str) -> Tensor:
    """Values (N,) of any real dtype -> float64; ``UserError`` for another shape, no images, NaN or infinity."""
    if values.ndim != 1 or values.numel() == 0:
        raise UserError(f"{name} must be one value per image, shape (N,) with N > 0, not {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise UserError(f"{name} holds NaN or infinite values; look at the model's outputs before measuring them")
    return values.detach().double()
