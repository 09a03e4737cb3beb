"""Synthetic out-of-distribution images: made from the training set's own images, or drawn at random.

Outlier exposure (Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606) chooses its settings on such images, since
those that a network will meet are unknown. Each depends, as a corruption does, only on (seed, name, the image's index)
and on the one image it is made from: not on the batch it came in, its order or the device.

Legend: B batch, C image channels, H×W image size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.data.augmentation import occurrence_keys
from anchored.method.devices import to_device

TILES = 4  # tiles a side of a jigsaw

_CHUNK = 512  # computed images drawn at a time: bounds the memory their float copies take


@dataclass(frozen=True)
class Outlier:
    """A way to make OOD images: its title in reports, and images (B,C,H,W) uint8 and keys (B,) to the same."""

    title: str
    function: Callable[[Tensor, Tensor], Tensor]


def make_ood(images: Tensor, name: str, *, seed: int, indices: Tensor) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 made out-of-distribution: uint8, same shape and device.

    ``name``: a key of OUTLIERS. ``indices`` (B,), any integer dtype: each image's place in its set, which with ``seed``
    decides its random numbers; other ones where an image stands there again.
    """
    keys = occurrence_keys(seed, f"outlier/{name}", to_device(indices, images.device))
    return OUTLIERS[name].function(images, keys)


def _jigsaw(images: Tensor, keys: Tensor) -> Tensor:
    """The image cut into TILES × TILES tiles, shuffled; rows and columns that are left over stay where they are."""
    b, c, height, width = images.shape
    h, w = height // TILES, width // TILES
    inner = images[:, :, : h * TILES, : w * TILES].reshape(b, c, TILES, h, TILES, w)
    tiles = inner.permute(0, 2, 4, 1, 3, 5).reshape(b, TILES * TILES, c, h, w)
    order = uniform(keys, (TILES * TILES,)).argsort(1)
    shuffled = tiles[torch.arange(b, device=images.device)[:, None], order]
    outputs = images.clone()
    outputs[:, :, : h * TILES, : w * TILES] = (
        shuffled.reshape(b, TILES, TILES, c, h, w).permute(0, 3, 1, 4, 2, 5).reshape(b, c, h * TILES, w * TILES)
    )
    return outputs


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
    outputs: Tensor = torch.fft.irfft2(spectrum * phases, s=images.shape[2:])
    return outputs.round_().clamp_(0, 255).to(torch.uint8)


OUTLIERS: dict[str, Outlier] = {
    "jigsaw": Outlier("Own images as jigsaws", _jigsaw),
    "inverted": Outlier("Own images inverted", lambda images, keys: 255 - images),
    "scrambled": Outlier("Own images with shuffled pixels", _scrambled),
    "phase": Outlier("Own images with new phases", _phase),
}
"""Name, as in ``validate.ood`` -> how it is made; from near to far."""


def draw_images(name: str, split: str, count: int, shape: tuple[int, int, int]) -> Tensor:
    """Return ``count`` images (N,C,H,W) uint8 of ``shape`` (C,H,W) of a "procedural" row of the catalog. Image i is the
    same whatever ``count`` is."""
    keys = image_keys(0, f"{name}/{split}", torch.arange(count))
    return torch.cat([_draw_chunk(name, part, shape) for part in torch.split(keys, _CHUNK)])


def _draw_chunk(name: str, keys: Tensor, shape: tuple[int, int, int]) -> Tensor:
    if name == "gaussian-noise":
        return (normal(keys, shape) * (0.25 * 255) + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    if name == "uniform-noise":
        return (uniform(keys, shape) * 256).to(torch.uint8)
    return _blobs(normal(keys, shape))


def _blobs(noise: Tensor) -> Tensor:
    """Smooth ``noise`` (N,C,H,W) with a Gaussian of s.d. H/14 (2 px at 28), then stretch each channel to 0..255."""
    sigma = noise.shape[-1] / 14
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (2, 3):
        padded = F.pad(noise, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
        noise = sum(
            (w * padded.narrow(axis, i, noise.shape[axis]) for i, w in enumerate(weights.tolist())),
            start=torch.zeros(()),
        )
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return ((noise - low) / (high - low) * 255).round_().to(torch.uint8)
