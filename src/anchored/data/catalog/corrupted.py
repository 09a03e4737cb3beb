"""Archives of corrupted test images: C and C̄ of CIFAR and ImageNet."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, File

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


def _blocks(folder: str, digests: dict[str, str]) -> tuple[File, ...]:
    """Return the .npy files of a CIFAR archive with their md5."""
    return tuple(File(name=f"{folder}/{name}.npy", hash=f"md5:{md5}") for name, md5 in digests.items())


# Archives: md5 56bf5dce... in pytorch-ood, torch-uncertainty and detectors; size and sha256 in TensorFlow Datasets'
# checksums (image_classification/cifar10_corrupted). Members: torch-uncertainty, classification/cifar/cifar_c.py.
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
    citation=_HENDRYCKS,
    reader="corrupted_blocks",
    file_classes=10,
    folder="cifar10-c",
    test_files=_blocks(
        "CIFAR-10-C",
        {
            "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
            "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
            "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
            "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
            "glass_blur": "7361fb4019269e02dbf6925f083e8629",
            "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
            "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
            "snow": "bb238de8555123da9c282dea23bd6e55",
            "frost": "31f6ab3bce1d9934abfb0cc13656f141",
            "fog": "7b397314b5670f825465fbcd1f6e9ccd",
            "brightness": "0a81ef75e0b523c3383219c330a85d48",
            "contrast": "3c8262171c51307f916c30a3308235a8",
            "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
            "pixelate": "0f14f7e2db14288304e1de10df16832f",
            "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
            "speckle_noise": "ef00b87611792b00df09c0b0237a1e30",
            "gaussian_blur": "c33370155bc9b055fb4a89113d3c559d",
            "spatter": "8a5a3903a7f8f65b59501a6093b4311e",
            "saturate": "1cfae0964219c5102abbb883e538cc56",
            "labels": "c439b113295ed5254878798ffe28fd54",
        },
    ),
    parts=(
        File(
            name="CIFAR-10-C.tar",
            bytes=2_918_471_680,
            hash="sha256:c72763e101c723b7c507b96205f7e938912a5d587376173b825850cf3cb876a7",
            urls=(
                "https://zenodo.org/records/2535967/files/CIFAR-10-C.tar",
                "https://huggingface.co/datasets/torch-uncertainty/CIFAR-C/resolve/main/CIFAR-10-C.tar",
            ),
            holds=("CIFAR-10-C",),
        ),
    ),
    images="CIFAR-10-C",
    clean="cifar10",
    corruptions=_C,
    note="Read from the tar without unpacking it, or from its unpacked folder.",
)

# md5: pytorch-ood, torch-uncertainty and detectors agree; size: stated with the same md5 in public notes on record
# 3555552.
_CIFAR100_C = replace(
    _CIFAR10_C,
    name="cifar100-c",
    title="CIFAR-100-C",
    file_classes=100,
    folder="cifar100-c",
    test_files=_blocks(
        "CIFAR-100-C",
        {
            "gaussian_noise": "ecc4d366eac432bdf25c024086f5e97d",
            "shot_noise": "b0a1fa6e1e465a747c1b204b1914048a",
            "impulse_noise": "3b3c210ddfa0b5cb918ff4537a429fef",
            "defocus_blur": "d923e3d9c585a27f0956e2f2ad832564",
            "glass_blur": "0bf384f38e5ccbf8dd479d9059b913e1",
            "motion_blur": "732a7e2e54152ff97c742d4c388c5516",
            "zoom_blur": "0204613400c034a81c4830d5df81cb82",
            "snow": "0237be164583af146b7b144e73b43465",
            "frost": "3a39c6823bdfaa0bf8b12fe7004b8117",
            "fog": "4efc7ebd5e82b028bdbe13048e3ea564",
            "brightness": "f22d7195aecd6abb541e27fca230c171",
            "contrast": "322bb385f1d05154ee197ca16535f71e",
            "elastic_transform": "a0792bd6581f6810878be71acedfc65a",
            "pixelate": "96c00c60f144539e14cffb02ddbd0640",
            "jpeg_compression": "c851b7f1324e1d2ffddeb76920576d11",
            "speckle_noise": "e3f215b1a0f9fd9fd6f0d1cf94a7ce99",
            "gaussian_blur": "5204ba0d557839772ef5a4196a052c3e",
            "spatter": "12ccf41d62564d36e1f6a6ada5022728",
            "saturate": "c0697e9fdd646916a61e9c312c77bf6b",
            "labels": "bb4026e9ce52996b95f439544568cdb2",
        },
    ),
    parts=(
        File(
            name="CIFAR-100-C.tar",
            bytes=2_918_473_216,
            hash="md5:11f0ed0f1191edbf9fa23466ae6021d3",
            urls=("https://zenodo.org/records/3555552/files/CIFAR-100-C.tar",),
            holds=("CIFAR-100-C",),
        ),
    ),
    images="CIFAR-100-C",
    clean="cifar100",
)

# Folder and file names: make_cifar10_c_bar.py of facebookresearch/augmentation-corruption, which makes the set.
_CIFAR10_C_BAR = replace(
    _CIFAR10_C,
    name="cifar10-c-bar",
    title="CIFAR-10-C̄",
    licence="none stated for the images",
    citation=_MINTUN,
    folder="cifar10-c-bar",
    test_files=(),
    parts=(),
    needs=("CIFAR-10-C-Bar/labels.npy",),
    images="CIFAR-10-C-Bar",
    corruptions=_CIFAR_BAR,
    manual=(
        "nobody offers it for download: make it with make_cifar10_c_bar.py of facebookresearch/augmentation-corruption "
        "or use our own images (evaluate.corruption_source: generated)"
    ),
    note="The authors' script writes this layout.",
)

_CIFAR100_C_BAR = replace(
    _CIFAR10_C_BAR,
    name="cifar100-c-bar",
    title="CIFAR-100-C̄",
    file_classes=100,
    folder="cifar100-c-bar",
    needs=("CIFAR-100-C-Bar/labels.npy",),
    images="CIFAR-100-C-Bar",
    clean="cifar100",
    manual=(
        "nobody offers it for download: make it as CIFAR-10-C-Bar is made, from CIFAR-100, or use our own images "
        "(evaluate.corruption_source: generated)"
    ),
    note="The authors' script is for CIFAR-10; this is its layout with CIFAR-100's test images.",
)


def _group(name: str, size: int, md5: str, holds: tuple[str, ...]) -> File:
    """Return one of ImageNet-C's five archives: gzip files, since their sizes are not those of tars (512 bytes × n)."""
    url = f"https://zenodo.org/records/2235448/files/{name}"
    return File(name=name, bytes=size, hash=f"md5:{md5}", urls=(url,), holds=holds, compressed=True)


