"""Out-of-distribution sets of the literature: the archives of ODIN, textures, scenes, NINCO."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, published, read_lines


# The ODIN copies (Liang, Li and Srikant 2018): addresses in the README of facebookresearch/odin, md5 in pytorch-ood's
# dataset/img/odin.py (LSUN, Tiny ImageNet) and in the PyPI package ``detectors``, data/isun.py (iSUN, and its count of
# 8,925). Folders inside: pytorch-ood's ``base_folder``; iSUN/iSUN_patches in many public loaders. No source found
# states the archives' sizes in bytes.
def _odin(name: str, title: str, archive: str, images: str, cited: str) -> DataSet:
    """Return the row of one ODIN archive: 10,000 images of 32 × 32."""
    return DataSet(
        name=name,
        title=title,
        classes=("outside",),
        size=32,
        test=10_000,
        roles=("ood",),
        licence="none stated with the copy; research use of the original",
        citation=f"{cited}; the copy of Liang, Li and Srikant 2018, arXiv 1706.02690",
        reader="flat_folder",
        file_classes=1,
        folder=name,
        parts=published(name, archive, makes=(images.split("/")[0],)),
        needs=(images,),
        images=images,
    )


_LSUN = "Yu et al. 2015, arXiv 1506.03365"
_LSUN_R = _odin("lsun-r", "LSUN (R)", "LSUN_resize.tar.gz", "LSUN_resize/LSUN_resize", _LSUN)
_LSUN_C = replace(
    _odin("lsun-c", "LSUN (C)", "LSUN.tar.gz", "LSUN/test", _LSUN), varied=True,
    note="Patches cropped from photographs; reports of their size differ (32 or 36 pixels), so it is not checked.",
)  # fmt: skip
_ISUN = replace(
    _odin("isun", "iSUN", "iSUN.tar.gz", "iSUN/iSUN_patches", "Xu et al. 2015, arXiv 1504.06755"), test=8_925
)
_TINY_IMAGENET_R = replace(
    _odin(
        "tiny-imagenet-r",
        "Tiny Imagenet",
        "Imagenet_resize.tar.gz",
        "Imagenet_resize/Imagenet_resize",
        "Deng et al. 2009 (ImageNet)",
    ),
    near_to=("cifar10", "cifar100"),
)  # fmt: skip

# Size and sha256: TensorFlow Datasets' checksums (datasets/dtd); md5 fff73e5086ae6bdbea199a49dfb8a4c1 in torchvision.
_DTD_TEXTURES = DataSet(
    name="dtd-textures", title="Textures", classes=read_lines("dtd"), varied=True, test=5_640, roles=("ood",),
    licence="made available for research purposes",
    citation="Cimpoi et al. 2014, Describing Textures in the Wild (CVPR), arXiv 1311.3618",
    reader="class_folders", file_classes=47, folder="dtd", parts=published("dtd", "dtd-r1.0.1.tar.gz", makes=("dtd",)),
    needs=("dtd/images",), images="dtd/images",
    note="All images of DTD, as the OOD literature uses them; the same files as the row dtd.",
)  # fmt: skip

# Size and sha256: TensorFlow Datasets' checksums (datasets/places365_small); md5 f532f6ad7b582262a2ec8009075e186b in
# torchvision. Which 10,000 of the 328,500 test images: the list that comes with informative-outlier-mining (Chen et al.
# 2021; datasets/ood_datasets/places365/test_subset/places365_test_list.txt), drawn once at random; evaluations of the
# CIFAR literature point to it (DICE, ReAct), so figures from it are comparable with theirs.
_PLACES365 = DataSet(
    name="places365", title="Places365", classes=("outside",), varied=True, test=10_000, roles=("ood",),
    licence="non-commercial research and education",
    citation="Zhou et al. 2017, Places: A 10 Million Image Database for Scene Recognition (IEEE TPAMI)",
    reader="flat_folder", file_classes=1, folder="places365",
    parts=published("places365", "test_256.tar", holds=("test_256",)), needs=("test_256",), images="test_256",
    subset=tuple(f"Places365_test_{int(number):08d}.jpg" for number in read_lines("places365-test-10000")),
    note="10,000 of the 328,500 test images, by the list that the CIFAR literature evaluates on; read from the tar.",
)  # fmt: skip

# md5: the PyPI package ``detectors``, data/mos.py, which counts 10,000 images. The copy of Huang and Li 2021 (MOS), in
# 50 categories without ImageNet's classes: what the ImageNet literature evaluates on.
_PLACES_MOS = replace(
    _PLACES365, name="places-mos", title="Places (MOS)",
    citation="Zhou et al. 2017 (Places); the selection of Huang and Li 2021, arXiv 2105.01879",
    folder="places-mos", parts=published("places-mos", "Places.tar.gz", makes=("Places",)), needs=("Places",),
    images="Places", subset=(),
    note="Categories that ImageNet-1k does not have, as the ImageNet literature uses; Places365 of table 11 may be it.",
)  # fmt: skip

# md5: pytorch-ood (dataset/img/ninco.py) and ``detectors`` agree; classes and 5,879 images: data/NINCO_OOD_classes.csv
# of j-cb/NINCO.
_NINCO = DataSet(
    name="ninco", near_to=("imagenet",), title="NINCO", classes=read_lines("ninco"), varied=True, test=5_879,
    roles=("ood",),
    licence="as stated at zenodo.org/records/8013288, and that of each source",
    citation="Bitterwolf, Müller and Hein 2023, arXiv 2306.00826",
    reader="class_folders", file_classes=64, folder="ninco",
    parts=published("ninco", "NINCO_all.tar.gz", makes=("NINCO",)), needs=("NINCO/NINCO_OOD_classes",),
    images="NINCO/NINCO_OOD_classes",
    note="Pooled over its images; its authors average over the 64 classes.",
)  # fmt: skip

ROWS = (_LSUN_C, _LSUN_R, _ISUN, _DTD_TEXTURES, _PLACES365, _PLACES_MOS, _TINY_IMAGENET_R, _NINCO)
