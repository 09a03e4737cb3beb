import io

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.stats
import skimage.color
import skimage.filters
import torch
from fixtures.corruption_oracle import BY_LAW, FED
from PIL import Image
from torch import Generator, Tensor

from anchored.corruptions.digital import jpeg_compression
from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.corruptions.registry import CORRUPTIONS, FAMILIES, corrupt, expand
from anchored.data import datasets
from anchored.errors import UserError

Levels = npt.NDArray[np.float64]
SEVERITIES = (1, 2, 3, 4, 5)
EVERY = pytest.mark.parametrize("name", expand(["c"], 32, 32))
RANDOM = pytest.mark.parametrize("name", [*FED, *BY_LAW])
UNEVEN = ("glass_blur", "motion_blur", "saturate", "spatter", "frost")  # their constants do not simply grow


@pytest.fixture(scope="module")
def grey() -> Tensor:
    return datasets.load_split("photos", "test").images[:60]


@pytest.fixture(scope="module")
def colour(grey: Tensor) -> Tensor:
    """Colour images of 28 × 28 with structure: three grey crops each, and black and white corners."""
    images = grey.view(20, 3, 28, 28).clone()
    images[:, :, :4, :4], images[:, :, :4, -4:] = 0, 255
    return images


def unit(image: Tensor) -> Levels:
    """Return (H,W,C) float64 in [0, 1], what the original computes with."""
    return image.permute(1, 2, 0).numpy().astype(np.float64) / 255


def cut(levels: Levels) -> npt.NDArray[np.uint8]:
    """Cut the fraction off as the original does, but not of values that only float64's last bits put below a level."""
    return (np.clip(levels, 0, 1) * 255 + 1e-3).astype(np.uint8)


def agree_cut(ours: Tensor, reference: Levels) -> None:
    """Compare with ``reference`` in [0, 1], cut; either level will do within float32's errors of an edge."""
    found = ours.permute(1, 2, 0).numpy()
    lower, upper = (cut(reference + error / 255) for error in (-1e-4, 1e-4))
    assert ((found == lower) | (found == upper)).all()
    assert (lower == upper).mean() > 0.9


def agree(ours: Tensor, reference: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), reference)


# --- the random numbers


def test_uniform_numbers_are_uniform() -> None:
    values = uniform(image_keys(0, "test", torch.arange(400)), (1000,))
    assert values.min() > 0
    assert values.max() < 1
    assert scipy.stats.kstest(values.flatten().numpy(), "uniform").pvalue > 0.01
    per_image = [scipy.stats.kstest(row.numpy(), "uniform").pvalue for row in values]
    assert scipy.stats.kstest(per_image, "uniform").pvalue > 0.01
    across_images = [scipy.stats.kstest(column.numpy(), "uniform").pvalue for column in values.T]
    assert scipy.stats.kstest(across_images, "uniform").pvalue > 0.01


def test_normal_numbers_are_normal() -> None:
    values = normal(image_keys(1, "test", torch.arange(400)), (3, 19, 17))
    assert values.shape == (400, 3, 19, 17)
    assert scipy.stats.kstest(values.flatten().numpy(), "norm").pvalue > 0.01
    assert scipy.stats.kurtosis(values.flatten().numpy()) == pytest.approx(0, abs=0.03)
    flat = values.flatten(1)
    half = flat.shape[1] // 2
    assert abs(np.corrcoef(flat[:, :half].flatten(), flat[:, half : 2 * half].flatten())[0, 1]) < 0.01  # sine, cosine


