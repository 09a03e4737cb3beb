"""Weather. Images and constants as in ``common.py``, which states the source."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from anchored.corruptions.pixels import angles, cut, enlarged, grey_of, moved, nearest
from anchored.corruptions.randomness import normal, uniform


def brightness(images: Tensor, shift: float, keys: Tensor) -> Tensor:
    """Add ``shift`` to the value V of HSV, V = max(R, G, B) in [0, 1], at most 1. Nothing random.

    Hue and saturation stay, so R, G and B are all scaled by V' / V; black, which has neither, becomes grey. For grey
    images that is x + shift.
    """
    levels = images.to(torch.float32)
    value = levels.amax(1, keepdim=True)
    raised = (value + 255 * shift).clamp_(max=255)
    return cut(levels.mul_(raised / value.clamp(min=1)).add_(raised.mul_(value == 0)))


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
    low, high = clouds.flatten(1).aminmax(dim=1)
    depth = 255 * fog.depth / (high - low).view(-1, 1, 1)
    levels = images.to(torch.float32)
    greatest = levels.flatten(1).amax(1).view(-1, 1, 1, 1)
    added = (clouds[:, :height, :width] - low.view(-1, 1, 1)).mul_(depth)
    return cut(levels.add_(added[:, None]).mul_(greatest / (greatest + 255 * fog.depth)))


def plasma(draws: Tensor, side: int, decay: float) -> Tensor:
    """Return landscapes (B, side, side) float32 by the diamond-square method; ``side`` a power of 2.

    ``draws`` (B, side²) uniform on (0, 1), the last one unused. A grid that repeats itself starts as one point, 0. Each
    round sets the middle of every square to the mean of its corners, and the middle of every side to the mean of its
    four neighbours, each plus uniform(−w, w); w = (100 · decay**(−round))².
    """
    grid = torch.zeros(len(draws), 1, 1, device=draws.device)
    step, used = 100.0**2, 0
    while grid.shape[1] < side:
        size = grid.shape[1]
        jumps = draws[:, used : used + 3 * size * size].view(-1, 3, size, size).sub(0.5).mul_(2 * step)
        used += 3 * size * size
        pair = grid + grid.roll(-1, 1)
        middle = (pair + pair.roll(-1, 2)).mul_(0.25).add_(jumps[:, 0])
        across = (middle + middle.roll(1, 1)).add_(grid).add_(grid.roll(-1, 2)).mul_(0.25).add_(jumps[:, 1])
        down = (middle + middle.roll(1, 2)).add_(grid).add_(grid.roll(-1, 1)).mul_(0.25).add_(jumps[:, 2])
        even, odd = torch.stack((grid, across), -1).flatten(2), torch.stack((down, middle), -1).flatten(2)
        grid = torch.stack((even, odd), 2).flatten(1, 2)
        step /= decay**2
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

    def scaled(self, scale: float) -> Snow:
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
    flakes = enlarged(noise, snow.zoom, height, width)
    flakes = cut(torch.where(flakes < snow.threshold, 0.0, flakes).mul_(255)).to(torch.float32)
    flakes = nearest(moved(flakes, snow.radius, snow.sigma, angles(keys, -135, -45))).to(torch.float32)
    levels = images.to(torch.float32)
    white = torch.maximum(levels, grey_of(levels).mul(1.5).add_(127.5)).mul_(1 - snow.clear)
    return cut(white.add_(levels, alpha=snow.clear).add_(flakes).add_(flakes.flip(2, 3)))
