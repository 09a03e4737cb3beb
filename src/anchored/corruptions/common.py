"""The common corruptions (C) with CIFAR-10-C's constants, as functions of whole batches.

Source of every constant and formula: ``ImageNet-C/create_c/make_cifar_c.py`` in github.com/hendrycks/robustness
(Apache-2.0), read for facts. Every function takes ``images`` (B,C,H,W) uint8, the constants of one severity, and one
random key per image, int64 (B,); it returns uint8 of the same shape. C is 1 or 3; the original knows RGB only, and grey
images get what an RGB image with three equal channels would get, with one noise value per pixel.

The original ends with ``np.uint8(255 · clip(x, 0, 1))``, which cuts the fraction off, and works in float64. Here values
are float32, and 0.001 of a grey level is added before cutting, more than all rounding errors together: a value that is
exactly 200 stays 200 on every device. The original leaves such values to the last bit, and so may be one level below.
"""

from __future__ import annotations

import functools
import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchored.corruptions.randomness import normal, uniform
from anchored.corruptions.row import Corruption

_NUDGE = 1e-3  # grey levels added before cutting the fraction off; float32 errors here stay below 2e-4


def _cut(levels: Tensor) -> Tensor:
    """Return uint8 of float32 grey ``levels``: clipped to 0..255, the fraction cut off; changes ``levels``."""
    return levels.add_(_NUDGE).clamp_(0, 255).to(torch.uint8)


def gaussian_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · n, x in [0, 1], n standard normal and independent for every pixel and channel."""
    return _cut(normal(keys, tuple(images.shape[1:])).mul_(255 * scale).add_(images))


def speckle_noise(images: Tensor, scale: float, keys: Tensor) -> Tensor:
    """x + scale · x · n, n standard normal and independent for every pixel and channel."""
    return _cut(normal(keys, tuple(images.shape[1:])).mul_(scale).add_(1).mul_(images))


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
    return table.flatten(), (counts / photons * 255 + _NUDGE).clamp(max=255).to(torch.uint8)


def shot_noise(images: Tensor, photons: float, keys: Tensor) -> Tensor:
    """Poisson(x · photons) / photons, independent for every pixel and channel.

    Exact: the count is the inverse of the distribution function at a uniform number (in steps of 2**-23).
    """
    table, levels = (part.to(images.device) for part in _poisson_table(photons))
    draw = uniform(keys, tuple(images.shape[1:])).to(torch.float64).add_(images)
    place = torch.searchsorted(table, draw.flatten()).sub_(images.flatten().to(torch.int64) * len(levels))
    return levels[place].view(images.shape)


def _blur_axis(levels: Tensor, weights: list[float], axis: int) -> Tensor:
    """Convolve (B,C,H,W) along ``axis``, the border pixels repeated outwards."""
    radius, size = len(weights) // 2, levels.shape[axis]
    padded = F.pad(levels, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="replicate")
    total = padded.narrow(axis, radius, size) * weights[radius]
    for i in range(radius):  # the weights are symmetric
        pair = padded.narrow(axis, i, size) + padded.narrow(axis, len(weights) - 1 - i, size)
        total.add_(pair, alpha=weights[i])
    return total


def gaussian_blur(images: Tensor, sigma: float, keys: Tensor) -> Tensor:
    """Convolve with a Gaussian of s.d. ``sigma`` px, cut at 4 s.d., border pixels repeated (skimage's defaults).

    Nothing random. Sums are taken tap by tap: a convolution may run in TF32 on a GPU, off by a quarter of a level.
    """
    radius = int(4 * sigma + 0.5)
    weights = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    weights = [weight / math.fsum(weights) for weight in weights]
    return _cut(_blur_axis(_blur_axis(images.to(torch.float32), weights, 2), weights, 3))


@functools.lru_cache(maxsize=16)
def _disk(radius: float, alias: float) -> list[list[float]]:
    """Return the defocus kernel: a disk of ``radius`` px, smoothed by a 3 × 3 Gaussian of s.d. ``alias`` px.

    The original's is 17 × 17, but zero outside what is returned here.
    """
    reach = int(radius) + 1
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).to(torch.float64)
    side = math.exp(-0.5 / alias**2)
    taps = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    kernel = F.conv2d(F.pad((disk / disk.sum())[None, None], (1, 1, 1, 1)), (taps[:, None] * taps)[None, None])
    return [[float(weight) for weight in row] for row in kernel[0, 0]]


def _disk_margin(constants: tuple[float, float]) -> int:
    return int(constants[0]) + 1


def defocus_blur(images: Tensor, constants: tuple[float, float], keys: Tensor) -> Tensor:
    """Convolve with an antialiased disk, constants (radius, s.d. of the antialiasing), both px; borders mirrored.

    Nothing random. ``cv2.filter2D``'s border: the mirror stands on the border pixel, which is not repeated. OpenCV
    convolves with its 17 × 17 kernel through a Fourier transform, whose errors of 1e-7 it then cuts; ours is direct.
    """
    kernel = _disk(*constants)
    reach = len(kernel) // 2
    height, width = images.shape[2:]
    padded = F.pad(images.to(torch.float32), (reach,) * 4, mode="reflect")
    total = torch.zeros(images.shape, device=images.device)
    for top, row in enumerate(kernel):
        for left, weight in enumerate(row):
            if weight > 0:
                total.add_(padded[:, :, top : top + height, left : left + width], alpha=weight)
    return _cut(total)


def contrast(images: Tensor, factor: float, keys: Tensor) -> Tensor:
    """(x − m) · factor + m, m the mean of each image's channel. Nothing random."""
    levels = images.to(torch.float32)
    means = levels.mean((2, 3), keepdim=True)
    return _cut(levels.sub_(means).mul_(factor).add_(means))


def brightness(images: Tensor, shift: float, keys: Tensor) -> Tensor:
    """Add ``shift`` to the value V of HSV, V = max(R, G, B) in [0, 1], at most 1. Nothing random.

    Hue and saturation stay, so R, G and B are all scaled by V' / V; black, which has neither, becomes grey. For grey
    images that is x + shift.
    """
    levels = images.to(torch.float32)
    value = levels.amax(1, keepdim=True)
    raised = (value + 255 * shift).clamp_(max=255)
    return _cut(torch.where(value > 0, levels * (raised / value.clamp(min=1)), raised))


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


def _pixelate_margin(factor: float) -> int:
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


#: The rows, in the order of the benchmark.
COMMON: tuple[Corruption, ...] = (
    Corruption(
        "gaussian_noise", "noise", gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)
    ),
    Corruption("shot_noise", "noise", shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    Corruption("impulse_noise", "noise", impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    Corruption(
        "defocus_blur",
        "blur",
        defocus_blur,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        margin=_disk_margin,
    ),
    Corruption("brightness", "weather", brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    Corruption("contrast", "digital", contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    Corruption(
        "pixelate",
        "digital",
        pixelate,
        (0.95, 0.9, 0.85, 0.75, 0.65),
        (0.6, 0.5, 0.4, 0.3, 0.25),
        margin=_pixelate_margin,
    ),
    Corruption("jpeg_compression", "digital", jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    Corruption(
        "speckle_noise",
        "noise",
        speckle_noise,
        (0.06, 0.1, 0.12, 0.16, 0.2),
        (0.15, 0.2, 0.35, 0.45, 0.6),
        families=("c",),
    ),
    Corruption("gaussian_blur", "blur", gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), families=("c",)),
)
