"""Archives of corrupted test images: C and C̄ of CIFAR and ImageNet."""

from __future__ import annotations

from dataclasses import replace

from anchored.catalog.row import DataSet, File

_C15 = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
_C = (*_C15, "speckle_noise", "gaussian_blur", "spatter", "saturate")
_CIFAR_C_BAR = (
    *("blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles", "pinch_and_twirl", "ripple"),
    *("circular_motion_blur", "lines", "sparkles", "transverse_chromatic_abberation"),
)
_IMAGENET_C_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves"),
    *("inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles"),
)

# md5: pytorch-ood (dataset/img/cifar.py), torch-uncertainty and detectors agree; sha256 and size of CIFAR-10-C.tar:
# the checksums of TensorFlow Datasets.
_CIFAR10_C = DataSet(
    name="cifar10-c",
    title="CIFAR-10-C",
    classes=(),
    channels=3,
    size=32,
    train=0,
    test=10_000,
    roles=("corrupted",),
    licence="CC BY 4.0",
    citation="Hendrycks and Dietterich 2019, arXiv 1903.12261",
    reader="corrupted_blocks",
    file_classes=10,
    folder="cifar10-c",
    parts=(
        File(
            name="CIFAR-10-C.tar",
            bytes=2_918_471_680,
            hash="sha256:c72763e101c723b7c507b96205f7e938912a5d587376173b825850cf3cb876a7",
            urls=(
                "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
                "https://huggingface.co/datasets/torch-uncertainty/CIFAR-C/resolve/main/CIFAR-10-C.tar",
            ),
        ),
    ),
    needs=("CIFAR-10-C/labels.npy",),
    images="CIFAR-10-C",
    clean="cifar10",
    corruptions=_C,
)

_CIFAR10_C_BAR = replace(
    _CIFAR10_C,
    name="cifar10-c-bar",
    title="CIFAR-10-C̄",
    licence="CC BY-NC 4.0 (the code that makes it)",
    citation="Mintun, Kirillov and Xie 2021, arXiv 2102.11273",
    folder="cifar10-c-bar",
    parts=(),
    needs=("CIFAR-10-C-Bar/labels.npy",),
    images="CIFAR-10-C-Bar",
    corruptions=_CIFAR_C_BAR,
    manual="nobody offers it for download: 'anchored corrupt' makes it",
)

#: This module's rows.
ROWS = (_CIFAR10_C, _CIFAR10_C_BAR)
