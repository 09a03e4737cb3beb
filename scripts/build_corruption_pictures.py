"""Make the pictures of docs/reference/corruptions.md: every corruption at every severity, at 224 and at 32 px.

    python scripts/build_corruption_pictures.py [FOLDER, default docs/reference/corruptions]

The photograph is skimage's ``astronaut`` (NASA, public domain), its upper middle, resized. 224 px images are shown at
144 px and kept as JPEG, 32 px images pixel by pixel, three times enlarged, as PNG.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from anchored.corruptions.registry import CORRUPTIONS, expand
from anchored.data.corrupted_copy import ALL, contact_sheet, encode_image
from anchored.store import files

GROUPS = {
    "c-noise": ("c", "noise"),
    "c-blur": ("c", "blur"),
    "c-weather": ("c", "weather"),
    "c-digital": ("c", "digital"),
    "c-bar": ("c-bar", ""),
}
"""Name of a picture -> its family, and the group of corruptions it shows ("" for all)."""


def photograph(size: int) -> Tensor:
    """Return the photograph, (1,3,size,size) uint8."""
    face = Image.fromarray(skimage.data.astronaut()[:360, 60:420])  # type: ignore[no-untyped-call]
    pixels = np.array(face.resize((size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def main() -> None:
    """Write the pictures and say how large they are."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference/corruptions")
    for size in (224, 32):
        image = photograph(size)
        for name, (family, group) in GROUPS.items():
            kinds = [each for each in expand([family], size, size) if group in ("", CORRUPTIONS[each].group)]
            shown = contact_sheet(image, kinds, ALL, tile=144 if size == 224 else 96)
            file = folder / f"{name}-{size}.{'jpg' if size == 224 else 'png'}"
            files.write_bytes(file, encode_image(shown, "JPEG", 72) if size == 224 else encode_image(shown, "PNG"))
            print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
