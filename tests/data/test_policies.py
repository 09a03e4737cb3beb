"""AugMix, TrivialAugment and PixMix on whole batches: what they draw, and what batches do with them."""

import math
from typing import Any

import pytest
import torch
from scipy import stats
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from anchored.corruptions.randomness import image_keys, uniform
from anchored.data import policies
from anchored.data.augmentation import erase, occurrence_keys
from anchored.data.batches import Batches
from anchored.data.fractals import draw_fractals
from anchored.data.image_sets import ImageSet
from anchored.data.policies import POLICIES

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=GENERATOR)
KEYS = image_keys(0, "test", torch.arange(12))
SET = ImageSet("random", IMAGES, torch.arange(12) % 4, tuple("abcd"))
IDENTITY = ((0.0,) * 3, (1 / 255,) * 3)  # normalised images are their pixels


def pixels(images: Tensor) -> Tensor:
    return images.round().to(torch.uint8)


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_drawn_follows_from_an_images_key_alone(name: str) -> None:
    together = POLICIES[name](IMAGES, KEYS)
    assert together.dtype == torch.uint8
    assert torch.equal(POLICIES[name](IMAGES[5:7], KEYS[5:7]), together[5:7])
    assert not torch.equal(POLICIES[name](IMAGES, KEYS + 1), together)
    assert POLICIES[name](IMAGES[:, :1], KEYS).shape == (12, 1, 16, 16)


def test_augmix_lies_between_the_image_and_its_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chains that end black give (1 − m) x, m uniform: the mixture's weights sum to 1."""
    black = {"black": (lambda images, _: images * 0, lambda level, side: level, False)}
    monkeypatch.setattr(policies, "_AUGMIX", black)
    white = torch.full((400, 1, 4, 4), 255, dtype=torch.uint8)
    keys = image_keys(0, "law", torch.arange(400))
    shares = policies.augmix(white, keys)[:, 0, 0, 0] / 255
    assert stats.kstest(shares.numpy(), "uniform").pvalue > 0.01
    expected = (255 * (1 - uniform(keys, (1,), 1)[:, 0])).round()
    assert torch.equal(policies.augmix(white, keys)[:, 0, 0, 0].float(), expected)


def test_augmix_chains_have_one_to_three_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation that takes 50 off: the chains' mean says how many there were, 2 on average."""
    darker = {"darker": (lambda images, _: images - 50, lambda level, side: level, False)}
    monkeypatch.setattr(policies, "_AUGMIX", darker)
    keys = image_keys(0, "depth", torch.arange(2000))
    found = policies.augmix(torch.full((2000, 1, 1, 1), 200, dtype=torch.uint8), keys)[:, 0, 0, 0].float()
    taken = (200 - found) / (50 * uniform(keys, (1,), 1)[:, 0])  # of the chains alone
    steady = uniform(keys, (1,), 1)[:, 0] > 0.5  # where rounding matters little
    assert taken[steady].mean() == pytest.approx(2.0, abs=0.05)
    assert taken[steady].min() > 0.9
    assert taken[steady].max() < 3.1


@pytest.mark.parametrize("name", ["augmix", "pixmix"])
def test_levels_are_uniform_up_to_the_authors_severity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both draw from 0.1 to 3 of 10."""
    levels: list[Tensor] = []

    def kept(images: Tensor, level: Tensor) -> Tensor:
        levels.append(level)
        return images

    monkeypatch.setattr(policies, "_AUGMIX", {"kept": (kept, lambda level, side: level, False)})
    POLICIES[name](torch.zeros(300, 1, 4, 4, dtype=torch.uint8), image_keys(0, "levels", torch.arange(300)))
    assert stats.kstest(torch.cat(levels).numpy(), "uniform", args=(0.1, 2.9)).pvalue > 0.01


def test_magnitudes_are_the_authors() -> None:
    """At the highest level and at that of severity 3, for images of 32 pixels; which operations have two sides."""
    expected = {
        "rotate": (30, 9), "shear_x": (0.3, 0.09), "shear_y": (0.3, 0.09), "translate_x": (10, 3),
        "translate_y": (10, 3), "solarize": (0, 180), "posterize": (0, 3),
    }  # fmt: skip
    for name, magnitudes in expected.items():
        found = policies._AUGMIX[name][1](torch.tensor([10.0, 3.0]), 32).tolist()
        assert found == pytest.approx(magnitudes), name
    assert policies._AUGMIX.keys() == {*expected, "autocontrast", "equalize"}
    turned = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    assert {name for name, (*_, both) in policies._AUGMIX.items() if both} == turned
    brighter = {"brightness", "color", "contrast", "sharpness"}
    assert {name for name, (*_, both) in policies._TRIVIAL.items() if both} == turned | brighter
    wide = {name: policies._TRIVIAL[name][1](torch.tensor([1.0]), 32).item() for name in turned | brighter}
    assert wide == pytest.approx(
        dict.fromkeys(brighter | {"shear_x", "shear_y"}, 0.99) | {"rotate": 135, "translate_x": 32, "translate_y": 32}
    )


def test_trivial_augment_has_31_strengths_to_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[Tensor] = []

    def kept(images: Tensor, share: Tensor) -> Tensor:
        shares.append(share)
        return images

    monkeypatch.setattr(policies, "_TRIVIAL", {"kept": (kept, lambda share, side: share, True)})
    policies.trivial_augment(torch.zeros(6200, 1, 1, 1, dtype=torch.uint8), image_keys(0, "t", torch.arange(6200)))
    found = torch.cat(shares)
    counts = torch.bincount((30 * found.abs()).round().long())
    assert len(counts) == 31
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    torch.testing.assert_close(30 * found, (30 * found).round())
    assert stats.binomtest(int((found < 0).sum()), int((found != 0).sum())).pvalue > 0.01


def test_pixmix_mixes_up_to_four_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums and products that add 10 grey levels each: none, one, … four times alike."""
    for name in ("added", "multiplied"):
        monkeypatch.setattr(policies, name, lambda images, others, a, b: images + 10 / 255)
    monkeypatch.setattr(policies, "_AUGMIX", {"kept": (lambda images, _: images, lambda level, side: level, False)})
    grey = torch.full((1000, 1, 4, 4), 100, dtype=torch.uint8)
    found = policies.pixmix(grey, image_keys(0, "rounds", torch.arange(1000)))[:, 0, 0, 0]
    counts = torch.bincount(found)
    assert counts.nonzero().flatten().tolist() == [100, 110, 120, 130, 140]
    assert stats.chisquare(counts[counts > 0].numpy()).pvalue > 0.01


