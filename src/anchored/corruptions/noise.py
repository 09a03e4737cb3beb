"""Noise: every pixel and channel on its own. Images and constants as in ``common.py``, which states the source."""

import numpy as np
import scipy.special
import torch
from torch import Tensor

from anchored.corruptions.pixels import mask_below, truncate_levels
from anchored.corruptions.randomness import normal, uniform
from anchored.corruptions.tables import kept_tables


def gaussian_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · n, x in [0, 1], n standard normal and independent for every pixel and channel."""
    return truncate_levels(normal(keys, tuple(images.shape[1:])).mul_(255 * scale).add_(images.to(torch.float32)))


def speckle_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · x · n, n standard normal and independent for every pixel and channel."""
    return truncate_levels(normal(keys, tuple(images.shape[1:])).mul_(scale).add_(1).mul_(images.to(torch.float32)))


def impulse_noise(images: Tensor, amount: float, keys: Tensor) -> Tensor:
    """With probability ``amount`` a value, of one pixel and channel, becomes 0 or 255, either as likely. The law of
    ``skimage.util.random_noise(mode="s&p")``; one uniform number decides both questions, there two do."""
    draw = uniform(keys, tuple(images.shape[1:]))
    salt, rest = (mask_below(draw, limit).view(torch.uint8) for limit in (amount / 2, 1 - amount / 2))
    return images.bitwise_or(salt).bitwise_and_(rest)


@kept_tables(16)
def _poisson_tables(photons: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return alias tables (Walker 1977) of the Poisson laws of all 256 grey levels v, mean v / 255 · photons.

    There are K = photons + 1 counts, since more photons are white as well. To draw: choose a count k of the K, all as
    likely; keep it with probability share[v, k], else take the other one, other[v, k]. Returns share float32 and
    other's grey level uint8, both (256 · K,), and the grey level of each count, uint8 (K,).
    """
    counts, means = np.arange(photons + 1), np.arange(256)[:, None] / 255 * photons
    left = np.exp(scipy.special.xlogy(counts, means) - scipy.special.gammaln(counts + 1) - means)
    left[:, -1] += scipy.special.pdtrc(photons, means[:, 0])  # more than K photons
    left *= photons + 1
    share, other = np.ones_like(left), np.broadcast_to(counts, left.shape).copy()
    rows, undone = np.arange(256), np.ones(left.shape, dtype=bool)
    for _ in range(photons):  # the least likely count left is filled up by the likeliest
        least, most = np.where(undone, left, np.inf).argmin(1), np.where(undone, left, -np.inf).argmax(1)
        share[rows, least], other[rows, least] = left[rows, least], most
        left[rows, most] -= 1 - left[rows, least]
        undone[rows, least] = False
    levels = truncate_levels(torch.from_numpy(counts).to(torch.float32) * (255 / photons))
    return torch.from_numpy(share.ravel()).to(torch.float32), levels[torch.from_numpy(other.ravel())], levels


def shot_noise(images: Tensor, photons: int, keys: Tensor) -> Tensor:
    """Poisson(x · photons) / photons, independent for every pixel and channel. Exact but for the steps of the uniform
    numbers, 2**-23."""
    shares, others, levels = _poisson_tables(images.device, photons)
    draw = uniform(keys, tuple(images.shape[1:])).mul_(photons + 1).flatten()
    count = draw.to(torch.int32)
    place = images.flatten().to(torch.int32).mul_(photons + 1).add_(count)
    keep = mask_below(draw.sub_(count.to(torch.float32)), shares.index_select(0, place)).view(torch.uint8)
    mine, other = levels.index_select(0, count), others.index_select(0, place)
    return mine.bitwise_xor_(other).bitwise_and_(keep).bitwise_xor_(other).view(images.shape)
