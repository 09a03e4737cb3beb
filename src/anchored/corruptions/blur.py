"""Blurs. Images and constants as in ``common.py``, which states the source."""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions import pixels
from anchored.corruptions.pixels import convolve, gaussian_filter, truncate_levels, zoom_rows
from anchored.corruptions.randomness import uniform

_SQUARE = 8  # px: a disk is smoothed in a square that reaches at least this far from its middle
_FAINT = 1e-3  # weights below this share of a pixel's change less than 0.01 grey levels in all
_WIDEST = 64  # px: the runs of smaller disks fit into 16 bits


def gaussian_blur(images: Tensor, sigma: float, keys: Tensor) -> Tensor:
    """Convolve with a Gaussian of s.d. ``sigma`` px, cut at 4 s.d., border pixels repeated (skimage's defaults).
    Nothing random."""
    return truncate_levels(gaussian_filter(images.to(torch.float32), sigma))


class Disk(NamedTuple):
    """Constants of :func:`defocus_blur`, px."""

    radius: float
    alias: float  # s.d. of the antialiasing; it belongs to the grid of pixels, whatever the image's size

    def scaled(self, scale: float) -> "Disk":
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


def defocus_blur(images: Tensor, disk: Disk, keys: Tensor) -> Tensor:
    """Convolve with an antialiased disk; borders mirrored. Nothing random.

    ``cv2.filter2D``'s border: the mirror stands on the border pixel, which is not repeated. The disk of ones is summed
    exactly, in whole numbers; then it is smoothed. OpenCV convolves large kernels through a Fourier transform, whose
    errors of 1e-7 it then cuts.
    """
    taps, reach, margin = disk._taps(), int(disk.radius), disk.margin()
    whole = F.pad(images.to(torch.float32), (margin,) * 4, mode="reflect")
    if reach < _WIDEST:
        whole = whole.to(torch.int16)  # takes half the time
    half_widths = tuple(int(math.sqrt(disk.radius**2 - row**2)) for row in range(reach + 1))
    total = convolve(convolve(_disk_sums(whole, half_widths), taps, 2), taps, 3)
    if taps[len(taps) // 2 - 1] > _FAINT and reach >= _SQUARE - 1:
        for axis in (2, 3):
            spilt = _spilt(whole, half_widths, len(taps) // 2, axis).to(torch.float32)
            total.add_(convolve(spilt, taps, 5 - axis), alpha=taps[len(taps) // 2 - 1])
    return truncate_levels(total.div_(2 * sum(2 * half + 1 for half in half_widths) - 2 * half_widths[0] - 1))


def _disk_sums(whole: Tensor, half_widths: tuple[int, ...]) -> Tensor:
    """Return the sums over the disk around each pixel but those near the border, float32, of ``whole`` levels 0 to 255.

    ``half_widths``: of the disk's rows 0, 1, ... below and above the middle. A run of each row is summed at a time, and
    longer ones from shorter ones; 128 pixels fit into 16 bits.
    """
    reach, room = len(half_widths) - 1, 128
    height, width = whole.shape[2] - 2 * reach, whole.shape[3] - 2 * reach
    run = whole[..., reach : reach + width].clone()
    part = torch.zeros_like(run[..., :height, :])
    total = torch.zeros_like(part, dtype=torch.float32)
    for half in range(reach + 1):
        if half:
            run += whole[..., reach - half : reach - half + width]
            run += whole[..., reach + half : reach + half + width]
        for row in (row for row in range(-reach, reach + 1) if half_widths[abs(row)] == half):
            if room < 2 * half + 1:
                total += part.to(torch.float32)
                part.zero_()
                room = 128
            part += run[..., reach + row : reach + row + height, :]
            room -= 2 * half + 1
    return total.add_(part.to(torch.float32))


def _spilt(whole: Tensor, half_widths: tuple[int, ...], edge: int, axis: int) -> Tensor:
    """Return what the original's kernel has beyond the smoothed disk, along ``axis``, over the smoothing's weight.

    The original smooths the disk within a square, mirrored at its border. A disk that touches the border is not
    smoothed over it, and the row before it, mirrored, comes in instead. ``whole`` (B,C,H + 2 · margin, W + 2 · margin),
    margin = reach + edge; the result is (B,C,H,W), longer by ``edge`` at both ends of the other axis.
    """
    reach, other = len(half_widths) - 1, 5 - axis
    margin, border = reach + edge, max(_SQUARE, reach)
    size, length = (whole.shape[each] - 2 * margin for each in (axis, other))
    total = torch.zeros_like(whole.narrow(axis, 0, size).narrow(other, 0, length + 2 * edge))
    for row, side, sign in ((border - 1, border, 1), (border, border + 1, -1)):
        if row > reach:
            continue
        lines = whole.narrow(axis, margin - side, size) + whole.narrow(axis, margin + side, size)
        for step in range(-half_widths[row], half_widths[row] + 1):
            total.add_(lines.narrow(other, margin - edge + step, length + 2 * edge), alpha=sign)
    return total


class Glass(NamedTuple):
    """Constants of :func:`glass_blur`."""

    sigma: float  # px
    reach: int  # px, how far pixels come from
    rounds: int

    def scaled(self, scale: float) -> "Glass":
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
    soft = truncate_levels(gaussian_filter(images.to(torch.float32), glass.sigma))
    source = shuffled_sources(keys, images.shape[2], images.shape[3], glass)
    packed = soft[:, 0].to(torch.int32)  # a pixel's channels in one number: they move together
    for channel in range(1, images.shape[1]):
        packed.add_(soft[:, channel], alpha=1 << 8 * channel)
    source += _starts(source)
    taken = packed.view(-1).index_select(0, source.view(-1)).view(packed.shape)
    levels = torch.empty(images.shape, device=images.device)
    for channel in range(images.shape[1]):
        levels[:, channel] = (taken >> 8 * channel).bitwise_and_(0xFF)
    return truncate_levels(gaussian_filter(levels, glass.sigma))


def shuffled_sources(keys: Tensor, height: int, width: int, glass: Glass) -> Tensor:
    """Return where each pixel of an image takes its value from, int32 (B, H · W), after all rounds."""
    reach, count, device = glass.reach, len(keys) * height * width, keys.device
    # Nodes: the pixels' values while a round runs (0, ..., count − 1), each of which points at the node it is taken
    # from, and before it (count, ..., 2 · count − 1), which point at themselves.
    place = torch.arange(count, dtype=torch.int32, device=device).view(-1, height, width)
    inside = slice(None), slice(reach + 1, height - reach + 1), slice(reach + 1, width - reach + 1)
    inner, before = place[inside], place.view(-1) + count
    source, spare = place.view(-1), torch.cat((before, before))
    for turn in range(glass.rounds):
        draws = uniform(keys, (2, *inner.shape[1:]), draw=turn).mul_(2 * reach).to(torch.int32).sub_(reach)
        step = draws[:, 0].mul(width).add_(draws[:, 1])
        nodes = torch.cat((before, before))  # a pixel near the image's border keeps the value it had
        # Pixels come in falling order: one further on has changed already.
        nodes[:count].view(place.shape)[inside] = ((step - 1) >> 31).mul_(-count).add_(step).add_(inner)
        # On a GPU each look waits for it: one to five a round were seen, where 16 doublings may be needed.
        while int(nodes[:count].amin()) < count:
            torch.index_select(nodes, 0, nodes[:count], out=spare[:count])
            nodes, spare = spare, nodes
        source = source.index_select(0, nodes[:count] - count)
    source = source.view(len(keys), -1)
    return source - _starts(source)


def _starts(places: Tensor) -> Tensor:
    """Return the place of each image's first pixel among all of (B, N), int32 (B, 1)."""
    return torch.arange(len(places), dtype=torch.int32, device=places.device)[:, None] * places.shape[1]


class Motion(NamedTuple):
    """Constants of :func:`motion_blur`, px."""

    radius: int
    sigma: float

    def scaled(self, scale: float) -> "Motion":
        """Return the constants for an image ``scale`` times as large."""
        return Motion(max(1, round(self.radius * scale)), self.sigma * scale)


def motion_blur(images: Tensor, motion: Motion, keys: Tensor) -> Tensor:
    """Blur along a line, border pixels repeated; its angle is random, uniform between −45 and 45 degrees. Lines and
    rounding are ImageMagick's (see :func:`blur_along_lines`)."""
    angles = pixels.random_angles(keys, -45, 45)
    return pixels.blur_along_lines(images.to(torch.float32), motion.radius, motion.sigma, angles)


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
        wide = zoom_rows(turned, left, columns, factor, width)[..., top : top + rows].transpose(2, 3).contiguous()
        total += zoom_rows(wide, 0, rows, factor, height)
    return truncate_levels(total.div_(len(factors) + 1))
