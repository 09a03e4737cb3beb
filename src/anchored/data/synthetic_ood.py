"""Images of the training set's own kind made into foreign ones: outliers to choose settings on, whatever the data.

Outlier exposure (Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606) chooses its settings on such images, since
the foreign images that a network will meet are unknown. Each is made from one image alone and, as a corruption, depends
only on (seed, name, the image's index): not on the batch it came in, its order or the device.

Legend: B batch, C image channels, H×W image size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anchored.corruptions.randomness import image_keys, normal, uniform

TILES = 4
"""Tiles a side of a jigsaw."""


@dataclass(frozen=True)
class Outlier:
    """A way to make an image foreign: its title in reports, and images (B,C,H,W) uint8 and keys (B,) to the same."""

    title: str
    function: Callable[[Tensor, Tensor], Tensor]


def altered(images: Tensor, name: str, *, seed: int, indices: Tensor) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 made foreign: uint8, same shape and device.

    ``name``: a key of OUTLIERS. ``indices`` (B,), any integer dtype: each image's place in its set, which with ``seed``
    decides its random numbers.
    """
    return OUTLIERS[name].function(images, image_keys(seed, f"outlier/{name}", indices.to(images.device)))


def _jigsaw(images: Tensor, keys: Tensor) -> Tensor:
    """The image cut into TILES × TILES tiles, shuffled; rows and columns that are left over stay where they are."""
    b, c, height, width = images.shape
    h, w = height // TILES, width // TILES
    inner = images[:, :, : h * TILES, : w * TILES].reshape(b, c, TILES, h, TILES, w)
    tiles = inner.permute(0, 2, 4, 1, 3, 5).reshape(b, TILES * TILES, c, h, w)
    order = uniform(keys, (TILES * TILES,)).argsort(1)
    shuffled = tiles[torch.arange(b, device=images.device)[:, None], order]
    found = images.clone()
    found[:, :, : h * TILES, : w * TILES] = (
        shuffled.reshape(b, TILES, TILES, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h * TILES, w * TILES)
    )
    return found


def _scrambled(images: Tensor, keys: Tensor) -> Tensor:
    """All pixels shuffled, the same way in every channel."""
    order = uniform(keys, (images.shape[2] * images.shape[3],)).argsort(1)  # (B, H·W)
    flat = images.flatten(2)
    return flat.gather(2, order[:, None].expand_as(flat)).view_as(images)


def _phase(images: Tensor, keys: Tensor) -> Tensor:
    """The image's amplitude at every frequency with the phases of noise: its grain without its shapes."""
    spectrum = torch.fft.rfft2(images.double())
    noise = torch.fft.rfft2(normal(keys, (1, *images.shape[2:])).double())  # a real image's phases, shared by channels
    phases = noise / noise.abs().clamp(min=1e-12)
    phases[:, :, 0, 0] = 1  # the mean level stays
    found: Tensor = torch.fft.irfft2(spectrum * phases, s=images.shape[2:])
    return found.round_().clamp_(0, 255).to(torch.uint8)


OUTLIERS: dict[str, Outlier] = {
    "jigsaw": Outlier("Own images as jigsaws", _jigsaw),
    "inverted": Outlier("Own images inverted", lambda images, keys: 255 - images),
    "scrambled": Outlier("Own images with shuffled pixels", _scrambled),
    "phase": Outlier("Own images with new phases", _phase),
}
"""Name, as in ``validate.ood`` -> how it is made; from near to far."""
