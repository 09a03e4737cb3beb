"""What several corruptions share: rounding, grey values, Gaussian smoothing, zoom, motion blur, places and sampling.

Sums are taken tap by tap with plain multiplications and additions: a convolution or a product of float32 matrices may
run in TF32 on a GPU, off by a quarter of a level, and its last bits depend on the batch. On a CPU convolutions of many
taps are oneDNN's, which sums in the same order whatever the batch. Very wide Gaussians are products of float64
matrices, whose last bits do not show.
"""

import functools
import math
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.randomness import uniform
from anchored.corruptions.tables import kept_tables

Border = Literal["repeat", "mirror"]
_Places = npt.NDArray[np.int64]

_NUDGE = 1e-3  # grey levels added before cutting the fraction off; float32 errors here stay below 2e-4
_FAINT = 1e-8  # weights below this share of a kernel change no grey level
_TAPS = 64  # longest Gaussian that is a convolution
_FEW = 12  # shortest convolution that oneDNN does faster
_SMALL = 1 << 11  # pixels of an image whose motion is a convolution
_LANES = 16  # oneDNN's depthwise channels come in so many: sums are the same for any multiple of it
GREY = (0.299, 0.587, 0.114)  # weights of R, G and B (ITU-R 601)


def truncate_levels(levels: Tensor) -> Tensor:
    """Return uint8 of float32 grey ``levels``: clipped to 0..255, the fraction cut off; changes ``levels``. 0.001 of a
    level is added before, more than all rounding errors together: what is exactly 200 stays 200."""
    return levels.add_(_NUDGE).clamp_(0, 255).to(torch.int16).to(torch.uint8)  # faster by way of int16


def _round_levels(levels: Tensor) -> Tensor:
    """Return uint8 of float32 grey ``levels``, clipped to 0..255 and rounded (halves upwards); changes ``levels``."""
    return levels.add_(0.5 + _NUDGE).clamp_(0, 255).to(torch.int16).to(torch.uint8)


def mask_below(values: Tensor, limit: Tensor | float) -> Tensor:
    """Return int8 with all bits set where float32 ``values`` are below the ``limit``, else 0. On the CPU by NumPy,
    whose comparisons take a tenth of the time of torch's."""
    if values.device.type == "cpu":
        other = limit.numpy() if isinstance(limit, Tensor) else np.float32(limit)
        return torch.from_numpy(np.less(values.numpy(), other).view(np.int8)).neg_()
    return (values < limit).to(torch.int8).neg_()


def zero_below(levels: Tensor, least: float) -> Tensor:
    """Return float32 ``levels``, 0 where they are below ``least``."""
    return F.threshold(levels, float(np.nextafter(np.float32(least), np.float32(-np.inf))), 0.0)


def to_grey(levels: Tensor) -> Tensor:
    """Return the grey value (B,1,H,W) of float32 (B,C,H,W), C 1 or 3."""
    if levels.shape[1] == 1:
        return levels
    red, green, blue = levels.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])[:, None]


