"""Digital corruptions. Images and constants as in ``common.py``, which states the source."""

from __future__ import annotations

import functools
import io
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchored.corruptions.pixels import along, cut, gaussian
from anchored.corruptions.randomness import uniform


def contrast(images: Tensor, factor: float, keys: Tensor) -> Tensor:
    """(x − m) · factor + m, m the mean of each image's channel. Nothing random."""
    levels = images.to(torch.float32)
    means = levels.mean((2, 3), keepdim=True)
    return cut(levels.mul_(factor).add_(means, alpha=1 - factor))


class Saturation(NamedTuple):
    """Constants of :func:`saturate`."""

    factor: float
    shift: float


def saturate(images: Tensor, saturation: Saturation, keys: Tensor) -> Tensor:
    """Set the saturation S of HSV to S' = S · factor + shift, clipped to [0, 1]; hue and value stay. Nothing random.

    With V = max(R, G, B) and D = V − min(R, G, B): R' = V · (1 − S' · (V − R) / D), likewise G and B. A grey pixel of a
    colour image has hue 0, red, so that a shift tints it. Grey images stay as they are: they have no saturation.
    """
    if images.shape[1] == 1:
        return images.clone()
    levels = images.to(torch.float32)
    low, value = levels.aminmax(dim=1, keepdim=True)
    chroma = value - low
    saturated = (chroma / value.clamp(min=1)).mul_(saturation.factor).add_(saturation.shift).clamp_(0, 1).mul_(value)
    away = torch.where(chroma > 0, (value - levels) / chroma.clamp(min=1), levels.new_tensor((0.0, 1, 1)).view(3, 1, 1))
    return cut(value - away.mul_(saturated))


@functools.lru_cache(maxsize=64)
def _box_taps(size: int, new_size: int) -> tuple[Tensor, Tensor]:
    """Return PIL's box filter from ``size`` to ``new_size`` px: sources int64 and weights int32, each (K, new_size).

    Weights are integers in units of 2**-22, as in PIL's libImaging/Resample.c.
    """
    scale = size / new_size
    width = max(scale, 1.0)
    sources, weights = [], []
    for place in range(new_size):
        center = (place + 0.5) * scale
        low, high = max(0, int(center - width / 2 + 0.5)), min(size, int(center + width / 2 + 0.5))
        inside = [float(-0.5 < (i - center + 0.5) / width <= 0.5) for i in range(low, high)]
        sources.append(list(range(low, high)))
        weights.append([int(0.5 + weight / sum(inside) * 2**22) for weight in inside])
    longest = max(map(len, sources))
    for source, weight in zip(sources, weights, strict=True):
        source += [0] * (longest - len(source))
        weight += [0] * (longest - len(weight))
    return torch.tensor(sources).T.contiguous(), torch.tensor(weights, dtype=torch.int32).T.contiguous()


def _box_resize(images: Tensor, new_size: int, axis: int) -> Tensor:
    """Resize uint8 (B,C,H,W) along ``axis`` as PIL's BOX filter does, in its integer arithmetic."""
    if images.shape[axis] == new_size:
        return images
    sources, weights = (part.to(images.device) for part in _box_taps(images.shape[axis], new_size))
    form = (-1, 1) if axis == 2 else (-1,)
    total = torch.full((), 1 << 21, dtype=torch.int32, device=images.device)
    for source, weight in zip(sources, weights, strict=True):
        total = total + images.index_select(axis, source).to(torch.int32) * weight.view(form)
    return torch.bitwise_right_shift(total, 22).clamp_(0, 255).to(torch.uint8)


def pixelate_margin(factor: float) -> int:
    """How many pixels more than its sides an image must have."""
    return math.ceil(1 / factor) - 1


def pixelate(images: Tensor, factor: float, keys: Tensor) -> Tensor:
    """Shrink to int(factor · side) px and enlarge again, both with PIL's BOX filter (averages of areas).

    Nothing random. Equal to PIL's to the bit: rows are resized first, rounded, then columns.
    """
    height, width = images.shape[2:]
    small = _box_resize(_box_resize(images, int(width * factor), 3), int(height * factor), 2)
    return _box_resize(_box_resize(small, width, 3), height, 2)


def jpeg_compression(images: Tensor, quality: int, keys: Tensor) -> Tensor:
    """Compress to JPEG of ``quality`` (0 to 100) and decompress, with PIL as the original does.

    Nothing random. Done image by image on the CPU, so that every device gives the same. (torchvision's own JPEG
    functions are deprecated since 0.29.)
    """
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    done = np.empty_like(pixels)
    for i, image in enumerate(pixels):
        file = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "JPEG", quality=quality)
        done[i] = np.asarray(Image.open(file)).reshape(image.shape)
    return torch.from_numpy(done).permute(0, 3, 1, 2).contiguous().to(images.device)


class Elastic(NamedTuple):
    """Constants of :func:`elastic_transform`, px."""

    strength: float
    sigma: float
    corner: float

    @classmethod
    def of(cls, side: float, strength: float, sigma: float, corner: float) -> Elastic:
        """Return constants that are given as shares of ``side`` px."""
        return cls(side * strength, side * sigma, side * corner)

    def scaled(self, scale: float) -> Elastic:
        """Return the constants for an image ``scale`` times as large; smoothing more takes some of the strength."""
        return Elastic(self.strength * scale**2, self.sigma * scale, self.corner * scale)


