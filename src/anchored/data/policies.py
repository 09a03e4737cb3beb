"""Augmentation policies on whole batches: AugMix, TrivialAugment, PixMix. What each draws follows from its key alone.

Legend: B batch, C image channels, H×W image size.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from anchored.corruptions.randomness import uniform
from anchored.corruptions.tables import kept_tables
from anchored.data import operations
from anchored.data.fractals import draw_fractals
from anchored.data.operations import Operation
from anchored.method.devices import to_device

PICTURES = 512
"""Pictures that PixMix mixes with."""

_WIDTH, _DEPTH = 3, 3  # AugMix: chains, and operations in a chain at most
_SEVERITY = 3.0  # of AugMix and PixMix: levels are uniform from 0.1 to this, of 10
_ROUNDS, _BETA = 4, 3  # PixMix: mixings at most, and how far they go from the image
_BINS = 31  # TrivialAugment's magnitudes

# AugMix's operations: none that the corruptions C have. A level in [0, 10] and the image's side -> magnitude.
_AUGMIX: dict[str, tuple[Operation, Callable[[Tensor, int], Tensor], bool]] = {  # last: to both sides
    "autocontrast": (operations.autocontrast, lambda level, side: level, False),
    "equalize": (operations.equalize, lambda level, side: level, False),
    "posterize": (operations.posterize, lambda level, side: 4 - (level * 4 / 10).floor(), False),
    "rotate": (operations.rotate, lambda level, side: (level * 30 / 10).floor(), True),
    "solarize": (operations.solarize, lambda level, side: 256 - (level * 256 / 10).floor(), False),
    "shear_x": (operations.shear_x, lambda level, side: level * 0.3 / 10, True),
    "shear_y": (operations.shear_y, lambda level, side: level * 0.3 / 10, True),
    "translate_x": (operations.translate_x, lambda level, side: (level * (side / 3) / 10).floor(), True),
    "translate_y": (operations.translate_y, lambda level, side: (level * (side / 3) / 10).floor(), True),
}

# TrivialAugment's wide space: a share in [0, 1] of the strongest -> magnitude.
_TRIVIAL: dict[str, tuple[Operation, Callable[[Tensor, int], Tensor], bool]] = {
    "identity": (lambda images, _: images, lambda share, side: share, False),
    "shear_x": (partial(operations.shear_x, nearest=True), lambda share, side: 0.99 * share, True),
    "shear_y": (partial(operations.shear_y, nearest=True), lambda share, side: 0.99 * share, True),
    "translate_x": (partial(operations.translate_x, nearest=True), lambda share, side: (32 * share).floor(), True),
    "translate_y": (partial(operations.translate_y, nearest=True), lambda share, side: (32 * share).floor(), True),
    "rotate": (partial(operations.rotate, nearest=True), lambda share, side: 135 * share, True),
    "brightness": (
        lambda images, m: operations.adjust_brightness(images, 1 + m),
        lambda share, side: 0.99 * share,
        True,
    ),
    "color": (lambda images, m: operations.adjust_color(images, 1 + m), lambda share, side: 0.99 * share, True),
    "contrast": (lambda images, m: operations.adjust_contrast(images, 1 + m), lambda share, side: 0.99 * share, True),
    "sharpness": (lambda images, m: operations.adjust_sharpness(images, 1 + m), lambda share, side: 0.99 * share, True),
    "posterize": (operations.posterize, lambda share, side: 8 - (6 * share).round(), False),
    "solarize": (operations.solarize, lambda share, side: 255 * (1 - share), False),
    "autocontrast": (operations.autocontrast, lambda share, side: share, False),
    "equalize": (operations.equalize, lambda share, side: share, False),
}


_pictures = kept_tables(4)(draw_fractals)


def _operated(
    images: Tensor, draws: Tensor, space: Mapping[str, tuple[Operation, Callable[[Tensor, int], Tensor], bool]]
) -> Tensor:
    """One operation of a space on each image, drawn, with its side, by ``draws`` (B,3): which, strength, side.

    Draws are on the CPU: on a GPU, finding which images an operation is for would wait for it.
    """
    which = (draws[:, 0] * len(space)).long()
    outputs = images.clone()
    for number, (operation, magnitude, both) in enumerate(space.values()):
        where = (which == number).nonzero().squeeze(1)
        if len(where):
            values = magnitude(draws[where, 1], images.shape[-1])
            values = torch.where(draws[where, 2] > 0.5, -values, values) if both else values
            places, values = _moved(images.device, where, values)
            outputs.index_copy_(0, places, operation(images.index_select(0, places), values))
    return outputs


def _moved(device: torch.device, *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(to_device(each, device) for each in values)


def _levels(draws: Tensor) -> Tensor:
    """Draws (B,3) in (0, 1), their strengths made levels from 0.1 to the severity."""
    return torch.stack([draws[:, 0], 0.1 + (_SEVERITY - 0.1) * draws[:, 1], draws[:, 2]], 1)


def augmix(images: Tensor, keys: Tensor) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 as AugMix makes them (arXiv 1912.02781), for ``keys`` (B,).

    Three chains of one to three operations, mixed by a Dirichlet(1, 1, 1) law, then with the image by a uniform share
    (its Beta(1, 1)). Chains are uint8 as in the authors' code; their mixture is rounded, which theirs is not.
    """
    keys = keys.cpu()
    draws = uniform(keys, (_WIDTH, 1 + 3 * _DEPTH + 1))
    depth = (draws[..., 0] * _DEPTH).long() + 1  # (B,W)
    weights = -draws[..., -1].log()
    weights = weights / weights.sum(1, keepdim=True)
    weights, share = _moved(images.device, weights, uniform(keys, (1,), 1).view(-1, 1, 1, 1))
    chains = images[:, None].expand(-1, _WIDTH, -1, -1, -1).flatten(0, 1)
    for i in range(_DEPTH):
        longer = (depth > i).flatten().nonzero().squeeze(1)
        chosen = draws[..., 1 + 3 * i : 4 + 3 * i].flatten(0, 1)[longer]
        places = to_device(longer, images.device)
        chains = chains.index_copy(0, places, _operated(chains.index_select(0, places), _levels(chosen), _AUGMIX))
    mixture = (chains.view(len(images), _WIDTH, *images.shape[1:]) * weights[..., None, None, None]).sum(1)
    return torch.lerp(images.float(), mixture, share).round_().clamp_(0, 255).to(torch.uint8)


