"""What JPEG compression does to images, with tensors: no file is made, and the pixels are libjpeg's to the bit.

Coding the coefficients loses nothing and is left out. The rest is libjpeg's default arithmetic in whole numbers, facts
from its sources (files ``jccolor``, ``jcsample``, ``jfdctint``, ``jcdctmgr``, ``jidctint``, ``jdsample``, ``jdcolor``
of IJG's release 6b): YCbCr; chroma at half the height and width; blocks of 8 × 8, their last rows and columns repeated
at an image's border; a cosine transform in two steps; division by a table of quality, rounded; all of it back, chroma
interpolated linearly.
"""

from __future__ import annotations

import functools
import io

import torch
from PIL import Image
from torch import Tensor

# 2**13 · √8 times the transform's coefficients: of sums of opposite pixels, and of their differences.
_EVEN = ((10703, 4433), (4433, -10704))  # coefficients 2 and 6; 0 and 4 are 8192 · (sum or difference)
_ODD = (
    (11363, 9633, 6437, 2260),
    (9633, -2259, -11362, -6436),
    (6437, -11362, 2261, 9633),
    (2260, -6436, 9633, -11363),
)
_Weights = tuple[int, int, int]  # of 65,536
_LUMA: _Weights = (19595, 38470, 7471)
_CHROMA: tuple[_Weights, _Weights] = (-11059, -21709, 32768), (32768, -27439, -5329)