def elastic_transform(images: Tensor, elastic: Elastic, keys: Tensor) -> Tensor:
    """Map the image by a random affine map, then move every pixel by a smooth random field.

    The affine map takes three points, a third of the side from the middle, to themselves plus uniform(−corner, corner)
    in both coordinates. The field, for rows and for columns: uniform(−1, 1) for each pixel, smoothed by a Gaussian of
    s.d. sigma, cut at 3 s.d., times ``strength``. Both read linearly between pixels; the affine map mirrors the image
    at its border pixels, the field beside them. ``cv2.warpAffine`` reads at multiples of 1/32 px, here there is no such
    grid.
    """
    height, width = images.shape[2:]
    levels = _read(images.to(torch.float32), *_affine(keys, height, width, elastic.corner), on_border=True)
    if elastic.strength:
        noise = uniform(keys, (2, height, width)).mul_(2).sub_(1)
        field = _spread(_spread(noise, elastic.sigma, 2), elastic.sigma, 3).mul_(elastic.strength)
        rows = torch.arange(height, dtype=torch.float32, device=keys.device)[:, None] + field[:, 0]
        columns = torch.arange(width, dtype=torch.float32, device=keys.device) + field[:, 1]
        levels = _read(levels, rows, columns, on_border=False)
    return cut(levels)


def _affine(keys: Tensor, height: int, width: int, corner: float) -> tuple[Tensor, Tensor]:
    """Return the rows and columns, float32 (B,H,W), where the random affine map reads each pixel."""
    shift = uniform(keys, (3, 2), draw=1).to(torch.float64).sub_(0.5).mul_(2 * corner)  # three points, (x, y) each
    span = min(height, width) // 3
    middle = torch.tensor((width // 2, height // 2), dtype=torch.float64, device=keys.device)
    # The points are middle + (span, span), + (span, −span) and + (−span, −span): two edges give the linear part.
    (a, c), (b, d) = (
        (edge / (2 * span) + unit).unbind(1)
        for edge, unit in (
            (shift[:, 1] - shift[:, 2], torch.tensor((1.0, 0.0), device=keys.device)),
            (shift[:, 0] - shift[:, 1], torch.tensor((0.0, 1.0), device=keys.device)),
        )
    )
    x0, y0 = (middle - span + shift[:, 2]).unbind(1)  # where the third point goes
    determinant = a * d - b * c
    x = torch.arange(width, dtype=torch.float64, device=keys.device) - x0[:, None, None]
    y = torch.arange(height, dtype=torch.float64, device=keys.device)[:, None] - y0[:, None, None]
    a, b, c, d = (each[:, None, None] / determinant[:, None, None] for each in (a, b, c, d))
    columns, rows = d * x - b * y + (middle[0] - span), a * y - c * x + (middle[1] - span)
    return rows.to(torch.float32), columns.to(torch.float32)


def _read(levels: Tensor, rows: Tensor, columns: Tensor, on_border: bool) -> Tensor:
    """Read float32 (B,C,H,W) linearly at ``rows`` and ``columns`` (B,H,W), px; mirrored on or beside the border."""
    height, width = levels.shape[2:]
    add, span = (0.0, -1) if on_border else (0.5, 0)
    x = (columns + add).mul_(2 / max(1, width + span)).sub_(1)
    y = (rows + add).mul_(2 / max(1, height + span)).sub_(1)
    grid = torch.stack((x, y), -1)
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode="reflection", align_corners=on_border)


@functools.lru_cache(maxsize=16)
def _spreading(size: int, sigma: float) -> Tensor:
    """Return the Gaussian of s.d. ``sigma``, cut at 3 s.d. and mirrored beside the border, as a matrix, float64."""
    weights = gaussian(sigma, 3.0)
    reach = len(weights) // 2
    places = (np.arange(size)[:, None] + np.arange(-reach, reach + 1)) % (2 * size)
    places = np.where(places < size, places, 2 * size - 1 - places)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.arange(size)[:, None], places), np.broadcast_to(weights, places.shape))
    return torch.from_numpy(matrix)


def _spread(noise: Tensor, sigma: float, axis: int) -> Tensor:
    """Smooth float32 (B,2,H,W) along ``axis``; wide Gaussians as a product in float64, whose last bits do not show."""
    size = noise.shape[axis]
    weights = gaussian(sigma, 3.0)
    reach = len(weights) // 2
    if reach <= 16 and reach <= size:
        places = torch.arange(-reach, size + reach, device=noise.device)
        places = torch.where(places < 0, -1 - places, torch.where(places >= size, 2 * size - 1 - places, places))
        return along(noise.index_select(axis, places), weights, axis)
    matrix = _spreading(size, sigma).to(noise.device)
    wide = noise.to(torch.float64)
    return (matrix @ wide if axis == 2 else wide @ matrix.T).to(torch.float32)
