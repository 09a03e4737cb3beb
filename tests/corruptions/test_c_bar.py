"""The C̄ corruptions against their published definitions: slow float64 oracles, hand-worked cases, laws."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.stats
import skimage.draw
import torch
from torch import Tensor

from anchored.corruptions.c_bar import C_BAR
from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.corruptions.registry import CORRUPTIONS, corrupt, expand
from anchored.data import datasets
from anchored.errors import UserError

Levels = npt.NDArray[np.float64]
NAMES = [row.name for row in C_BAR]
BOTH = ("blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles", "sparkles")
CIFAR = (*BOTH, "circular_motion_blur", "lines", "pinch_and_twirl", "ripple", "transverse_chromatic_abberation")
IMAGENET = (
    *BOTH,
    "caustic_refraction",
    "cocentric_sine_waves",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
)


@pytest.fixture(scope="module")
def grey() -> Tensor:
    return datasets.load_split("photos", "test").images[:200]


@pytest.fixture(scope="module")
def photos(grey: Tensor) -> Tensor:
    """Colour images of 32 × 32 with structure: three grey crops each, their borders repeated."""
    wide = torch.nn.functional.pad(grey[:60].float(), (2, 2, 2, 2), mode="replicate")
    return wide.to(torch.uint8).view(20, 3, 32, 32)


# --- the rows


def test_the_published_lists() -> None:
    for names, size in ((CIFAR, 32), (IMAGENET, 224)):
        assert sorted(expand(["c-bar"], size, size)) == sorted(names)
    assert sorted(NAMES) == sorted({*CIFAR, *IMAGENET})
    assert all(CORRUPTIONS[row.name] is row for row in C_BAR)


def test_published_severities_are_read_by_size() -> None:
    sparkles, ripple, plasma = (CORRUPTIONS[name] for name in ("sparkles", "ripple", "plasma_noise"))
    assert [sparkles.constants(severity, 28, 28) for severity in (1, 2, 3, 4, 5)] == [0.7, 3.5, 5.6, 6.3, 7.0]
    assert [sparkles.constants(severity, 256, 224) for severity in (1, 2, 3, 4, 5)] == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert ripple.constants(5, 224, 224) == ripple.constants(5, 32, 32) == 8.0  # published for one size only
    assert plasma.constants(1, 32, 32) == 4.75


@pytest.mark.parametrize("name", NAMES)
def test_severity_grows(name: str, grey: Tensor) -> None:
    mild, harsh = ((corrupt(grey, name, s, seed=0).float() - grey).abs().mean().item() for s in (1, 5))
    assert 0 < mild < harsh


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 40, 25), (1, 33, 33), (3, 0, 1), (3, 96, 128)])
def test_an_image_does_not_depend_on_its_batch(name: str, shape: tuple[int, int, int]) -> None:
    if shape == (3, 0, 1):  # the smallest it takes
        least = CORRUPTIONS[name].margin(0) + 1
        shape = (3, least, least + 1)
    images = torch.randint(256, (9, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    whole = corrupt(images, name, 4, seed=7)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    pieces = [corrupt(images[part], name, 4, seed=7, indices=part) for part in torch.split(order, 4)]
    assert torch.equal(torch.cat(pieces), whole[order])
    assert whole.dtype == torch.uint8
    if name != "circular_motion_blur":  # the one without random numbers
        same = images[:1].expand(9, -1, -1, -1)
        assert len(torch.unique(corrupt(same, name, 5, seed=7), dim=0)) > 1
        assert not torch.equal(corrupt(same, name, 5, seed=8), corrupt(same, name, 5, seed=7))


@pytest.mark.parametrize("name", NAMES)
def test_errors_have_one_line(name: str) -> None:
    good = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    for images, severity, text in (
        (good.float(), 1, f"{name}: images are torch.float32"),
        (good[:, :2], 1, "C 1 or 3"),
        (good, 0, f"{name}: severity is 0"),
        (good, 6, "severity is 6"),
        (good[..., :3], 2, r"images are 32 x 3, severity 2 needs more than \d+ px"),
    ):
        with pytest.raises(UserError, match=text) as error:
            corrupt(images, name, severity, seed=0)
        assert "\n" not in str(error.value)


# --- oracles: the published definitions for one image (H,W,C) in float64, given the drawn numbers


def places(size: int) -> tuple[Levels, Levels]:
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    return rows.astype(np.float64), columns.astype(np.float64)


def sampled(image: Levels, rows: Levels, columns: Levels) -> Levels:
    channels = [
        scipy.ndimage.map_coordinates(image[..., c], [rows, columns], order=1, mode="grid-constant") for c in range(3)
    ]
    return np.stack(channels, -1)


def spectral(phases: Levels, amplitude: Callable[[Levels], Levels]) -> Levels:
    size = math.isqrt(2 * len(phases))
    rows, columns = places(size)
    spectrum = amplitude(np.hypot(rows - size / 2, columns - size / 2)) * np.exp(
        1j * np.append(phases, phases[::-1]).reshape(size, size)
    )
    noise = np.fft.ifft2(np.fft.ifftshift(spectrum)).real
    found: Levels = noise / noise.std()
    return found


def blue_noise_sample(image: Levels, severity: float, key: Tensor) -> Levels:
    noise = spectral(numbers(key, image.shape[0] ** 2 // 2) * 2 * np.pi, lambda frequency: frequency)
    return np.where((noise > severity * 3 / 10 - 2.5)[..., None], image, 0.0)


def brownish_noise(image: Levels, severity: float, key: Tensor) -> Levels:
    half = image.shape[0] ** 2 // 2
    fields = [spectral(numbers(key, half, c) * 2 * np.pi, lambda f: 1 / (f**2 + 1)) for c in range(3)]
    return image + severity * 64 / 10 * np.stack(fields, -1)


def single_frequency_greyscale(image: Levels, severity: float, key: Tensor) -> Levels:
    first, second, order, phase = numbers(key, 4)
    larger = (2 * first - 1) * np.pi
    smaller = (2 * second - 1) * abs(larger)
    along_x, along_y = (smaller, larger) if order < 0.5 else (larger, smaller)
    rows, columns = places(image.shape[0])
    wave = np.sin(columns * along_x + rows * along_y + 2 * np.pi * phase)
    found: Levels = image + severity * 196 / 10 * wave[..., None]
    return found


def cocentric_sine_waves(image: Levels, severity: float, key: Tensor) -> Levels:
    size, (x0, y0, frequency, amplitude, ring) = image.shape[0], numbers(key, 5)
    rows, columns = places(size)
    x, y = columns - x0 * size, rows - y0 * size
    angle = np.arctan2(x, y) * frequency * 10
    saw = (np.hypot(x, y) + np.sin(angle) * amplitude * size / 10) / (ring * size / 10)
    found: Levels = image + severity * 128 / 10 * (saw - np.floor(saw) - 0.5)[..., None]
    return found


def plasma_noise(image: Levels, severity: float, key: Tensor) -> Levels:
    size, (time, steps, sharp, scale) = image.shape[0], numbers(key, 4)
    time, sharp = 6 * np.pi * time, 0.5 + 0.5 * sharp
    y, x = (place / ((0.075 + 0.125 * scale) * size) for place in places(size))
    for step in range(int(4 + 3 * steps)):
        f, g, k = 1.93**step, 1.15**step, (2.25 - sharp) ** step
        turned = (np.exp(1j * 0) + 0.3j) * (np.cos(f * y + time / g) + 1j * np.sin(f * x + time / g)) / k
        x, y = x + turned.real, y + turned.imag
    noise = np.stack((np.sin(x - time), np.sin((x + y + np.sin(time)) / 2), np.sin(y + time)), -1)
    intensity = severity * 64 / 10
    return (1 - intensity / 255) * image + intensity * noise


def perlin_noise(image: Levels, severity: float, key: Tensor) -> Levels:
    """Perlin's noise point by point, from his tables."""
    size = image.shape[0]
    table = numbers(key, 256, 1).argsort()
    components = np.floor(uniform(key, (2, 256), 2)[0].double().numpy() * 512) / 256 - 1
    gradients = components / np.sqrt((components**2).sum(0))

    def gradient(row: int, column: int) -> Levels:
        found: Levels = gradients[:, table[(table[row % 256] + column) % 256]]
        return found

    def at(y: float, x: float) -> float:
        top, left = int(y), int(x)
        v, u = y - top, x - left
        corners = [[gradient(top + i, left + j) @ (v - i, u - j) for j in (0, 1)] for i in (0, 1)]
        ease_v, ease_u = (t * t * (3 - 2 * t) for t in (v, u))
        upper, lower = ((1 - ease_u) * a + ease_u * b for a, b in corners)
        return float(1.5 * ((1 - ease_v) * upper + ease_v * lower))

    noise = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            y, x = row * 7 / size, column * 7 / size
            noise[row, column] = 0.5 + 0.5 * sum(abs(at(2**i * y, 2**i * x)) / 2**i for i in range(5))
    alpha = severity / 20
    return (1 - alpha) * image + 255 * alpha * np.clip(noise, 0, 1)[..., None]


