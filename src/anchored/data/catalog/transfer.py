"""Sets to adapt to with a linear probe. Training images are all that are not test images: train and validation."""

from anchored.data.catalog.outside import DTD_ARCHIVE
from anchored.data.catalog.row import DataSet, File, read_lines

_UCF101 = DataSet(
    name="ucf101",
    title="UCF101",
    classes=read_lines("ucf101"),
    channels=3,
    size=224,
    varied=True,
    train=9_537,
    test=3_783,
    roles=("adaptation",),
    licence="none stated",
    citation="Soomro, Zamir and Shah 2012, arXiv 1212.0402; middle frames of Zhou et al. 2022 (CoOp), arXiv 2109.01134",
    reader="ucf101",
    file_classes=101,
    folder="ucf101",
    parts=(
        # No source states a hash or a size of the frames; the address is that of CoOp's DATASETS.md.
        File(
            name="UCF-101-midframes.zip",
            urls=("https://drive.usercontent.google.com/download?id=10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O&confirm=t",),
            holds=("UCF-101-midframes",),
        ),
        # Size and sha256: TensorFlow Datasets' checksums (video/ucf101).
        File(
            name="UCF101TrainTestSplits-RecognitionTask.zip",
            bytes=113_943,
            hash="sha256:5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
            urls=("https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",),
            makes=("ucfTrainTestlist",),
        ),
    ),
    needs=("UCF-101-midframes", "ucfTrainTestlist"),
    images="UCF-101-midframes",
    note="One frame, the middle one, of each video; official split 1. CoOp's split has the same test images.",
)

