"""The C̄ corruptions (Mintun, Kirillov and Xie 2021, arXiv 2102.11273): ten for CIFAR, ten for ImageNet, five shared.

Source of every constant and formula: ``imagenet_c_bar/`` in github.com/facebookresearch/augmentation-corruption, read
for facts: the definitions of its ``corrupt.py``, the five severities of each corruption in its two lists
``cifar10_c_bar.csv`` (32 px) and ``imagenet_c_bar.csv`` (224 px). A severity is there a number up to 10 that scales one
constant; it was chosen per corruption and set, so that the severities 1 to 5 of the archives are about as hard as C's.
All lengths are shares of the image's side (the shorter one of images that are not square), so that a definition holds
for any size; what is published for one size only is used at every size.

Every function takes ``images`` (B,C,H,W) uint8, the severity's number, and one random key per image, int64 (B,); it
returns uint8 of the same shape. As in ``common.py`` a fraction of a level is cut off, and grey images get what an RGB
image with three equal channels would get, or one channel of it where the channels differ.
"""

import functools
import math

import torch
from torch import Tensor

from anchored.corruptions import c_bar_noise as noise
from anchored.corruptions import c_bar_warp as warp
from anchored.corruptions.pixels import pixel_coordinates, short_side, truncate_levels, uniform_in
from anchored.corruptions.randomness import normal, uniform
from anchored.corruptions.row import Corruption

_MOST_RAYS = 199  # of a sparkle
_GREY = 128  # what covers the image in cut-outs and lines


