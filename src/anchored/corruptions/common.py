"""The 19 common corruptions (C) as rows, with both published sets of constants.

Source of every constant and formula: ``ImageNet-C/create_c/make_cifar_c.py`` (small) and ``make_imagenet_c.py`` (large)
in github.com/hendrycks/robustness (Apache-2.0), read for facts. The original knows RGB only; grey images get what the
grey value of an RGB image with three equal channels would get, with one noise value per pixel.

The original ends with ``np.uint8(255 · clip(x, 0, 1))``, which cuts the fraction off, and works in float64. Here values
are float32, and 0.001 of a grey level is added before cutting, more than all rounding errors together: a value that is
exactly 200 stays 200 on every device. The original leaves such values to the last bit, and so may be one level below.
"""

import math
import operator

from anchored.corruptions import blur, digital
from anchored.corruptions.blur import Disk, Glass, Motion
from anchored.corruptions.digital import Elastic, Saturation
from anchored.corruptions.frost import Frost, frost
from anchored.corruptions.noise import gaussian_noise, impulse_noise, shot_noise, speckle_noise
from anchored.corruptions.row import Corruption
from anchored.corruptions.spatter import Spatter, spatter
from anchored.corruptions.weather import Fog, Snow, brightness, fog, snow


def _elastic(side: float, *shares: tuple[float, float, float]) -> tuple[Elastic, ...]:
    """Return constants that are given as shares of ``side`` px: strength, sigma, corner."""
    return tuple(Elastic(*(side * share for share in three)) for three in shares)


EXTRA = ("c",)  # the four that the benchmark keeps apart for validation

#: The rows, in the order of the benchmark: group, function, constants for 32 px, constants for 224 px.
COMMON: tuple[Corruption, ...] = (
    Corruption("noise", gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.1), (0.08, 0.12, 0.18, 0.26, 0.38)),
    Corruption("noise", shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    Corruption("noise", impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    Corruption("blur", blur.defocus_blur,
        (Disk(0.3, 0.4), Disk(0.4, 0.5), Disk(0.5, 0.6), Disk(1, 0.2), Disk(1.5, 0.1)),
        (Disk(3, 0.1), Disk(4, 0.5), Disk(6, 0.5), Disk(8, 0.5), Disk(10, 0.5))),
    Corruption("blur", blur.glass_blur,
        (Glass(0.05, 1, 1), Glass(0.25, 1, 1), Glass(0.4, 1, 1), Glass(0.25, 1, 2), Glass(0.4, 1, 2)),
        (Glass(0.7, 1, 2), Glass(0.9, 2, 1), Glass(1, 2, 3), Glass(1.1, 3, 2), Glass(1.5, 4, 2))),
    Corruption("blur", blur.motion_blur,
        (Motion(6, 1), Motion(6, 1.5), Motion(6, 2), Motion(8, 2), Motion(9, 2.5)),
        (Motion(10, 3), Motion(15, 5), Motion(15, 8), Motion(15, 12), Motion(20, 15))),
    Corruption("blur", blur.zoom_blur,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    Corruption("weather", snow,
        (Snow(0.1, 0.2, 1, 0.6, 8, 3, 0.95), Snow(0.1, 0.2, 1, 0.5, 10, 4, 0.9),
         Snow(0.15, 0.3, 1.75, 0.55, 10, 4, 0.9), Snow(0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
         Snow(0.3, 0.3, 1.25, 0.65, 14, 12, 0.8)),
        (Snow(0.1, 0.3, 3, 0.5, 10, 4, 0.8), Snow(0.2, 0.3, 2, 0.5, 12, 4, 0.7), Snow(0.55, 0.3, 4, 0.9, 12, 8, 0.7),
         Snow(0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), Snow(0.55, 0.3, 2.5, 0.85, 12, 12, 0.55))),
    Corruption("weather", frost,
        (Frost(1, 0.2, 0.2), Frost(1, 0.3, 0.2), Frost(0.9, 0.4, 0.2), Frost(0.85, 0.4, 0.2), Frost(0.75, 0.45, 0.2)),
        (Frost(1, 0.4, 1), Frost(0.8, 0.6, 1), Frost(0.7, 0.7, 1), Frost(0.65, 0.7, 1), Frost(0.6, 0.75, 1))),
    Corruption("weather", fog,
        (Fog(0.2, 3), Fog(0.5, 3), Fog(0.75, 2.5), Fog(1, 2), Fog(1.5, 1.75)),
        (Fog(1.5, 2), Fog(2, 2), Fog(2.5, 1.7), Fog(2.5, 1.5), Fog(3, 1.4)),
        grouped=8),
    Corruption("weather", brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    Corruption("digital", digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    Corruption("digital", digital.elastic_transform,
        _elastic(32, (0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        # 244 stands in the original, for 224
        _elastic(244, (2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))),
    Corruption("digital", digital.pixelate,
        (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25), margin=lambda factor: math.ceil(1 / factor) - 1),
    Corruption("digital", digital.jpeg_compression, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    Corruption("noise", speckle_noise, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6), families=EXTRA),
    Corruption("blur", blur.gaussian_blur,
        (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6), scaled=operator.mul, families=EXTRA),
    Corruption("weather", spatter,
        (Spatter(0.62, 0.1, 0.7, 0.7, 0.5, False), Spatter(0.65, 0.1, 0.8, 0.7, 0.5, False),
         Spatter(0.65, 0.3, 1, 0.69, 0.5, False), Spatter(0.65, 0.1, 0.7, 0.69, 0.6, True),
         Spatter(0.65, 0.1, 0.5, 0.68, 0.6, True)),
        (Spatter(0.65, 0.3, 4, 0.69, 0.6, False), Spatter(0.65, 0.3, 3, 0.68, 0.6, False),
         Spatter(0.65, 0.3, 2, 0.68, 0.5, False), Spatter(0.65, 0.3, 1, 0.65, 1.5, True),
         Spatter(0.67, 0.4, 1, 0.65, 1.5, True)),
        families=EXTRA, grouped=4),
    Corruption("digital", digital.saturate,
        (Saturation(0.3, 0), Saturation(0.1, 0), Saturation(1.5, 0), Saturation(2, 0.1), Saturation(2.5, 0.2)),
        (Saturation(0.3, 0), Saturation(0.1, 0), Saturation(2, 0), Saturation(5, 0.1), Saturation(20, 0.2)),
        families=EXTRA, colour_only=True),
)  # fmt: skip
