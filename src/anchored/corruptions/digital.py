"""Digital corruptions. Images and constants as in ``common.py``, which states the source."""

import io
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from anchored.corruptions.pixels import gaussian_filter, truncate_levels
from anchored.corruptions.randomness import uniform
from anchored.corruptions.tables import kept_tables
from anchored.method.devices import to_device


def contrast(images: Tensor, factor: float, keys: Tensor) -> Tensor:
    """(x − m) · factor + m, m the mean of each image's channel. Nothing random."""
    levels = images.to(torch.float32)
    means = levels.mean((2, 3), keepdim=True)
    return truncate_levels(levels.mul_(factor).add_(means, alpha=1 - factor))


class Saturation(NamedTuple):
    """Constants of :func:`saturate`."""

    factor: float
    shift: float


def saturate(images: Tensor, saturation: Saturation, keys: Tensor) -> Tensor:
    """Set the saturation S of HSV to S' = S · factor + shift, clipped to [0, 1]; hue and value stay. Nothing random.

    With V = max(R, G, B) and D = V − min(R, G, B): R' = V · (1 − S' · (V − R) / D), likewise G and B. A grey pixel of a
    colour image has hue 0, red, so that a shift tints it. Grey images stay as they are: they have no saturation.
    """
    if images.shape[1] == 1:
        return images.clone()
    levels = images.to(torch.float32)
    low, value = levels.aminmax(dim=1, keepdim=True)
    chroma = value - low
    saturated = (chroma / value.clamp(min=1)).mul_(saturation.factor).add_(saturation.shift).clamp_(0, 1).mul_(value)
    away = (value - levels).div_(chroma.clamp(min=1))
    away[:, 1:] += (1 - chroma).clamp_(min=0)
    return truncate_levels(away.mul_(saturated).sub_(value).neg_())