def compressed(images: Tensor, quality: int) -> Tensor:
    """Return uint8 (B,C,H,W), C 1 or 3, after JPEG compression at ``quality`` (0 to 100) and decompression."""
    height, width = images.shape[2:]
    levels = images.to(torch.int32)
    if images.shape[1] == 1:
        (luma,) = _through_blocks([levels[:, 0]], quality)
        return luma[:, None].to(torch.uint8)
    halves = [_halved(_mixed(levels, weights, (128 << 16) + 32767)) for weights in _CHROMA]
    luma, *halves = _through_blocks([_mixed(levels, _LUMA, 32768), *halves], quality)
    halves = [half[..., : -(-width // 2)] for half in halves]  # beyond, the last column was repeated
    blue, red = (_doubled(half)[:, :height, :width] - 128 for half in halves)
    green = (blue * -22554).add_(red, alpha=-46802)
    parts = [part.add_(32768).bitwise_right_shift_(16) for part in (red * 91881, green, blue * 116130)]
    return torch.stack([part.add_(luma) for part in parts], 1).clamp_(0, 255).to(torch.uint8)


def _mixed(levels: Tensor, weights: _Weights, more: int) -> Tensor:
    """Return the weighted sum (B,H,W) of int32 R, G and B (B,3,H,W), plus ``more``, by 65,536."""
    red, green, blue = levels.unbind(1)
    total = (red * weights[0]).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2])
    return total.add_(more).bitwise_right_shift_(16)


def _padded(plane: Tensor, height: int, width: int) -> Tensor:
    """Return (B,height,width), last rows and columns repeated."""
    rows, columns = height - plane.shape[1], width - plane.shape[2]
    plane = torch.cat((plane, plane[:, :, -1:].expand(-1, -1, columns)), 2) if columns else plane
    return torch.cat((plane, plane[:, -1:].expand(-1, rows, -1)), 1) if rows else plane


def _halved(plane: Tensor) -> Tensor:
    """Return the means of 2 × 2 px, int32 (B,⌈H/2⌉,8·⌈W/16⌉), halves rounded down and up in turn."""
    plane = _padded(plane, plane.shape[1] + plane.shape[1] % 2, -(-plane.shape[2] // 16) * 16)
    rows = plane[:, ::2] + plane[:, 1::2]
    total = rows[..., ::2] + rows[..., 1::2]
    total[..., ::2] += 1
    total[..., 1::2] += 2
    return total.bitwise_right_shift_(2)


def _doubled(plane: Tensor) -> Tensor:
    """Return int32 (B,2H,2W), three parts of the pixel and one of its nearest neighbour in both directions."""
    if plane.shape[2] <= 2:  # libjpeg repeats pixels here
        return plane.repeat_interleave(2, 1).repeat_interleave(2, 2)
    above = torch.cat((plane[:, :1], plane[:, :-1]), 1)
    below = torch.cat((plane[:, 1:], plane[:, -1:]), 1)
    rows = torch.stack((above.add_(plane, alpha=3), below.add_(plane, alpha=3)), 2).flatten(1, 2)
    before = torch.cat((rows[..., :1], rows[..., :-1]), 2).add_(rows, alpha=3).add_(8)
    after = torch.cat((rows[..., 1:], rows[..., -1:]), 2).add_(rows, alpha=3).add_(7)
    return torch.stack((before, after), -1).flatten(2).bitwise_right_shift_(4)


@functools.lru_cache(maxsize=64)
def _tables(quality: int) -> tuple[Tensor, Tensor]:
    """Return the divisors of luma and chroma coefficients, int32 (8,8,1), as PIL chooses them."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    found = Image.open(file).quantization  # type: ignore[attr-defined]
    luma, chroma = (torch.tensor(found[place], dtype=torch.int32).view(8, 8, 1) for place in (0, 1))
    return luma, chroma


def _through_blocks(planes: list[Tensor], quality: int) -> list[Tensor]:
    """Return int32 planes (B,H,W), luma first, after transform, division and the way back.

    The blocks of all planes are worked on together, as (row, column, block), each value's block last.
    """
    whole = [_padded(plane - 128, *(-(-side // 8) * 8 for side in plane.shape[1:])) for plane in planes]
    forms = [(len(plane), plane.shape[1] // 8, plane.shape[2] // 8) for plane in whole]
    blocks = torch.cat(
        [
            plane.view(count, rows, 8, columns, 8).permute(2, 4, 0, 1, 3).reshape(8, 8, -1)
            for plane, (count, rows, columns) in zip(whole, forms, strict=True)
        ],
        2,
    )
    steps = _forward(_forward(blocks.transpose(0, 1), 11).transpose(0, 1), 15)
    sizes = [count * rows * columns for count, rows, columns in forms]
    for number, part in enumerate(torch.split(steps, sizes, 2)):
        divisor = _tables(quality)[min(number, 1)].to(part.device)
        signs = part.sign()
        part.abs_().add_(divisor * 4).div_(divisor * 8, rounding_mode="floor").mul_(divisor).mul_(signs)
    levels = _back(_back(steps, 11).transpose(0, 1), 18).transpose(0, 1).add_(128).clamp_(0, 255)
    found = []
    for part, plane, (count, rows, columns) in zip(torch.split(levels, sizes, 2), planes, forms, strict=True):
        tall = part.reshape(8, 8, count, rows, columns).permute(2, 3, 0, 4, 1).reshape(count, rows * 8, columns * 8)
        found.append(tall[:, : plane.shape[1], : plane.shape[2]])
    return found


def _forward(values: Tensor, shift: int) -> Tensor:
    """Return the cosine transform of int32 ``values`` along their first axis, 8, times 2**(14.5 − shift), rounded."""
    out = torch.empty_like(values)
    sums = [values[i] + values[7 - i] for i in range(4)]
    differences = [values[i] - values[7 - i] for i in range(4)]
    inner, outer = sums[1] + sums[2], sums[0] + sums[3]
    torch.add(outer, inner, out=out[0]).mul_(8192)
    torch.sub(outer, inner, out=out[4]).mul_(8192)
    for place, (first, second) in zip((2, 6), _EVEN, strict=True):
        torch.mul(sums[0] - sums[3], first, out=out[place]).add_(sums[1] - sums[2], alpha=second)
    for place, weights in zip((1, 3, 5, 7), _ODD, strict=True):
        torch.mul(differences[0], weights[0], out=out[place])
        for difference, weight in zip(differences[1:], weights[1:], strict=True):
            out[place].add_(difference, alpha=weight)
    return out.add_(1 << (shift - 1)).bitwise_right_shift_(shift)


def _back(values: Tensor, shift: int) -> Tensor:
    """Return the inverse of the transform along the first axis, 8, times 2**(14.5 − shift), rounded."""
    out = torch.empty_like(values)
    half = 1 << (shift - 1)
    whole = [(values[0] + values[4]).mul_(8192).add_(half), (values[0] - values[4]).mul_(8192).add_(half)]
    first, second = ((values[2] * _EVEN[0][i]).add_(values[6], alpha=_EVEN[1][i]) for i in (0, 1))
    even = (whole[0] + first, whole[1] + second, whole[1] - second, whole[0] - first)
    for place in range(4):
        odd = values[1] * _ODD[0][place]
        for number in (1, 2, 3):
            odd.add_(values[2 * number + 1], alpha=_ODD[number][place])
        torch.add(even[place], odd, out=out[place])
        torch.sub(even[place], odd, out=out[7 - place])
    return out.bitwise_right_shift_(shift)
