"""ImageNet-1k: ILSVRC 2012, which needs a login."""

from anchored.data.catalog.row import DataSet, published, read_lines

# Folders: the WordNet ids in their sorted order, which is the order of the class indices (timm's imagenet_synsets.txt,
# torchvision's ImageFolder). Names: the first of ILSVRC's names of each, as torchvision's model metadata has them.
WNIDS, NAMES = zip(*(line.split(" ", 1) for line in read_lines("imagenet")), strict=True)

# md5: torchvision's datasets/imagenet.py; sizes (and sha256 c7e06a6c..., b08200a2...): TensorFlow Datasets' checksums.
_IMAGENET = DataSet(
    name="imagenet", title="ImageNet", classes=NAMES, varied=True, train=1_281_167, test=50_000,
    mean=(0.485, 0.456, 0.406),  # the literature's, not those of exactly these images
    std=(0.229, 0.224, 0.225), roles=("train",),
    licence="non-commercial research and education, after agreeing to ImageNet's terms",
    citation="Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge (IJCV), arXiv 1409.0575",
    reader="imagenet", file_classes=1000, folder="imagenet",
    parts=(
        *published("imagenet", "ILSVRC2012_img_train.tar", makes=("train",), into="train", nested=True),
        *published("imagenet", "ILSVRC2012_img_val.tar", makes=("val",), into="val"),
        *published("imagenet", "ILSVRC2012_devkit_t12.tar.gz", makes=("ILSVRC2012_devkit_t12",)),
    ),
    needs=("train", "val"), folders=WNIDS,
    manual=(
        "log in at image-net.org, download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
        "ILSVRC2012_devkit_t12.tar.gz into the set's folder and run 'anchored data fetch imagenet' to unpack them, or "
        "link train/ and val/ of class folders there"
    ),
    note="The test split is ILSVRC's validation set, sorted by class, then by name.",
)  # fmt: skip

ROWS = (_IMAGENET,)
