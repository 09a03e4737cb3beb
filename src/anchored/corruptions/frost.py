"""Frost: ice crystals on a window. Constants as in ``common.py``, which states the source.

The original adds crops of photographs that are not ours to copy. Here the five textures are computed: each has its
photograph's colours (mean and s.d. of each channel) and distribution of levels (seven quantiles), and crystals drawn as
feathers on fractal noise. They repeat themselves without a seam.
"""

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.pixels import to_grey, truncate_levels
from anchored.corruptions.randomness import image_keys, uniform
from anchored.corruptions.tables import kept_tables

_SIDE = 640  # px, of a texture
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)

Array = npt.NDArray[np.float64]


class Frost(NamedTuple):
    """Constants of :func:`frost`."""

    image: float  # weight of the image
    ice: float  # weight of the texture
    size: float  # of the texture: 1 is that of a photograph for 224 px

    def scaled(self, scale: float) -> "Frost":
        """Return the constants for an image ``scale`` times as large."""
        return self._replace(size=self.size * scale)


class _Texture(NamedTuple):
    """What is known of a photograph, and how its like is drawn."""

    mean: tuple[float, float, float]  # grey levels of R, G and B
    spread: tuple[float, float, float]
    levels: tuple[float, ...]  # at _QUANTILES, of the mean of the channels
    slope: float  # of the noise's amplitude over frequency
    feathers: int  # crystals on the texture
    barb: float  # px, from one barb of a feather to the next
    crystal: float  # share of crystals against noise


_TEXTURES = (
    _Texture((78, 149, 166), (27, 17, 15), (97, 104, 118, 129, 142, 163, 177), 1.6, 60, 9, 0.15),
    _Texture((201, 205, 215), (21, 22, 23), (141, 166, 195, 210, 222, 236, 245), 1.1, 420, 7, 0.6),
    _Texture((201, 205, 215), (21, 22, 23), (141, 166, 195, 210, 222, 236, 245), 1.1, 260, 8, 0.6),
    _Texture((138, 153, 165), (28, 28, 30), (82, 104, 134, 152, 169, 199, 234), 1.0, 900, 5, 0.45),
    _Texture((112, 123, 135), (44, 43, 42), (45, 60, 92, 119, 151, 203, 238), 1.3, 380, 6, 0.7),
)