def test_images_purposes_seeds_and_draws_are_independent() -> None:
    index = torch.arange(100)
    streams = [
        uniform(image_keys(0, "a", index), (1000,)),
        uniform(image_keys(0, "a", index + 100), (1000,)),
        uniform(image_keys(0, "b", index), (1000,)),
        uniform(image_keys(1, "a", index), (1000,)),
        uniform(image_keys(0, "a", index), (1000,), draw=1),
        uniform(image_keys(0, "a", index), (1001,))[:, 1:],  # a shift by one is another stream too
    ]
    correlation = np.corrcoef([stream.flatten().numpy() for stream in streams])
    assert np.abs(correlation - np.eye(len(streams))).max() < 0.015  # s.d. 0.003
    neighbours = np.corrcoef(streams[0].numpy())
    assert np.abs(neighbours - np.eye(100)).max() < 0.16  # s.d. 0.03, 4950 pairs


def test_no_two_keys_are_alike() -> None:
    keys = torch.cat([image_keys(seed, "a", torch.arange(50_000)) for seed in (0, 1)])
    assert len(torch.unique(keys)) == 100_000
    bits = torch.stack([(keys >> place) & 1 for place in range(64)]).double().mean(1)
    assert (bits - 0.5).abs().max() < 0.008  # s.d. 0.0016


def test_the_index_dtype_does_not_matter() -> None:
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(image_keys(5, "a", torch.arange(100, dtype=dtype)), image_keys(5, "a", torch.arange(100)))


def test_the_hash_is_splitmix64() -> None:
    # SplitMix64 started at 1234567: the published test values (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
    from anchored.corruptions.randomness import _bits

    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [value % 2**64 for value in _bits(torch.tensor([1234567]), 5, 0)[0].tolist()] == expected


# --- every corruption


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(name: str, channels: int, grey: Tensor, colour: Tensor) -> None:
    images = (grey if channels == 1 else colour)[:20]
    before = images.clone()
    whole = corrupt(images, name, 3, seed=7)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    order = torch.randperm(20, generator=Generator().manual_seed(0))
    pieces = [corrupt(images[part], name, 3, seed=7, indices=part) for part in torch.split(order, 7)]
    assert torch.equal(torch.cat(pieces), whole[order])
    contiguous = corrupt(images.to(memory_format=torch.channels_last), name, 3, seed=7)
    assert torch.equal(contiguous, whole)
    assert corrupt(images[:0], name, 3, seed=7).shape == (0, *images.shape[1:])


@EVERY
def test_severity_grows(name: str, grey: Tensor, colour: Tensor) -> None:
    for images in (grey, colour):
        changes = [
            (corrupt(images, name, severity, seed=0).float() - images).abs().mean().item() for severity in SEVERITIES
        ]
        if name == "saturate" and images is grey:
            assert changes == [0, 0, 0, 0, 0]
            continue
        assert min(changes) > 0
        if name == "elastic_transform":  # CIFAR-C's is an affine map first, and that gets milder
            assert changes == sorted(changes, reverse=True)
        elif name not in UNEVEN:
            assert changes == sorted(changes)
            assert changes[0] < 0.9 * changes[-1]


@RANDOM
def test_seeds_images_and_severities_differ(name: str, grey: Tensor) -> None:
    images = grey[:1].expand(2, -1, -1, -1)
    first = corrupt(images, name, 1, seed=0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, corrupt(images, name, 1, seed=1))
    assert not torch.equal(first, corrupt(images, name, 1, seed=0, indices=torch.tensor([2, 3])))
    same = corrupt(images, name, 1, seed=0, indices=torch.tensor([1, 0], dtype=torch.int16))
    assert torch.equal(first, same.flip(0))


