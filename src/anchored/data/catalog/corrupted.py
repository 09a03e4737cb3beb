"""Archives of corrupted test images: C and C̄ of CIFAR and ImageNet."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, File, published

_BLUR = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur")
_NOISE = ("gaussian_noise", "shot_noise", "impulse_noise")
_WEATHER = ("snow", "frost", "fog", "brightness")
_DIGITAL = ("contrast", "elastic_transform", "pixelate", "jpeg_compression")
_EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
_C = (*_NOISE, *_BLUR, *_WEATHER, *_DIGITAL, *_EXTRA)
_CIFAR_BAR = (
    *("blue_noise_sample", "brownish_noise", "checkerboard_cutout", "inverse_sparkles", "pinch_and_twirl", "ripple"),
    *("circular_motion_blur", "lines", "sparkles", "transverse_chromatic_abberation"),
)
_IMAGENET_BAR = (
    *("blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves"),
    *("inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles"),
)
_HENDRYCKS = "Hendrycks and Dietterich 2019, arXiv 1903.12261"
_MINTUN = "Mintun, Kirillov and Xie 2021, arXiv 2102.11273"


def _blocks(name: str, title: str) -> tuple[File, ...]:
    return published(name, *(f"{title}/{kind}.npy" for kind in (*_C, "labels")))


# Archives: md5 56bf5dce... in pytorch-ood, torch-uncertainty and detectors; size and sha256 in TensorFlow Datasets'
# checksums (image_classification/cifar10_corrupted). Members: torch-uncertainty, classification/cifar/cifar_c.py.
_CIFAR10_C = DataSet(
    name="cifar10-c", title="CIFAR-10-C", classes=(), size=32, test=10_000, roles=("corrupted",),
    licence="CC BY 4.0",
    citation=_HENDRYCKS,
    reader="corrupted_blocks", file_classes=10, folder="cifar10-c", test_files=_blocks("cifar10-c", "CIFAR-10-C"),
    parts=published("cifar10-c", "CIFAR-10-C.tar", holds=("CIFAR-10-C",)), images="CIFAR-10-C", clean="cifar10",
    corruptions=_C,
    note="Read from the tar without unpacking it, or from its unpacked folder.",
)  # fmt: skip

# md5: pytorch-ood, torch-uncertainty and detectors agree; size: stated with the same md5 in public notes on record
# 3555552.
_CIFAR100_C = replace(
    _CIFAR10_C, name="cifar100-c", title="CIFAR-100-C", file_classes=100, folder="cifar100-c",
    test_files=_blocks("cifar100-c", "CIFAR-100-C"),
    parts=published("cifar100-c", "CIFAR-100-C.tar", holds=("CIFAR-100-C",)), images="CIFAR-100-C", clean="cifar100",
)  # fmt: skip

# Folder and file names: make_cifar10_c_bar.py of facebookresearch/augmentation-corruption, which makes the set.
_CIFAR10_C_BAR = replace(
    _CIFAR10_C, name="cifar10-c-bar", title="CIFAR-10-C̄",
    licence="none stated for the images",
    citation=_MINTUN,
    folder="cifar10-c-bar", test_files=(), parts=(), needs=("CIFAR-10-C-Bar/labels.npy",), images="CIFAR-10-C-Bar",
    corruptions=_CIFAR_BAR,
    manual=(
        "nobody offers it for download: make it with make_cifar10_c_bar.py of facebookresearch/augmentation-corruption "
        "or use our own images (evaluate.corruption_source: generated)"
    ),
    note="The authors' script writes this layout.",
)  # fmt: skip

_CIFAR100_C_BAR = replace(
    _CIFAR10_C_BAR, name="cifar100-c-bar", title="CIFAR-100-C̄", file_classes=100, folder="cifar100-c-bar",
    needs=("CIFAR-100-C-Bar/labels.npy",), images="CIFAR-100-C-Bar", clean="cifar100",
    manual=(
        "nobody offers it for download: make it as CIFAR-10-C-Bar is made, from CIFAR-100, or use our own images "
        "(evaluate.corruption_source: generated)"
    ),
    note="The authors' script is for CIFAR-10; this is its layout with CIFAR-100's test images.",
)  # fmt: skip


_GROUPS = {"noise": _NOISE, "blur": _BLUR, "weather": _WEATHER, "digital": _DIGITAL, "extra": _EXTRA}

# md5: pytorch-ood and torch-uncertainty; sizes: stated with them in public notes on Zenodo's record 2235448.
# Gzip files, since their sizes are not those of tars (512 bytes × n).
_IMAGENET_C = replace(
    _CIFAR10_C, name="imagenet-c", title="ImageNet-C", size=224, test=50_000,
    licence="CC BY 4.0; ImageNet's terms for the images",
    reader="corrupted_folders", file_classes=1000, folder="imagenet-c", test_files=(),
    parts=tuple(
        file
        for group, holds in _GROUPS.items()
        for file in published("imagenet-c", f"{group}.tar", holds=holds, compressed=True)
    ),
    needs=_C, images="", clean="imagenet",
    note="Read from its five tars, once decompressed, without unpacking their 4.75 million files, or from folders.",
)  # fmt: skip

# Address and corruptions: README of facebookresearch/augmentation-corruption; the folder inside: public notes. No
# source states its hash or size.
_IMAGENET_C_BAR = replace(
    _IMAGENET_C, name="imagenet-c-bar", title="ImageNet-C̄",
    licence="none stated; ImageNet's terms for the images",
    citation=_MINTUN,
    folder="imagenet-c-bar", parts=published("imagenet-c-bar", "imagenet_c_bar.tar.gz", makes=("cbar_download",)),
    needs=("cbar_download",), images="cbar_download", corruptions=_IMAGENET_BAR,
    note="No hash is published: the first download's is kept, and later ones must match it.",
)  # fmt: skip

ROWS = (_CIFAR10_C, _CIFAR100_C, _IMAGENET_C, _CIFAR10_C_BAR, _CIFAR100_C_BAR, _IMAGENET_C_BAR)