def frost(images: Tensor, frost: Frost, keys: Tensor) -> Tensor:
    """image · x + ice · texture; which of the five textures and which part of it are random.

    The texture stands in for the original's photographs (see the top of this file). As there it is made smaller by
    linear interpolation without antialiasing.
    """
    height, width = images.shape[2:]
    side = max(1, round(_SIDE * frost.size))
    tiles = -(-height // side) + 1, -(-width // side) + 1
    textures = _textures(images.device, frost.size, images.shape[1], *tiles)
    draws = uniform(keys, (3,)).double() * _sizes(images.device, side)
    levels = images.to(torch.float32).mul_(frost.image)
    if images.device.type == "cpu":  # slices, which need no places
        for image, (which, row, column) in zip(levels, draws.long().tolist(), strict=True):
            image += textures[which, :, row : row + height, column : column + width] * frost.ice
    else:
        levels.add_(_cut(textures, draws.long(), height, width) * frost.ice)
    return truncate_levels(levels)


@kept_tables(8)
def _sizes(side: int) -> Tensor:
    return torch.tensor((len(_TEXTURES), side, side), dtype=torch.float64)


def _cut(textures: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Return for each of ``places`` (B,3), a texture, a row and a column, the part of it from there on, (B,C,H,W)."""
    channels, down, right = textures.shape[1:]
    which, top, left = (each.view(-1, 1, 1, 1) for each in places.unbind(1))
    rows = top + torch.arange(height, device=places.device)[:, None]
    columns = left + torch.arange(width, device=places.device)
    planes = which * channels + torch.arange(channels, device=places.device)[:, None, None]
    return textures.view(-1).take((planes * down + rows) * right + columns)


@kept_tables(8)
def _textures(size: float, channels: int, down: int, right: int) -> Tensor:
    """Return uint8 (5, channels, S, S), S = 640 · ``size`` px, repeated ``down`` × ``right`` times."""
    drawn = torch.stack([_drawn(which) for which in range(len(_TEXTURES))])
    if channels == 1:
        drawn = to_grey(drawn)
    side = max(1, round(_SIDE * size))
    if side != _SIDE:
        drawn = F.interpolate(drawn, size=(side, side), mode="bilinear", align_corners=False)
    return truncate_levels(drawn.clone()).tile(down, right)


@functools.lru_cache(maxsize=len(_TEXTURES))
def _drawn(which: int) -> Tensor:
    """Return a texture, float32 (3, 640, 640), grey levels."""
    texture = _TEXTURES[which]
    keys = image_keys(0, f"frost texture {which}", torch.arange(2))
    noise = _noise(uniform(keys[:1], (_SIDE, _SIDE))[0].double().numpy(), texture.slope)
    ice = _feathers(uniform(keys[1:], (texture.feathers, 4))[0].double().numpy(), texture.barb)
    mixed = noise / noise.std() * (1 - texture.crystal) + (ice - ice.mean()) / ice.std() * texture.crystal
    rank = np.empty(mixed.size)
    rank[mixed.ravel().argsort()] = (np.arange(mixed.size) + 0.5) / mixed.size
    low, high = texture.levels[0], texture.levels[-1]
    ends = (max(0.0, low - 10), *texture.levels, min(255.0, high + 10))
    grey = np.interp(rank, (0.0, *_QUANTILES, 1.0), ends).reshape(mixed.shape)
    unit = (grey - grey.mean()) / grey.std()
    colours = [mean + spread * unit for mean, spread in zip(texture.mean, texture.spread, strict=True)]
    return torch.from_numpy(np.stack(colours).clip(0, 255)).to(torch.float32)


def _noise(white: Array, slope: float) -> Array:
    """Return noise whose amplitude falls with frequency to the power of −``slope``, from ``white`` noise."""
    frequency = np.hypot(np.fft.fftfreq(_SIDE)[:, None], np.fft.rfftfreq(_SIDE))
    frequency[0, 0] = np.inf
    return np.fft.irfft2(np.fft.rfft2(white) * np.maximum(frequency, 2 / _SIDE) ** -slope, s=white.shape)


def _feathers(draws: Array, barb: float) -> Array:
    """Return crystals, one for each row of ``draws`` (N,4): middle (row, column), direction, length. A crystal is a
    bright axis with barbs at 60 degrees on both sides, fainter away from it; the brightest one counts."""
    ice = np.zeros((_SIDE, _SIDE))
    reach = round(1.2 * _SIDE / len(draws) ** 0.5)
    span = np.arange(-reach, reach + 1)
    for row, column, direction, length in draws:
        half = reach * (0.5 + 0.5 * length)
        cosine, sine = np.cos(2 * np.pi * direction), np.sin(2 * np.pi * direction)
        along, aside = span[:, None] * cosine + span * sine, np.abs(span * cosine - span[:, None] * sine)
        barbs = 0.5 + 0.5 * np.cos(2 * np.pi * (along - aside / np.sqrt(3)) / barb)
        width = 0.35 * half * np.clip((half - along) / (2 * half), 0, 1)  # narrow at the tip
        inside = (np.abs(along) < half) & (aside < width)
        light = np.where(inside, np.maximum(barbs * (1 - aside / (width + 1e-9)), aside < 1), 0) * (0.6 + 0.4 * length)
        rows, columns = (span + int(row * _SIDE)) % _SIDE, (span + int(column * _SIDE)) % _SIDE
        place = np.ix_(rows, columns)
        ice[place] = np.maximum(ice[place], light)
    return ice
