"""Noise: every pixel and channel on its own. Images and constants as in ``common.py``, which states the source."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from anchored.corruptions.pixels import cut
from anchored.corruptions.randomness import normal, uniform


def gaussian_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · n, x in [0, 1], n standard normal and independent for every pixel and channel."""
    return cut(normal(keys, tuple(images.shape[1:])).mul_(255 * scale).add_(images))


def speckle_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · x · n, n standard normal and independent for every pixel and channel."""
    return cut(normal(keys, tuple(images.shape[1:])).mul_(scale).add_(1).mul_(images))


def impulse_noise(images: Tensor, amount: float, keys: Tensor) -> Tensor:
    """With probability ``amount`` a value, of one pixel and channel, becomes 0 or 255, either as likely.

    The law of ``skimage.util.random_noise(mode="s&p")``; one uniform number decides both questions, there two do.
    """
    draw = uniform(keys, tuple(images.shape[1:]))
    salted = torch.where(draw < amount / 2, images.new_tensor(255), images)
    return torch.where(draw > 1 - amount / 2, images.new_tensor(0), salted)


@functools.lru_cache(maxsize=16)
def _poisson_table(photons: float) -> tuple[Tensor, Tensor]:
    """Return the Poisson laws of all 256 grey levels v, with mean λ = v / 255 · photons.

    First float64 (256 · K,): row v holds v + P(count <= k) for k = 0, 1, ..., in ascending order throughout, so that
    one binary search finds a count for any v. Then uint8 (K,): the grey level of each count. K = photons + 1, since
    more photons are white as well.
    """
    counts = torch.arange(math.ceil(photons) + 1, dtype=torch.float64)
    means = torch.arange(256, dtype=torch.float64)[:, None] / 255 * photons
    # gammaincc(k + 1, λ) is P(count <= k); its arguments must be positive, and black gives no photons at all.
    below = torch.special.gammaincc((counts + 1).expand(256, -1), means.clamp(min=1e-300))
    below[0], below[:, -1] = 1.0, 1.0
    table = below + torch.arange(256, dtype=torch.float64)[:, None]
    return table.flatten(), cut(counts / photons * 255)


def shot_noise(images: Tensor, photons: float, keys: Tensor) -> Tensor:
    """Poisson(x · photons) / photons, independent for every pixel and channel.

    Exact: the count is the inverse of the distribution function at a uniform number (in steps of 2**-23).
    """
    table, levels = (part.to(images.device) for part in _poisson_table(photons))
    draw = uniform(keys, tuple(images.shape[1:])).to(torch.float64).add_(images)
    place = torch.searchsorted(table, draw.flatten()).sub_(images.flatten().to(torch.int64) * len(levels))
    return levels[place].view(images.shape)
