"""Augmentation of training images: of whole batches (shifted crops, flips), or of one image at a time (ImageNet's)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.data.preprocessing import InputFormat, check_uint8, pil_to_tensor
from anchored.method.devices import to_device

AutoAugment = Literal["none", "rand_augment", "trivial_augment", "auto_augment"]

_POLICIES = {"rand_augment": "RandAugment", "trivial_augment": "TrivialAugmentWide", "auto_augment": "AutoAugment"}


def crop_and_flip(
    images: Tensor, generator: Generator, padding: int = 4, flip: bool = True, shard: tuple[int, int] = (0, 1)
) -> Tensor:
    """Return randomly shifted and mirrored ``images`` (B,C,H,W) uint8, of the same shape.

    Each image is padded with ``padding`` black pixels on every side (torchvision's ``RandomCrop`` fill 0), cropped back
    to H × W at one of the (2·padding + 1)² places, and mirrored left to right with probability 1/2 if ``flip``.
    ``generator`` is a CPU generator, so that every device draws alike. ``shard`` = (rank, world size): these images are
    every n-th of a larger batch, and are given what they would be given in it. One gather over the flattened pixels:
    the alternatives measured on tensors take 1.3 to 6 times as long.
    """
    check_uint8(images, "images")
    count, channels, height, width = images.shape
    rank, world = shard
    offsets = torch.randint(0, 2 * padding + 1, (2, count * world), generator=generator)[:, rank::world]
    mirrored = (torch.rand(count * world, generator=generator) < 0.5)[rank::world]
    rows = torch.arange(height) + offsets[0, :, None]
    columns = torch.arange(width).expand(count, width)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = columns + offsets[1, :, None]
    wide = width + 2 * padding
    rows, columns = (to_device(each, images.device) for each in (rows * wide, columns))
    places = (rows[:, :, None] + columns[:, None, :]).view(count, 1, height * width).expand(-1, channels, -1)
    padded = F.pad(images, (padding,) * 4).view(count, channels, -1)
    return padded.gather(2, places).view(images.shape)


def occurrence_keys(seed: int, purpose: str, indices: Tensor) -> Tensor:
    """Return a key per image as ``image_keys`` does, (B,) int64, and other keys where an image stands there again."""
    indices = indices.to(torch.int64)
    order = indices.sort(stable=True)
    run = torch.arange(len(indices), device=indices.device)
    starts = torch.where(order.values.diff(prepend=order.values[:1] - 1) != 0, run, 0).cummax(0).values
    again = torch.empty_like(indices).index_copy_(0, order.indices, run - starts)
    return image_keys(seed, purpose, indices + (again << 40))


def erase(inputs: Tensor, keys: Tensor, probability: float) -> Tensor:
    """Return normalised ``inputs`` (B,C,H,W) with a rectangle of standard normal noise in a share of them.

    Random erasing (arXiv 1708.04896) as timm and the recipes of DeiT and Swin have it: 2 to 33 % of the area, sides
    from 3:10 to 10:3 by their logarithm, anywhere within the image. ``keys`` (B,) decide what is drawn.
    """
    height, width = inputs.shape[-2:]
    keys = to_device(keys, inputs.device)
    chosen, area, ratio, y, x = uniform(keys, (5,)).unbind(1)
    area = (0.02 + (1 / 3 - 0.02) * area) * height * width
    ratio = torch.exp((2 * ratio - 1) * math.log(10 / 3))
    h = (area * ratio).sqrt().round().clamp(1, height - 1)
    w = (area / ratio).sqrt().round().clamp(1, width - 1)
    top, left = (y * (height - h + 1)).floor(), (x * (width - w + 1)).floor()
    rows = torch.arange(height, device=inputs.device)[:, None]
    columns = torch.arange(width, device=inputs.device)

    def of_each(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    within = (rows >= of_each(top)) & (rows < of_each(top + h)) & (columns >= of_each(left))
    within &= (columns < of_each(left + w)) & (of_each(chosen) < probability)
    return torch.where(within, normal(keys, tuple(inputs.shape[1:]), 1).to(inputs.dtype), inputs)


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of one image at a time: torchvision's reference for ImageNet.

    A random part of it (8 to 100 % of the area, sides 3:4 to 4:3) at the input's size, mirrored with probability 1/2 if
    ``flip``, then ``policy``. The draws of image i follow from (seed, epoch, i).
    """

    seed: int
    epoch: int
    flip: bool = True
    policy: AutoAugment = "none"

    def keys(self, indices: Tensor) -> list[int]:
        """Return the seed of each image's draws, for image numbers ``indices`` (B,) of a batch."""
        return occurrence_keys(self.seed, f"augmentation/{self.epoch}", indices).tolist()

    def to(self, target: InputFormat) -> Callable[[Image.Image, int], Tensor]:
        """Return the function from an image and its key to its augmented pixels, (C,size,size) uint8."""
        from torchvision.transforms import v2  # takes longer to import than torch, and is seldom needed

        mode = v2.InterpolationMode(target.interpolation)
        steps = [v2.RandomResizedCrop(target.size, interpolation=mode)]
        steps += [v2.RandomHorizontalFlip()] if self.flip else []
        steps += [getattr(v2, _POLICIES[self.policy])(interpolation=mode)] if self.policy != "none" else []
        transform = v2.Compose(steps)

        def augment(image: Image.Image, key: int) -> Tensor:
            # torchvision draws from the global generator; it is put back, so that the draws of others do not change.
            state = torch.default_generator.get_state()
            try:
                torch.default_generator.manual_seed(key)
                return pil_to_tensor(transform(target.convert(image)))
            finally:
                torch.default_generator.set_state(state)

        return augment