def test_errors_have_one_line() -> None:
    good = torch.zeros(2, 3, 28, 28, dtype=torch.uint8)
    for images, name, severity, indices, text in (
        (good, "gausian-noise", 1, None, "'gausian-noise' is unknown; did you mean gaussian_noise"),
        (good, "x", 1, None, "known: gaussian_noise, shot"),
        (good.float(), "contrast", 1, None, r"contrast: images are torch\.float32 \(2, 3, 28, 28\)"),
        (good[0], "contrast", 1, None, r"\(3, 28, 28\): give uint8"),
        (good[:, :2], "contrast", 1, None, "C 1 or 3"),
        (good, "contrast", 0, None, "severity is 0"),
        (good, "contrast", 6, None, "severity is 6: give 1, 2, 3, 4 or 5"),
        (good, "contrast", 2.0, None, "severity is 2.0: give 1, 2, 3, 4 or 5"),
        (good, "contrast", 1, torch.arange(3), r"indices are torch\.int64 \(3,\): give 2 integers"),
        (good, "contrast", 1, torch.zeros(2), r"indices are torch\.float32"),
        (good[..., :1], "defocus_blur", 5, None, "images are 28 x 1, severity 5 needs more than 2 px"),
        (good[..., :2], "glass_blur", 1, None, "images are 28 x 2, severity 1 needs more than 2 px"),
        (good[..., :0], "contrast", 1, None, "images are 28 x 0: there are no pixels"),
        (good[..., :1], "spatter", 1, None, "28 x 1, severity 1 needs more than 1 px"),
        (good[..., :1], "pixelate", 5, None, "28 x 1, severity 5 needs more than 1 px"),
    ):
        with pytest.raises(UserError, match=text) as error:
            corrupt(images, name, severity, seed=0, indices=indices)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


# --- sizes and families


def test_the_constants_fit_the_size() -> None:
    """Published ones from 22 to 48 and from 150 to 336 px; elsewhere lengths in pixels are scaled."""
    blur, zoom = CORRUPTIONS["gaussian_blur"], CORRUPTIONS["zoom_blur"]
    for side, sigma in ((28, 1), (32, 1), (48, 1), (64, 2), (84, 84 / 32), (96, 6 * 96 / 224), (112, 3), (160, 6)):
        assert blur.constants(5, side, side + 9) == pytest.approx(sigma)
    for side, sigma in ((224, 6), (336, 6), (448, 12), (16, 0.5)):
        assert blur.constants(5, side + 9, side) == pytest.approx(sigma)
    assert [zoom.constants(3, side, side) for side in (64, 96)] == [(1.16, 0.01), (1.21, 0.02)]  # shares stay
    at = {name: CORRUPTIONS[name].constants(5, 448, 448) for name in expand(["c"], 448, 448)}
    assert at["defocus_blur"] == (20, 0.5)
    assert at["glass_blur"] == (3, 8, 2)
    assert at["motion_blur"] == (40, 30)
    assert at["snow"] == (0.55, 0.3, 5, 0.85, 24, 24, 0.55)
    assert at["frost"] == (0.6, 0.75, 2)
    assert at["elastic_transform"] == pytest.approx((4 * 244 * 0.12, 2 * 2.44, 2 * 4.88))
    assert at["spatter"] == (0.67, 0.8, 2, 0.65, 3, True)
    assert CORRUPTIONS["spatter"].constants(1, 448, 448) == (0.65, 0.6, 8, 0.69, 0.6, False)
    assert CORRUPTIONS["snow"].constants(5, 96, 96)[2] == pytest.approx(2.5 * 96 / 224)
    assert CORRUPTIONS["snow"].constants(5, 56, 56)[2] == pytest.approx(1.25 * 56 / 32)
    assert CORRUPTIONS["snow"].constants(1, 16, 16)[2] == 1  # flakes are at least a pixel


@EVERY
@pytest.mark.parametrize("size", [(16, 20), (64, 64), (96, 130), (340, 348)])
def test_other_sizes_work(name: str, size: tuple[int, int], colour: Tensor) -> None:
    image = torch.nn.functional.interpolate(colour[:1].float(), size=size, mode="bicubic").clamp(0, 255).to(torch.uint8)
    for severity in (1, 5):
        found = corrupt(image, name, severity, seed=0)
        assert found.shape == image.shape
        assert not torch.equal(found, image)
        assert (found.float().mean() - image.float().mean()).abs() < 120