# Size and sha256: TensorFlow Datasets' checksums (image_classification/food101); md5 85eeb15f3717b99a5da872d97d918f87
# in torchvision. Labels: the sorted names, as in torchvision.
_FOOD101 = DataSet(
    name="food101",
    title="Food 101",
    classes=read_lines("food101"),
    channels=3,
    size=224,
    varied=True,
    train=75_750,
    test=25_250,
    roles=("adaptation",),
    licence="scientific fair use; other uses: Foodspotting's terms",
    citation="Bossard, Guillaumin and Van Gool 2014, Food-101 (ECCV)",
    reader="food",
    file_classes=101,
    folder="food101",
    parts=(
        File(
            name="food-101.tar.gz",
            bytes=4_996_278_331,
            hash="sha256:d97d15e438b7f4498f96086a4f7e2fa42a32f2712e87d3295441b2b6314053a4",
            urls=("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
            makes=("food-101",),
        ),
    ),
    needs=("food-101/images", "food-101/meta"),
    images="food-101/images",
)

# Sizes and sha256: TensorFlow Datasets' checksums (datasets/oxford_flowers102); md5 in torchvision.
_VGG = "https://www.robots.ox.ac.uk/~vgg/data/"
_FLOWERS102 = DataSet(
    name="flowers102",
    title="Flowers 102",
    classes=read_lines("flowers102"),
    channels=3,
    size=224,
    varied=True,
    train=2_040,
    test=6_149,
    roles=("adaptation",),
    licence="none stated",
    citation="Nilsback and Zisserman 2008, Automated Flower Classification over a Large Number of Classes (ICVGIP)",
    reader="flowers",
    file_classes=102,
    folder="flowers102",
    parts=(
        File(
            name="102flowers.tgz",
            bytes=344_862_509,
            hash="sha256:2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
            urls=(f"{_VGG}flowers/102/102flowers.tgz",),
            makes=("jpg",),
        ),
        File(
            name="imagelabels.mat",
            bytes=502,
            hash="sha256:4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
            urls=(f"{_VGG}flowers/102/imagelabels.mat",),
        ),
        File(
            name="setid.mat",
            bytes=14_989,
            hash="sha256:46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
            urls=(f"{_VGG}flowers/102/setid.mat",),
        ),
    ),
    needs=("jpg", "imagelabels.mat", "setid.mat"),
    images="jpg",
    note="Trained on the official training and validation sets (1,020 each), tested on the official test set.",
)

# The official addresses answer 404 since 2023 (pytorch/vision issue 7545). Sizes, and sha256 of the images: TensorFlow
# Datasets' checksums (image_classification/cars196); md5 of the devkit: torchvision 0.12.
_CARS = DataSet(
    name="stanford-cars",
    title="Stanford Cars",
    classes=read_lines("stanford-cars"),
    channels=3,
    size=224,
    varied=True,
    train=8_144,
    test=8_041,
    roles=("adaptation",),
    licence="as ImageNet: non-commercial research and education",
    citation="Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization (3dRR)",
    reader="cars",
    file_classes=196,
    folder="stanford-cars",
    parts=(
        File(
            name="cars_train.tgz",
            bytes=979_269_282,
            hash="sha256:512b227b30e2f0a8aab9e09485786ab4479582073a144998da74d64b801fd288",
            urls=("http://ai.stanford.edu/~jkrause/car196/cars_train.tgz",),
            makes=("cars_train",),
        ),
        File(
            name="cars_test.tgz",
            bytes=977_350_468,
            hash="sha256:bffea656d6f425cba3c91c6d83336e4c5f86c6cffd8975b0f375d3a10da8e243",
            urls=("http://ai.stanford.edu/~jkrause/car196/cars_test.tgz",),
            makes=("cars_test",),
        ),
        File(
            name="car_devkit.tgz",
            bytes=330_960,
            hash="md5:c3b158d763b6e2245038c8ad08e45376",
            urls=(
                "https://ai.stanford.edu/~jkrause/cars/car_devkit.tgz",
                "https://github.com/pytorch/vision/files/11644847/car_devkit.tgz",
            ),
            makes=("devkit",),
        ),
        File(
            name="cars_test_annos_withlabels.mat",
            bytes=185_758,
            hash="sha256:790f75be8ea34eeded134cc559332baf23e30e91367e9ddca97d26ed9b895f05",
            urls=("http://ai.stanford.edu/~jkrause/car196/cars_test_annos_withlabels.mat",),
        ),
    ),
    needs=("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat"),
    images=".",
    manual=(
        "the official server no longer has it: copies at kaggle.com/datasets/jessicali9530/stanford-cars-dataset and "
        "in github.com/pytorch/vision/issues/7545; put cars_train/, cars_test/, devkit/ and "
        "cars_test_annos_withlabels.mat into the set's folder"
    ),
)

# Sizes and sha256: TensorFlow Datasets' checksums (datasets/oxford_iiit_pet); md5 in torchvision.
_PETS = DataSet(
    name="oxford-pets",
    title="Oxford Pets",
    classes=read_lines("oxford-pets"),
    channels=3,
    size=224,
    varied=True,
    train=3_680,
    test=3_669,
    roles=("adaptation",),
    licence="CC BY-SA 4.0",
    citation="Parkhi, Vedaldi, Zisserman and Jawahar 2012, Cats and Dogs (CVPR)",
    reader="pets",
    file_classes=37,
    folder="oxford-pets",
    parts=(
        File(
            name="images.tar.gz",
            bytes=791_918_971,
            hash="sha256:67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
            urls=(f"{_VGG}pets/data/images.tar.gz", "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz"),
            makes=("images",),
        ),
        File(
            name="annotations.tar.gz",
            bytes=19_173_078,
            hash="sha256:52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
            urls=(
                f"{_VGG}pets/data/annotations.tar.gz",
                "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
            ),
            makes=("annotations",),
        ),
    ),
    needs=("images", "annotations"),
    images="images",
)

_DTD = DataSet(
    name="dtd",
    title="DTD",
    classes=read_lines("dtd"),
    channels=3,
    size=224,
    varied=True,
    train=3_760,
    test=1_880,
    roles=("adaptation",),
    licence="made available for research purposes",
    citation="Cimpoi et al. 2014, Describing Textures in the Wild (CVPR), arXiv 1311.3618",
    reader="dtd",
    file_classes=47,
    folder="dtd",
    parts=(DTD_ARCHIVE,),
    needs=("dtd/images", "dtd/labels"),
    images="dtd/images",
    note="Official split 1: trained on its training and validation sets (1,880 each), tested on its test set.",
)

#: This module's rows.
ROWS = (_UCF101, _FOOD101, _FLOWERS102, _CARS, _PETS, _DTD)
