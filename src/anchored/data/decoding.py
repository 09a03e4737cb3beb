"""The one way from an encoded image to pixels: an allowed format, the first frame, upright, 8-bit grey or RGB."""

import io
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from anchored.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, in lower case: other files in a folder of images are passed over."""

DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's decoders that may see a file, whatever its name: those of the endings, and GIF (some of Oxford Pets' .jpg
are). An EPS named .jpg would otherwise start Ghostscript."""

_DIM = 1 << 12  # levels: a 16-bit image that uses no more has 12-bit data in it, of which 8 bits would keep 16
_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class _UnknownRange(Exception):
    """Pixels whose black and white the file does not state."""


def open_encoded(content: bytes) -> Image.Image:
    """Return the image in ``content``, its header read; ``PIL.UnidentifiedImageError`` for a format not in DECODERS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=DECODERS)


def decode_image(
    open_image: Callable[[], AbstractContextManager[Image.Image]],
    where: str,
    advice: str,
    *,
    as_published: bool = False,
    upright: bool = True,
) -> Image.Image:
    """Return the image that ``open_image`` opens, decoded, as 8-bit "L" (grey) or "RGB".

    EXIF orientation is applied, transparent pixels become white, 12 and 16 bits become 8. ``as_published``: none of
    these, as torchvision's loader does, with which the catalog's sets were evaluated. ``upright`` False: as it lies,
    for an image that somebody has opened. UserError, one line that names
    ``where`` and ends with ``advice``, whatever a decoder raises for a damaged file.
    """
    try:
        with warnings.catch_warnings(), open_image() as image:
            warnings.simplefilter("ignore")  # of damaged metadata, of many pixels
            levels = _stored_levels(image)
            turn = _turn(image) if upright and not as_published else None
            if isinstance(image, ImageFile.ImageFile) and image.format not in DECODERS:  # opened by somebody, not read
                raise UnidentifiedImageError
            image.load()
            turned = image if turn is None else image.transpose(turn)
            return _as_torchvision(turned) if as_published else _as_8_bit(turned, *levels)
    except Image.DecompressionBombError as error:
        raise UserError(f"{where} has too many pixels (178 million at most): shrink it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is not an image of an allowed format ({', '.join(DECODERS)}): {advice}") from error
    except _UnknownRange as error:
        raise UserError(f"{where} {error}") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads to
        unread = getattr(error, "errno", None) or isinstance(error, KeyError | zipfile.BadZipFile)
        problem = "cannot be read" if unread else "is not a whole image"
        raise UserError(f"{where} {problem} ({error_text(error)}): {advice}") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image upright. Only this tag is read: damage in the rest of the metadata does not matter.
    (``ImageOps.exif_transpose`` writes all of it anew, and fails at negative rationals.)"""
    try:
        metadata = image.getexif()
        turn = _TURNS.get(metadata.get(_ORIENTATION, 1))
        metadata[_ORIENTATION] = 1  # or Pillow turns a TIFF while it is loaded
    except Exception:  # metadata that cannot be read says nothing
        return None
    return turn


def _as_torchvision(image: Image.Image) -> Image.Image:
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of going straight to RGB
    return image.convert("L" if image.mode in ("L", "1") else "RGB")


def _stored_levels(image: Image.Image) -> tuple[int, bool]:
    """Return the highest level that the file can hold, 0 where that states no range; and whether it stands for black.
    Before the pixels are loaded, after which Pillow no longer says it."""
    tags: Any = getattr(image, "tag_v2", {})  # of a TIFF
    (bits, *_), (kind, *_) = tags.get(258, (8,)), tags.get(339, (1,))  # BitsPerSample, SampleFormat (1: unsigned)
    if not tags:
        bits = 16 if image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", ())) else 8
    return (1 << bits) - 1 if kind == 1 and bits <= 16 else 0, tags.get(262) == 0  # PhotometricInterpretation


def _as_8_bit(image: Image.Image, top: int, inverted: bool) -> Image.Image:
    if image.mode == "F" or top == 0:
        what = "floating-point numbers" if image.mode == "F" else "signed or 32-bit numbers"
        raise _UnknownRange(f"has {what} for pixels, whose black and white nothing states: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > top:
            raise _UnknownRange(f"has levels from {levels.min()} to {levels.max()}: save it with 8 or 16 bits")
        _refuse_dim(int(levels.max()), top)
        levels = (levels * 255 + top // 2) // top
        return Image.fromarray((255 - levels if inverted else levels).astype(np.uint8))
    if top == 0xFFFF:  # Pillow has kept the upper 8 bits
        bands: Any = image.getextrema()
        _refuse_dim(max(high for _, high in bands[:3]) * 256, top)
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La", "1")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _refuse_dim(highest: int, top: int) -> None:
    if top == 0xFFFF and 0 < highest < _DIM:
        raise _UnknownRange(
            "uses less than a sixteenth of its 16 bits, as 12-bit data do, of which 8 bits would keep 16 levels: "
            "scale it to all 16 bits, or save it with 8"
        )


def error_text(error: Exception) -> str:
    """Return what an exception says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