def checkerboard_cutout(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """Grey squares on the fields of one colour of a turned checkerboard, each with probability severity / 10. Random:
    the board's angle, the fields' side in [0.1, 0.25) · side (at least 1 px), which fields are covered."""
    angle, scale = uniform_in(keys, (0, 2 * math.pi), (0.1 * short_side(images), 0.25 * short_side(images)))
    rows, columns = pixel_coordinates(images)
    across = (angle.cos() * rows + angle.sin() * columns) / scale.clamp(min=1)
    along = (angle.cos() * columns - angle.sin() * rows) / scale.clamp(min=1)
    # A side, to both sides of zero.
    fields = 2 * int(math.hypot(*images.shape[2:]) / max(0.1 * short_side(images), 1)) + 3
    covered = uniform(keys, (fields * fields,), 1) < severity / 10
    # The published table is read at the fields' numbers cut towards zero.
    field = across.trunc().long() % fields * fields + along.trunc().long() % fields
    chosen = covered.gather(1, field.flatten(1)).view(field.shape)
    coloured = (across.floor() - along.floor()) % 2 == 0
    return torch.where((coloured & chosen)[:, None], _GREY, images)


def lines(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """int(0.1 · severity · side) antialiased grey lines, one after the other, each cutting fractions off.

    Each goes ``side`` px to both sides of a point, its ends cut towards zero to whole pixels. A pixel at distance d < 1
    from it becomes d · x + (1 − d) · 128. Random: the points; a common angle; how far angles differ from it, up to
    ± π · v, v in [0.1, 1) for the image.
    """
    (height, width), length = images.shape[2:], short_side(images)
    count = int(0.1 * severity * length)
    common, spread = uniform_in(keys, (0, 2 * math.pi), (0.1, 1))
    numbers = uniform(keys, (3, count), 1)
    y, x = numbers[:, 0] * height, numbers[:, 1] * width
    angle = common[:, 0] + 2 * math.pi * spread[:, 0] * (numbers[:, 2] - 0.5)
    cosine, sine = angle.cos() * length, angle.sin() * length
    ends = torch.stack((y - cosine, x - sine, y + cosine, x + sine), 2).trunc_().to(torch.int32)
    levels = images.float()
    for i in range(count):
        cover = _antialiased_line(ends[:, i], height, width)[:, None]
        levels = torch.lerp(levels, torch.full_like(levels, _GREY), cover).add_(1e-3).floor_()
    return levels.to(torch.uint8)


def _antialiased_line(ends: Tensor, height: int, width: int) -> Tensor:
    """Return how far each pixel is covered, (B,H,W) in [0, 1], by the line between ``ends`` (B,4) y, x, y, x; int32.

    Zingl's algorithm (``skimage.draw.line_aa``) in closed form. Walking from the first end, with k steps along the
    longer of its extents a ≥ b, the line's own pixel is j = ⌊(k + 1/2) b / a⌋ steps along the shorter. It is drawn, and
    so is the next one beyond it (not at the last end), and the one before it where j has just grown; each with one
    minus its distance from the line, where that is positive.
    """
    y = torch.arange(height, device=ends.device, dtype=torch.int32)[:, None]
    x = torch.arange(width, device=ends.device, dtype=torch.int32)[None]
    y0, x0, y1, x1 = (end[:, None, None] for end in ends.unbind(1))
    steps_y, steps_x = (y - y0) * (y1 - y0).sign(), (x - x0) * (x1 - x0).sign()
    extent_y, extent_x = (y1 - y0).abs(), (x1 - x0).abs()
    # No extent, no sign: only the line's own row or column is then near it.
    steps_y, steps_x = torch.where(extent_y == 0, y - y0, steps_y), torch.where(extent_x == 0, x - x0, steps_x)
    steep = extent_y > extent_x
    k, j = torch.where(steep, steps_y, steps_x), torch.where(steep, steps_x, steps_y)
    longer, shorter = torch.maximum(extent_y, extent_x), torch.minimum(extent_y, extent_x)
    double = 2 * longer.clamp(min=1)
    own = torch.div((2 * k + 1) * shorter, double, rounding_mode="floor")
    before = torch.div((2 * k - 1) * shorter, double, rounding_mode="floor")
    on_line = (j == own) | ((j == own + 1) & (k < longer)) | ((j == own - 1) & (k > 0) & (own > before))
    distance = (j * longer - k * shorter).abs() / torch.hypot(longer.float(), shorter.float()).clamp(min=1)
    return torch.where(on_line & (k >= 0) & (k <= longer), (1 - distance).clamp(min=0), 0)


def _rays(images: Tensor, centre: tuple[Tensor, Tensor], lengths: Tensor, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sparkle's two factors (B,H,W): 1 − (f − 1/2)² between rays, and (length / distance)².

    ``centre``: row and column, (B,1,1) px. ``rays`` (B,1,1) int64: how many, at equal angles, with the first ones of
    ``lengths`` (B, most) px; between two of them the length goes straight from one to the other, f being how far.
    """
    rows, columns = pixel_coordinates(images)
    y, x = rows - centre[0], columns - centre[1]
    turn = (torch.atan2(x, y) + math.pi) / (2 * math.pi) * rays
    ray = turn.long()
    part = turn - ray
    around = torch.arange(_MOST_RAYS + 2, device=images.device) % rays[:, 0]  # a full turn, and the next ray, are there
    table = lengths.gather(1, around)
    one, other = (table.gather(1, (ray + step).flatten(1)).view_as(part) for step in (0, 1))
    length = torch.lerp(one, other, part)
    return 1 - (part - 0.5).square(), length.square() / (y.square() + x.square() + 1e-4)


def sparkles(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """Five white stars, one after the other: x + s · (255 − x), s = (1 − (f − 1/2)²) · (length / distance)² up to 1.

    Rays' lengths are normal, mean 0.01 · severity · side and a quarter of it as s.d., at least 1 px. Random: the
    lengths; for each star its centre in the image and 50 to 199 rays.
    """
    (height, width), radius = images.shape[2:], 0.01 * severity * short_side(images)
    numbers = uniform(keys, (5, 3))
    lengths = normal(keys, (5, _MOST_RAYS), 1).mul_(0.25 * radius).add_(radius).clamp_(min=1)
    levels = images.float()
    for star in range(5):
        row, column, rays = (numbers[:, star, i, None, None] for i in range(3))
        between, near = _rays(images, (row * height, column * width), lengths[:, star], (50 + rays * 150).long())
        levels = torch.lerp(levels, torch.full_like(levels, 255), between.mul_(near).clamp_(0, 1)[:, None])
    return truncate_levels(levels)


def inverse_sparkles(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """White, the image inside a star: 255 + s · (x − 255), s = (1 − (f − 1/2)²) · (length / distance)^(2 e) up to 1.

    e = 0.13 · severity. Rays' lengths are normal, mean side / 4 and a quarter of it as s.d. Random: the lengths, the
    centre in the middle half of the image, 50 to 199 rays.
    """
    height, width = images.shape[2:]
    row, column, rays = uniform_in(keys, (0.25 * height, 0.75 * height), (0.25 * width, 0.75 * width), (50, 200))
    lengths = (1 + 0.25 * normal(keys, (_MOST_RAYS,), 1)) * (0.25 * short_side(images))
    between, near = _rays(images, (row, column), lengths, rays.long())
    seen = between.mul_(near.pow_(0.13 * severity)).clamp_(0, 1)
    return truncate_levels(torch.lerp(torch.full((), 255.0, device=images.device), images.float(), seen[:, None]))


_corruption = functools.partial(Corruption, families=("c-bar",), margin=lambda severity: 3)

#: The rows, in the order of the published lists: CIFAR's ten, then the five that are ImageNet's only.
C_BAR: tuple[Corruption, ...] = (
    _corruption("noise", noise.blue_noise_sample, (0.7, 1.4, 2.1, 3.5, 4.2), (0.8, 1.6, 2.4, 4.0, 5.6)),
    _corruption("noise", noise.brownish_noise, (2.5, 4.0, 5.5, 6.5, 7.0), (1.0, 2.0, 3.0, 4.0, 5.0)),
    _corruption("cover", checkerboard_cutout, (1.0, 2.0, 3.0, 4.0, 5.0), (2.0, 3.0, 4.0, 5.0, 6.0)),
    _corruption("cover", inverse_sparkles, (1.0, 1.5, 2.5, 4.5, 5.0), (1.0, 2.0, 4.0, 9.0, 10.0)),
    _corruption("warp", warp.pinch_and_twirl, (5.5, 6.0, 6.5, 8.5, 10.0), None, margin=lambda severity: 11),
    _corruption("warp", warp.ripple, (5.5, 6.0, 6.5, 7.5, 8.0), None),
    _corruption("blur", warp.circular_motion_blur, (2.8, 3.6, 4.4, 5.2, 6.0), None, margin=lambda severity: warp.REACH),
    _corruption("cover", lines, (0.5, 1.0, 1.5, 2.0, 2.5), None),
    _corruption("cover", sparkles, (0.7, 3.5, 5.6, 6.3, 7.0), (1.0, 2.0, 3.0, 5.0, 6.0)),
    _corruption("warp", warp.transverse_chromatic_abberation, (1.0, 2.0, 5.0, 9.0, 10.0), None),
    _corruption("warp", warp.caustic_refraction, None, (2.35, 3.2, 4.9, 6.6, 9.15)),
    _corruption("noise", noise.cocentric_sine_waves, None, (3.0, 5.0, 8.0, 9.0, 10.0)),
    _corruption("noise", noise.perlin_noise, None, (4.6, 5.2, 5.8, 7.6, 8.8)),
    _corruption("noise", noise.plasma_noise, None, (4.75, 7.0, 8.5, 9.25, 10.0)),
    _corruption("noise", noise.single_frequency_greyscale, None, (1.0, 1.5, 2.0, 4.5, 5.0)),
)