def test_families_are_expanded() -> None:
    assert {"c", "c15"} <= set(FAMILIES)
    assert len(expand(["c"], 32, 32)) == 19
    assert len(expand(["c15"], 224, 224)) == 15
    assert expand(["fog", "c15", "fog"], 32, 32)[:2] == ("fog", "gaussian_noise")
    assert set(expand(["c"], 32, 32)) - set(expand(["c15"], 32, 32)) == {
        "speckle_noise",
        "gaussian_blur",
        "spatter",
        "saturate",
    }
    with pytest.raises(UserError, match="corruption 'fogg' is unknown; did you mean fog"):
        expand(["fogg"], 32, 32)


def test_families_of_grey_images_hold_only_what_changes_them(grey: Tensor) -> None:
    """A corruption that leaves images as they are would put clean figures into every mean over corruptions."""
    names = expand(["c", "c-bar"], 32, 32, channels=1)
    assert len(names) == 18 + 10
    assert [name for name in CORRUPTIONS if torch.equal(corrupt(grey, name, 3, seed=0), grey)] == ["saturate"]
    assert "saturate" not in names
    assert len(expand(["c15"], 32, 32, channels=1)) == 15
    with pytest.raises(UserError, match="'saturate' leaves grey images as they are"):
        expand(["saturate"], 32, 32, channels=1)


# --- noise: moments and laws


def flat(level: int, count: int = 400) -> Tensor:
    return torch.full((count, 1, 28, 28), level, dtype=torch.uint8)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_mean_and_deviation(severity: int) -> None:
    noisy = corrupt(flat(128), "gaussian_noise", severity, seed=0).double()
    scale = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] * 255
    assert noisy.mean() == pytest.approx(128 - 0.5, abs=0.2)  # cutting takes half a level on average
    assert noisy.std() == pytest.approx(scale, rel=0.01)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_grows_with_the_level(severity: int) -> None:
    scale = (0.06, 0.1, 0.12, 0.16, 0.2)[severity - 1]
    assert corrupt(flat(0), "speckle_noise", severity, seed=0).eq(0).all()
    for level in (50, 100):
        noisy = corrupt(flat(level), "speckle_noise", severity, seed=0).double()
        assert noisy.mean() == pytest.approx(level - 0.5, abs=0.2)
        assert noisy.std() == pytest.approx((scale**2 * level**2 + 1 / 12) ** 0.5, rel=0.02)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_salts_and_peppers_alike(severity: int) -> None:
    amount = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    noisy = corrupt(torch.full((200, 3, 28, 28), 77, dtype=torch.uint8), "impulse_noise", severity, seed=0)
    for value in (0, 255):  # s.d. at severity 1: 2 % of the expected number
        assert noisy.eq(value).double().mean() == pytest.approx(amount / 2, rel=0.08)
    assert noisy.eq(77).double().mean() == pytest.approx(1 - amount, rel=0.01)
    hit = noisy != 77  # every channel on its own
    assert (hit[:, 0] & hit[:, 1]).double().mean() == pytest.approx(
        amount**2, abs=4 * amount / 396
    )  # four s.d. of 156,800


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("level", [0, 1, 20, 128, 200, 255])
def test_shot_noise_has_the_poisson_law(level: int, severity: int) -> None:
    photons = (500, 250, 100, 75, 50)[severity - 1]
    noisy = corrupt(flat(level, 100), "shot_noise", severity, seed=0).flatten().numpy()
    law = scipy.stats.poisson(level / 255 * photons)
    counts = np.arange(photons)
    expected = np.zeros(256)
    np.add.at(expected, cut(counts / photons), law.pmf(counts))
    expected[255] += law.sf(photons - 1)  # as many photons as white has, or more
    found = np.bincount(noisy, minlength=256)
    assert found[expected == 0].sum() == 0
    common = expected * len(noisy) > 10
    if common.sum() > 1:
        statistic = ((found - expected * len(noisy)) ** 2 / (expected * len(noisy) + 1e-9))[common].sum()
        assert scipy.stats.chi2(common.sum()).sf(statistic) > 1e-3
    else:
        assert found[common].sum() == len(noisy)


