"""Spatter: drops of water with bright rims, or splashes of mud. Constants as in ``common.py``, which states the source.

The original makes the rims with OpenCV's edge detector, distance transform and histogram equalisation, image by image.
Here the same whole-number arithmetic runs on all images at once.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from anchored.corruptions.pixels import GREY, gaussian_filter, mask_below, truncate_levels, zero_below
from anchored.corruptions.randomness import normal
from anchored.corruptions.tables import kept_tables

_WATER = (175.0, 238.0, 238.0)  # pale turquoise, grey levels of R, G and B
_MUD = (63.0, 42.0, 20.0)  # brown
_WEAK, _STRONG = 50, 150  # thresholds of the edge detector
_FAR = 20  # px, distances are cut here
_STEPS = 8  # of growing between two looks at whether it is over, for which a GPU has to be waited for


class Spatter(NamedTuple):
    """Constants of :func:`spatter`."""

    mean: float  # of the liquid's noise, in [0, 1]
    spread: float
    sigma: float  # px, the drops' size
    threshold: float  # below it there is no liquid
    amount: float  # of water, the greatest share of its colour; of mud, px, the softness of its edges
    mud: bool

    def scaled(self, scale: float) -> "Spatter":
        """Return the constants for an image ``scale`` times as large; more noise, since smoothing more takes some."""
        amount = self.amount * scale if self.mud else self.amount
        return self._replace(spread=self.spread * scale, sigma=self.sigma * scale, amount=amount)

    def margin(self) -> int:
        """Return how many pixels are not enough: rims are of 3 × 3 pixels, mirrored at the border."""
        return 0 if self.mud else 1


def spatter(images: Tensor, spatter: Spatter, keys: Tensor) -> Tensor:
    """Liquid is normal noise smoothed by a Gaussian, set to 0 below the threshold; the noise is what is random.

    Mud: m is where there is liquid, smoothed, and set to 0 below 0.8; the image becomes x · (1 − m) + m · brown.
    Water: x + m · turquoise, m the liquid times its rims (:func:`rims`), divided by the greatest product in the image,
    times ``amount``. (Where no pixel has liquid the original divides 0 by 0, and its image becomes black; here it
    stays.) Grey images get the colours' grey values.
    """
    noise = normal(keys, (1, *images.shape[2:])).mul_(spatter.spread).add_(spatter.mean)
    liquid = gaussian_filter(noise, spatter.sigma)
    levels = _MUD if spatter.mud else _WATER
    grey = sum(weight * level for weight, level in zip(GREY, levels, strict=True))
    colour = _colour(images.device, levels if images.shape[1] == 3 else (grey,))
    if spatter.mud:
        share = zero_below(gaussian_filter(liquid.sub_(spatter.threshold).sign_().clamp_(min=0), spatter.amount), 0.8)
        return truncate_levels((images.to(torch.float32) * (1 - share)).add_(share * colour))
    liquid = truncate_levels(zero_below(liquid, spatter.threshold).mul_(255)).to(torch.float32)
    share = rims(liquid).mul_(liquid)
    greatest = share.flatten(1).amax(1).clamp_(min=1).view(-1, 1, 1, 1)
    return truncate_levels((share * (spatter.amount / greatest) * colour).add_(images.to(torch.float32)))


@kept_tables(4)
def _colour(levels: tuple[float, ...]) -> Tensor:
    return torch.tensor(levels)[:, None, None]


def rims(liquid: Tensor) -> Tensor:
    """Return the brightness of the drops' rims, float32 (B,1,H,W) from 0 to 255, of ``liquid`` (B,1,H,W), whole levels.

    Distance to the nearest edge, cut at 20 px, averaged over 3 × 3, cut to whole px; its histogram equalised; an emboss
    filter; averaged over 3 × 3. Images are mirrored at their border pixels.
    """
    distance = _average(edge_distances(canny_edges(liquid))).add_(1e-4).floor_()
    equal = _equalised(distance)
    padded = F.pad(equal, (1, 1, 1, 1), mode="reflect")
    height, width = liquid.shape[2:]
    emboss = torch.zeros_like(liquid)
    for row, weights in enumerate(((-2, -1, 0), (-1, 1, 1), (0, 1, 2))):
        for column, weight in enumerate(weights):
            if weight:
                emboss.add_(padded[..., row : row + height, column : column + width], alpha=weight)
    return _average(emboss.clamp_(0, 255))


def _average(levels: Tensor) -> Tensor:
    padded = F.pad(levels, (1, 1, 1, 1), mode="reflect")
    rows = padded[..., :-2, :] + padded[..., 1:-1, :]
    rows += padded[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1]
    return total.add_(rows[..., 2:]).div_(9)


def canny_edges(levels: Tensor) -> Tensor:
    """Return Canny's edges, bool (B,1,H,W), of whole ``levels``: ``cv2.Canny(levels, 50, 150)``.

    Sobel's gradients, border pixels repeated; strength |dx| + |dy|, 0 outside the image; kept where it is the greatest
    along the gradient's direction, one of four; above 150, or above 50 and connected to such a one.
    """
    padded = F.pad(levels, (1, 1, 1, 1), mode="replicate").to(torch.int16)
    across, down = padded[..., 2:] - padded[..., :-2], padded[..., 2:, :] - padded[..., :-2, :]
    dx = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    dy = (down[..., :-2] + down[..., 2:]).add_(down[..., 1:-1], alpha=2)
    wide, tall = dx.abs(), dy.abs()
    strength = wide + tall
    outside = F.pad(strength, (1, 1, 1, 1))
    height, width = levels.shape[2:]

    def above(row: int, column: int) -> Tensor:
        """All bits where the strength is above that of this neighbour."""
        return (outside[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width] - strength) >> 15

    def at_least(row: int, column: int) -> Tensor:
        """All bits where the strength is at least that of this neighbour."""
        neighbour = outside[..., 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        return ((strength - neighbour) >> 15).bitwise_not_()

    flat, steep = 13573 / 32768, 13573 / 32768 + 2  # tan 22.5° and tan 67.5° in OpenCV's fixed point
    x, y = wide.to(torch.float32), tall.to(torch.float32)
    lateral, upright = (mask_below(*pair).to(torch.int16) for pair in ((y, x * flat), (x * steep, y)))
    opposite = (dx ^ dy) >> 15  # where both are 0 or one is, the direction is not oblique
    peak = above(0, -1).bitwise_and_(at_least(0, 1)).bitwise_and_(lateral)
    peak |= above(-1, 0).bitwise_and_(at_least(1, 0)).bitwise_and_(upright)
    falling = above(-1, -1).bitwise_and_(above(1, 1)).bitwise_and_(~opposite)
    rising = above(-1, 1).bitwise_and_(above(1, -1)).bitwise_and_(opposite)
    peak |= falling.bitwise_or_(rising).bitwise_and_(~(lateral | upright))
    weak, strong = (peak & ((threshold - strength) >> 15) for threshold in (_WEAK, _STRONG))
    return _connected(strong.to(torch.bool), weak.to(torch.bool))


def _connected(region: Tensor, allowed: Tensor) -> Tensor:
    """Return ``region``, bool (B,1,H,W), with all ``allowed`` pixels that touch it, directly or by way of others."""
    steps = 1 if region.device.type == "cpu" else _STEPS
    while True:
        before = region
        for _ in range(steps):
            padded = F.pad(region, (1, 1, 1, 1))
            rows = padded[..., :-2, :] | padded[..., 1:-1, :] | padded[..., 2:, :]
            region = (rows[..., :-2] | rows[..., 1:-1] | rows[..., 2:]) & allowed
        if torch.equal(before, region):
            return region


def edge_distances(edges: Tensor) -> Tensor:
    """Return the distance to the nearest of ``edges``, float32 (B,1,H,W), px, cut at 20.

    ``cv2.distanceTransform(DIST_L2, 5)``: lengths of paths of steps 1 (to the side), 1.4 (diagonal) and 2.1969 (a
    knight's), at most 1.3 % off. Such a length depends on |dx| and |dy| and grows with both, so that in each column the
    nearest edge is enough.
    """
    width, far = edges.shape[3], _FAR + 1
    tall = (~edges).to(torch.int32).mul_(far)
    for step in (1, 2, 4, 8, 16):  # how far up or down the nearest edge of the column is, at most 21
        padded = F.pad(tall, (0, 0, step, step), value=far)
        tall = torch.minimum(tall, torch.minimum(padded[..., : -2 * step, :], padded[..., 2 * step :, :]) + step)
    tall.clamp_(max=far)
    paths = _paths(edges.device)
    nearest = paths[0].index_select(0, tall.flatten())
    padded = F.pad(tall, (_FAR, _FAR, 0, 0), value=far)
    for wide in range(1, min(_FAR, width - 1) + 1):
        left, right = (padded[..., start : start + width] for start in (_FAR - wide, _FAR + wide))
        near = torch.minimum(left, right).flatten()
        torch.minimum(nearest, paths[wide].index_select(0, near), out=nearest)
    return nearest.view(edges.shape)


@kept_tables(1)
def _paths() -> Tensor:
    """Return the lengths of the shortest paths to (wide, tall), each 0 to 21 px, cut at 20, float32 (22, 22)."""
    span = torch.arange(_FAR + 2, dtype=torch.float32)
    wide, tall = span[:, None], span
    slopes = ((1, 0.1969), (0.7969, 0.6031), (0.6031, 0.7969), (0.1969, 1))
    lengths = [across * wide + up * tall for across, up in slopes]
    return torch.stack(lengths).amax(0).clamp_(max=_FAR)


def _counts(places: Tensor, most: int) -> Tensor:
    """Return how often each whole number below ``most`` stands in int32 ``places``: (most,)."""
    if places.device.type == "cpu":
        return torch.bincount(places.view(-1), minlength=most)
    ones = torch.ones((), dtype=torch.int32, device=places.device).expand(places.numel())
    return torch.zeros(most, dtype=torch.int32, device=places.device).scatter_add_(0, places.view(-1).long(), ones)


def _equalised(levels: Tensor) -> Tensor:
    """Return whole ``levels`` (B,1,H,W), 0 to 20, spread over 0 to 255 by rank: ``cv2.equalizeHist``."""
    flat = levels.flatten(1).to(torch.int32)
    flat += (_FAR + 1) * torch.arange(len(flat), dtype=torch.int32, device=flat.device)[:, None]
    counts = _counts(flat, (_FAR + 1) * len(flat)).view(len(flat), -1)  # whole numbers: exact in any order
    lowest = levels.flatten(1).amin(1, keepdim=True).to(torch.int64)
    first = counts.gather(1, lowest)
    spread = counts.cumsum(1).sub_(first).to(torch.float64) * (255 / (flat.shape[1] - first).to(torch.float64))
    table = torch.where(first == flat.shape[1], lowest.double(), spread.round().clamp_(0, 255)).to(torch.float32)
    return table.view(-1).index_select(0, flat.view(-1)).view(levels.shape)
