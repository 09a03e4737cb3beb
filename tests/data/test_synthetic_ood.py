"""Outliers made of an image alone: what stays of it, and what they depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchored.data.synthetic_ood import OUTLIERS, make_ood


def images(count: int = 6, channels: int = 3, size: int = 29) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), generator=draw, dtype=torch.uint8)


def made(name: str, given: Tensor, seed: int = 0, first: int = 0) -> Tensor:
    return make_ood(given, name, seed=seed, indices=torch.arange(first, first + len(given)))


@pytest.mark.parametrize("name", OUTLIERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_alone_decides(name: str, channels: int) -> None:
    given = images(channels=channels)
    kept = given.clone()
    found = made(name, given)
    assert torch.equal(given, kept)
    assert (found.shape, found.dtype) == (given.shape, torch.uint8)
    assert torch.equal(found, torch.cat([made(name, given[:2]), made(name, given[2:], first=2)]))
    assert not torch.equal(found, given)
    assert torch.equal(found, made(name, given, seed=1)) == (name == "inverted")


@pytest.mark.parametrize("name", ["jigsaw", "scrambled"])
def test_pixels_stay_pixels(name: str) -> None:
    given = images()
    for image, other in zip(given, made(name, given), strict=True):
        before, after = (each.flatten(1).T.tolist() for each in (image, other))  # colours as triples
        assert sorted(before) == sorted(after)


def test_jigsaw_moves_whole_tiles() -> None:
    given = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).repeat_interleave(7, 2).repeat_interleave(7, 3)
    tiles = made("jigsaw", given)[0, 0].reshape(4, 7, 4, 7).permute(0, 2, 1, 3).reshape(16, 49)
    assert bool((tiles == tiles[:, :1]).all())
    assert sorted(tiles[:, 0].tolist()) == list(range(16))
    edge = images(size=30)  # 30 = 4 · 7 + 2: what is left over stays
    assert torch.equal(made("jigsaw", edge)[:, :, 28:], edge[:, :, 28:])


def test_inverted_is_its_own_inverse() -> None:
    assert torch.equal(made("inverted", made("inverted", images())), images())


def test_phase_keeps_the_level_and_the_amplitudes() -> None:
    given = (images(size=32) // 4) + 96  # little contrast: nothing is clipped
    found = made("phase", given)
    torch.testing.assert_close(found.double().mean((2, 3)), given.double().mean((2, 3)), atol=0.1, rtol=0)
    before, after = (torch.fft.rfft2(each.double()).abs() for each in (given, found))
    inner = torch.ones_like(before, dtype=torch.bool)
    inner[:, :, :, 0] = inner[:, :, :, -1] = False  # the self-conjugate columns
    assert float((before - after).abs()[inner].mean() / before[inner].mean()) < 0.1