def trivial_augment(images: Tensor, keys: Tensor) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 under one operation of the wide space each (arXiv 2103.10158), of 31 strengths,
    for ``keys`` (B,)."""
    draws = uniform(keys.cpu(), (3,))
    draws[:, 1] = (draws[:, 1] * _BINS).floor() / (_BINS - 1)
    return _operated(images, draws, _TRIVIAL)


def pixmix(images: Tensor, keys: Tensor) -> Tensor:
    """Return ``images`` (B,C,H,W) uint8 as PixMix makes them (arXiv 2112.05135), for ``keys`` (B,).

    Zero to four times mixed, by a sum or a product with random powers, with a picture (``draw_fractals``, turned at
    random) or with the image itself under one of AugMix's operations; begun from such a copy at evens.
    """
    keys, pictures = keys.cpu(), _pictures(images.device, PICTURES, images.shape[1], images.shape[-1])
    copies = images[:, None].expand(-1, 1 + _ROUNDS, -1, -1, -1).flatten(0, 1)
    chosen = _levels(uniform(keys, (1 + _ROUNDS, 3), 1).flatten(0, 1))
    copies = _operated(copies, chosen, _AUGMIX).view(len(images), 1 + _ROUNDS, *images.shape[1:]).float() / 255
    kinds = uniform(keys, (_ROUNDS + 1, 3), 2)  # of each round: with what, sum or product, powers
    draws, kinds, powers = _moved(images.device, uniform(keys, (4,)), kinds, uniform(keys, (_ROUNDS, 2), 3))
    picture = pictures[(draws[:, 0] * PICTURES).long()]
    for axis, turned in ((2, draws[:, 1]), (3, draws[:, 2])):
        picture = torch.where(turned.view(-1, 1, 1, 1) < 0.5, picture.flip(axis), picture)
    picture = picture.float() / 255
    mixed = torch.where(kinds[:, _ROUNDS, 0].view(-1, 1, 1, 1) < 0.5, copies[:, _ROUNDS], images.float() / 255)
    rounds = (draws[:, 3] * (_ROUNDS + 1)).long().view(-1, 1, 1, 1)
    for i in range(_ROUNDS):
        partner, product, near = (kinds[:, i, k].view(-1, 1, 1, 1) < 0.5 for k in range(3))
        other = torch.where(partner, copies[:, i], picture)
        a, b = mixing_powers(powers[:, i], near.flatten())
        result = torch.where(product, multiplied(mixed, other, a, b), added(mixed, other, a, b)).clamp(0, 1)
        mixed = torch.where(i < rounds, result, mixed)
    return (mixed * 255).round_().to(torch.uint8)


def mixing_powers(draws: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """PixMix's weights a and b (B,1,1,1) of draws (B,2) in (0, 1): where ``near`` (B,) a ~ Beta(3, 1), b ~ Beta(1, 3),
    elsewhere 1 + Beta(1, 3) and −Beta(1, 3)."""
    high, low = draws[:, 0] ** (1 / _BETA), 1 - (1 - draws) ** (1 / _BETA)  # inverses of the laws' distributions
    a = torch.where(near, high, 1 + low[:, 0])
    b = torch.where(near, low[:, 1], -low[:, 1])
    return a.view(-1, 1, 1, 1), b.view(-1, 1, 1, 1)


def added(images: Tensor, others: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """PixMix's sum of images in [0, 1], about mid-grey: a·x + b·y on the scale [−1, 1]."""
    return (a * (2 * images - 1) + b * (2 * others - 1) + 1) / 2


def multiplied(images: Tensor, others: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """PixMix's product of images in [0, 1]: xᵃ·yᵇ on the scale [0, 2]; y kept from 0, whose negative power is none."""
    return (2 * images) ** a * (2 * others).clamp(min=1e-37) ** b / 2


POLICIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "augmix": augmix, "trivial_augment": trivial_augment, "pixmix": pixmix,
}  # fmt: skip
"""Name, as in ``train.policy`` -> images and keys to images; those that work on whole batches."""
