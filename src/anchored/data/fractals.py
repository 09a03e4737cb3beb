"""Pictures to mix with (PixMix): Julia sets, made by a seeded function, so that nobody has to find or fetch any.

PixMix's authors mix with about 14,000 pictures of fractals and feature visualisations, which cannot be had without a
licence question; structure at every scale is what they want of them, and what a Julia set has.
"""

import functools
import math

import torch
from torch import Tensor

from anchored.corruptions.randomness import image_keys, uniform

_ITERATIONS = 48
_CHUNK = 1 << 21  # points iterated at a time: bounds the memory of their complex copies


@functools.lru_cache(maxsize=4)
def draw_fractals(count: int, channels: int, size: int) -> Tensor:
    """Return ``count`` pictures (N,C,H,W) uint8 of Julia sets in random colours; picture i is always the same.

    z → z² + c from every point of a random square; c lies just outside the main cardioid of the Mandelbrot set, where
    the sets are most intricate. The smooth count of steps until \\|z\\| > 16 runs through a sine wave per channel.
    """
    keys = image_keys(0, f"fractals/{channels}", torch.arange(count))
    return torch.cat([_drawn(part, channels, size) for part in torch.split(keys, max(1, _CHUNK // size**2))])


def _drawn(keys: Tensor, channels: int, size: int) -> Tensor:
    turn, outside, x, y, zoom, tilt = uniform(keys, (6,)).unbind(1)
    angle = torch.polar(torch.ones_like(turn), 2 * math.pi * turn)
    constant = (angle / 2 - angle**2 / 4) * (1 + 0.12 * outside)
    line = torch.linspace(-1, 1, size)
    points = torch.complex(line.expand(size, size), line[:, None].expand(size, size))
    window = torch.polar(0.3 + 1.0 * zoom, 2 * math.pi * tilt)  # half its side, turned
    middle = torch.complex(0.8 * x - 0.4, 0.8 * y - 0.4)
    z = points * window[:, None, None] + middle[:, None, None]
    steps = torch.zeros(z.shape)
    for _ in range(_ITERATIONS):
        within = z.abs() <= 16
        steps += within
        z = torch.where(within, z * z + constant[:, None, None], z)
    smooth = steps - torch.log2(torch.log(z.abs().clamp(min=1.1)) / math.log(16)).clamp(-1, 1)
    frequency = 0.15 + 0.6 * uniform(keys, (channels, 1, 1), 1)
    phase = 2 * math.pi * uniform(keys, (channels, 1, 1), 2)
    waves = torch.sin(smooth[:, None] * frequency + phase)
    return ((waves + 1) * 127.5).round_().clamp_(0, 255).to(torch.uint8)
