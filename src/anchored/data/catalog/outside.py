"""Out-of-distribution sets of the literature: the archives of ODIN, textures, scenes, NINCO."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, File, read_lines

# The ODIN copies (Liang, Li and Srikant 2018): addresses in the README of facebookresearch/odin, md5 in pytorch-ood's
# dataset/img/odin.py (LSUN, Tiny ImageNet) and in the PyPI package ``detectors``, data/isun.py (iSUN, and its count of
# 8,925). Folders inside: pytorch-ood's ``base_folder``; iSUN/iSUN_patches in many public loaders. No source found
# states the archives' sizes in bytes.


def _odin(name: str, title: str, archive: str, key: str, md5: str, images: str, cited: str) -> DataSet:
    """Return the row of one ODIN archive, 10,000 images of 32 × 32, whose dropbox address has ``key`` in it."""
    top = images.split("/")[0]
    return DataSet(
        name=name,
        title=title,
        classes=("outside",),
        channels=3,
        size=32,
        train=0,
        test=10_000,
        roles=("ood",),
        licence="none stated with the copy; research use of the original",
        citation=f"{cited}; the copy of Liang, Li and Srikant 2018, arXiv 1706.02690",
        reader="flat_folder",
        file_classes=1,
        folder=name,
        parts=(
            File(
                name=archive,
                hash=f"md5:{md5}",
                urls=(f"https://www.dropbox.com/s/{key}/{archive}?dl=1",),
                makes=(top,),
            ),
        ),
        needs=(images,),
        images=images,
    )


_LSUN = "Yu et al. 2015, arXiv 1506.03365"
_LSUN_R = _odin(
    "lsun-r",
    "LSUN (R)",
    "LSUN_resize.tar.gz",
    "moqh2wh8696c3yl",
    "278b7b31c8cb7e804a1465a8ce03a2dc",
    "LSUN_resize/LSUN_resize",
    _LSUN,
)
_LSUN_C = replace(
    _odin(
        "lsun-c", "LSUN (C)", "LSUN.tar.gz", "fhtsw1m3qxlwj6h", "458a0a0ab8e5f1cb4516d7400568e460", "LSUN/test", _LSUN
    ),
    varied=True,
    note="Patches cropped from photographs; reports of their size differ (32 or 36 pixels), so it is not checked.",
)
_ISUN = replace(
    _odin(
        "isun",
        "iSUN",
        "iSUN.tar.gz",
        "ssz7qxfqae0cca5",
        "be77b0f2c26fda898afac5f99645ee70",
        "iSUN/iSUN_patches",
        "Xu et al. 2015, arXiv 1504.06755",
    ),
    test=8_925,
)
_TINY_IMAGENET_R = replace(
    _odin(
        "tiny-imagenet-r",
        "Tiny Imagenet",
        "Imagenet_resize.tar.gz",
        "kp3my3412u5k9rl",
        "0f9ff11d45babf2eff5fe12281d1ac31",
        "Imagenet_resize/Imagenet_resize",
        "Deng et al. 2009 (ImageNet)",
    ),
    near_to=("cifar10", "cifar100"),
)

# Size and sha256: TensorFlow Datasets' checksums (datasets/dtd); md5 fff73e5086ae6bdbea199a49dfb8a4c1 in torchvision.
DTD_ARCHIVE = File(
    name="dtd-r1.0.1.tar.gz",
    bytes=625_239_812,
    hash="sha256:e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
    urls=("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
    makes=("dtd",),
)
_DTD_TEXTURES = DataSet(
    name="dtd-textures",
    title="Textures",
    classes=read_lines("dtd"),
    channels=3,
    size=224,
    varied=True,
    train=0,
    test=5_640,
    roles=("ood",),
    licence="made available for research purposes",
    citation="Cimpoi et al. 2014, Describing Textures in the Wild (CVPR), arXiv 1311.3618",
    reader="class_folders",
    file_classes=47,
    folder="dtd",
    parts=(DTD_ARCHIVE,),
    needs=("dtd/images",),
    images="dtd/images",
    note="All images of DTD, as the OOD literature uses them; the same files as the row dtd.",
)

# Size and sha256: TensorFlow Datasets' checksums (datasets/places365_small); md5 f532f6ad7b582262a2ec8009075e186b in
# torchvision. Which 10,000 of the 328,500 test images: the list that comes with informative-outlier-mining (Chen et al.
# 2021; datasets/ood_datasets/places365/test_subset/places365_test_list.txt), drawn once at random; evaluations of the
# CIFAR literature point to it (DICE, ReAct), so figures from it are comparable with theirs.
_PLACES365 = DataSet(
    name="places365",
    title="Places365",
    classes=("outside",),
    channels=3,
    size=224,
    varied=True,
    train=0,
    test=10_000,
    roles=("ood",),
    licence="non-commercial research and education",
    citation="Zhou et al. 2017, Places: A 10 Million Image Database for Scene Recognition (IEEE TPAMI)",
    reader="flat_folder",
    file_classes=1,
    folder="places365",
    parts=(
        File(
            name="test_256.tar",
            bytes=4_736_829_440,
            hash="sha256:037ee8180369bdde46636341b92900d4bcb8ea000c026a1fd3e0e9827a8702a1",
            urls=("http://data.csail.mit.edu/places/places365/test_256.tar",),
            holds=("test_256",),
        ),
    ),
    needs=("test_256",),
    images="test_256",
    subset=tuple(f"Places365_test_{int(number):08d}.jpg" for number in read_lines("places365-test-10000")),
    note="10,000 of the 328,500 test images, by the list that the CIFAR literature evaluates on; read from the tar.",
)

# md5: the PyPI package ``detectors``, data/mos.py, which counts 10,000 images. The copy of Huang and Li 2021 (MOS), in
# 50 categories without ImageNet's classes: what the ImageNet literature evaluates on.
_PLACES_MOS = replace(
    _PLACES365,
    name="places-mos",
    title="Places (MOS)",
    citation="Zhou et al. 2017 (Places); the selection of Huang and Li 2021, arXiv 2105.01879",
    folder="places-mos",
    parts=(
        File(
            name="Places.tar.gz",
            hash="md5:b5cb5eba2754ae2a28beea8718db699a",
            urls=("http://pages.cs.wisc.edu/~huangrui/imagenet_ood_dataset/Places.tar.gz",),
            makes=("Places",),
        ),
    ),
    needs=("Places",),
    images="Places",
    subset=(),
    note="Categories that ImageNet-1k does not have, as the ImageNet literature uses; Places365 of table 11 may be it.",
)

# md5: pytorch-ood (dataset/img/ninco.py) and ``detectors`` agree; classes and 5,879 images: data/NINCO_OOD_classes.csv
# of j-cb/NINCO.
_NINCO = DataSet(
    name="ninco",
    near_to=("imagenet",),
    title="NINCO",
    classes=read_lines("ninco"),
    channels=3,
    size=224,
    varied=True,
    train=0,
    test=5_879,
    roles=("ood",),
    licence="as stated at zenodo.org/records/8013288, and that of each source",
    citation="Bitterwolf, Müller and Hein 2023, arXiv 2306.00826",
    reader="class_folders",
    file_classes=64,
    folder="ninco",
    parts=(
        File(
            name="NINCO_all.tar.gz",
            hash="md5:b9ffae324363cd900a81ce3c367cd834",
            urls=("https://zenodo.org/records/8013288/files/NINCO_all.tar.gz",),
            makes=("NINCO",),
        ),
    ),
    needs=("NINCO/NINCO_OOD_classes",),
    images="NINCO/NINCO_OOD_classes",
    note="Pooled over its images; its authors average over the 64 classes.",
)

#: This module's rows.
ROWS = (_LSUN_C, _LSUN_R, _ISUN, _DTD_TEXTURES, _PLACES365, _PLACES_MOS, _TINY_IMAGENET_R, _NINCO)