def test_trivial_augment_takes_every_operation_alike() -> None:
    counts = dict.fromkeys(policies._TRIVIAL, 0)
    draws = uniform(image_keys(0, "test", torch.arange(14000)), (3,))
    for which in (draws[:, 0] * len(counts)).long().tolist():
        counts[list(counts)[which]] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 0.01
    for name, (_, magnitude, _) in policies._TRIVIAL.items():
        none, most = magnitude(torch.tensor([0.0, 1.0]), 32).tolist()
        expected = {"posterize": (8, 2), "solarize": (255, 0), "rotate": (0, 135), "translate_x": (0, 32)}
        if name in expected:
            assert (none, most) == expected[name]


def test_pixmix_sum_and_product_by_hand() -> None:
    """x = 0.75, y = 0.25, a = 0.5, b = 0.5: the sum (0.5·0.5 + 0.5·(−0.5) + 1)/2, the product (1.5·0.5)^½ / 2."""
    x, y, half = (torch.full((1, 1, 1, 1), value) for value in (0.75, 0.25, 0.5))
    assert policies.added(x, y, half, half).item() == pytest.approx(0.5)
    assert policies.multiplied(x, y, half, half).item() == pytest.approx(math.sqrt(1.5 * 0.5) / 2)
    assert policies.multiplied(x, torch.zeros_like(y), half, -half).isfinite().all()


def test_pixmix_powers_have_its_laws() -> None:
    draws = uniform(image_keys(0, "powers", torch.arange(4000)), (2,))
    near = torch.arange(4000) < 2000
    a, b = (each.flatten() for each in policies.mixing_powers(draws, near))
    for values, law in (
        (a[:2000], stats.beta(3, 1)), (b[:2000], stats.beta(1, 3)), (a[2000:] - 1, stats.beta(1, 3)),
        (-b[2000:], stats.beta(1, 3)),
    ):  # fmt: skip
        assert stats.kstest(values.numpy(), law.cdf).pvalue > 0.01


def test_pictures_to_mix_are_always_the_same_and_have_structure() -> None:
    pictures = draw_fractals(24, 3, 16)
    draw_fractals.cache_clear()
    assert torch.equal(draw_fractals(24, 3, 16), pictures)
    assert torch.equal(draw_fractals(6, 3, 16), pictures[:6])
    assert (pictures.float().std((2, 3)) > 5).float().mean() > 0.9


def test_batches_augment_by_image_and_epoch() -> None:
    plain = Batches(SET, 4, *IDENTITY)
    changed = Batches(SET, 4, *IDENTITY, policy="augmix", seed=3)
    first = torch.cat([pixels(images) for images, _ in changed])
    assert torch.equal(torch.cat([pixels(images) for images, _ in plain]), IMAGES)
    assert torch.equal(first, policies.augmix(IMAGES, image_keys(3, "policy/0", torch.arange(12))))
    changed.set_epoch(1)
    assert not torch.equal(torch.cat([pixels(images) for images, _ in changed]), first)