def checkerboard_cutout(image: Levels, severity: float, key: Tensor) -> Levels:
    """Field by field: all that is read are the fields' own draws."""
    size, (angle, scale) = image.shape[0], numbers(key, 2)
    angle, scale = 2 * np.pi * angle, (0.1 + 0.15 * scale) * size
    fields = 2 * int(math.hypot(size, size) / (0.1 * size)) + 3
    draws = numbers(key, fields * fields, 1).reshape(fields, fields)
    out = image.copy()
    for y in range(size):
        for x in range(size):
            p = (math.cos(angle) * y + math.sin(angle) * x) / scale
            q = (-math.sin(angle) * y + math.cos(angle) * x) / scale
            if math.floor(p) % 2 == math.floor(q) % 2 and draws[int(p), int(q)] < severity / 10:
                out[y, x] = 128
    found: Levels = out
    return found


def star(size: int, centre: Levels, lengths: Levels, power: float) -> Levels:
    """Ray by ray."""
    share = np.empty((size, size))
    for y in range(size):
        for x in range(size):
            turn = (math.atan2(x - centre[1], y - centre[0]) / (2 * math.pi) + 0.5) * len(lengths)
            ray, part = int(turn), turn % 1
            length = (1 - part) * lengths[ray % len(lengths)] + part * lengths[(ray + 1) % len(lengths)]
            near = length**2 / ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 + 0.0001)
            share[y, x] = np.clip((1 - (part - 0.5) ** 2) * near**power, 0, 1)
    return share[..., None]


