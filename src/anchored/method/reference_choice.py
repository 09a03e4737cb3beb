"""Which images become references: at random, balanced over classes, or a coreset of the training images.

Letters: M images to choose from, D numbers an image, K references.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from anchored.errors import UserError

Choice = Literal["random", "class_balanced", "herding", "k_centre"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


def choose_references(
    choice: Choice,
    count: int,
    *,
    labels: Tensor,
    points: Tensor | None = None,
    generator: torch.Generator,
) -> Tensor:
    """The places (K,) int64 of K different images among M.

    Args:
        choice: ``"random"``: all sets of K are as likely. ``"class_balanced"``: at random, as many of each class as
            goes; the classes that get one more are drawn too. ``"herding"``: one after another, so that the mean of
            those chosen is as near to the mean of all as can be (Welling 2009). ``"k_centre"``: the image nearest to
            the mean of all, then each time the one that is farthest from those chosen (Gonzalez 1985), so that every
            image has a reference nearby; such images are the set's odd ones.
        count: K, from 1 to M. Fewer of the same draw are its first ones.
        labels: (M,) integers; ``"class_balanced"`` needs them, the others only their number.
        points: (M,D) floats of the two coresets, whose distances they go by: pixels (input space) or a network's
            features (feature space).
        generator: of ``"random"`` and ``"class_balanced"``; the coresets draw nothing.

    Raises:
        UserError: an unknown choice, too many references, or no points where they are needed.
    """
    if choice not in CHOICES:
        raise UserError(f"references are chosen by {choice!r}: give {', '.join(CHOICES)}")
    if not 1 <= count <= len(labels):
        raise UserError(f"{count} references of {len(labels)} images: give at least 1, and no more than there are")
    if choice == "random":
        return torch.randperm(len(labels), generator=generator)[:count]
    if choice == "class_balanced":
        return _class_balanced(labels, generator)[:count]
    if points is None or points.dim() != 2 or len(points) != len(labels):
        raise UserError(f"{choice} goes by distances: give points ({len(labels)},D)")
    return _herding(points, count) if choice == "herding" else _k_centre(points, count)


def _class_balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """All places in turns: each class's next image, drawn; the classes in a drawn order."""
    shuffled = torch.randperm(len(labels), generator=generator)
    found = labels.cpu()[shuffled]
    classes = torch.unique(found)
    turn = torch.empty(len(labels), dtype=torch.int64)  # how many of its class come before
    for label in classes:
        own = found == label
        turn[own] = torch.arange(int(own.sum()))
    order_of = torch.randperm(len(classes), generator=generator)[torch.searchsorted(classes, found)]
    return shuffled[(turn * len(classes) + order_of).argsort()]


def _herding(points: Tensor, count: int) -> Tensor:
    mean, total, free = points.mean(dim=0), torch.zeros_like(points[0]), torch.ones(len(points), dtype=torch.bool)
    chosen = []
    for k in range(1, count + 1):
        distances = (mean - (total + points) / k).square().sum(dim=1)
        chosen.append(int(distances.masked_fill(~free.to(distances.device), torch.inf).argmin()))
        free[chosen[-1]] = False
        total = total + points[chosen[-1]]
    return torch.tensor(chosen)


def _k_centre(points: Tensor, count: int) -> Tensor:
    chosen = [int((points - points.mean(dim=0)).square().sum(dim=1).argmin())]
    nearest = (points - points[chosen[0]]).square().sum(dim=1)
    while len(chosen) < count:
        nearest[chosen[-1]] = -1  # not again, where images are equal
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (points - points[chosen[-1]]).square().sum(dim=1))
    return torch.tensor(chosen)
