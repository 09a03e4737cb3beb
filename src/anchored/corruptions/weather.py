"""Weather. Images and constants as in ``common.py``, which states the source."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anchored.corruptions.pixels import blur_along_lines, random_angles, to_grey, truncate_levels, zero_below, zoom
from anchored.corruptions.randomness import normal, uniform


def brightness(images: Tensor, shift: float, keys: Tensor) -> Tensor:
    """Add ``shift`` to the value V of HSV, V = max(R, G, B) in [0, 1], at most 1. Nothing random.

    Hue and saturation stay, so R, G and B are all scaled by V' / V; black, which has neither, becomes grey. For grey
    images that is x + shift.
    """
    levels = images.to(torch.float32)
    value = levels.amax(1, keepdim=True)
    raised = (value + 255 * shift).clamp_(max=255)
    black = (1 - value).clamp_(min=0)
    return truncate_levels(levels.mul_(raised / value.clamp_(min=1)).add_(raised.mul_(black)))


class Fog(NamedTuple):
    """Constants of :func:`fog`."""

    depth: float
    decay: float  # of the square root of the heights' random steps, from one grid to the next of half its spacing


def fog(images: Tensor, fog: Fog, keys: Tensor) -> Tensor:
    """(x + depth · h) · m / (m + depth), m the image's greatest value, h a random landscape of clouds,
    its lowest place, on a square whose side is a power of 2, at 0 and its highest at 1."""
    height, width = images.shape[2:]
    side = 1 << (max(height, width) - 1).bit_length()
    clouds = plasma(uniform(keys, (side * side,)), side, fog.decay)
    low, high = (end.view(-1, 1, 1) for end in (clouds.flatten(1).amin(1), clouds.flatten(1).amax(1)))
    added = (clouds[:, :height, :width] - low).mul_(255 * fog.depth / (high - low))
    greatest = images.flatten(1).amax(1).view(-1, 1, 1, 1).to(torch.float32)
    levels = images.to(torch.float32)
    return truncate_levels(levels.add_(added[:, None]).mul_(greatest / (greatest + 255 * fog.depth)))


def plasma(draws: Tensor, side: int, decay: float) -> Tensor:
    """Return landscapes (B, side + 1, side + 2) float32 by the diamond-square method; ``side`` a power of 2.

    ``draws`` (B, side²) uniform on (0, 1), the last one unused; they are changed. A grid that repeats itself starts as
    one point, 0. Each round sets the middle of every square to the mean of its corners, and the middle of every side to
    the mean of its four neighbours, each plus uniform(−w, w); w = (100 · decay**(−round))². Beyond ``side`` the grid
    comes again.
    """
    count, size, used, step = len(draws), 1, 0, 100.0**2
    draws.sub_(0.5)
    grid = torch.zeros(count, 2, 2, device=draws.device)
    while size < side:
        jumps = draws[:, used : used + 3 * size * size].view(-1, 3, size, size) * (2 * step)
        here, right, below = grid[:, :size, :size], grid[:, :size, 1 : size + 1], grid[:, 1:, :size]
        squares = torch.empty(count, size + 1, size + 1, device=draws.device)  # their middles, the last ones first too
        middle, above, left = squares[:, 1:, 1:], squares[:, :size, 1:], squares[:, 1:, :size]
        columns = grid[:, :size, : size + 1] + grid[:, 1:, : size + 1]
        torch.add(columns[..., :size], columns[..., 1:], out=middle).mul_(0.25).add_(jumps[:, 0])
        squares[:, 0], squares[:, :, 0] = squares[:, size], squares[:, :, size]
        across = (middle + above).add_(here).add_(right).mul_(0.25).add_(jumps[:, 1])
        down = (middle + left).add_(here).add_(below).mul_(0.25).add_(jumps[:, 2])
        # Two grids side by side are a grid of complex numbers: a fast way to put columns between columns.
        pairs = torch.empty(count, 2 * size + 1, size + 1, dtype=torch.complex64, device=draws.device)
        torch.complex(here, across, out=pairs[:, : 2 * size : 2, :size])
        torch.complex(down, middle, out=pairs[:, 1::2, :size])
        pairs[:, 2 * size], pairs[:, :, size] = pairs[:, 0], pairs[:, :, 0]
        grid = torch.view_as_real(pairs).flatten(2)
        used, size, step = used + 3 * size * size, 2 * size, step / decay**2
    return grid


class Snow(NamedTuple):
    """Constants of :func:`snow`."""

    mean: float  # of the flakes' noise, in [0, 1]
    spread: float
    zoom: float  # px, the flakes' size
    threshold: float  # below it there is no flake
    radius: int  # px, of the motion
    sigma: float  # px, of the motion
    clear: float  # share of the image that is not whitened

    def scaled(self, scale: float) -> "Snow":
        """Return the constants for an image ``scale`` times as large."""
        radius = max(1, round(self.radius * scale))
        return self._replace(zoom=max(1.0, self.zoom * scale), radius=radius, sigma=self.sigma * scale)


def snow(images: Tensor, snow: Snow, keys: Tensor) -> Tensor:
    """Whiten the image, then add flakes and the same flakes turned by 180 degrees.

    Flakes: normal noise, enlarged by ``zoom``, set to 0 below the threshold, its fraction cut, blurred along a line at
    a random angle, uniform between −135 and −45 degrees, rounded. Whitened: clear · x + (1 − clear) · max(x, 1.5 · grey
    + 0.5).
    """
    height, width = images.shape[2:]
    part = (1, math.ceil(height / snow.zoom), math.ceil(width / snow.zoom))
    noise = normal(keys, part, draw=1).mul_(snow.spread).add_(snow.mean)
    flakes = zoom(noise, snow.zoom, height, width)
    flakes = truncate_levels(zero_below(flakes, snow.threshold).mul_(255)).to(torch.float32)
    flakes = blur_along_lines(flakes, snow.radius, snow.sigma, random_angles(keys, -135, -45)).to(torch.float32)
    levels = images.to(torch.float32)
    white = torch.maximum(levels, to_grey(levels).mul(1.5).add_(127.5)).mul_(1 - snow.clear)
    return truncate_levels(white.add_(levels, alpha=snow.clear).add_(flakes).add_(flakes.flip(2, 3)))