def sparkles(image: Levels, severity: float, key: Tensor) -> Levels:
    size, draws = image.shape[0], numbers(key, 15).reshape(5, 3)
    spread = normal(key, (5, 199), 1)[0].double().numpy()
    for (row, column, rays), own in zip(draws, spread, strict=True):
        lengths = np.maximum(1, severity / 100 * size * (1 + own[: int(50 + 150 * rays)] / 4))
        share = star(size, np.array([row, column]) * size, lengths, 1)
        image = (1 - share) * image + share * 255
    return image


def inverse_sparkles(image: Levels, severity: float, key: Tensor) -> Levels:
    size, (row, column, rays) = image.shape[0], numbers(key, 3)
    lengths = size / 4 * (1 + normal(key, (199,), 1)[0].double().numpy()[: int(50 + 150 * rays)] / 4)
    centre = (0.25 + 0.5 * np.array([row, column])) * size
    share = star(size, centre, lengths, severity * 6.5 / 50)
    return share * image + (1 - share) * 255


def lines(image: Levels, severity: float, key: Tensor) -> Levels:
    """With skimage's antialiased lines."""
    size, (common, spread) = image.shape[0], numbers(key, 2)
    count = int(severity / 10 * size)
    for y, x, variation in numbers(key, 3 * count, 1).reshape(3, count).T:
        angle = 2 * np.pi * common + 2 * np.pi * (0.1 + 0.9 * spread) * (variation - 0.5)
        half = np.array([np.cos(angle), np.sin(angle)]) * size
        first, last = ((np.array([y, x]) * size + sign * half).astype(int) for sign in (-1, 1))
        rows, columns, values = skimage.draw.line_aa(*first, *last)  # type: ignore[no-untyped-call]
        cover = np.zeros((size, size, 1))
        inside = (rows >= 0) & (columns >= 0) & (rows < size) & (columns < size)
        cover[rows[inside], columns[inside], 0] = values[inside]
        image = np.floor((1 - cover) * image + cover * 128 + 1e-6)
    return image


