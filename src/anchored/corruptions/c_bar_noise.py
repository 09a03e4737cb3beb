"""C̄ corruptions that add a noise or a pattern: blue, brownish, Perlin and plasma noise, sine waves.

Definitions, constants and conventions: see ``c_bar.py``.
"""

import math

import torch
from torch import Tensor

from anchored.corruptions.pixels import pixel_coordinates, short_side, truncate_levels, uniform_in
from anchored.corruptions.randomness import uniform


def _distance(images: Tensor) -> Tensor:
    """Return each frequency's distance (H,W) from the centre (H/2, W/2) of the shifted spectrum, cycles an image."""
    (rows, columns), (height, width), side = pixel_coordinates(images), images.shape[2:], short_side(images)
    return torch.hypot((rows - height / 2) * side / height, (columns - width / 2) * side / width)


def _spectral_noise(keys: Tensor, amplitude: Tensor, draw: int) -> Tensor:
    """Return noise (B,H,W) of s.d. 1: the real part of the inverse Fourier transform of amplitude · exp(iφ).

    ``amplitude`` (H,W), zero frequency at (H // 2, W // 2). The phases φ are uniform in the first half of the spectrum
    in reading order, and the same backwards in the second half; an odd middle has φ = 0.
    """
    count = amplitude.numel()
    half = uniform(keys, (count // 2,), draw).mul_(2 * math.pi)
    middle = half.new_zeros(len(half), count % 2)
    phases = torch.cat((half, middle, half.flip(1)), 1).view(-1, *amplitude.shape)
    spectrum = torch.polar(amplitude.expand_as(phases), phases)
    shifts = (amplitude.shape[0] // 2, amplitude.shape[1] // 2)
    noise: Tensor = torch.fft.ifft2(spectrum.roll(shifts, (1, 2))).real
    return noise / noise.std((1, 2), correction=0, keepdim=True)


def blue_noise_sample(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """Black wherever blue noise is at most 0.3 · severity − 2.5, the same places in all channels. The noise has s.d. 1
    and amplitudes proportional to the frequency. Random: its phases."""
    noise = _spectral_noise(keys, _distance(images), 0)
    return images * (noise > 0.3 * severity - 2.5)[:, None]


def brownish_noise(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """x + 6.4 · severity · n in grey levels, n of s.d. 1 with amplitudes 1 / (frequency² + 1), per channel. Random: the
    phases of each channel."""
    amplitude = 1 / (_distance(images).square() + 1)
    noise = torch.stack([_spectral_noise(keys, amplitude, channel) for channel in range(images.shape[1])], 1)
    return truncate_levels(noise.mul_(6.4 * severity).add_(images))


def single_frequency_greyscale(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """x + 19.6 · severity · sin(f · p + φ), one plane wave over the pixels p, the same in all channels. Random: one
    component of f (radians a px) in ±π, the other within ± the first, in either order; φ in [0, 2π)."""
    first, share, order, phase = uniform_in(keys, (-math.pi, math.pi), (-1, 1), (0, 1), (0, 2 * math.pi))
    second = share * first.abs()
    (rows, columns), swapped = pixel_coordinates(images), order < 0.5
    angle = columns * torch.where(swapped, second, first) + rows * torch.where(swapped, first, second) + phase
    return truncate_levels(angle.sin_().mul_(19.6 * severity)[:, None] + images)


def cocentric_sine_waves(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """x + 12.8 · severity · (m / w − 1/2), saw-toothed rings: m = (r + a · sin(f θ)) mod w, same in all channels. r, θ:
    distance and angle from a centre. Random: the centre in the image, f in [0, 10), a and w in [0, side / 10) px."""
    (height, width), wide = images.shape[2:], short_side(images) / 10
    x0, y0, frequency, amplitude, ring = uniform_in(keys, (0, width), (0, height), (0, 10), (0, wide), (0, wide))
    rows, columns = pixel_coordinates(images)
    y, x = rows - y0, columns - x0
    distance = torch.hypot(x, y) + torch.sin(torch.atan2(x, y) * frequency) * amplitude
    rings = torch.remainder(distance, ring).div_(ring).sub_(0.5)
    return truncate_levels(rings.mul_(12.8 * severity)[:, None] + images)


def plasma_noise(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """(1 − t / 255) · x + t · n, t = 6.4 · severity, n three colours in [−1, 1] of an iterated sine map.

    (x, y) starts at the pixel's place over a scale; each step adds (c − 0.3 s, s + 0.3 c) / k with c = cos(f y + τ / g)
    and s = sin(f x + τ / g), then multiplies f by 1.93, g by 1.15 and k by 2.25 − sharpness (from 1). Red is
    sin(x − τ), green sin((x + y + sin τ) / 2), blue sin(y + τ). Grey images get the red one. Random: τ in [0, 6π), 4 to
    6 steps, sharpness in [0.5, 1), scale in [0.075, 0.2) · side.
    """
    time, steps, sharpness, scale = uniform_in(keys, (0, 6 * math.pi), (4, 7), (0.5, 1), (0.075, 0.2))
    rows, columns = pixel_coordinates(images)
    y, x = (place / (scale * short_side(images)).expand(-1, *images.shape[2:]) for place in (rows, columns))
    frequency, growth, damping = 1.0, 1.0, torch.ones_like(sharpness)
    for step in range(6):
        weight = (steps.floor() > step) / damping
        cosine = torch.cos(y * frequency + time / growth).mul_(weight)
        sine = torch.sin(x * frequency + time / growth).mul_(weight)
        x, y = x + cosine - 0.3 * sine, y + sine + 0.3 * cosine
        frequency, growth, damping = frequency * 1.93, growth * 1.15, damping * (2.25 - sharpness)
    waves = torch.stack((torch.sin(x - time), torch.sin((x + y + time.sin()) / 2), torch.sin(y + time)), 1)
    level = 6.4 * severity
    return truncate_levels(waves[:, : images.shape[1]] * level + images * (1 - level / 255))


def perlin_noise(images: Tensor, severity: float, keys: Tensor) -> Tensor:
    """(1 − α) · x + 255 α · n, α = 0.05 · severity, n = (1 + Σ |perlin(f p)| / f) / 2 up to 1; f = 1, 2, 4, 8, 16.

    ``perlin`` is Perlin's gradient noise times 1.5, on a lattice of 7 cells a side. Random: its tables of 256 gradients
    (components uniform, then normalised) and of a permutation. All octaves read the same tables, as published; there
    the permutation is made by 256 swaps with any place, which favours some permutations a little.
    """
    rows, columns = (place * (7 / short_side(images)) for place in pixel_coordinates(images))
    # Lattice points that the finest octave reaches, and one more.
    height, width = (int(16 * 7 * (side - 1) / short_side(images)) + 3 for side in images.shape[2:])
    gradients = _lattice(keys, height, width)
    total = torch.zeros(len(images), *images.shape[2:], device=images.device)
    for octave in (1, 2, 4, 8, 16):
        total.add_(_perlin(gradients, rows[:, 0] * octave, columns[0] * octave).abs_(), alpha=1 / octave)
    alpha = 0.05 * severity
    noise = total.mul_(0.5).add_(0.5).clamp_(0, 1)
    return truncate_levels(noise.mul_(255 * alpha)[:, None] + images * (1 - alpha))


def _lattice(keys: Tensor, height: int, width: int) -> Tensor:
    """Return the gradients (B, 2, height, width) of the lattice points: entry p[p[row] + column] of a table of 256."""
    count = len(keys)
    permutation = uniform(keys, (256,), 1).argsort(1)
    steps = uniform(keys, (2, 256), 2).mul_(512).floor_().div_(256).sub_(1)
    gradients: Tensor = steps / torch.linalg.vector_norm(steps, dim=1, keepdim=True).clamp_(min=1e-9)
    rows, columns = (torch.arange(size, device=keys.device) % 256 for size in (height, width))
    entries = (permutation[:, rows, None] + columns) % 256
    entries = permutation.gather(1, entries.flatten(1))
    return gradients.gather(2, entries[:, None].expand(-1, 2, -1)).view(count, 2, height, width)


def _perlin(gradients: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return 1.5 × gradient noise (B,H,W) at rows (H,) and columns (W,) of the lattice ``gradients`` (B,2,·,·)."""
    top, left = rows.long(), columns.long()
    lower, right = (rows - top)[:, None], columns - left

    def corner(down: int, across: int) -> Tensor:
        gradient = gradients.index_select(2, top + down).index_select(3, left + across)
        return gradient[:, 0] * (lower - down) + gradient[:, 1] * (right - across)

    eased_lower, eased_right = (part.square() * (3 - 2 * part) for part in (lower, right))
    upper_edge = torch.lerp(corner(0, 0), corner(1, 0), eased_lower)
    lower_edge = torch.lerp(corner(0, 1), corner(1, 1), eased_lower)
    return torch.lerp(upper_edge, lower_edge, eased_right).mul_(1.5)
