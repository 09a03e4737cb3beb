"""imagecorruptions-imaug (the maintained port of the original code) with constants and random numbers of our choice.

The port's functions keep ImageNet-C's constants inside and draw from NumPy's global state. ``reference`` runs one with
other constants (its line of constants replaced) and with the numbers that ours drew, so that both can be compared pixel
by pixel. Where the port left the original, the original's arithmetic stands here: elastic_transform, rounding in
motion_blur, the middle of a zoom in snow, the filter that enlarges in pixelate, frost's five photographs and their
size.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest import mock

import cv2
import imagecorruptions.corruptions as port
import numpy as np
import numpy.typing as npt
import scipy.ndimage
import skimage.filters
import torch
from PIL import Image

from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.corruptions.registry import CORRUPTIONS

Pixels = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.float64]

#: Nothing in them is random.
FIXED = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
#: Random, and the port can be given our numbers.
FED = (
    "gaussian_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "fog",
    "elastic_transform",
    "spatter",
)
#: Random, and only distributions can be compared.
BY_LAW = ("shot_noise", "impulse_noise", "frost")


def reference(image: Pixels, name: str, severity: int, seed: int = 0, index: int = 0) -> Pixels:
    """The port's (H,W,3) of ``image`` (H,W,3), with our constants for its size and our random numbers."""
    constants = CORRUPTIONS[name].constants(severity, *image.shape[:2])
    keys = image_keys(seed, f"{name}/{severity}", torch.tensor([index]))
    with ExitStack() as patches:
        for target, replacement in _numbers(name, constants, keys, *image.shape[:2]).items():
            patches.enter_context(mock.patch(target, replacement))
        if name == "elastic_transform":
            return whole(_elastic(image, constants))
        found = _with_constants(name, constants)(Image.fromarray(image))
    return whole(np.asarray(found) + (0.5 if name == "motion_blur" else 0))


def plain(image: Pixels, name: str, severity: int) -> Pixels:
    """The port's, with our constants for the image's size and random numbers from NumPy's global state."""
    constants = CORRUPTIONS[name].constants(severity, *image.shape[:2])
    if name == "elastic_transform":
        return whole(_elastic(image, constants))
    with mock.patch("imagecorruptions.corruptions.clipped_zoom", _centred_zoom if name == "snow" else _port_zoom):
        return whole(np.asarray(_with_constants(name, constants)(Image.fromarray(image))))


def whole(levels: Levels) -> Pixels:
    """Fractions cut off, as the original ends."""
    return np.clip(levels, 0, 255).astype(np.uint8)


def _with_constants(name: str, constants: Any) -> Callable[[Image.Image], Any]:
    """The port's function with its line ``c = [...][severity - 1]`` replaced."""
    source = inspect.getsource(getattr(port, name)).replace("Image.NEAREST", "Image.BOX")
    source, count = re.subn(r"c = \[.*?\]\[\s*severity - 1\]", "c = CONSTANTS", source, flags=re.S)
    assert count == 1, name
    if name == "zoom_blur":
        constants = np.arange(1, *constants)
    if name == "frost":  # the original has five photographs, made smaller for small images
        source = source.replace("randint(6)", "randint(5)").replace("INTER_CUBIC", "INTER_LINEAR")
        source = source.replace("scaling_factor *= 1.1", f"scaling_factor = {constants.size}")
        constants = constants[:2]
    space = {**vars(port), "CONSTANTS": constants}
    exec(source, space)
    return space[name]  # type: ignore[no-any-return]


