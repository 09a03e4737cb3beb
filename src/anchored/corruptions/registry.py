"""Image corruptions for whole batches: ``corrupt(images, "gaussian_noise", severity=3, seed=0)``.

The common corruptions C (Hendrycks and Dietterich 2019, arXiv 1903.12261), with the constants of CIFAR-10-C for small
images and of ImageNet-C for large ones; ``Corruption.constants`` states the rule for sizes between. A corrupted image
depends only on (seed, corruption, severity, the image's index): not on the batch it came in, its order or the device.
"""

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from anchored.corruptions.c_bar import C_BAR
from anchored.corruptions.common import COMMON
from anchored.corruptions.randomness import image_keys
from anchored.corruptions.row import SMALL, Corruption, at_once, published_size
from anchored.errors import UserError
from anchored.method.devices import to_device

__all__ = ["CORRUPTIONS", "FAMILIES", "Corruption", "corrupt", "expand"]

#: Every corruption by name.
CORRUPTIONS: dict[str, Corruption] = {row.name: row for row in (*COMMON, *C_BAR)}

#: Families of corruptions, each a name in recipes and on the command line.
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(family for row in CORRUPTIONS.values() for family in row.families))


def corrupt(images: Tensor, corruption: str, severity: int, *, seed: int, indices: Tensor | None = None) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8, C 1 or 3, corrupted: uint8, same shape and device.

    ``corruption``: a name of CORRUPTIONS. ``severity``: 1 (mildest) to 5. ``indices`` (B,), any integer dtype: each
    image's place in its set, default 0, 1, ..., B − 1; with ``seed`` it decides the image's random numbers, so that a
    set corrupted in batches of any size, in any order, comes out the same. Devices agree but for values that lie on the
    edge between two grey levels to the last bit of a float32. UserError, one line, for anything else.

    Images are handled a few at a time, so that working memory stays small whatever B is.
    """
    row = _row(corruption)
    if indices is None:
        indices = torch.arange(len(images), device=images.device)
    _check(row, images, severity, indices)
    if len(images) == 0:
        return images.clone()
    constants = row.constants(severity, *images.shape[2:])
    keys = image_keys(seed, f"{corruption}/{severity}", to_device(indices, images.device))
    count = row.grouped * at_once(images)
    images = images.contiguous()
    if count >= len(images):
        return row.function(images, constants, keys)
    corrupted = torch.empty_like(images)
    parts = (torch.split(values, count) for values in (corrupted, images, keys))
    for target, some_images, some_keys in zip(*parts, strict=True):
        target.copy_(row.function(some_images, constants, some_keys))
    return corrupted


def expand(names: Sequence[str], height: int, width: int, channels: int = 3) -> tuple[str, ...]:
    """Return corruptions' names from names of corruptions and families, each once, in order.

    A family stands for the corruptions that were published for the size nearer to height × width and change images of
    ``channels`` channels: "c" is 18 for grey ones, where ``saturate`` would put clean figures into every mean.
    UserError for a name that is neither, and for one of a corruption that would change nothing.
    """
    size = published_size(min(height, width))
    expanded: list[str] = []
    for name in names:
        if name in FAMILIES:
            rows = [row for row in CORRUPTIONS.values() if name in row.families]
            rows = [row for row in rows if channels > 1 or not row.colour_only]
            expanded += [row.name for row in rows if (row.small if size == SMALL else row.large) is not None]
        elif _row(name).colour_only and channels == 1:
            raise UserError(f"corruption '{name}' leaves grey images as they are: leave it out")
        else:
            expanded.append(name)
    return tuple(dict.fromkeys(expanded))


def _row(name: str) -> Corruption:
    """Return the corruption called ``name``; UserError with near names when there is none."""
    if name in CORRUPTIONS:
        return CORRUPTIONS[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), CORRUPTIONS, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(CORRUPTIONS)}"
    raise UserError(f"corruption '{name}' is unknown; {known}")


def _check(row: Corruption, images: Tensor, severity: int, indices: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        shape = f"{images.dtype} {tuple(images.shape)}"
        raise UserError(f"{row.name}: images are {shape}: give uint8 (B, C, H, W) with C 1 or 3")
    if severity not in (1, 2, 3, 4, 5) or isinstance(severity, float):
        raise UserError(f"{row.name}: severity is {severity}: give 1, 2, 3, 4 or 5")
    if indices.shape != images.shape[:1] or indices.is_floating_point() or indices.is_complex():
        shape = f"{indices.dtype} {tuple(indices.shape)}"
        raise UserError(f"{row.name}: indices are {shape}: give {len(images)} integers, one per image")
    if 0 in images.shape[1:]:
        raise UserError(f"{row.name}: images are {images.shape[2]} x {images.shape[3]}: there are no pixels")
    margin = row.margin(row.constants(severity, *images.shape[2:]))
    if min(images.shape[2:]) <= margin:
        size = f"{images.shape[2]} x {images.shape[3]}"
        raise UserError(f"{row.name}: images are {size}, severity {severity} needs more than {margin} px per side")