def pinch_and_twirl(image: Levels, severity: float, key: Tensor) -> Levels:
    """Square by square, with complex numbers for the turns."""
    size = image.shape[0]
    count = 3 if size < 100 else 5
    side, rows, columns = size // count, *places(size)
    signs = np.where(numbers(key, count * count) < 0.5, -1, 1).reshape(count, count)
    for i in range(count):
        for j in range(count):
            middle = complex((i + 0.5) * side, (j + 0.5) * side)
            for y in range(i * side, (i + 1) * side):
                for x in range(j * side, (j + 1) * side):
                    offset = complex(y, x) - middle
                    share = abs(offset) / (side / 2)
                    if share > 1 or abs(offset) < 0.0005:
                        continue
                    stretch = math.sin(math.pi * share / 2) ** -(severity * 0.04 + 0.1)
                    angle = signs[i, j] * severity / 10 * math.pi / 2 * (1 - share) ** 2
                    source = middle + offset * stretch * complex(math.cos(angle), math.sin(angle))
                    rows[y, x], columns[y, x] = source.real, source.imag
    return sampled(image, rows, columns)


def ripple(image: Levels, severity: float, key: Tensor) -> Levels:
    size, draws = image.shape[0], numbers(key, 4)
    moved = [
        place + severity * 0.0025 * size * np.sin(2 * np.pi * (place / ((0.1 + 0.2 * length) * size) + phase))
        for place, length, phase in zip(places(size), draws[:2], draws[2:], strict=True)
    ]
    return sampled(image, *moved)


def circular_motion_blur(image: Levels, severity: float, key: Tensor) -> Levels:
    shares = np.linspace(-1, 1, 21)
    turned = [scipy.ndimage.rotate(image, share * severity * 1.5, reshape=False) for share in shares]
    return np.average(turned, axis=0, weights=np.exp(-2 * shares**2))


def transverse_chromatic_abberation(image: Levels, severity: float, key: Tensor) -> Levels:
    size, out = image.shape[0], np.empty_like(image)
    scales = np.array([1, 1 + severity / 40, 1 + severity / 20])
    for channel, number in enumerate(numbers(key, 3).argsort()):
        zoomed = scipy.ndimage.zoom(image[..., channel].astype(np.uint8), scales[number], prefilter=False)
        edge = (len(zoomed) - size) // 2
        out[..., channel] = zoomed[edge : edge + size, edge : edge + size]
    return out


def caustic_refraction(image: Levels, severity: float, key: Tensor) -> Levels:
    """With vectors: Snell's law from a normal in space, not its closed form."""
    size, (time, scale) = image.shape[0], numbers(key, 2)
    time, scale = 0.5 + 1.5 * time, (0.75 + 0.5 * scale) * size
    p = np.stack([(place / scale) % 1 * 2 * np.pi - 250 for place in places(size)])
    i, total = p.copy(), np.ones((size, size))
    for n in (1, 2, 3, 4, 5):
        t = time * (1 - 3.5 / n)
        i = p + np.stack([np.cos(t - i[0]) + np.sin(t + i[1]), np.sin(t - i[1]) + np.cos(t + i[0])])
        total += 200 / np.hypot(p[0] / np.sin(i[0] + t), p[1] / np.cos(i[1] + t))
    pattern = np.minimum(np.abs(1.17 - (total / 5) ** 1.4) ** 8, 1)
    wide = np.pad(scipy.ndimage.gaussian_filter(pattern, 1), 1)
    slope_y, slope_x = wide[2:, 1:-1] - wide[:-2, 1:-1], wide[1:-1, 2:] - wide[1:-1, :-2]
    rows, columns = places(size)
    for y in range(size):
        for x in range(size):
            normal_ = np.array([slope_y[y, x], slope_x[y, x], 1.0])
            normal_ /= np.linalg.norm(normal_)
            if normal_[2] < 0.999:
                across = normal_ - np.array([0, 0, 1.0]) / normal_[2]  # at right angles to the normal
                across /= -np.linalg.norm(across)
                out = math.asin(math.sqrt(1 - normal_[2] ** 2) / 4)
                ray = (math.cos(out) * normal_ + math.sin(out) * across) * severity * size / 20
                rows[y, x], columns[y, x] = rows[y, x] + round(ray[0], 3), columns[y, x] + round(ray[1], 3)
    found: Levels = sampled(image, rows, columns) + ((slope_y - slope_x) * severity / 5 * 255)[..., None]
    return found


