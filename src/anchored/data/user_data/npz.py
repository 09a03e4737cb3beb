"""User data in arrays: an npz of images and labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from anchored.data.user_data.listing import Listing
from anchored.errors import UserError
from anchored.store import files


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images in arrays (N,H,W) or (N,H,W,3) uint8; keys are their numbers, from 0, through all arrays."""

    path: str
    arrays: tuple[npt.NDArray[np.uint8], ...]

    def where(self, key: str) -> str:
        """Return the file and the number."""
        return f"{self.path}, image {int(key)}"

    def open(self, key: str) -> Image.Image:
        """Return the image."""
        return Image.fromarray(self._pixels(key))

    def read(self, key: str) -> bytes:
        """Return the pixels, with their shape."""
        pixels = self._pixels(key)
        return f"{pixels.shape}".encode() + pixels.tobytes()

    def _pixels(self, key: str) -> npt.NDArray[np.uint8]:
        number = int(key)
        for array in self.arrays:
            if number < len(array):
                return np.asarray(array[number])
            number -= len(array)
        raise IndexError(key)


_PAIRS = (
    ("images", "labels", ""),
    ("x_train", "y_train", "train"),
    ("x_test", "y_test", "test"),
    ("x_val", "y_val", "validation"),
)


def list_npz(name: str) -> Listing:
    """An npz of images and labels, or of x_train, y_train, x_test and y_test (or x_val, y_val)."""
    path = files.expand_home(name)
    images, labels, splits = [], list[object](), list[str]()
    try:
        with files.refuse_special(path).open("rb") as file, np.load(file) as stored:  # refuses arrays of objects
            for key, label, split in (pair for pair in _PAIRS if pair[0] in stored):
                images.append(_channels_last(stored[key], f"'{key}' in {path}"))
                count = len(images[-1])
                values = stored[label].ravel().tolist() if label in stored else [None] * count
                if len(values) != count:
                    raise UserError(f"{path} has {count} images in '{key}', but {len(values)} labels in '{label}'")
                labels += values
                splits += [split] * count
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise whatever a damaged file leads to
        problem = getattr(error, "strerror", None) or "not an npz of plain arrays"
        raise UserError(f"cannot read {path}: {problem}") from error
    if not images:
        raise UserError(f"{path} has no arrays 'images' and 'labels', nor 'x_train', 'y_train', 'x_test' and 'y_test'")
    numbers = [f"{number:09d}" for number in range(len(labels))]
    return Listing(ArraySource(str(path), tuple(images)), numbers, labels, splits, [path])


def _channels_last(array: npt.NDArray[Any], what: str) -> npt.NDArray[np.uint8]:
    """Return (N,H,W) or (N,H,W,3) of grey or RGB images in either order of axes."""
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] not in (1, 3) and array.shape[1] in (1, 3):
        array = array.transpose(0, 2, 3, 1)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] not in (1, 3)):
        raise UserError(f"{what} is {array.dtype} {array.shape}: give uint8 (N,H,W), (N,H,W,3) or (N,3,H,W)")
    return np.ascontiguousarray(array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array)
