"""One corruption as a row of a table, and the rule that fits its published constants to an image's size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Severities = tuple[Any, ...]  # a corruption's constants at severities 1 to 5

SMALL, LARGE = 32, 224  # px, the sizes for which constants were published: CIFAR's and ImageNet's
_AT_ONCE = {"cpu": 1 << 17}  # values handled at a time: what fits a core's cache; elsewhere ...
_AT_ONCE_ELSEWHERE = 1 << 26  # ... what keeps a GPU busy
_NEAR = 1.5  # sides within this ratio of a published size get its constants as they are


@dataclass(frozen=True)
class Corruption:
    """One corruption.

    ``function(images, constants, keys)``: images (B,C,H,W) uint8, C 1 or 3; the constants of one severity; one random
    key per image, int64 (B,). It returns uint8 of the same shape and leaves ``images`` alone.
    ``small``, ``large``: the constants published for 32 × 32 and for 224 × 224 images, or None where none were.
    ``families``: the families it belongs to: "c" (all 19 common ones), "c15" (without the four extra ones), "c-bar".
    ``scaled(constants, scale)``: the constants with their lengths in pixels multiplied by ``scale``.
    ``margin(constants)``: an image must have more pixels than this per side. Both are by default the method of that
    name of the constants' class; without one nothing is scaled, and an image may have any size.
    ``grouped``: how many times :func:`at_once` images are handled at a time, for functions of so many small steps that
    more images a step count more than the cache.
    ``colour_only``: it leaves grey images as they are.
    """

    group: str
    function: Callable[[Tensor, Any, Tensor], Tensor]
    small: Severities | None
    large: Severities | None
    families: tuple[str, ...] = ("c", "c15")
    scaled: Callable[[Any, float], Any] = lambda of, scale: of.scaled(scale) if hasattr(of, "scaled") else of
    margin: Callable[[Any], int] = lambda of: of.margin() if hasattr(of, "margin") else 0
    grouped: int = 1
    colour_only: bool = False

    @property
    def name(self) -> str:
        """The corruption's name: its function's."""
        return self.function.__name__

    def constants(self, severity: int, height: int, width: int) -> Any:
        """Return the constants of ``severity`` (1 to 5) for images of this size.

        The shorter side decides. The set is the one published for the nearer size in ratio: below 85 px that of 32,
        else that of 224 (a corruption with one set has no choice). Sides within a factor 1.5 of the published one (22
        to 48 px, 150 to 336 px) get the constants as published, as 299 px images do in the original. For others the
        lengths in pixels are multiplied by side / 32 or side / 224. Strengths, shares and counts never change.
        """
        side = min(height, width)
        published, severities = LARGE, self.large
        if severities is None or (self.small is not None and published_size(side) == SMALL):
            published, severities = SMALL, self.small
        assert severities is not None, f"{self.name} has no constants"
        constants, scale = severities[severity - 1], side / published
        return constants if 1 / _NEAR <= scale <= _NEAR else self.scaled(constants, scale)


def published_size(side: int) -> int:
    """Return the published size, 32 or 224 px, nearer in ratio to ``side``."""
    return SMALL if side * side < SMALL * LARGE else LARGE


def at_once(images: Tensor) -> int:
    """Return how many of ``images`` (B,C,H,W), B at least 1, are best handled at a time."""
    return max(1, _AT_ONCE.get(images.device.type, _AT_ONCE_ELSEWHERE) // images[0].numel())