# --- the others: against independent implementations


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_blur_is_skimages(severity: int, colour: Tensor) -> None:
    sigma = (0.4, 0.6, 0.7, 0.8, 1)[severity - 1]
    for before, after in zip(colour, corrupt(colour, "gaussian_blur", severity, seed=0), strict=True):
        blurred = skimage.filters.gaussian(unit(before), sigma=sigma, channel_axis=-1)  # type: ignore[no-untyped-call]
        agree_cut(after, blurred)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_defocus_blur_is_the_originals_kernel_with_mirrored_borders(severity: int, colour: Tensor) -> None:
    radius, alias = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    reach = np.arange(-8, 9)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float64)
    side = np.exp(-0.5 / alias**2)
    taps = np.array([side, 1, side]) / (1 + 2 * side)
    kernel = disk / disk.sum()
    for axis in (0, 1):  # cv2.GaussianBlur with ksize (3, 3)
        kernel = scipy.ndimage.correlate1d(kernel, taps, axis, mode="mirror")
    for before, after in zip(colour, corrupt(colour, "defocus_blur", severity, seed=0), strict=True):
        agree_cut(after, scipy.ndimage.correlate(unit(before), kernel[:, :, None], mode="mirror"))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_and_brightness(severity: int, colour: Tensor, grey: Tensor) -> None:
    factor, shift = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1], (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    for images in (colour, grey):
        for before, after in zip(images, corrupt(images, "contrast", severity, seed=0), strict=True):
            means = unit(before).mean((0, 1), keepdims=True)
            agree_cut(after, (unit(before) - means) * factor + means)
    for before, after in zip(colour, corrupt(colour, "brightness", severity, seed=0), strict=True):
        hsv = skimage.color.rgb2hsv(unit(before))
        hsv[:, :, 2] = np.clip(hsv[:, :, 2] + shift, 0, 1)
        agree_cut(after, skimage.color.hsv2rgb(hsv))
    for before, after in zip(grey, corrupt(grey, "brightness", severity, seed=0), strict=True):
        agree_cut(after, unit(before) + shift)


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy())


def levels(image: Image.Image) -> npt.NDArray[np.uint8]:
    array = np.asarray(image)
    return array[:, :, None] if array.ndim == 2 else array


@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pils(severity: int, colour: Tensor, grey: Tensor) -> None:
    factor = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    noise = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=Generator().manual_seed(0))
    for images in (colour, grey, noise, noise[..., :19, :]):
        height, width = images.shape[2:]
        for before, after in zip(images, corrupt(images, "pixelate", severity, seed=0), strict=True):
            small = pil(before).resize((int(width * factor), int(height * factor)), Image.Resampling.BOX)
            agree(after, levels(small.resize((width, height), Image.Resampling.BOX)))


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_compression_is_pils(severity: int, colour: Tensor, grey: Tensor) -> None:
    quality = (80, 65, 58, 50, 40)[severity - 1]
    for images in (colour, grey):
        for before, after in zip(images, corrupt(images, "jpeg_compression", severity, seed=0), strict=True):
            file = io.BytesIO()
            pil(before).save(file, "JPEG", quality=quality)
            agree(after, levels(Image.open(file)))


@pytest.mark.parametrize("size", [(1, 1), (3, 4), (5, 17), (31, 64), (63, 50)])
def test_jpeg_compression_is_pils_at_any_size(size: tuple[int, int], grey: Tensor) -> None:
    height, width = size
    noise = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=Generator().manual_seed(0))
    photos = grey[:6].view(2, 3, 28, 28).repeat(1, 1, 3, 3)[..., :height, :width]
    for images in (noise, photos, noise[:, :1], photos[:, :1]):
        for quality in (0, 10, 50, 100):
            for before, after in zip(images, jpeg_compression(images, quality, torch.zeros(2)), strict=True):
                file = io.BytesIO()
                pil(before).save(file, "JPEG", quality=quality)
                agree(after, levels(Image.open(file)))
