"""Mixup and CutMix. Images are mixed before they are anchored: a mixed image is an image like any other, and its
reference, drawn from the mixed batch, is one too.
"""

import math

import numpy as np
from torch import Tensor


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    mixup: float,
    cutmix: float,
    generator: np.random.Generator,
    repeats: int = 1,
) -> tuple[Tensor, Tensor]:
    """Each image (B,C,H,W) mixed with its neighbour in the batch, and its target probabilities (B,N) likewise.

    The neighbour is ``repeats`` places away, as many as an image has side by side, so that it is another image.

    Mixup (arXiv 1710.09412): ``λ x + (1 − λ) x'``, λ from Beta(mixup, mixup). CutMix (arXiv 1905.04899): a box of area
    1 − λ, λ from Beta(cutmix, cutmix), is taken from the neighbour, cut off at the border; λ is then the share that is
    left. One λ and one box a batch; where both are above 0, one of the two at evens.
    """
    if mixup == cutmix == 0:
        return images, targets
    cut = generator.random() < 0.5 if mixup and cutmix else cutmix > 0
    alpha = cutmix if cut else mixup
    kept = float(generator.beta(alpha, alpha))
    others = images.roll(repeats, dims=0)
    if cut:
        height, width = images.shape[-2:]
        half = math.sqrt(1 - kept) / 2
        y, x = generator.random(2)
        top, bottom = (round(height * min(max(edge, 0), 1)) for edge in (y - half, y + half))
        left, right = (round(width * min(max(edge, 0), 1)) for edge in (x - half, x + half))
        images = images.clone()
        images[..., top:bottom, left:right] = others[..., top:bottom, left:right]
        kept = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = kept * images + (1 - kept) * others
    return images, kept * targets + (1 - kept) * targets.roll(repeats, dims=0)