def test_copies_and_outliers_follow_the_batch() -> None:
    outliers = ImageSet("black", torch.zeros(5, 3, 16, 16, dtype=torch.uint8), torch.zeros(5).long(), ("none",))
    batches = Batches(SET, 4, *IDENTITY, policy="augmix", copies=2, outliers=outliers)
    images, labels = next(iter(batches))
    assert labels.tolist() == [0, 1, 2, 3]
    assert images.shape == (16, 3, 16, 16)
    assert torch.equal(pixels(images[:4]), IMAGES[:4])
    assert not torch.equal(images[4:8], images[8:12])
    assert images[12:].eq(0).all()
    made = Batches(SET, 4, *IDENTITY, outliers="inverted")
    assert torch.equal(pixels(next(iter(made))[0][4:]), 255 - IMAGES[:4])


def test_outliers_have_no_mark_of_their_own() -> None:
    """They are cropped and erased as the images are; repeats of an image make other jigsaws."""
    white = ImageSet("white", torch.full((8, 3, 32, 32), 255, dtype=torch.uint8), torch.zeros(8).long(), ("a", "b"))
    resized = Batches(white, 8, *IDENTITY, crop_padding=4, flip=True, resized_crop=True, outliers=white)
    assert pixels(next(iter(resized))[0]).eq(255).all()  # no black border
    photos = ImageSet("random", IMAGES, torch.zeros(12).long(), ("a", "b"))
    parts = Batches(photos, 4, *IDENTITY, resized_crop=True, outliers="inverted")
    images, outliers = next(iter(parts))[0].chunk(2)
    assert torch.equal(pixels(outliers), 255 - pixels(images))  # of the same random part
    erased = Batches(white, 8, *IDENTITY, policy="augmix", copies=2, outliers=white, erasing=1.0)
    marked = next(iter(erased))[0].ne(255).any(dim=1)
    assert marked.flatten(1).any(dim=1).all()
    assert all(not torch.equal(marked[:8], part) for part in torch.split(marked[8:], 8))  # each view at its own place
    repeated = Batches(SET, 4, *IDENTITY, repeats=2, outliers="jigsaw")
    first, second = next(iter(repeated))[0][4:6]
    assert torch.equal(first.sort().values.sum(), second.sort().values.sum())  # of one image
    assert not torch.equal(first, second)


def test_an_epoch_goes_on_after_the_batches_that_were_given() -> None:
    settings = {"policy": "pixmix", "copies": 2, "outliers": "phase", "erasing": 0.5, "shuffle": True, "flip": True}
    whole = [images for images, _ in Batches(SET, 4, *IDENTITY, **settings)]  # type: ignore[arg-type]
    resumed = Batches(SET, 4, *IDENTITY, **settings)  # type: ignore[arg-type]
    resumed.load_state_dict({"epoch": 0, "given": 1})
    assert all(torch.equal(one, other) for one, (other, _) in zip(whole[1:], resumed, strict=True))


def test_repeats_stand_side_by_side_and_differ() -> None:
    batches = Batches(SET, 4, *IDENTITY, policy="augmix", repeats=2, shuffle=True)
    order = batches.order()
    assert torch.equal(order[::2], order[1::2])
    assert len(set(order.tolist())) == 6  # half of the images an epoch, as timm's sampler has it
    assert len(batches) == 3
    images, _ = next(iter(batches))
    assert not torch.equal(images[0], images[1])
    shards = [Batches(SET, 2, *IDENTITY, repeats=2, shuffle=True, shard=(rank, 2)).order() for rank in (0, 1)]
    assert not set(shards[0].tolist()) & set(shards[1].tolist())


def test_keys_are_those_of_the_images_and_new_where_one_comes_again() -> None:
    chosen = torch.tensor([7, 3, 7, 7, 5])
    keys = occurrence_keys(1, "p", chosen)
    first = image_keys(1, "p", chosen)
    assert [k == f for k, f in zip(keys.tolist(), first.tolist(), strict=True)] == [True, True, False, False, True]
    assert len(set(keys.tolist())) == 5


def test_erased_rectangles_have_the_law_of_timms() -> None:
    """Shares of the area by Kolmogorov–Smirnov, ours against timm's; a share of images, one rectangle each."""
    inputs = torch.zeros(1500, 1, 32, 32)
    ours = erase(inputs, image_keys(0, "erasing", torch.arange(1500)), 1.0)
    torch.manual_seed(0)
    eraser: Any = RandomErasing
    theirs = eraser(probability=1.0, mode="pixel", device="cpu")(inputs.clone())
    shares = [(each != 0).float().mean((1, 2, 3)) for each in (ours, theirs)]
    assert stats.ks_2samp(shares[0].numpy(), shares[1].numpy()).pvalue > 0.01
    rows, columns = ((ours[0, 0] != 0).any(dim).nonzero() for dim in (1, 0))
    assert (ours[0, 0] != 0).sum() == len(rows) * len(columns)
    some = erase(inputs, image_keys(0, "erasing", torch.arange(1500)), 0.25)
    assert (some != 0).any(dim=3).any(dim=2).float().mean().item() == pytest.approx(0.25, abs=0.04)