def _numbers(name: str, constants: Any, keys: torch.Tensor, height: int, width: int) -> dict[str, Any]:
    """What to put in place of NumPy's generators so that they give what ours gave."""

    def gaussian(noise: Levels) -> Callable[..., Levels]:
        return lambda loc=0, scale=1, size=None: loc + scale * noise

    def flat(numbers: Levels) -> Callable[..., Any]:
        rest = iter(numbers)

        def draw(low: Any, high: Any, size: Any = ()) -> Any:
            unit = np.array([next(rest) for _ in range(int(np.prod(size)))]).reshape(size)
            return low + (high - low) * unit

        return draw

    if name in ("gaussian_noise", "speckle_noise"):
        return {"numpy.random.normal": gaussian(normal(keys, (3, height, width))[0].permute(1, 2, 0).double().numpy())}
    if name == "spatter":
        return {"numpy.random.normal": gaussian(normal(keys, (1, height, width))[0, 0].double().numpy())}
    if name == "motion_blur":
        return {"numpy.random.uniform": flat(uniform(keys, (1,))[0].double().numpy())}
    if name == "fog":
        side = 1 << (max(height, width) - 1).bit_length()
        return {"numpy.random.uniform": flat(uniform(keys, (side * side,))[0].double().numpy())}
    if name == "snow":
        rows, columns = (int(np.ceil(side / constants.zoom)) for side in (height, width))
        noise, top, left = np.zeros((height, width)), (height - rows) // 2, (width - columns) // 2
        noise[top : top + rows, left : left + columns] = normal(keys, (1, rows, columns), draw=1)[0, 0]
        return {
            "imagecorruptions.corruptions.clipped_zoom": _centred_zoom,
            "numpy.random.normal": gaussian(noise),
            "numpy.random.uniform": flat(uniform(keys, (1,))[0].double().numpy()),
        }
    if name == "elastic_transform":
        corners = uniform(keys, (3, 2), draw=1)[0].double().numpy()
        field = uniform(keys, (2, height, width))[0].double().numpy()
        numbers = np.concatenate((corners.ravel(), field[1].ravel(), field[0].ravel()))
        return {"numpy.random.uniform": flat(numbers)}
    if name == "glass_blur":
        pairs = _glass_draws(keys, constants, height, width)
        shuffle = port._shuffle_pixels_njit_glass_blur.py_func
        return {
            "numpy.random.seed": lambda seed: None,
            "numpy.random.randint": lambda low, high, size: next(pairs),
            "imagecorruptions.corruptions._shuffle_pixels_njit_glass_blur": shuffle,
        }
    return {}


_port_zoom = port.clipped_zoom


def _centred_zoom(levels: Levels, factor: float) -> Levels:
    """The original's zoom: its middle, where the port keeps what is more than the image to the right and below."""
    height, width = levels.shape[:2]
    zoomed = _port_zoom(levels, factor)
    top, left = (zoomed.shape[0] - height) // 2, (zoomed.shape[1] - width) // 2
    return zoomed[top : top + height, left : left + width]  # type: ignore[no-any-return]


def _glass_draws(keys: torch.Tensor, constants: Any, height: int, width: int) -> Iterator[tuple[int, int]]:
    """(right, down) of the pixels in the order in which they come."""
    reach = constants.reach
    for turn in range(constants.rounds):
        draws = uniform(keys, (2, height - 2 * reach, width - 2 * reach), draw=turn)[0].flatten(1)
        down, right = ((draws * (2 * reach)).to(torch.int64) - reach).flip(1).tolist()
        yield from zip(right, down, strict=True)


def _elastic(image: Pixels, constants: Any) -> Levels:
    """The original's elastic transform: a random affine map, then a random field (the port has another one)."""
    height, width = image.shape[:2]
    levels: Any = image.astype(np.float32) / 255
    span, middle = min(height, width) // 3, np.array((width // 2, height // 2), dtype=np.float32)
    before = middle + np.array(((span, span), (span, -span), (-span, -span)), dtype=np.float32)
    after = before + np.random.uniform(-constants.corner, constants.corner, size=(3, 2)).astype(np.float32)  # noqa: NPY002
    matrix = cv2.getAffineTransform(before, after)
    levels = cv2.warpAffine(levels, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    across, down = (
        skimage.filters.gaussian(  # type: ignore[no-untyped-call]
            np.random.uniform(-1, 1, size=(height, width)),  # noqa: NPY002
            constants.sigma,
            mode="reflect",
            truncate=3,
        )
        * constants.strength
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    bands = [
        scipy.ndimage.map_coordinates(band, (rows + down, columns + across), order=1, mode="reflect")
        for band in np.moveaxis(levels, 2, 0)
    ]
    return np.asarray(np.stack(bands, 2).clip(0, 1) * 255)
