"""Sets to adapt to with a linear probe. Training images are all that are not test images: train and validation."""

from anchored.data.catalog.row import DataSet, published, read_lines

_UCF101 = DataSet(
    name="ucf101", title="UCF101", classes=read_lines("ucf101"), varied=True, train=9_537, test=3_783,
    roles=("adaptation",),
    licence="none stated",
    citation="Soomro, Zamir and Shah 2012, arXiv 1212.0402; middle frames of Zhou et al. 2022 (CoOp), arXiv 2109.01134",
    reader="ucf101", file_classes=101, folder="ucf101",
    parts=(
        # No source states a hash or a size of the frames; the address is that of CoOp's DATASETS.md.
        *published("ucf101", "UCF-101-midframes.zip", holds=("UCF-101-midframes",)),
        # Size and sha256: TensorFlow Datasets' checksums (video/ucf101).
        *published("ucf101", "UCF101TrainTestSplits-RecognitionTask.zip", makes=("ucfTrainTestlist",)),
    ),
    needs=("UCF-101-midframes", "ucfTrainTestlist"), images="UCF-101-midframes",
    note="One frame, the middle one, of each video; official split 1. CoOp's split has the same test images.",
)  # fmt: skip

# Size and sha256: TensorFlow Datasets' checksums (image_classification/food101); md5 85eeb15f3717b99a5da872d97d918f87
# in torchvision. Labels: the sorted names, as in torchvision.
_FOOD101 = DataSet(
    name="food101", title="Food 101", classes=read_lines("food101"), varied=True, train=75_750, test=25_250,
    roles=("adaptation",),
    licence="scientific fair use; other uses: Foodspotting's terms",
    citation="Bossard, Guillaumin and Van Gool 2014, Food-101 (ECCV)",
    reader="food", file_classes=101, folder="food101",
    parts=published("food101", "food-101.tar.gz", makes=("food-101",)), needs=("food-101/images", "food-101/meta"),
    images="food-101/images",
)  # fmt: skip

# Sizes and sha256: TensorFlow Datasets' checksums (datasets/oxford_flowers102); md5 in torchvision.
_FLOWERS102 = DataSet(
    name="flowers102", title="Flowers 102", classes=read_lines("flowers102"), varied=True, train=2_040, test=6_149,
    roles=("adaptation",),
    licence="none stated",
    citation="Nilsback and Zisserman 2008, Automated Flower Classification over a Large Number of Classes (ICVGIP)",
    reader="flowers", file_classes=102, folder="flowers102",
    parts=(
        *published("flowers102", "102flowers.tgz", makes=("jpg",)),
        *published("flowers102", "imagelabels.mat", "setid.mat"),
    ),
    needs=("jpg", "imagelabels.mat", "setid.mat"), images="jpg",
    note="Trained on the official training and validation sets (1,020 each), tested on the official test set.",
)  # fmt: skip

# The official addresses answer 404 since 2023 (pytorch/vision issue 7545). Sizes, and sha256 of the images: TensorFlow
# Datasets' checksums (image_classification/cars196); md5 of the devkit: torchvision 0.12.
_CARS = DataSet(
    name="stanford-cars", title="Stanford Cars", classes=read_lines("stanford-cars"), varied=True, train=8_144,
    test=8_041, roles=("adaptation",),
    licence="as ImageNet: non-commercial research and education",
    citation="Krause et al. 2013, 3D Object Representations for Fine-Grained Categorization (3dRR)",
    reader="cars", file_classes=196, folder="stanford-cars",
    parts=(
        *published("stanford-cars", "cars_train.tgz", makes=("cars_train",)),
        *published("stanford-cars", "cars_test.tgz", makes=("cars_test",)),
        *published("stanford-cars", "car_devkit.tgz", makes=("devkit",)),
        *published("stanford-cars", "cars_test_annos_withlabels.mat"),
    ),
    needs=("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat"), images=".",
    manual=(
        "the official server no longer has it: copies at kaggle.com/datasets/jessicali9530/stanford-cars-dataset and "
        "in github.com/pytorch/vision/issues/7545; put cars_train/, cars_test/, devkit/ and "
        "cars_test_annos_withlabels.mat into the set's folder"
    ),
)  # fmt: skip

# Sizes and sha256: TensorFlow Datasets' checksums (datasets/oxford_iiit_pet); md5 in torchvision.
_PETS = DataSet(
    name="oxford-pets", title="Oxford Pets", classes=read_lines("oxford-pets"), varied=True, train=3_680, test=3_669,
    roles=("adaptation",),
    licence="CC BY-SA 4.0",
    citation="Parkhi, Vedaldi, Zisserman and Jawahar 2012, Cats and Dogs (CVPR)",
    reader="pets", file_classes=37, folder="oxford-pets",
    parts=(
        *published("oxford-pets", "images.tar.gz", makes=("images",)),
        *published("oxford-pets", "annotations.tar.gz", makes=("annotations",)),
    ),
    needs=("images", "annotations"), images="images",
)  # fmt: skip

_DTD = DataSet(
    name="dtd", title="DTD", classes=read_lines("dtd"), varied=True, train=3_760, test=1_880, roles=("adaptation",),
    licence="made available for research purposes",
    citation="Cimpoi et al. 2014, Describing Textures in the Wild (CVPR), arXiv 1311.3618",
    reader="dtd", file_classes=47, folder="dtd", parts=published("dtd", "dtd-r1.0.1.tar.gz", makes=("dtd",)),
    needs=("dtd/images", "dtd/labels"), images="dtd/images",
    note="Official split 1: trained on its training and validation sets (1,880 each), tested on its test set.",
)  # fmt: skip


# Addresses, and how many images each domain has in all: ai.bu.edu/M3SDA, its cleaned version; how they are divided:
# ddg's domainnet.py, but painting, of which that counts 15 more than the page (images that no list names): the
# division that adds up to the page's, which could not be looked up here. md5 of the archives: ddg's and another
# public loader agree; of the lists: ddg's. No source states sizes in bytes. The lists number classes by names,
# letters' case and hyphens aside ("t-shirt" is 327).
def _domainnet(domain: str, train: int, test: int, note: str = "") -> DataSet:
    """Return the row of one of DomainNet's six domains: 345 classes, the official lists."""
    lists = (f"{domain}_train.txt", f"{domain}_test.txt")
    return DataSet(
        name=f"domainnet-{domain}", title=f"DomainNet {domain}", classes=read_lines("domainnet"), varied=True,
        train=train, test=test, roles=("adaptation",),
        licence="non-commercial research and education (its fair use notice)",
        citation="Peng et al. 2019, Moment Matching for Multi-Source Domain Adaptation (ICCV), arXiv 1812.01754",
        reader="domainnet", file_classes=345, folder="domainnet",
        parts=(*published("domainnet", f"{domain}.zip", holds=(domain,)), *published("domainnet", *lists)),
        needs=(domain, *lists), images=domain, part_of=f"domainnet/{domain}",
        note=note or "Read from its zip, by the official lists.",
    )  # fmt: skip


_DOMAINNET = (
    _domainnet("clipart", 33_525, 14_604),
    _domainnet("infograph", 36_023, 15_582),
    _domainnet("painting", 50_416, 21_850, "No list has a t-shirt to train on, nor a syringe to test on."),
    _domainnet("quickdraw", 120_750, 51_750),
    _domainnet("real", 120_906, 52_041),
    _domainnet("sketch", 48_212, 20_916),
)

ROWS = (_UCF101, _FOOD101, _FLOWERS102, _CARS, _PETS, _DTD, *_DOMAINNET)
