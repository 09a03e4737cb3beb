"""Mixup and CutMix: hand cases. That mixing comes before anchoring: test_losses.py."""

import numpy as np
import pytest
import torch

from anchored import anchor
from anchored.models import registry as networks
from anchored.training.mixup import mix

IMAGES = torch.arange(4 * 3 * 8 * 8, dtype=torch.float32).view(4, 3, 8, 8)
TARGETS = torch.eye(4)


class Drawn(np.random.Generator):
    """A generator that draws what it was told to."""

    def __init__(self, kept: float, *uniform: float) -> None:
        super().__init__(np.random.PCG64(0))
        self.kept, self.left = kept, list(uniform)

    def beta(self, a: float, b: float) -> float:  # type: ignore[override]
        return self.kept

    def random(self, size: int | None = None) -> object:  # type: ignore[override]
        return self.left.pop(0) if size is None else [self.left.pop(0) for _ in range(size)]


def test_without_either_nothing_changes() -> None:
    images, targets = mix(IMAGES, TARGETS, mixup=0, cutmix=0, generator=Drawn(0.5))
    assert images is IMAGES
    assert targets is TARGETS


def test_mixup_is_a_weighted_mean_with_the_neighbour() -> None:
    images, targets = mix(IMAGES, TARGETS, mixup=0.2, cutmix=0, generator=Drawn(0.75))
    assert torch.allclose(images[1], 0.75 * IMAGES[1] + 0.25 * IMAGES[0])
    assert targets[1].tolist() == [0.25, 0.75, 0, 0]


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_repeated_images_are_mixed_with_others(kind: str) -> None:
    """Two views each of four images, side by side: none is mixed with the other view of itself."""
    views, targets = (each.repeat_interleave(2, dim=0) for each in (IMAGES, TARGETS))
    drawn = Drawn(0.75, 0.5, 0.5)
    mixed, soft = mix(views, targets, mixup=kind == "mixup", cutmix=kind == "cutmix", generator=drawn, repeats=2)
    assert soft[:, :4].topk(2).values.tolist() == [[0.75, 0.25]] * 8
    assert soft.tolist()[::2] == soft.tolist()[1::2]
    alone, _ = mix(IMAGES, TARGETS, mixup=kind == "mixup", cutmix=kind == "cutmix", generator=Drawn(0.75, 0.5, 0.5))
    assert torch.equal(mixed, alone.repeat_interleave(2, dim=0))


@pytest.mark.parametrize(
    ("kept", "centre", "box", "share"),
    [
        (0.75, (0.5, 0.5), (2, 6, 2, 6), 0.75),  # a box of half the height and width
        (0.75, (0.0, 0.5), (0, 2, 2, 6), 0.875),  # cut off at the border: more of the image is left
        (0.0, (0.5, 0.5), (0, 8, 0, 8), 0.0),  # all
        (1.0, (0.3, 0.7), (0, 0, 0, 0), 1.0),  # none
    ],
)
def test_cutmix_takes_a_box_and_its_share_of_the_target(
    kept: float, centre: tuple[float, float], box: tuple[int, int, int, int], share: float
) -> None:
    images, targets = mix(IMAGES, TARGETS, mixup=0, cutmix=1, generator=Drawn(kept, *centre))
    top, bottom, left, right = box
    expected = IMAGES.clone()
    expected[:, :, top:bottom, left:right] = IMAGES.roll(1, 0)[:, :, top:bottom, left:right]
    assert torch.equal(images, expected)
    assert targets[2].tolist() == pytest.approx([0, 1 - share, share, 0])


def test_with_both_each_batch_takes_one_of_the_two() -> None:
    generator = np.random.default_rng(0)
    cut = 0
    for _ in range(200):
        images, targets = mix(IMAGES, TARGETS, mixup=1, cutmix=1, generator=generator)
        values = set(IMAGES[:2, 0].flatten().tolist())
        cut += set(images[1, 0].flatten().tolist()) <= values
        assert targets.sum(dim=1).tolist() == pytest.approx([1] * 4)
    assert 70 < cut < 130


def test_targets_of_masked_mixed_images() -> None:
    """Soft targets pass through; with uniform masked targets, masked pairs become uniform."""
    soft = torch.tensor([[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]])
    network = networks.build_network("small", channels=3, classes=2, seed=0)
    assert anchor(network, 0.5).targets(soft, 2) is soft
    model = anchor(network, 0.5, masked_target="uniform")
    model.masked = torch.tensor([False, True, True])
    assert model.targets(soft, 2).tolist() == [[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]