def numbers(key: Tensor, count: int, draw: int = 0) -> Levels:
    return uniform(key, (count,), draw)[0].double().numpy()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_the_published_definition(name: str, severity: int, photos: Tensor) -> None:
    constant = CORRUPTIONS[name].constants(severity, 32, 32)
    for index in (0, 11):
        before = photos[index].permute(1, 2, 0).double().numpy()
        key = image_keys(3, f"{name}/{severity}", torch.tensor([index]))
        levels = globals()[name](before, constant, key)
        found = corrupt(photos[[index]], name, severity, seed=3, indices=torch.tensor([index]))[0]
        expected = np.clip(levels + 1e-3, 0, 255).astype(int)
        off = np.abs(found.permute(1, 2, 0).numpy() - expected)
        assert (off == 0).mean() > 0.985  # a level either way where float32 ends on the other side of its edge
        # Places that cross a seam or a threshold to the last bit of a float32 move a pixel.
        assert (off <= 1).mean() > (0.995 if name in ("caustic_refraction", "cocentric_sine_waves") else 0.9995)


def test_five_squares_a_side_at_224() -> None:
    image = torch.randint(256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    image = scipy.ndimage.gaussian_filter(image.double().numpy(), (0, 0, 3, 3))
    image = torch.from_numpy(((image - image.min()) / np.ptp(image) * 255).astype(np.uint8))
    key = image_keys(0, "pinch_and_twirl/5", torch.tensor([0]))
    expected = pinch_and_twirl(image[0].permute(1, 2, 0).double().numpy(), 10.0, key)
    found = corrupt(image, "pinch_and_twirl", 5, seed=0)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - (expected - 0.5)).max() < 0.51


# --- hand-worked cases


def flat(level: int, count: int = 50, side: int = 32) -> Tensor:
    return torch.full((count, 3, side, side), level, dtype=torch.uint8)


@pytest.mark.parametrize(("severity", "constant"), [(1, 0.7), (2, 1.4), (3, 2.1), (4, 3.5), (5, 4.2)])
def test_blue_noise_hides_the_share_of_a_normal_law(severity: int, constant: float) -> None:
    black = corrupt(flat(200), "blue_noise_sample", severity, seed=0).eq(0)
    assert torch.equal(black[:, 0], black[:, 2])
    assert black.double().mean() == pytest.approx(scipy.stats.norm.cdf(0.3 * constant - 2.5), abs=0.01)
    noise = black[:, 0].double()  # no two neighbours: blue noise has no low frequencies
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean()
    assert neighbours < 0.75 * noise.mean() ** 2


def test_brownish_noise_has_its_deviation() -> None:
    noise = corrupt(flat(128), "brownish_noise", 1, seed=0).double()
    assert torch.allclose(noise.std((2, 3), correction=0), torch.tensor(16.0).double(), atol=0.15)  # 2.5 · 64 / 10
    steps = (noise[..., 1:] - noise[..., :-1]).square().mean() / (2 * 16**2)
    assert steps < 0.1  # neighbours are alike


def test_a_black_image_sparkles_white_at_the_centres() -> None:
    # Severity 1: rays of 0.224 px, so all are 1 px; within a pixel's reach of a centre the share is at least 3/4.
    images = flat(0, 20)
    centres = uniform(image_keys(0, "sparkles/1", torch.arange(20)), (5, 3))[..., :2] * 32
    bright = corrupt(images, "sparkles", 1, seed=0)
    for own, image in zip(centres, bright, strict=True):
        for y, x in own.clamp(max=31).round().long().tolist():
            distance = (own - torch.tensor([y, x])).norm(dim=1).min()
            assert image[0, y, x] >= int(255 * 0.75 * min(1, 1 / (float(distance) ** 2 + 1e-4)))


def test_lines_are_grey_and_as_many_as_the_density_says() -> None:
    keys = image_keys(0, "lines/5", torch.arange(50))
    drawn = corrupt(flat(0), "lines", 5, seed=0)
    assert drawn.max() == 128
    assert uniform(keys, (3, 8), 1).shape == (50, 3, 8)  # int(2.5 / 10 · 32) = 8 lines
    covered = drawn[:, 0].double().sum((1, 2)) / 128
    assert 0 < covered.mean() < 8 * 32 * 2  # a line's coverage is about its length, at most √2 · 32 inside
    assert corrupt(flat(0, 50, 4), "lines", 1, seed=0).eq(0).all()  # int(0.5 / 10 · 4) = 0 lines