@functools.lru_cache(maxsize=64)
def gaussian_weights(sigma: float, truncate: float = 4.0) -> tuple[float, ...]:
    """Return the weights of a Gaussian of s.d. ``sigma`` px, cut at ``truncate`` s.d., as SciPy's filters have it."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) if i else 1.0 for i in range(-radius, radius + 1)]
    return tuple(weight / math.fsum(weights) for weight in weights)


def gaussian_filter(levels: Tensor, sigma: float, truncate: float = 4.0, border: Border = "repeat") -> Tensor:
    """Return float32 (B,C,H,W) under a Gaussian of s.d. ``sigma`` px, cut at ``truncate`` s.d. ``border``: the border
    pixels "repeat" outwards, or the image is "mirror"-ed beside them."""
    weights = gaussian_weights(sigma, truncate)
    if len(weights) == 1:
        return levels
    for axis in (2, 3):
        if len(weights) <= min(_TAPS, levels.shape[axis]):
            levels = convolve(_pad(levels, len(weights) // 2, axis, border), weights, axis)
        else:
            matrix = _gaussian_matrix(levels.device, levels.shape[axis], sigma, truncate, border)
            wide = levels.to(torch.float64)
            levels = (matrix @ wide if axis == 2 else wide @ matrix.T).to(torch.float32)
    return levels


def _pad(levels: Tensor, reach: int, axis: int, border: Border) -> Tensor:
    """Return (B,C,H,W) longer by ``reach`` px at both ends of ``axis``."""
    if border == "repeat":
        return F.pad(levels, (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0), mode="replicate")
    first, last = levels.narrow(axis, 0, reach), levels.narrow(axis, levels.shape[axis] - reach, reach)
    return torch.cat((first.flip(axis), levels, last.flip(axis)), axis)


def _outside_pixels(size: int, reach: int, border: Border) -> Tensor:
    """Return the pixels at −reach, ..., size + reach − 1, int64: those beyond the image are pixels inside."""
    places = torch.arange(-reach, size + reach)
    if border == "repeat":
        return places.clamp_(0, size - 1)
    places.remainder_(2 * size)
    return torch.minimum(places, 2 * size - 1 - places)


@kept_tables(32)
def _gaussian_matrix(size: int, sigma: float, truncate: float, border: Border) -> Tensor:
    """Return the matrix that smooths ``size`` pixels, float64."""
    weights = torch.tensor(gaussian_weights(sigma, truncate), dtype=torch.float64)
    sources = _outside_pixels(size, len(weights) // 2, border).unfold(0, len(weights), 1)
    return torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, sources, weights.expand(size, -1))


def convolve(padded: Tensor, weights: tuple[float, ...], axis: int) -> Tensor:
    """Convolve (B,C,H,W) along ``axis`` 2 or 3 with symmetric ``weights``; it gets len(weights) − 1 px shorter."""
    if len(weights) >= _FEW and _one_dnn_is_fast(padded):
        if axis == 2:
            return _convolve_columns(padded, weights)
        return _convolve_columns(padded.transpose(2, 3).contiguous(), weights).transpose(2, 3).contiguous()
    radius, size = len(weights) // 2, padded.shape[axis] - len(weights) + 1
    total = padded.narrow(axis, radius, size) * weights[radius]
    for i in range(radius):
        for start in (i, len(weights) - 1 - i):
            total.add_(padded.narrow(axis, start, size), alpha=weights[i])
    return total


def _one_dnn_is_fast(levels: Tensor) -> bool:
    """Whether convolutions of ``levels`` are oneDNN's compiled ones: on a CPU that it compiles for."""
    available = levels.device.type == "cpu" and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _convolve_columns(padded: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Convolve (B,C,H,W) downwards. Columns of pixels are depthwise channels: as memory has them."""
    count, channels, height, width = padded.shape
    rows = padded.reshape(count * channels, height, 1, width).permute(0, 3, 1, 2)
    kernel = torch.tensor(weights).view(1, 1, -1, 1).expand(width, 1, -1, 1).contiguous()
    convolved = F.conv2d(rows, kernel, groups=width).permute(0, 2, 3, 1).contiguous()
    return convolved.view(count, channels, -1, width)


def zoom(part: Tensor, factor: float, height: int, width: int) -> Tensor:
    """Zoom float32 ``part`` (B,C,h,w) linearly by ``factor``, corner pixels on corners; return its middle (B,C,H,W).
    ``scipy.ndimage.zoom(order=1)``: the zoomed part has round(h · factor) rows, H or a few more."""
    rows, columns = part.shape[2:]
    turned = zoom_rows(part.transpose(2, 3).contiguous(), 0, columns, factor, width)
    return zoom_rows(turned.transpose(2, 3).contiguous(), 0, rows, factor, height)


def zoom_rows(levels: Tensor, top: int, rows: int, factor: float, height: int) -> Tensor:
    """Along one axis: zoom the ``rows`` rows from ``top`` on, (B,C,·,W) -> (B,C,H,W)."""
    above, below, share = _zoom_tables(levels.device, top, rows, factor, height)
    return torch.lerp(levels.index_select(2, above), levels.index_select(2, below), share)


@kept_tables(256)
def _zoom_tables(top: int, size: int, factor: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each of the middle ``length`` pixels, those before and after it and the latter's share, (·, 1)."""
    whole = round(size * factor)
    places = (torch.arange(length, dtype=torch.float64) + (whole - length) // 2) * ((size - 1) / max(1, whole - 1))
    above = places.floor()
    share = (places - above).to(torch.float32)[:, None]
    return above.to(torch.int64) + top, above.add(1).clamp_(max=size - 1).to(torch.int64) + top, share


def random_angles(keys: Tensor, low: float, high: float) -> Tensor:
    """Return an angle per image, in degrees, uniform between ``low`` and ``high``: float64 (B,)."""
    return low + (high - low) * uniform(keys, (1,)).double().flatten()


def motion_kernels(radius: int, sigma: float, degrees: Tensor) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Return ImageMagick's motion kernels: rows down (B,S), columns right (B,S), int64, and weights (S,) of S steps.

    From the pixel itself up to 2 · ``radius`` steps in the direction of an angle (degrees, float64 (B,), 0 to the
    right, 90 downwards), each rounded to the nearest pixel, halves down; weights are one half of a Gaussian of s.d.
    ``sigma`` px.
    """
    weights = np.exp(-0.5 * (np.arange(2 * radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    weights = weights[weights > _FAINT]  # they fall: the first ones
    steps = torch.arange(len(weights), dtype=torch.float64, device=degrees.device)
    angles = torch.deg2rad(degrees)[:, None]
    down, right = ((steps * part - 0.5).ceil_().long() for part in (angles.sin(), angles.cos()))
    return down, right, tuple(weights.tolist())


def blur_along_lines(levels: Tensor, radius: int, sigma: float, degrees: Tensor) -> Tensor:
    """Blur each image of float32 (B,C,H,W) along its own line (see :func:`motion_kernels`), round: uint8. Border pixels
    are repeated outwards."""
    down, right, weights = motion_kernels(radius, sigma, degrees)
    if levels.device.type != "cpu":
        return _round_levels(_blur_by_places(levels, down, right, weights))
    rows, columns = down.numpy(), right.numpy()
    top, left = max(0, -rows.min()), max(0, -columns.min())
    border = (left, max(0, columns.max()), top, max(0, rows.max()))
    padded, rows, columns = F.pad(levels, border, mode="replicate"), rows + top, columns + left
    height, width = levels.shape[2:]
    if height * width <= _SMALL and _one_dnn_is_fast(levels):
        return _round_levels(_blur_small_images(padded, rows, columns, weights).view(levels.shape))
    blurred = torch.zeros_like(levels)
    for image, total, *places in zip(padded, blurred, rows.tolist(), columns.tolist(), strict=True):
        for row, column, weight in zip(*places, weights, strict=True):
            total.add_(image[:, row : row + height, column : column + width], alpha=weight)
    return _round_levels(blurred)


def _blur_by_places(levels: Tensor, down: Tensor, right: Tensor, weights: tuple[float, ...]) -> Tensor:
    """The same sums for all images at once, a gather a step: a GPU would have to be waited for to slice each image, and
    be given B · S small sums."""
    height, width = levels.shape[2:]
    y, x = (torch.arange(size, device=levels.device) for size in (height, width))
    flat, blurred = levels.flatten(2), torch.zeros_like(levels)
    for rows, columns, weight in zip(down.unbind(1), right.unbind(1), weights, strict=True):
        row, column = (rows[:, None] + y).clamp_(0, height - 1), (columns[:, None] + x).clamp_(0, width - 1)
        places = (row[:, :, None] * width + column[:, None, :]).flatten(1)[:, None].expand_as(flat)
        blurred.add_(flat.gather(2, places).view_as(levels), alpha=weight)
    return blurred


def _blur_small_images(padded: Tensor, rows: _Places, columns: _Places, weights: tuple[float, ...]) -> Tensor:
    """The same for small images, as one depthwise convolution (B·C,H,W), with kernels that are mostly zeros."""
    images = np.arange(len(rows))
    kernels = np.zeros((len(rows), rows.max() + 1, columns.max() + 1), dtype=np.float32)
    for down, across, weight in zip(rows.T, columns.T, weights, strict=True):
        kernels[images, down, across] += weight
    count, channels = padded.shape[:2]
    planes = torch.from_numpy(kernels).repeat_interleave(channels, 0)[:, None]
    more = -count * channels % _LANES
    padded = F.pad(padded.flatten(0, 1), (0, 0, 0, 0, 0, more))
    blurred = F.conv2d(padded[None], F.pad(planes, (0, 0, 0, 0, 0, 0, 0, more)), groups=len(padded))
    return blurred[0, : count * channels]


def short_side(images: Tensor) -> int:
    """Return the length, px, that the originals call the image's size: the shorter side of (B,C,H,W)."""
    return min(images.shape[2:])


def pixel_coordinates(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row (H,1) and the column (1,W) of every pixel, float32."""
    height, width = images.shape[2:]
    rows = torch.arange(height, dtype=torch.float32, device=images.device)
    return rows[:, None], torch.arange(width, dtype=torch.float32, device=images.device)[None]


def uniform_in(keys: Tensor, *ranges: tuple[float, float]) -> list[Tensor]:
    """Return for each range a number per image, uniform between its ends (draw 0 of the keys): float32 (B,1,1)."""
    numbers = uniform(keys, (len(ranges),))
    return [low + (high - low) * numbers[:, i, None, None] for i, (low, high) in enumerate(ranges)]


def bilinear(levels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return ``levels`` (B,C,H,W) float32 at places (B,H',W') in px: (B,C,H',W'), linear between pixels, 0 outside.
    Written out, since ``grid_sample`` takes places in [−1, 1], where whole pixels are not whole numbers."""
    count, channels, height, width = levels.shape
    top, left = rows.floor(), columns.floor()
    lower, right = rows - top, columns - left
    total = torch.zeros(count, channels, *rows.shape[1:], device=levels.device)
    for down in (0, 1):
        for across in (0, 1):
            y, x = (top + down).long(), (left + across).long()
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            weight = (lower if down else 1 - lower) * (right if across else 1 - right) * inside
            place = y.clamp_(0, height - 1).mul_(width).add_(x.clamp_(0, width - 1))
            corner = levels.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, channels, -1))
            total.addcmul_(corner.view_as(total), weight[:, None])
    return total
