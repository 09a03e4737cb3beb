"""The common corruptions against the port of the original code: with its own random numbers replaced by ours."""

import cv2
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import skimage.data
import torch
from fixtures.corruption_oracle import BY_LAW, FED, FIXED, Pixels, plain, reference
from PIL import Image
from torch import Generator, Tensor

from anchored.corruptions import digital, spatter
from anchored.corruptions.blur import Glass, shuffled_sources
from anchored.corruptions.randomness import image_keys, uniform
from anchored.corruptions.registry import CORRUPTIONS, corrupt

SEVERITIES = (1, 2, 3, 4, 5)
#: 32 px take the constants of CIFAR-C, and this oblong those of ImageNet-C.
SIZES = pytest.mark.parametrize("size", [(32, 32), (150, 170)], ids=["small", "large"])


def photo(size: tuple[int, int]) -> Pixels:
    image = Image.fromarray(skimage.data.rocket())  # type: ignore[no-untyped-call]
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))


def ours(image: Pixels, name: str, severity: int, seed: int = 0) -> Pixels:
    batch = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
    return corrupt(batch, name, severity, seed=seed)[0].permute(1, 2, 0).numpy()


def test_every_corruption_is_compared() -> None:
    common = {name for name, row in CORRUPTIONS.items() if "c" in row.families}
    assert common == set(FIXED + FED + BY_LAW)
    assert len(common) == 19
    assert sum("c15" in CORRUPTIONS[name].families for name in common) == 15


@SIZES
@pytest.mark.parametrize("name", FIXED + FED)
def test_pixels_are_the_originals(name: str, size: tuple[int, int]) -> None:
    image = photo(size)
    for severity in SEVERITIES:
        gap = np.abs(ours(image, name, severity).astype(float) - reference(image, name, severity))
        # Mostly values that float64's last bits put just below a level. Snow and spatter have thresholds as well.
        assert gap.mean() < (0.3 if name in ("glass_blur", "saturate", "snow") else 0.15)
        assert (gap > 1).mean() < 0.01


@SIZES
@pytest.mark.parametrize("name", ["shot_noise", "impulse_noise"])
def test_noise_has_the_ports_distribution(name: str, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 90, dtype=np.uint8)
    np.random.seed(0)  # noqa: NPY002
    for severity in SEVERITIES:
        counts = [
            np.bincount(each.ravel(), minlength=256)
            for each in (ours(image, name, severity), plain(image, name, severity))
        ]
        common = np.array([each for each in np.array(counts).T if each.sum() > 20])
        assert scipy.stats.chi2_contingency(common).pvalue > 1e-3


def test_frost_is_a_weighted_sum_with_textures() -> None:
    black, white = (torch.full((200, 3, 150, 150), level, dtype=torch.uint8) for level in (0, 255))
    for severity, (image, ice) in enumerate(((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)), start=1):
        textures = corrupt(black[:20], "frost", severity, seed=0).float()
        whitened = corrupt(white[:20], "frost", severity, seed=0).float()
        assert (whitened - (textures + 255 * image).clamp(max=255)).abs().max() <= 1
        assert textures.amax() <= 255 * ice
    means = corrupt(black, "frost", 1, seed=0).float().mean((2, 3)) / 0.4
    kinds = torch.tensor([(78, 149, 166), (201, 205, 215), (138, 153, 165), (112, 123, 135)])  # two have one colour
    nearest = torch.cdist(means, kinds.float()).min(1)
    assert nearest.values.median() < 15
    counts = nearest.indices.bincount(minlength=4) / 200
    assert torch.allclose(counts, torch.tensor((0.2, 0.4, 0.2, 0.2)), atol=0.12)  # four s.d.
    assert len(torch.unique(means, dim=0)) == 200
    grey = corrupt(black[:5, :1], "frost", 1, seed=0).float()
    weights = torch.tensor((0.299, 0.587, 0.114)).view(3, 1, 1)
    assert ((corrupt(black[:5], "frost", 1, seed=0) * weights).sum(1, keepdim=True) - grey).abs().max() <= 1.5


def test_glass_takes_values_one_pixel_after_the_other() -> None:
    for glass in (Glass(0.0, 1, 1), Glass(0.0, 2, 3), Glass(0.0, 4, 2)):
        keys = image_keys(0, "glass", torch.arange(3))
        height, width, reach = 19, 23, glass.reach
        found = shuffled_sources(keys, height, width, glass)
        for image in range(3):
            state = np.arange(height * width).reshape(height, width)
            for turn in range(glass.rounds):
                draws = uniform(keys, (2, height - 2 * reach, width - 2 * reach), draw=turn)[image]
                down, right = (draws * (2 * reach)).long().numpy() - reach
                for row in range(height - reach, reach, -1):
                    for column in range(width - reach, reach, -1):
                        step = down[row - reach - 1, column - reach - 1], right[row - reach - 1, column - reach - 1]
                        state[row, column] = state[row + step[0], column + step[1]]
            assert np.array_equal(found[image].numpy(), state.ravel())


def blobs() -> Tensor:
    noise = np.random.default_rng(0).normal(size=(6, 61, 83))
    smooth = np.stack([scipy.ndimage.gaussian_filter(each, 1 + i / 2) for i, each in enumerate(noise)])
    levels = (128 + 300 * smooth).clip(0, 255) * (smooth > 0.02)
    return torch.from_numpy(np.floor(levels)).float()[:, None]


def test_the_rims_of_drops_are_opencvs() -> None:
    for liquid in blobs():
        image = liquid[0].numpy().astype(np.uint8)
        canny = cv2.Canny(image, 50, 150)
        assert 0 < (canny > 0).mean() < 0.5
        assert np.array_equal(spatter.canny_edges(liquid[None])[0, 0].numpy(), canny > 0)
        distance = np.minimum(cv2.distanceTransform(255 - canny, cv2.DIST_L2, 5), 20)
        assert (
            np.abs(spatter.edge_distances(torch.from_numpy(canny > 0)[None, None])[0, 0].numpy() - distance).max()
            < 1e-3
        )
        whole = np.floor(distance).astype(np.uint8)
        equal = spatter._equalised(torch.from_numpy(whole).float()[None, None])[0, 0].numpy()
        assert np.array_equal(equal, cv2.equalizeHist(whole))


def test_no_liquid_leaves_the_image() -> None:
    images = torch.full((2, 3, 40, 40), 77, dtype=torch.uint8)
    dry = spatter.Spatter(0.1, 0.01, 1, 0.7, 0.5, False)
    assert torch.equal(spatter.spatter(images, dry, image_keys(0, "a", torch.arange(2))), images)
    assert torch.equal(spatter.spatter(images, dry._replace(mud=True), image_keys(0, "a", torch.arange(2))), images)


def test_pixelate_is_pils_at_every_published_factor() -> None:
    images = torch.randint(0, 256, (2, 3, 97, 224), dtype=torch.uint8, generator=Generator().manual_seed(0))
    for factor in (0.95, 0.9, 0.85, 0.75, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25):
        for before, after in zip(images, digital.pixelate(images, factor, torch.zeros(2)), strict=True):
            image, box = Image.fromarray(before.permute(1, 2, 0).numpy()), Image.Resampling.BOX
            shrunk = image.resize((int(224 * factor), int(97 * factor)), box)
            assert np.array_equal(np.asarray(shrunk.resize((224, 97), box)), after.permute(1, 2, 0).numpy())
