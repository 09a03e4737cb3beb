"""Operations of augmentation policies on whole batches, each image with a magnitude of its own.

What Pillow does to one image at a time, which the policies were published with: the same geometry (pixel centres, black
outside) and the same rounding, towards zero. Legend: B batch, C image channels, H×W image size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.tables import kept_tables

Operation = Callable[[Tensor, Tensor], Tensor]
"""Images (B,C,H,W) uint8 and magnitudes (B,) float32 to images of the same shape."""

_ROUNDING = 1e-3  # what float32 may lose of a whole number, before values are rounded towards zero


def affine(images: Tensor, matrices: Tensor, nearest: bool = False) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 seen through ``matrices`` (B,2,3): where output pixel centre (x, y) comes from.

    Bilinear between the four nearest pixels, or the nearest one; black where the place is outside of the image.
    """
    height, width = images.shape[2:]
    centres, sides = _centres_and_sides(images.device, height, width)
    places = (matrices.to(torch.float32) @ centres).view(-1, 2, height, width)
    inside = ((places >= 0) & (places < sides)).all(dim=1, keepdim=True)
    # Beyond the middles of the outer pixels their values go on, up to the image's edge.
    grid, mode = (2 * places / sides - 1).permute(0, 2, 3, 1), "nearest" if nearest else "bilinear"
    found = F.grid_sample(images.float(), grid, mode, padding_mode="border", align_corners=False)
    return (found * inside + _ROUNDING).to(torch.uint8)


@kept_tables(16)
def _centres_and_sides(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The middles of all pixels, (3,H·W) of x, y and 1, and the image's width and height, (2,1,1)."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    centres = torch.stack([columns, rows, torch.ones_like(rows)]).flatten(1)
    return centres, torch.tensor([width, height], dtype=torch.float32).view(2, 1, 1)


def _matrices(*entries: Tensor | float) -> Tensor:
    """(B,2,3) of six entries, numbers or (B,)."""
    like = next(each for each in entries if isinstance(each, Tensor))
    return torch.stack([each if isinstance(each, Tensor) else torch.full_like(like, each) for each in entries], 1).view(
        -1, 2, 3
    )


def rotate(images: Tensor, degrees: Tensor, nearest: bool = False) -> Tensor:
    """Turn counter-clockwise about the middle by ``degrees`` (B,)."""
    angle = -torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    x, y = images.shape[3] / 2, images.shape[2] / 2
    return affine(images, _matrices(cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos), nearest)


def shear_x(images: Tensor, shift: Tensor, nearest: bool = False) -> Tensor:
    """Shift each row by ``shift`` (B,) times its distance from the top."""
    return affine(images, _matrices(1.0, shift, 0.0, 0.0, 1.0, 0.0), nearest)


def shear_y(images: Tensor, shift: Tensor, nearest: bool = False) -> Tensor:
    """Shift each column by ``shift`` (B,) times its distance from the left."""
    return affine(images, _matrices(1.0, 0.0, 0.0, shift, 1.0, 0.0), nearest)


def translate_x(images: Tensor, pixels: Tensor, nearest: bool = False) -> Tensor:
    """Shift to the left by ``pixels`` (B,)."""
    return affine(images, _matrices(1.0, 0.0, pixels, 0.0, 1.0, 0.0), nearest)


def translate_y(images: Tensor, pixels: Tensor, nearest: bool = False) -> Tensor:
    """Shift upwards by ``pixels`` (B,)."""
    return affine(images, _matrices(1.0, 0.0, 0.0, 0.0, 1.0, pixels), nearest)


def _each(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` (B,), whole numbers from 0 to 8, of each value."""
    step = 2 ** (8 - _each(bits).to(torch.int32))
    return (images.to(torch.int32) // step * step).to(torch.uint8)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert values from ``threshold`` (B,) up."""
    return torch.where(images >= _each(threshold), 255 - images, images)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel to the full range."""
    from torchvision.transforms.v2 import functional  # takes longer to import than torch, and is seldom needed

    stretched: Tensor = functional.autocontrast(images)
    return stretched


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Equalise each channel's histogram."""
    from torchvision.transforms.v2 import functional

    flattened: Tensor = functional.equalize(images)
    return flattened


def _blend(other: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """From ``other`` (factor 0) through the images (1) and beyond."""
    return (torch.lerp(other, images.float(), _each(factor)) + _ROUNDING).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """(B,1,H,W) float32 by the ITU-R 601 weights, rounded as Pillow does."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.to(torch.int32).chunk(3, dim=1)
    return torch.bitwise_right_shift(red * 19595 + green * 38470 + blue * 7471 + 32768, 16).float()


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards black (``factor`` 0) or away from it (above 1)."""
    return _blend(torch.zeros_like(images, dtype=torch.float32), images, factor)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's mean grey, or away from it."""
    mean = (_grey(images).mean((1, 2, 3)) + 0.5).floor()
    return _blend(_each(mean).expand(images.shape), images, factor)


def adjust_color(images: Tensor, factor: Tensor) -> Tensor:
    """Towards grey, or away from it; grey images stay."""
    return _blend(_grey(images).expand(images.shape), images, factor)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards the image blurred by 3 × 3 pixels, or away from it; the border stays."""
    channels = images.shape[1]
    kernel = torch.ones(3, 3, device=images.device)
    kernel[1, 1] = 5
    kernel = (kernel / 13).expand(channels, 1, 3, 3)
    blurred = images.float()
    blurred[..., 1:-1, 1:-1] = (F.conv2d(images.float(), kernel, groups=channels) + 0.5).floor()
    return _blend(blurred, images, factor)
