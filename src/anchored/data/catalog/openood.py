"""The splits of OpenOOD 1.5 for CIFAR-10, CIFAR-100 and ImageNet, by its own lists of images, and its groups of sets.

Which lists there are and which sets are near or far: openood/evaluation_api/datasets.py and configs/datasets of
Jingkang50/OpenOOD, and pytorch-ood's benchmark/img/openood.py, which agree. How many images each list names: stated
alike in public programs that check the lists before they run. The lists themselves are downloaded by OpenOOD's script
from a drive that has no addresses for programs; they are read as they lie there. ImageNet-200 is left out: its 200
classes are named in its lists only.
"""

from dataclasses import replace

from anchored.data.catalog import imagenet, small
from anchored.data.catalog.row import DataSet

_CIFAR10, _CIFAR100 = (next(row for row in small.ROWS if row.name == name) for name in ("cifar10", "cifar100"))
_MANUAL = (
    "run scripts/download/download.sh of github.com/Jingkang50/OpenOOD, and link its data/ as the folder openood: it "
    "holds benchmark_imglist/, images_classic/ and images_largescale/"
)


def _base(row: DataSet, benchmark: str, images: str, file: str, near_to: tuple[str, ...] = ()) -> DataSet:
    """Return a row read from ``benchmark_imglist/BENCHMARK/test_FILE.txt``: images of the folder ``images``."""
    listed = f"benchmark_imglist/{benchmark}/test_{file}.txt"
    return replace(
        row,
        varied=True,
        reader="openood",
        folder="openood",
        train_files=(),
        test_files=(),
        parts=(),
        images=images,
        needs=(listed, images),
        near_to=near_to,
        manual=_MANUAL,
    )


def _inside(row: DataSet, images: str, test: int) -> DataSet:
    """Return the row of a benchmark's in-distribution set: all its training images, and the test images of its list."""
    made = _base(row, row.name, images, row.name)  # whose list of test images comes first
    return replace(
        made,
        name=f"{row.name}-openood",
        title=f"{row.title} (OpenOOD)",
        varied=row.varied,
        test=test,
        roles=("train",),
        needs=(*made.needs, made.needs[0].replace("/test_", "/train_")),
        note=f"The {test:,} test images that OpenOOD does not choose settings on.",
    )


_INSIDE = (
    _inside(_CIFAR10, "images_classic/cifar10", 9_000),
    _inside(_CIFAR100, "images_classic/cifar100", 9_000),
    replace(_inside(imagenet.ROWS[0], "images_largescale/imagenet_1k", 45_000), folders=()),
)

_OUTSIDE = DataSet(
    name="", title="", classes=("outside",), test=1, roles=("ood",), reader="openood", file_classes=1,
    licence="that of each source; see OpenOOD's README",
    citation="Zhang et al. 2023, OpenOOD v1.5 (DMLR 2024), arXiv 2306.09301, and the set's own",
)  # fmt: skip
_NEAR, _FAR = True, False
# benchmark -> name, title, folder of the images, images in the list, near or far; in OpenOOD's order.
_SETS: dict[str, tuple[tuple[str, str, str, int, bool], ...]] = {
    "cifar10": (
        ("cifar100", "CIFAR-100", "images_classic/cifar100", 9_000, _NEAR),
        ("tin", "Tiny ImageNet", "images_classic/tin", 7_793, _NEAR),
        ("mnist", "MNIST", "images_classic/mnist", 70_000, _FAR),
        ("svhn", "SVHN", "images_classic/svhn", 26_032, _FAR),
        ("texture", "Textures", "images_classic/texture", 5_640, _FAR),
        ("places365", "Places365", "images_classic/places365", 35_195, _FAR),
    ),
    "cifar100": (
        ("cifar10", "CIFAR-10", "images_classic/cifar10", 10_000, _NEAR),
        ("tin", "Tiny ImageNet", "images_classic/tin", 6_526, _NEAR),
        ("mnist", "MNIST", "images_classic/mnist", 70_000, _FAR),
        ("svhn", "SVHN", "images_classic/svhn", 26_032, _FAR),
        ("texture", "Textures", "images_classic/texture", 5_640, _FAR),
        ("places365", "Places365", "images_classic/places365", 33_773, _FAR),
    ),
    "imagenet": (
        ("ssb_hard", "SSB-hard", "images_largescale/ssb_hard", 49_000, _NEAR),
        ("ninco", "NINCO", "images_largescale/ninco", 5_879, _NEAR),
        ("inaturalist", "iNaturalist", "images_largescale/inaturalist", 10_000, _FAR),
        ("textures", "Textures", "images_classic/texture", 5_160, _FAR),
        ("openimage_o", "OpenImage-O", "images_largescale/openimage_o", 15_869, _FAR),
    ),
}


def _outside(benchmark: str, file: str, title: str, images: str, test: int, near: bool) -> DataSet:
    """Return the row of one out-of-distribution set of a benchmark."""
    row = _base(_OUTSIDE, benchmark, images, file, (benchmark, f"{benchmark}-openood") if near else ())
    of = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}[benchmark]
    return replace(
        row,
        name=f"openood-{benchmark}-{file.replace('_', '-')}",
        title=f"{title} (OpenOOD, {of})",
        test=test,
        size=_CIFAR10.size if benchmark.startswith("cifar") else 224,
        note=f"The test images that OpenOOD 1.5 sets against {of}.",
    )


_OF = {name: tuple(_outside(name, *each) for each in sets) for name, sets in _SETS.items()}

ROWS = (*_INSIDE, *(row for rows in _OF.values() for row in rows))

GROUPS = {f"openood-{name}": tuple(row.name for row in rows) for name, rows in _OF.items()}
"""Name of a group of out-of-distribution sets -> their names, near ones first."""