def test_the_checkerboard_covers_half_the_share_of_its_fields() -> None:
    covered = corrupt(flat(7, 400), "checkerboard_cutout", 5, seed=0).eq(128).double().mean()
    assert covered == pytest.approx(0.5 * 0.5, abs=0.02)
    assert set(corrupt(flat(7), "checkerboard_cutout", 5, seed=0).flatten().tolist()) == {7, 128}


def test_warps_and_blurs_leave_flat_insides_alone() -> None:
    for name in ("pinch_and_twirl", "transverse_chromatic_abberation"):
        inside = corrupt(flat(90), name, 5, seed=0)[..., :30, :30]
        assert inside.eq(90).all(), name
    assert corrupt(flat(90), "circular_motion_blur", 5, seed=0)[..., 8:24, 8:24].sub(90).eq(0).all()
    # Severity 5: 8 · 0.0025 · 32 = 0.64 px are black at the borders where the wave goes out, none deeper.
    rippled = corrupt(flat(90), "ripple", 5, seed=0)
    assert rippled[..., 1:-1, 1:-1].eq(90).all()
    assert rippled[..., 0, :].lt(90).any()


def test_a_zoomed_edge_is_half_way() -> None:
    # A step from 0 to 60 between columns 15 and 16 (the middle): splines through nothing give 1/6, 4/6, 1/6 of it.
    image = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    image[..., 16:] = 60
    zoomed = corrupt(image, "transverse_chromatic_abberation", 1, seed=0)
    unzoomed = [row for row in zoomed[:, :, 5].flatten(0, 1).tolist() if row[15:17] == [10, 50]]
    assert len(unzoomed) == 8  # one channel of each image


def test_waves_have_their_amplitude() -> None:
    single = corrupt(flat(128), "single_frequency_greyscale", 1, seed=0).double()  # 19.6 levels
    assert single.std() == pytest.approx(19.6 / math.sqrt(2), rel=0.08)
    assert 128 + 19 <= single.max() <= 128 + 19.6
    saw = corrupt(flat(128), "cocentric_sine_waves", 1, seed=0).double()  # 38.4 levels from end to end
    assert saw.std() == pytest.approx(38.4 / math.sqrt(12), rel=0.05)
    assert saw.max() - saw.min() == pytest.approx(38, abs=1)


def test_noises_mix_with_the_image_as_stated() -> None:
    black, white = (corrupt(flat(level), "perlin_noise", 1, seed=0).double() for level in (0, 255))
    assert (white - black).mean() == pytest.approx(0.77 * 255, abs=0.6)  # 1 − 0.05 · 4.6
    assert black.min() >= 0.23 * 255 / 2 - 1  # the noise is at least one half
    grey = corrupt(flat(128), "plasma_noise", 1, seed=0).double()
    level = 6.4 * 4.75
    assert grey.min() >= 128 * (1 - level / 255) - level - 1
    assert grey.max() <= 128 * (1 - level / 255) + level
    assert grey.mean() == pytest.approx(128 * (1 - level / 255), abs=4)


def test_chromatic_scales_are_each_used_once() -> None:
    image = torch.randint(256, (1, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    images = image.expand(30, 3, 32, 32).contiguous()
    found = corrupt(images, "transverse_chromatic_abberation", 3, seed=0)
    kinds = torch.unique(found.flatten(0, 1), dim=0)
    assert len(kinds) == 3
    orders = {tuple(int((kinds == channel).all((1, 2)).nonzero()[0]) for channel in each) for each in found}
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len(orders) == 6


@pytest.mark.parametrize(("height", "width"), [(28, 28), (40, 32)])
def test_grey_is_colour_with_equal_channels(height: int, width: int, grey: Tensor) -> None:
    images = torch.nn.functional.pad(grey[:8].float(), (0, width - 28, 0, height - 28), mode="replicate").byte()
    for name in set(NAMES) - {"brownish_noise", "plasma_noise", "transverse_chromatic_abberation"}:
        one, three = (corrupt(each, name, 3, seed=0) for each in (images, images.expand(-1, 3, -1, -1)))
        assert torch.equal(one.expand(-1, 3, -1, -1), three), name
    for name in ("brownish_noise", "plasma_noise", "transverse_chromatic_abberation"):
        one, three = (corrupt(each, name, 3, seed=0) for each in (images, images.expand(-1, 3, -1, -1)))
        assert torch.equal(one[:, 0], three[:, 0]), name
