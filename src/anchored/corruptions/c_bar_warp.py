"""C̄ corruptions that move pixels: pinch and twirl, ripple, caustic refraction, circular blur, chromatic aberration.

Definitions, constants and conventions: see ``c_bar.py``.
"""

import math

import torch
from torch import Tensor

from anchored.corruptions.pixels import bilinear, pixel_coordinates, short_side, truncate_levels, uniform_in
from anchored.corruptions.randomness import uniform
from anchored.corruptions.row import LARGE, published_size
from anchored.corruptions.tables import kept_tables

_POLE = math.sqrt(3) - 2  # of the cubic B-spline's interpolation filter
REACH = 12  # taps of that filter on each side: |_POLE| ** 13 is 4e-8


def pinch_and_twirl(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """In each of 3 × 3 squares (5 × 5 of large images, by the rule in ``row.py``) a disk, pinched and turned.

    With d the distance from the middle over half the square, a pixel with d ≤ 1 comes from sin(π d / 2)^(−a) times its
    offset, turned by ± (π / 20) · severity · (1 − d)², a = 0.04 · severity + 0.1; linear between pixels. What is left
    over at the right and below stays. Random: the sign of each turn.
    """
    count = 5 if published_size(short_side(images)) == LARGE else 3
    height, width = images.shape[2:]
    turns = torch.where(uniform(keys, (count * count,)) < 0.5, -1.0, 1.0) * (math.pi / 20 * severity)
    rows, columns = (place.expand(height, width) for place in pixel_coordinates(images))
    row_cells, column_cells = height // count, width // count
    radius = min(row_cells, column_cells) / 2
    i, j = rows.div(row_cells, rounding_mode="floor"), columns.div(column_cells, rounding_mode="floor")
    middle = (i + 0.5) * row_cells, (j + 0.5) * column_cells
    y, x = rows - middle[0], columns - middle[1]
    distance = torch.hypot(y, x)
    moved = (distance <= radius) & (distance >= 5e-4) & (i < count) & (j < count)  # 5e-4: it is rounded to 3 decimals
    share = (distance / radius).clamp(max=1)
    stretch = torch.sin(math.pi / 2 * share).clamp(min=1e-9).pow(-(0.04 * severity + 0.1))
    cell = torch.where(moved, i * count + j, 0).long()
    angle = turns[:, cell] * (1 - share).square()
    sine, cosine = angle.sin() * stretch, angle.cos() * stretch
    from_rows = torch.where(moved, middle[0] + y * cosine - x * sine, rows)
    from_columns = torch.where(moved, middle[1] + y * sine + x * cosine, columns)
    return truncate_levels(bilinear(images.float(), from_rows, from_columns))


def ripple(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """Each pixel comes from its place + A · sin(2π · place / λ + φ), rows and columns each; black outside. A = 0.0025 ·
    severity · side px. Random, for rows and columns: λ in [0.1, 0.3) · side, φ in [0, 2π)."""
    length, whole = (0.1 * short_side(images), 0.3 * short_side(images)), (0.0, 2 * math.pi)
    row_length, column_length, row_phase, column_phase = uniform_in(keys, length, length, whole, whole)
    rows, columns = pixel_coordinates(images)
    amplitude = 0.0025 * severity * short_side(images)
    from_rows = rows + amplitude * torch.sin(2 * math.pi * rows / row_length + row_phase)
    from_columns = columns + amplitude * torch.sin(2 * math.pi * columns / column_length + column_phase)
    form = (len(images), *images.shape[2:])
    return truncate_levels(bilinear(images.float(), from_rows.expand(form), from_columns.expand(form)))


def caustic_refraction(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """The image through rippled water: displaced by a caustic pattern's slopes and lit by them.

    The pattern n (see ``_caustics``) is blurred by a Gaussian of s.d. 1 px. Its slopes u = n(y + 1) − n(y − 1) along
    rows and v along columns (n is 0 outside) make the normal (u, v, 1) / √(u² + v² + 1) at an angle θ to the view; a
    pixel comes from 0.05 · severity · side · sin(θ − asin(sin θ / 4)) px in the direction of (u, v), rounded to 0.001
    px (from its own place where cos θ ≥ 0.999), linear between pixels and black outside. Then 0.2 · severity · 255 ·
    (u − v) grey levels are added. Random: the pattern's time in [0.5, 2) and size in [0.75, 1.25) · side.
    """
    pattern = torch.nn.functional.pad(_blurred(_caustics(images, keys)), (1, 1, 1, 1))
    u = pattern[:, 2:, 1:-1] - pattern[:, :-2, 1:-1]
    v = pattern[:, 1:-1, 2:] - pattern[:, 1:-1, :-2]
    steepness = u.square() + v.square()
    cosine = (1 + steepness).rsqrt()
    sine = steepness.sqrt() * cosine
    refracted = sine / 4
    turned = sine * (1 - refracted.square()).sqrt() - cosine * refracted  # sin(θ − θ')
    scale = 0.05 * severity * short_side(images)
    shift = torch.where(cosine < 0.999, turned * scale / steepness.sqrt().clamp(min=1e-9), 0.0)
    rows, columns = pixel_coordinates(images)
    from_rows, from_columns = rows + _thousandths(u * shift), columns + _thousandths(v * shift)
    light = (u - v) * (0.2 * severity * 255)
    return truncate_levels(bilinear(images.float(), from_rows, from_columns).add_(light[:, None]))


def _thousandths(values: Tensor) -> Tensor:
    return torch.round(values, decimals=3)


def _caustics(images: Tensor, keys: Tensor) -> Tensor:
    """Return a pattern of caustics (B,H,W) in [0, 1].

    With p = 2π · ((place / size) mod 1) − 250 for rows and columns and i = p, five times, t = time · (1 − 3.5 / n):
    i becomes p + (cos(t − i₀) + sin(t + i₁), sin(t − i₁) + cos(t + i₀)), and c, from 1, grows by
    200 / √((p₀ / sin(i₀ + t))² + (p₁ / cos(i₁ + t))²). The pattern is |1.17 − (c / 5)^1.4|⁸, at most 1.
    """
    time, size = uniform_in(keys, (0.5, 2), (0.75 * short_side(images), 1.25 * short_side(images)))
    row_turn, column_turn = ((place / size).remainder(1) * (2 * math.pi) for place in pixel_coordinates(images))
    p0, p1 = row_turn - 250, column_turn - 250
    # Only the angle matters to i: near 250 a float32 would leave out its last three digits.
    angle0, angle1 = (turn - math.fmod(250, 2 * math.pi) for turn in (row_turn, column_turn))
    i0, i1 = angle0, angle1
    total = torch.ones(len(keys), *images.shape[2:], device=images.device)
    for n in range(1, 6):
        t = time * (1 - 3.5 / n)
        i0, i1 = (angle0 + torch.cos(t - i0) + torch.sin(t + i1), angle1 + torch.sin(t - i1) + torch.cos(t + i0))
        total += 200 / torch.hypot(p0 / torch.sin(i0 + t), p1 / torch.cos(i1 + t))
    return (1.17 - (total / 5).pow(1.4)).abs().pow(8).clamp(max=1)


def _blurred(fields: Tensor) -> Tensor:
    """Return (B,H,W) convolved with a Gaussian of s.d. 1 px cut at 4 px, the border mirrored with its own pixels."""
    weights = [math.exp(-0.5 * i * i) for i in range(-4, 5)]
    for axis in (1, 2):
        size = fields.shape[axis]
        places = (torch.arange(size, device=fields.device) + offset for offset in range(-4, 5))
        places = (torch.where(place % (2 * size) < size, place % size, -1 - place % size + size) for place in places)
        total = torch.zeros_like(fields)
        for place, weight in zip(places, weights, strict=True):
            total.add_(fields.index_select(axis, place), alpha=weight / math.fsum(weights))
        fields = total
    return fields


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Return ``places``, at most ``size`` − 1 outside 0..size − 1, mirrored on the border pixels into it."""
    places = places.abs()
    return torch.where(places < size, places, 2 * (size - 1) - places)


def _spline_taps(places: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the pixels (4, ...) and the cubic B-spline's weights (4, ...) float64 at ``places`` float64, px."""
    first = places.floor()
    t = places - first
    weights = torch.stack(((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)) / 6
    offsets = torch.arange(-1, 3).view(4, *(1,) * places.ndim)
    return _mirrored(first.long() + offsets, size), weights


@kept_tables(32)
def _zoom_taps(size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Return pixels (4, size) and weights (4, size) that zoom a line by ``scale`` and keep its middle ``size`` px."""
    zoomed = round(size * scale)
    places = (torch.arange(size, dtype=torch.float64) + (zoomed - size) // 2) * ((size - 1) / (zoomed - 1))
    pixels_, weights = _spline_taps(places, size)
    return pixels_, weights.float()


def _zoomed(levels: Tensor, scale: float) -> Tensor:
    """Return (B,H,W) float32 zoomed by ``scale`` about its middle, cubic B-splines through nothing: they smooth."""
    for axis in (1, 2):
        places, weights = _zoom_taps(levels.device, levels.shape[axis], scale)
        form = (-1, 1) if axis == 1 else (-1,)
        total = torch.zeros_like(levels)
        for place, weight in zip(places, weights, strict=True):
            total.add_(levels.index_select(axis, place).mul_(weight.view(form)))
        levels = total
    return levels


def transverse_chromatic_abberation(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """Each channel zoomed by another of 1, 1 + z / 2, 1 + z, z = 0.05 · severity, about the middle, and rounded.

    Cubic B-splines whose coefficients are the pixels themselves (``scipy.ndimage.zoom(prefilter=False)``), so that even
    scale 1 is smoothed. Random: which channel gets which scale; a grey image gets one of the three.
    """
    order = uniform(keys, (3,)).argsort(1)
    scales = (1, 1 + 0.025 * severity, 1 + 0.05 * severity)
    result, image = torch.empty_like(images), torch.arange(len(images), device=images.device)
    if images.shape[1] == 3:
        for scale, channel in zip(scales, order.argsort(1).unbind(1), strict=True):
            result[image, channel] = _rounded(_zoomed(images[image, channel].float(), scale))
        return result
    for number, scale in enumerate(scales):  # a third of the images each: finding them waits for a GPU, but is less
        chosen = image[order[:, 0] == number]
        result[chosen, 0] = _rounded(_zoomed(images[chosen, 0].float(), scale))
    return result


def _rounded(levels: Tensor) -> Tensor:
    return truncate_levels(levels.add_(0.5))


@kept_tables(32)
def _rotation_taps(height: int, width: int, angle: float) -> tuple[Tensor, Tensor]:
    """Return pixels (H·W, 16) and weights of an image turned by ``angle`` degrees about its middle; 0 from outside."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    rows = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    columns = torch.arange(width, dtype=torch.float64)[None] - (width - 1) / 2
    y = (cosine * rows + sine * columns + (height - 1) / 2).flatten()
    x = (cosine * columns - sine * rows + (width - 1) / 2).flatten()
    inside = (y >= 0) & (y <= height - 1) & (x >= 0) & (x <= width - 1)
    (top, down), (left, across) = (
        _spline_taps(torch.where(inside, place, 0), size) for place, size in ((y, height), (x, width))
    )
    places = (top[:, None] * width + left).flatten(0, 1)
    weights = (down[:, None] * across).flatten(0, 1) * inside
    return places.T.contiguous(), weights.T.float().contiguous()


def _spline_coefficients(levels: Tensor, axis: int) -> Tensor:
    """Return the cubic B-spline coefficients of (B,C,H,W) float32 along ``axis``, borders mirrored."""
    size = levels.shape[axis]
    inner = torch.arange(size, device=levels.device)
    total = levels * math.sqrt(3)
    for k in range(1, REACH + 1):
        pair = levels.index_select(axis, _mirrored(inner - k, size))
        pair += levels.index_select(axis, _mirrored(inner + k, size))
        total.add_(pair, alpha=math.sqrt(3) * _POLE**k)
    return total


def circular_motion_blur(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """The mean of the image turned by t · 1.5 · severity degrees about its middle, t = −1, −0.9, ..., 1. Weights are
    exp(−2 t²); turning is by cubic splines, black from outside. Nothing random."""
    height, width = images.shape[2:]
    coefficients = _spline_coefficients(_spline_coefficients(images.float(), 2), 3)
    table = coefficients.permute(2, 3, 0, 1).contiguous().view(height * width, -1)  # a line per pixel
    total, sum_of_weights = torch.zeros_like(table), 0.0
    for step in range(-10, 11):
        weight = math.exp(-2 * (step / 10) ** 2)
        places, taps = _rotation_taps(table.device, height, width, step * 0.15 * severity)
        total.add_(torch.nn.functional.embedding_bag(places, table, mode="sum", per_sample_weights=taps), alpha=weight)
        sum_of_weights += weight
    levels = total.div_(sum_of_weights).view(height, width, *images.shape[:2])
    return truncate_levels(levels.permute(2, 3, 0, 1).contiguous())
