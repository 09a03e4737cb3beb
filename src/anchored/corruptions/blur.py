"""Blurs. Images and constants as in ``common.py``, which states the source."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.pixels import along, angles, cut, moved, nearest, smooth, stretched
from anchored.corruptions.randomness import uniform


def gaussian_blur(images: Tensor, sigma: float, keys: Tensor) -> Tensor:
    """Convolve with a Gaussian of s.d. ``sigma`` px, cut at 4 s.d., border pixels repeated (skimage's defaults).

    Nothing random.
    """
    return cut(smooth(images.to(torch.float32), sigma))


class Disk(NamedTuple):
    """Constants of :func:`defocus_blur`, px."""

    radius: float
    alias: float  # s.d. of the antialiasing; it belongs to the grid of pixels, whatever the image's size

    def scaled(self, scale: float) -> Disk:
        """Return the constants for an image ``scale`` times as large; a disk of a pixel or more remains one."""
        return self._replace(radius=max(min(1, self.radius), self.radius * scale))

    def margin(self) -> int:
        """Return how far the kernel reaches; the mirrored border needs that many pixels."""
        return int(self.radius) + len(self._taps()) // 2

    def _taps(self) -> tuple[float, ...]:
        """Return the antialiasing Gaussian: 3 × 3, or 5 × 5 for radii above 8."""
        reach = 1 if self.radius <= 8 else 2
        weights = [math.exp(-0.5 * (i / self.alias) ** 2) for i in range(-reach, reach + 1)]
        return tuple(weight / math.fsum(weights) for weight in weights)


@functools.lru_cache(maxsize=32)
def _spilt(disk: Disk) -> dict[tuple[int, int], float]:
    """Return what the original's kernel has beyond the smoothed disk of ones: (row, column) from the middle -> weight.

    The original smooths the disk within a square of 17 × 17 px (2 · radius + 1 for radii above 8), mirrored at its
    border. A disk that touches the border is not smoothed over it, and what is mirrored comes back. Weights below 0.001
    of a pixel's are left out, in all less than 0.01 grey levels.
    """
    reach, taps = max(8, int(disk.radius)), np.array(disk._taps())
    axis = np.arange(-reach, reach + 1)
    ones = (axis[:, None] ** 2 + axis**2 <= disk.radius**2).astype(np.float64)
    edge = len(taps) // 2
    mirrored, open_ended = (np.pad(ones, edge, mode=mode) for mode in ("reflect", "constant"))
    for turn in range(2):
        mirrored = np.apply_along_axis(np.convolve, turn, mirrored, taps, mode="valid")
        open_ended = np.apply_along_axis(np.convolve, turn, open_ended, taps, mode="full")
    kept = np.pad(mirrored, 2 * edge) - open_ended
    middle = len(kept) // 2
    found = {(int(row) - middle, int(column) - middle): float(kept[row, column]) for row, column in np.argwhere(kept)}
    return {place: weight for place, weight in found.items() if abs(weight) > 1e-3}


def defocus_blur(images: Tensor, disk: Disk, keys: Tensor) -> Tensor:
    """Convolve with an antialiased disk; borders mirrored. Nothing random.

    ``cv2.filter2D``'s border: the mirror stands on the border pixel, which is not repeated. The disk of ones is summed
    exactly (whole numbers below 2**24), a run of each row at a time; then it is smoothed. OpenCV convolves large
    kernels through a Fourier transform, whose errors of 1e-7 it then cuts.
    """
    taps, reach, margin = disk._taps(), int(disk.radius), disk.margin()
    edge = margin - reach
    height, width = images.shape[2] + 2 * edge, images.shape[3] + 2 * edge
    padded = F.pad(images.to(torch.float32), (margin,) * 4, mode="reflect")
    run = padded[..., reach : reach + width].clone()
    half_widths = [int(math.sqrt(disk.radius**2 - row**2)) for row in range(reach + 1)]
    total = torch.zeros_like(padded[..., :height, :width])
    for half in range(reach + 1):
        if half:
            run += padded[..., reach - half : reach - half + width]
            run += padded[..., reach + half : reach + half + width]
        for row in (row for row in range(-reach, reach + 1) if half_widths[abs(row)] == half):
            total += run[..., reach + row : reach + row + height, :]
    total = along(along(total, taps, 2), taps, 3)
    for (row, column), weight in _spilt(disk).items():
        top, left = margin + row, margin + column
        total.add_(padded[..., top : top + images.shape[2], left : left + images.shape[3]], alpha=weight)
    return cut(total.div_(sum(2 * half_widths[abs(row)] + 1 for row in range(-reach, reach + 1))))


class Glass(NamedTuple):
    """Constants of :func:`glass_blur`."""

    sigma: float  # px
    reach: int  # px, how far pixels come from
    rounds: int

    def scaled(self, scale: float) -> Glass:
        """Return the constants for an image ``scale`` times as large."""
        return Glass(self.sigma * scale, max(1, round(self.reach * scale)), self.rounds)

    def margin(self) -> int:
        """Return how many pixels are not enough: none would move."""
        return 2 * self.reach


def glass_blur(images: Tensor, glass: Glass, keys: Tensor) -> Tensor:
    """Blur with a Gaussian and cut the fractions; let pixels take neighbours' values; blur again.

    Rows from H − reach down to reach + 1 and columns likewise, one pixel after the other, take the present value of the
    pixel at random offsets down and right, each uniform on −reach, ..., reach − 1. The original's line says to swap the
    two, but its arrays are views, and both get the other's value: the published images are made so. Done ``rounds``
    times.

    The order matters: a pixel may take what another one took before. All are resolved together: a pixel points at the
    one it takes from, and pointers are followed, doubling their length, until they end at a value that no one has
    changed.
    """
    soft = cut(smooth(images.to(torch.float32), glass.sigma))
    source = shuffled(keys, images.shape[2], images.shape[3], glass)
    taken = soft.flatten(2).gather(2, source[:, None].expand(-1, images.shape[1], -1)).view(images.shape)
    return cut(smooth(taken.to(torch.float32), glass.sigma))


def shuffled(keys: Tensor, height: int, width: int, glass: Glass) -> Tensor:
    """Return where each pixel of an image takes its value from, int64 (B, H · W), after all rounds."""
    reach, count, device = glass.reach, height * width, keys.device
    row, column = (
        torch.arange(reach + 1, side - reach + 1, dtype=torch.int32, device=device) for side in (height, width)
    )
    row = row[:, None]
    # Of each image: values while the round runs (0, ..., count − 1), and before it (count, ..., 2 · count − 1).
    base = (torch.arange(len(keys), dtype=torch.int32, device=device) * (2 * count))[:, None]
    before = torch.arange(count, 2 * count, dtype=torch.int32, device=device) + base
    bound, source = base + count, before
    for turn in range(glass.rounds):
        draws = uniform(keys, (2, len(row), len(column)), draw=turn).mul_(2 * reach).to(torch.int32).sub_(reach)
        down, right = draws.unbind(1)
        # Pixels come in falling order: one further on has changed already, unless it is too near the image's border.
        changed = (down > 0) | ((down == 0) & (right > 0))
        changed &= (row + down > reach) & (row + down <= height - reach)
        changed &= (column + right > reach) & (column + right <= width - reach)
        target = (down * width).add_(right).add_(row * width + column).add_((~changed).to(torch.int32), alpha=count)
        nodes = torch.cat((before, before), 1)
        grid = nodes[:, :count].view(-1, height, width)
        grid[:, reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = target.add_(base[:, None])
        pointer = nodes[:, :count].contiguous()
        while not bool((pointer >= bound).all()):
            pointer = nodes.view(-1).index_select(0, pointer.view(-1)).view(pointer.shape)
            nodes[:, :count] = pointer
        nodes[:, count:] = source
        source = nodes.view(-1).index_select(0, pointer.view(-1)).view(pointer.shape)
    return (source - bound).to(torch.int64)


class Motion(NamedTuple):
    """Constants of :func:`motion_blur`, px."""

    radius: int
    sigma: float

    def scaled(self, scale: float) -> Motion:
        """Return the constants for an image ``scale`` times as large."""
        return Motion(max(1, round(self.radius * scale)), self.sigma * scale)


def motion_blur(images: Tensor, motion: Motion, keys: Tensor) -> Tensor:
    """Blur along a line, border pixels repeated; its angle is random, uniform between −45 and 45 degrees.

    The line is ImageMagick's (see ``pixels.line``), and values are rounded to the nearest level as ImageMagick does.
    """
    return nearest(moved(images.to(torch.float32), motion.radius, motion.sigma, angles(keys, -45, 45)))


def zoom_blur(images: Tensor, span: tuple[float, float], keys: Tensor) -> Tensor:
    """The mean of the image and of its zooms by 1, 1 + step, ..., below ``stop``; (stop, step) = ``span``.

    A zoom enlarges the middle part linearly until it fills the image. The image itself counts twice, since the first
    zoom is by 1. Nothing random.
    """
    levels = images.to(torch.float32)
    height, width = images.shape[2:]
    factors = np.arange(1, *span)  # as the original counts, rounding errors included
    total, turned = levels.clone(), levels.transpose(2, 3).contiguous()
    for factor in factors.tolist():
        rows, columns = math.ceil(height / factor), math.ceil(width / factor)
        top, left = (height - rows) // 2, (width - columns) // 2
        wide = stretched(turned, left, columns, factor, width)[..., top : top + rows].transpose(2, 3).contiguous()
        total += stretched(wide, 0, rows, factor, height)
    return cut(total.div_(len(factors) + 1))