# md5: pytorch-ood and torch-uncertainty; sizes: stated with them in public notes on Zenodo's record 2235448.
_IMAGENET_C = replace(
    _CIFAR10_C,
    name="imagenet-c",
    title="ImageNet-C",
    size=224,
    test=50_000,
    licence="CC BY 4.0; ImageNet's terms for the images",
    reader="corrupted_folders",
    file_classes=1000,
    folder="imagenet-c",
    test_files=(),
    parts=(
        _group("noise.tar", 22_565_673_785, "e80562d7f6c3f8834afb1ecf27252745", _NOISE),
        _group("blur.tar", 7_112_704_951, "2d8e81fdd8e07fef67b9334fa635e45c", _BLUR),
        _group("weather.tar", 12_797_438_995, "33ffea4db4d93fe4a428c40a6ce0c25d", _WEATHER),
        _group("digital.tar", 7_757_510_705, "89157860d7b10d5797849337ca2e5c03", _DIGITAL),
        _group("extra.tar", 15_789_490_144, "d492dfba5fc162d8ec2c3cd8ee672984", _EXTRA),
    ),
    needs=_C,
    images="",
    clean="imagenet",
    note="Read from its five tars, once decompressed, without unpacking their 4.75 million files, or from folders.",
)

# Address and corruptions: README of facebookresearch/augmentation-corruption; the folder inside: public notes. No
# source states its hash or size.
_IMAGENET_C_BAR = replace(
    _IMAGENET_C,
    name="imagenet-c-bar",
    title="ImageNet-C̄",
    licence="none stated; ImageNet's terms for the images",
    citation=_MINTUN,
    folder="imagenet-c-bar",
    parts=(
        File(
            name="imagenet_c_bar.tar.gz",
            urls=("https://dl.fbaipublicfiles.com/inc_bar/imagenet_c_bar.tar.gz",),
            makes=("cbar_download",),
        ),
    ),
    needs=("cbar_download",),
    images="cbar_download",
    corruptions=_IMAGENET_BAR,
    note="No hash is published: the first download's is kept, and later ones must match it.",
)

#: This module's rows.
ROWS = (_CIFAR10_C, _CIFAR100_C, _IMAGENET_C, _CIFAR10_C_BAR, _CIFAR100_C_BAR, _IMAGENET_C_BAR)
