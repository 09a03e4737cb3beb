"""Time of AugMix and TrivialAugment on whole batches, ours, beside torchvision's on one image at a time.

``python benchmarks/policies.py`` prints milliseconds of processor time for 128 colour images of 32 × 32 pixels, the
median of five. PixMix has no counterpart in torchvision.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import v2

from anchored.corruptions.randomness import image_keys
from anchored.data.policies import POLICIES

IMAGES, SIZE, REPEATS = 128, 32, 5


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    spent = []
    for _ in range(REPEATS + 1):
        began = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - began))
    return statistics.median(spent[1:])


def one_by_one(transform: Callable[[Tensor], Tensor], images: Tensor) -> list[Tensor]:
    """Each image (C,H,W) by itself."""
    return [transform(image) for image in images]


def main() -> None:
    """Print the times."""
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), dtype=torch.uint8)
    keys = image_keys(0, "benchmark", torch.arange(IMAGES))
    theirs = {"augmix": v2.AugMix(), "trivial_augment": v2.TrivialAugmentWide()}
    for name, policy in POLICIES.items():
        ours = timed(partial(policy, images, keys))
        other = timed(partial(one_by_one, theirs[name], images)) if name in theirs else None
        print(f"{name}: {ours:.0f} ms" + (f", torchvision {other:.0f} ms" if other else ""))


if __name__ == "__main__":
    main()
