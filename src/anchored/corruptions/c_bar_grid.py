"""What the C̄ corruptions share: where the pixels are, numbers drawn per image, sampling between pixels."""

import torch
from torch import Tensor

from anchored.corruptions.randomness import uniform


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

    Written out, since ``grid_sample`` takes places in [−1, 1], where whole pixels are not whole numbers.
    """
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