@kept_tables(64)
def _boxes(size: int, small: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return how PIL's BOX filter takes ``size`` px to ``small`` and back: boxes, shares and places.

    Boxes int64 (K, small): the pixels of each box; ``size`` where it has fewer than K. Shares float32 (small, 1): 1 /
    their number. Places int64 (size,): the box in which each pixel lies.
    """
    scale = size / small
    rows = []
    for place in range(small):
        center = (place + 0.5) * scale
        low, high = max(0, int(center - scale / 2 + 0.5)), min(size, int(center + scale / 2 + 0.5))
        rows.append([i for i in range(low, high) if -0.5 < (i - center + 0.5) / scale <= 0.5])
    longest = max(map(len, rows))
    boxes = torch.tensor([row + [size] * (longest - len(row)) for row in rows]).T.contiguous()
    places = (torch.arange(size) * 2 + 1).mul_(small).div_(2 * size, rounding_mode="floor")
    return boxes, torch.tensor([[1 / len(row)] for row in rows]), places


def _blocks(images: Tensor, small: int) -> Tensor:
    """Average the rows of uint8 (B,C,H,W) in ``small`` boxes, round, and repeat them: uint8 (B,C,H,W)."""
    if small == images.shape[2]:
        return images
    boxes, shares, places = _boxes(images.device, images.shape[2], small)
    padded = F.pad(images, (0, 0, 0, 1))
    total = padded.index_select(2, boxes[0]).to(torch.int16)
    for box in boxes[1:]:
        total += padded.index_select(2, box)
    mean = total.to(torch.float32).mul_(shares).add_(0.5)
    return mean.to(torch.int16).to(torch.uint8).index_select(2, places)


def pixelate(images: Tensor, factor: float, keys: Tensor) -> Tensor:
    """Shrink to int(factor · side) px and enlarge again, both with PIL's BOX filter (averages of areas).

    Nothing random. Columns are averaged first, rounded, then rows; enlarging with this filter repeats pixels. The same
    as PIL's to the bit, for whole batches.
    """
    height, width = images.shape[2:]
    turned = _blocks(images.transpose(2, 3).contiguous(), int(width * factor))
    return _blocks(turned.transpose(2, 3).contiguous(), int(height * factor))


def jpeg_compression(images: Tensor, quality: int, keys: Tensor) -> Tensor:
    """Compress to JPEG of ``quality`` (0 to 100) and decompress, by PIL on the CPU. Nothing random."""
    mode, size = "RGB" if images.shape[1] == 3 else "L", (images.shape[3], images.shape[2])
    compressed = images.cpu().numpy().copy()
    for planes in compressed:
        bands = [Image.frombuffer("L", size, plane, "raw", "L", 0, 1) for plane in planes]
        file = io.BytesIO()
        Image.merge(mode, bands).save(file, "JPEG", quality=quality)
        image = Image.frombytes(mode, size, file.getbuffer(), "jpeg", mode, "")
        for band, plane in zip(mode, planes, strict=True):  # a band at a time is faster than an array of RGB pixels
            plane.data.cast("B")[:] = image.tobytes("raw", band)
    return to_device(torch.from_numpy(compressed), images.device)


class Elastic(NamedTuple):
    """Constants of :func:`elastic_transform`, px."""

    strength: float
    sigma: float
    corner: float

    def scaled(self, scale: float) -> "Elastic":
        """Return the constants for an image ``scale`` times as large; smoothing more takes some of the strength."""
        return Elastic(self.strength * scale**2, self.sigma * scale, self.corner * scale)


def elastic_transform(images: Tensor, elastic: Elastic, keys: Tensor) -> Tensor:
    """Map the image by a random affine map, then move every pixel by a smooth random field.

    The affine map takes three points, a third of the side from the middle, to themselves plus uniform(−corner, corner)
    in both coordinates. The field, for rows and for columns: uniform(−1, 1) for each pixel, smoothed by a Gaussian of
    s.d. sigma, cut at 3 s.d., times ``strength``. Both read linearly between pixels; the affine map mirrors the image
    at its border pixels, the field beside them. ``cv2.warpAffine`` reads at multiples of 1/32 px, here there is no such
    grid.
    """
    height, width = images.shape[2:]
    levels = _read(images.to(torch.float32), *_affine(keys, height, width, elastic.corner), on_border=True)
    if elastic.strength:
        noise = uniform(keys, (2, height, width)).mul_(2).sub_(1)
        field = gaussian_filter(noise, elastic.sigma, 3.0, "mirror").mul_(elastic.strength)
        rows = torch.arange(height, dtype=torch.float32, device=keys.device)[:, None] + field[:, 0]
        columns = torch.arange(width, dtype=torch.float32, device=keys.device) + field[:, 1]
        levels = _read(levels, rows, columns, on_border=False)
    return truncate_levels(levels)


def _affine(keys: Tensor, height: int, width: int, corner: float) -> tuple[Tensor, Tensor]:
    """Return the rows and columns, float32 (B,H,W), where the random affine map reads each pixel."""
    shift = uniform(keys, (3, 2), draw=1).to(torch.float64).sub_(0.5).mul_(2 * corner)  # three points, (x, y) each
    span = min(height, width) // 3
    left, top = width // 2 - span, height // 2 - span
    # The points are middle + (span, span), + (span, −span) and + (−span, −span): two edges give the linear part.
    (a, c), (b, d) = ((shift[:, i] - shift[:, i + 1]).div_(2 * span).unbind(1) for i in (1, 0))
    a, d = a + 1, d + 1
    x0, y0 = left + shift[:, 2, 0], top + shift[:, 2, 1]  # where the third point goes
    determinant = a * d - b * c
    x = torch.arange(width, dtype=torch.float64, device=keys.device) - x0[:, None, None]
    y = torch.arange(height, dtype=torch.float64, device=keys.device)[:, None] - y0[:, None, None]
    a, b, c, d = (each[:, None, None] / determinant[:, None, None] for each in (a, b, c, d))
    columns, rows = d * x - b * y + left, a * y - c * x + top
    return rows.to(torch.float32), columns.to(torch.float32)


def _read(levels: Tensor, rows: Tensor, columns: Tensor, on_border: bool) -> Tensor:
    """Read float32 (B,C,H,W) linearly at ``rows`` and ``columns`` (B,H,W), px; mirrored on or beside the border."""
    height, width = levels.shape[2:]
    add, span = (0.0, -1) if on_border else (0.5, 0)
    x = (columns + add).mul_(2 / max(1, width + span)).sub_(1)
    y = (rows + add).mul_(2 / max(1, height + span)).sub_(1)
    grid = torch.view_as_real(torch.complex(x, y))  # a fast way to stack them
    return F.grid_sample(levels, grid, mode="bilinear", padding_mode="reflection", align_corners=on_border)
