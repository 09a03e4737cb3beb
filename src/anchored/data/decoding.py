"""The one way from an encoded image to pixels: an allowed format, the first frame, upright, 8-bit grey or RGB."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
from PIL import Image, UnidentifiedImageError

from anchored.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, in lower case: other files in a folder of images are passed over."""

DECODERS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's decoders that may see a file, whatever its name: those of the endings, and GIF (some of Oxford Pets' .jpg
are). An EPS named .jpg would otherwise start Ghostscript."""

_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_encoded(content: bytes) -> Image.Image:
    """Return the image in ``content``, its header read; ``PIL.UnidentifiedImageError`` for a format not in DECODERS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(content), formats=DECODERS)


def decode_image(
    open_image: Callable[[], Image.Image], where: str, advice: str, *, as_published: bool = False
) -> Image.Image:
    """Return the image that ``open_image`` opens, decoded, as 8-bit "L" (grey) or "RGB".

    EXIF orientation is applied, transparent pixels become white, 16-bit grey becomes 8-bit. ``as_published``: none of
    these, as torchvision's loader does, with which the catalog's sets were evaluated. UserError, one line that names
    ``where`` and ends with ``advice``, whatever a decoder raises for a damaged file.
    """
    try:
        with warnings.catch_warnings(), open_image() as image:
            warnings.simplefilter("ignore")  # of damaged metadata, of many pixels
            turn = None if as_published else _turn(image)
            image.load()
            upright = image if turn is None else image.transpose(turn)
            return _as_torchvision(upright) if as_published else _as_8_bit(upright)
    except Image.DecompressionBombError as error:
        raise UserError(f"{where} has too many pixels (178 million at most): shrink it") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{where} is not an image of an allowed format ({', '.join(DECODERS)}): {advice}") from error
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads to
        unread = getattr(error, "errno", None) or isinstance(error, KeyError | zipfile.BadZipFile)
        problem = "cannot be read" if unread else "is not a whole image"
        raise UserError(f"{where} {problem} ({error_text(error)}): {advice}") from error


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Return how to turn an image upright. Only this tag is read: damage in the rest of the metadata does not matter.

    (``ImageOps.exif_transpose`` writes all of it anew, and fails at negative rationals.)
    """
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


def _as_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 0xFFFF:
            raise ValueError("its levels are not those of 16 bits")
        return Image.fromarray(((levels * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers, give 8 or 16 bits")
    if image.mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        grey = image.mode in ("L", "LA", "La", "1")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("L" if grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def error_text(error: Exception) -> str:
    """Return what an exception says, on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
