"""Operations on whole batches against Pillow's on one image at a time, which the policies were published with."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from anchored.data import operations
from anchored.data.preprocessing import pil_to_tensor, tensor_to_pil

IMAGES = torch.randint(0, 256, (3, 3, 17, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
IMAGES[1] = IMAGES[1] // 4 + 40  # of low contrast
IMAGES[2, :, 4:9] = 200
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST


def transformed(image: Image.Image, matrix: tuple[float, ...], how: Image.Resampling) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how)


GEOMETRY: dict[str, tuple[Any, Any, Any]] = {
    "rotate": (operations.rotate, (7.0, -23.0, 60.0), lambda i, m, how: i.rotate(m, how)),
    "shear_x": (operations.shear_x, (0.1, -0.25, 0.8), lambda i, m, how: transformed(i, (1, m, 0, 0, 1, 0), how)),
    "shear_y": (operations.shear_y, (0.1, -0.25, 0.8), lambda i, m, how: transformed(i, (1, 0, 0, m, 1, 0), how)),
    "translate_x": (operations.translate_x, (1, -3, 30), lambda i, m, how: transformed(i, (1, 0, m, 0, 1, 0), how)),
    "translate_y": (operations.translate_y, (1, -3, 30), lambda i, m, how: transformed(i, (1, 0, 0, 0, 1, m), how)),
}

COLOURS: dict[str, tuple[Any, Any, Any]] = {
    "posterize": (operations.posterize, (3, 4, 8), ImageOps.posterize),
    "solarize": (operations.solarize, (256, 100, 0), ImageOps.solarize),
    "autocontrast": (operations.autocontrast, (0, 0, 0), lambda i, m: ImageOps.autocontrast(i)),
    "equalize": (operations.equalize, (0, 0, 0), lambda i, m: ImageOps.equalize(i)),
    "brightness": (operations.adjust_brightness, (0.1, 1.4, 1.9), lambda i, m: ImageEnhance.Brightness(i).enhance(m)),
    "contrast": (operations.adjust_contrast, (0.1, 1.4, 1.9), lambda i, m: ImageEnhance.Contrast(i).enhance(m)),
    "color": (operations.adjust_color, (0.1, 1.4, 1.9), lambda i, m: ImageEnhance.Color(i).enhance(m)),
    "sharpness": (operations.adjust_sharpness, (0.1, 1.4, 1.9), lambda i, m: ImageEnhance.Sharpness(i).enhance(m)),
}


def differences(ours: Tensor, theirs: list[Image.Image]) -> Tensor:
    return (ours.int() - torch.stack([pil_to_tensor(image) for image in theirs]).int()).abs()


@pytest.mark.parametrize("name", GEOMETRY)
@pytest.mark.parametrize("nearest", [False, True])
def test_geometry_is_pillows(name: str, nearest: bool) -> None:
    operation, magnitudes, reference = GEOMETRY[name]
    found = operation(IMAGES, torch.tensor(magnitudes, dtype=torch.float32), nearest)
    pictures = [tensor_to_pil(image) for image in IMAGES]
    expected = [reference(i, m, NEAREST if nearest else BILINEAR) for i, m in zip(pictures, magnitudes, strict=True)]
    apart = differences(found, expected)
    if nearest:  # Pillow counts in 1/65536 of a pixel: at a tie it may take the other neighbour
        assert (apart > 0).float().mean() < 0.01
    else:
        assert apart.max() <= 1


@pytest.mark.parametrize("name", COLOURS)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_pillows(name: str, channels: int) -> None:
    operation, magnitudes, reference = COLOURS[name]
    images = IMAGES[:, :channels]
    found = operation(images, torch.tensor(magnitudes, dtype=torch.float32))
    pictures = [tensor_to_pil(image) for image in images]
    apart = differences(found, [reference(i, m) for i, m in zip(pictures, magnitudes, strict=True)])
    assert apart.max() <= 1
    assert np.mean(apart.numpy() > 0) < 0.02
