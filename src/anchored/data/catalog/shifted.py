"""Images of ImageNet's classes from elsewhere, which its networks are tested on as they are."""

from anchored.data.catalog import imagenet
from anchored.data.catalog.row import DataSet, published, read_lines

_NAME_OF = dict(zip(imagenet.WNIDS, imagenet.NAMES, strict=True))
_RENDERED = read_lines("imagenet-r")

# Address: README of hendrycks/imagenet-r, whose eval.py has the 200 WordNet ids. Size and sha256: TensorFlow Datasets'
# checksums (datasets/imagenet_r); the folder inside: its builder.
_IMAGENET_R = DataSet(
    name="imagenet-r", title="ImageNet-R", classes=tuple(_NAME_OF[each] for each in _RENDERED), varied=True,
    test=30_000, roles=("shifted",),
    licence="none stated with the images; research use",
    citation="Hendrycks et al. 2021, The Many Faces of Robustness (ICCV), arXiv 2006.16241",
    reader="class_folders", file_classes=200, folder="imagenet-r",
    parts=published("imagenet-r", "imagenet-r.tar", holds=("imagenet-r",)), needs=("imagenet-r",), images="imagenet-r",
    folders=_RENDERED,
    note="Renditions of 200 of ImageNet's classes: as its authors have it, these alone can be predicted.",
)  # fmt: skip

# The official address (README of HaohanWang/ImageNet-Sketch) is a page of a drive, not one for programs: that here is
# the copy of one of the authors, not compared with it. Size and sha256, of the official file: TensorFlow Datasets'
# checksums (datasets/imagenet_sketch); the folder inside: its builder. The authors say 50,000 images; 50,889 is what
# TensorFlow Datasets is known to count, which could not be looked up here.
_IMAGENET_SKETCH = DataSet(
    name="imagenet-sketch", title="ImageNet-Sketch", classes=imagenet.NAMES, varied=True, test=50_889,
    roles=("shifted",),
    licence="none stated; research use",
    citation="Wang, Ge, Xing and Lipton 2019, Learning Robust Global Representations by Penalizing Local Predictive "
    "Power (NeurIPS), arXiv 1905.13549",
    reader="class_folders", file_classes=1000, folder="imagenet-sketch",
    parts=published("imagenet-sketch", "ImageNet-Sketch.zip", holds=("sketch",)), needs=("sketch",), images="sketch",
    folders=imagenet.WNIDS,
    manual=(
        "or download it by hand from drive.google.com/open?id=1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA, the authors' address, "
        "and put ImageNet-Sketch.zip or its folder sketch/ into the set's folder"
    ),
    note="Drawings in black and white of ImageNet's 1,000 classes.",
)  # fmt: skip

ROWS = (_IMAGENET_R, _IMAGENET_SKETCH)
