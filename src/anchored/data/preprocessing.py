"""From images of any size and colours to a network's input."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchored.corruptions.tables import kept_tables
from anchored.errors import UserError

Interpolation = Literal["bilinear", "bicubic"]

_LONGEST = 50  # sides' ratio of an image that is resized whole: beyond it, the copy would not fit in memory
_CHUNK = 2048  # images resized at a time: bounds the memory their float copies take


@dataclass(frozen=True)
class InputFormat:
    """A network's input, (channels, size, size) uint8, and how a decoded image of any size becomes one.

    The shorter side becomes ⌊``size`` / ``crop``⌋ pixels by ``interpolation`` with antialiasing, then the middle square
    is cut out. An image that has the input's size already is not touched; ``size`` 0 leaves every image as it is.
    UserError where ``crop`` is not in (0, 1].
    """

    channels: int
    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"crop is {self.crop:g}: give the share of the shorter side that is kept, in (0, 1]")

    @property
    def shorter_side(self) -> int:
        """What the shorter side of an image of another size becomes, pixels."""
        return math.floor(self.size / self.crop + 1e-6)  # 192 / (192 / 225) is a little less than 225

    def convert(self, image: Image.Image) -> Image.Image:
        """Return ``image`` in the input's colours."""
        return image.convert("L" if self.channels == 1 else "RGB")

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``image`` as the input, uint8 (C,size,size): bit by bit torchvision's Resize and CenterCrop."""
        image = self.convert(image)
        if self.size and image.size != (self.size, self.size):
            short, wanted = min(image.size), self.shorter_side
            if max(image.size) > _LONGEST * short:
                raise UserError(f"an image of {image.width} × {image.height} pixels is too long to be resized: crop it")
            width, height = (int(wanted * side / short) for side in image.size)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
            left, top = (round((side - self.size) / 2) for side in image.size)
            image = image.crop((left, top, left + self.size, top + self.size))
        return pil_to_tensor(image)


def pil_to_tensor(image: Image.Image) -> Tensor:
    """Return an "L" or "RGB" image as uint8 (C,H,W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def tensor_to_pil(image: Tensor) -> Image.Image:
    """Return uint8 (C,H,W), C 1 or 3, as an "L" or "RGB" image."""
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))


def check_uint8(images: Tensor, what: str) -> None:
    """Raise UserError unless ``images`` is (N,C,H,W) uint8."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f"{what} are {images.dtype} {tuple(images.shape)}: give uint8 (N, C, H, W)")


def fit_to_input(images: Tensor, channels: int, size: int) -> Tensor:
    """Return uint8 ``images`` (N,C,H,W) as uint8 (N,channels,size,size).

    Grey becomes RGB by repeating it; RGB becomes grey with the ITU-R 601 weights, rounded as PIL does; the size changes
    by bilinear interpolation with antialiasing. What already fits is returned as it is. UserError for channel counts
    other than 1 and 3, where they would have to change.
    """
    check_uint8(images, "images")
    if images.shape[1] != channels:
        if {images.shape[1], channels} != {1, 3}:
            raise UserError(
                f"images have {images.shape[1]} channels, the network takes {channels}: only 1 and 3 convert"
            )
        images = _to_grey(images) if channels == 1 else images.expand(-1, 3, -1, -1).contiguous()
    if images.shape[2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        for part in torch.split(images, _CHUNK)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def _to_grey(images: Tensor) -> Tensor:
    """Return (N,1,H,W) uint8 of RGB (N,3,H,W): (19595 R + 38470 G + 7471 B + 32768) >> 16, PIL's integer ITU-R 601."""
    red, green, blue = images.to(torch.int32).chunk(3, dim=1)
    grey = torch.bitwise_right_shift(red * 19595 + green * 38470 + blue * 7471 + 32768, 16)
    return grey.to(torch.uint8)


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 ``images`` (B,C,H,W) normalised, float32: (images / 255 − mean) / std per channel. ``mean``,
    ``std``: per channel, of images scaled to [0, 1]. UserError when their number is not C."""
    check_uint8(images, "images")
    if not images.shape[1] == len(mean) == len(std):
        raise UserError(f"images have {images.shape[1]} channels, mean has {len(mean)} and std {len(std)} values")
    shift, scale = _shift_and_scale(images.device, tuple(mean), tuple(std))
    return images.to(torch.float32).sub_(shift).mul_(scale)


@kept_tables(64)
def _shift_and_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    shift, scale = (torch.tensor(each, dtype=torch.float32).mul_(255).view(-1, 1, 1) for each in (mean, std))
    return shift, scale.reciprocal_()
