"""From the name of a data set to batches on the device.

Sets that fit in memory are one uint8 tensor, augmented and normalised a batch at a time; larger ones are decoded by
worker processes as they are needed (``stream.py``). Both are ``Images``, and nobody above this module asks which. Every
order and every augmentation depends on (seed, epoch) alone, so that a resumed run sees exactly what an uninterrupted
one would have seen.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from anchored import catalog, own, readers
from anchored.catalog import DataSet
from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.errors import UserError
from anchored.readers import data_root, fetch, is_here
from anchored.recipe import Data
from anchored.stream import Augmentation, AutoAugment, Images, ImageStream, Index, Labels, Preprocessing

__all__ = [
    "Batches",
    "ImageSet",
    "Images",
    "Preprocessing",
    "as_seen_by",
    "content",
    "crop_and_flip",
    "data_root",
    "describe",
    "fetch",
    "is_here",
    "load",
    "open_set",
    "scaled",
    "seen_by",
    "to_input",
]

_CHUNK = 2048  # images resized at a time: bounds the memory their float copies take
_MEASURED = 10_000  # training images at most that give the mean and standard deviation of own data
_Some = TypeVar("_Some", bound=Images)


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory with their labels.

    ``images`` (N,C,H,W) uint8; ``labels`` (N,) int64 in [0, len(classes)), on the same device; ``classes``: the name of
    each label; ``name``: the catalog row's, or any other for images of one's own; ``shown``: (channels, size) that
    ``parts`` gives, None for the images' own. UserError when these do not fit.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    shown: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _check_images(self.images, f"images of {self.name}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise UserError(
                f"labels of {self.name} are {self.labels.dtype} {tuple(self.labels.shape)}: give int64 "
                f"({len(self.images)},), one label per image"
            )
        if len(self.labels):
            low, high = (int(value) for value in self.labels.aminmax())
            if low < 0 or high >= len(self.classes):
                raise UserError(
                    f"labels of {self.name} run from {low} to {high}: {len(self.classes)} classes allow 0 to "
                    f"{len(self.classes) - 1}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the same set with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, indices: Tensor) -> ImageSet:
        """Return the images at ``indices`` (K,), integers, in that order."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def parts(self, batches: Sequence[Tensor], augmentation: Augmentation | None = None) -> Iterator[Tensor]:
        """Give the images of each batch of indices (B,) in turn: uint8 (B,C,H,W), on the set's device."""
        shape = self.shown or (self.images.shape[1], self.images.shape[2])
        if augmentation is not None:
            yield from _as_stream(self, Preprocessing(*shape)).parts(batches, augmentation)
            return
        for chosen in batches:
            images = self.images[chosen.to(self.images.device)]
            yield images if self.shown is None else as_seen_by(images, *shape)


@dataclass(frozen=True, eq=False)
class _Pixels:
    """An image set as a list of images for ``ImageStream``."""

    set: ImageSet

    @property
    def labels(self) -> Labels:
        return self.set.labels.numpy()

    def __len__(self) -> int:
        return len(self.set)

    def decode(self, index: int) -> Image.Image:
        pixels = self.set.images[index]
        return Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())


def _as_stream(images: ImageSet, seen: Preprocessing) -> ImageStream:
    """The same images, decoded one at a time: for augmentations of single images."""
    there = images.images.device
    here = images.to("cpu")
    stream = ImageStream(
        images.name, _Pixels(here), images.classes, seen, torch.arange(len(here)), here.labels, workers=0
    )
    return stream.to(there)


def _check_images(images: Tensor, what: str) -> None:
    """Raise UserError unless ``images`` is (N,C,H,W) uint8."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f"{what} are {images.dtype} {tuple(images.shape)}: give uint8 (N, C, H, W)")


def load(
    name: str, split: str, root: str | Path | None = None, *, channels: int | None = None, size: int | None = None
) -> ImageSet:
    """Return one split, "train" or "test", of the data set called ``name``, in memory.

    ``root``: the folder of downloaded sets; default $ANCHORED_DATA, else ~/.cache/anchored. ``channels`` and ``size``:
    the input of the network that will see the images, if it differs from the set's own: computed sets (noise, blobs)
    are then drawn at that shape, others pass through :func:`as_seen_by`. UserError, one line, when the set or split
    does not exist, or a file is missing, damaged or not what the catalog says.
    """
    row = _row(name, Data())
    seen = Preprocessing(channels or row.channels, size or row.size)
    return _in_memory(_found(row, split, Data(workers=-1), root, seen), seen)


def open_set(
    name: str,
    split: str,
    settings: Data,
    seen: Preprocessing,
    root: str | Path | None = None,
    *,
    minimum: int = 1,
    originals: bool = False,
) -> Images:
    """Return one split of a data set as a network sees it: in memory up to ``settings.memory`` GB, else as a stream.

    ``split``: "train", "test", or "ood", what is shown as out-of-distribution: the test images, and of own data without
    a test split all. ``settings.fraction`` of each class, its first images and at least ``minimum``, is kept.
    ``originals``: leave encoded images as they are, for random crops of them. Sets in memory are kept for the next
    call, as long as they fit into the limit together. UserError as in :func:`load`, and where own images are not those
    that ``settings.content`` tells of.
    """
    limit = settings.memory * 1e9
    stated = content(name, settings)
    if name == settings.train and settings.content and stated != settings.content:
        raise UserError(
            f"the images of {name} are not those that this training began with (their hash was {settings.content}, is "
            f"{stated}): bring those back, or train in another folder"
        )
    key = (name, split, str(data_root(root)), stated, seen, settings.fraction, minimum, settings.test_share)
    if key in _KEPT and not originals:
        _KEPT.move_to_end(key)
        return _KEPT[key]
    row = _row(name, settings)
    found = scaled(_found(row, split, settings, root, seen), settings.fraction, minimum)
    needed = len(found) * seen.channels * seen.size**2
    if needed > limit or (originals and isinstance(found, ImageStream)):
        return found if isinstance(found, ImageStream) else replace(found, shown=(seen.channels, seen.size))
    kept = _KEPT[key] = _in_memory(found, seen)
    while len(_KEPT) > 1 and sum(each.images.nbytes for each in _KEPT.values()) > limit:
        _KEPT.popitem(last=False)
    return kept


_KEPT: OrderedDict[tuple[object, ...], ImageSet] = OrderedDict()  # sets that were opened last, decoded


def content(name: str, settings: Data) -> str:
    """Return the hash of own images; "" for a set of the catalog, whose files have hashes of their own."""
    return own.find(name, settings.test_share).content if catalog.is_own(name) else ""


def seen_by(settings: Data) -> Preprocessing:
    """Return how the networks of a study see images: the training set's shape, or the size in the settings."""
    row = _row(settings.train, settings)
    return Preprocessing(row.channels, settings.size or row.size, settings.resize, settings.interpolation)


def describe(settings: Data, root: str | Path | None = None) -> DataSet:
    """Return the row of the training set: the catalog's, or one made of own images, mean and s.d. measured.

    These are of the training images at the input's size, of 10,000 spread evenly where there are more. UserError where
    a network cannot learn from it.
    """
    row = _row(settings.train, settings)
    if not row.classes:
        raise UserError(f"data.train is '{row.name}', which has no classes: name a set with labels")
    if not catalog.is_own(row.name):
        return row
    own.checked(own.find(row.name, settings.test_share))
    key = (row.name, content(row.name, settings), seen_by(settings), settings.test_share)
    if key not in _MOMENTS:
        images = open_set(row.name, "train", replace(settings, fraction=1.0), seen_by(settings), root)
        _MOMENTS[key] = _moments(images)
    mean, std = _MOMENTS[key]
    return replace(row, mean=mean, std=std)


_MOMENTS: dict[tuple[object, ...], tuple[tuple[float, ...], tuple[float, ...]]] = {}


def _moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and s.d. per channel of images scaled to [0, 1], exactly: from counts of each level."""
    chosen = torch.linspace(0, len(images) - 1, min(len(images), _MEASURED), dtype=torch.float64).long()
    counts = torch.zeros(0)
    for part in images.parts(torch.split(chosen, 256)):
        found = torch.stack([channel.flatten().cpu().bincount(minlength=256) for channel in part.unbind(1)])
        counts = found if len(counts) == 0 else counts + found
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    return tuple(mean.tolist()), tuple(std.clamp(min=1 / 255).tolist())


def _row(name: str, settings: Data) -> DataSet:
    """Return the row of a data set; one of own images has no mean and s.d. yet."""
    if not catalog.is_own(name):
        return catalog.get(name)
    found = own.find(name, settings.test_share)
    counts = {split: len(index) for split, index in found.splits.items()}
    return DataSet(
        name=name,
        title=catalog.title(name),
        classes=found.classes,
        channels=found.channels,
        size=found.size,
        train=counts.get("train", 0),
        test=counts.get("test", 0),
        roles=("train", "ood", "adaptation"),
        licence="own",
        citation="",
        reader="own",
        file_classes=len(found.classes),
        varied=True,
    )


def _found(
    row: DataSet, split: str, settings: Data, root: str | Path | None, seen: Preprocessing
) -> ImageSet | ImageStream:
    """Return all images of a split, as they are found: pixels of any shape, or encoded."""
    if row.reader == "own":
        return _stream(row, own.find(row.name, settings.test_share).split(split), seen, settings.workers)
    split = "test" if split == "ood" else split
    count = {"train": row.train, "test": row.test}.get(split, 0)
    if count == 0:
        have = " and ".join(f"'{s}' ({n:,} images)" for s, n in (("train", row.train), ("test", row.test)) if n)
        raise UserError(f"data set '{row.name}' has no split '{split}': use {have}")
    if row.reader in readers.INDEXES:
        return _stream(row, readers.index(row, split, root), seen, settings.workers)
    if row.reader == "procedural":
        images = _draw(row.name, split, count, (seen.channels, seen.size))
        labels = torch.zeros(count, dtype=torch.int64)
    else:
        images, labels = _read(row, split, root)
    if len(images) != count:
        raise UserError(f"data set '{row.name}' has {len(images):,} {split} images here; the catalog says {count:,}")
    return ImageSet(row.name, images, labels, row.classes)


def _stream(row: DataSet, index: Index, seen: Preprocessing, workers: int) -> ImageStream:
    labels = torch.from_numpy(index.labels)
    return ImageStream(row.name, index, row.classes, seen, torch.arange(len(labels)), labels, workers)


def _in_memory(images: ImageSet | ImageStream, seen: Preprocessing) -> ImageSet:
    """Return the images as the network sees them, as one tensor."""
    if isinstance(images, ImageSet):
        return replace(images, images=as_seen_by(images.images, seen.channels, seen.size))
    pixels = torch.empty(len(images), seen.channels, seen.size, seen.size, dtype=torch.uint8)
    batches = torch.split(torch.arange(len(images)), 64)
    for batch, part in zip(batches, images.parts(batches), strict=True):
        pixels[batch] = part
    return ImageSet(images.name, pixels, images.labels, images.classes)


def _read(row: DataSet, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Return images (N,C,H,W) uint8 and labels (N,) int64 of ``row``'s files, only the classes it keeps."""
    raw_images, raw_labels = readers.READERS[row.reader](row, split, root)
    expected = (row.channels, row.size, row.size)
    if raw_images.shape[1:] != expected or len(raw_images) != len(raw_labels):
        raise UserError(
            f"{row.title}: the files hold {raw_images.shape} images and {len(raw_labels):,} labels; the catalog says "
            f"images of {expected}"
        )
    if int(raw_labels.max(initial=0)) >= row.file_classes:
        raise UserError(f"{row.title}: a label is {raw_labels.max()}; its {row.file_classes} classes end below that")
    if row.keep is None:
        return torch.tensor(raw_images), torch.tensor(raw_labels, dtype=torch.int64)
    new_label = torch.full((row.file_classes,), -1)
    new_label[torch.tensor(row.keep)] = torch.arange(len(row.keep))
    labels = new_label[torch.tensor(raw_labels, dtype=torch.int64)]
    kept = labels >= 0
    return torch.tensor(raw_images[kept.numpy()]), labels[kept]


def _draw(name: str, split: str, count: int, shape: tuple[int, int]) -> Tensor:
    """Return the ``count`` images (N,C,H,W) uint8 of a computed set; image i is the same whatever ``count`` is."""
    form = (shape[0], shape[1], shape[1])
    keys = image_keys(0, f"{name}/{split}", torch.arange(count))
    return torch.cat([_drawn(name, part, form) for part in torch.split(keys, _CHUNK // 4)])


def _drawn(name: str, keys: Tensor, form: tuple[int, int, int]) -> Tensor:
    if name == "gaussian-noise":
        return (normal(keys, form) * (0.25 * 255) + 127.5).round_().clamp_(0, 255).to(torch.uint8)
    if name == "uniform-noise":
        return (uniform(keys, form) * 256).to(torch.uint8)
    return _blobs(normal(keys, form))


def _blobs(noise: Tensor) -> Tensor:
    """Smooth ``noise`` (N,C,H,W) with a Gaussian of s.d. H/14 (2 px at 28), then stretch each channel to 0..255."""
    sigma = noise.shape[-1] / 14
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (2, 3):
        padded = F.pad(noise, (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0), mode="reflect")
        noise = sum(
            (w * padded.narrow(axis, i, noise.shape[axis]) for i, w in enumerate(weights.tolist())),
            start=torch.zeros(()),
        )
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return ((noise - low) / (high - low) * 255).round_().to(torch.uint8)


def scaled(images: _Some, fraction: float, minimum: int = 1) -> _Some:
    """Return the first images of each class, in their order: a ``fraction`` of it, at least ``minimum``, for trials.

    UserError unless ``fraction`` is in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UserError(f"fraction is {fraction:g}: give a share of the images in (0, 1]")
    if fraction == 1:
        return images
    places = []
    for label in range(len(images.classes)):
        of_class = (images.labels == label).nonzero().squeeze(1)
        places.append(of_class[: max(minimum, round(fraction * len(of_class)))])
    return images.take(torch.cat(places).sort().values)  # type: ignore[return-value]  # a set of the same kind


def as_seen_by(images: Tensor, channels: int, size: int) -> Tensor:
    """Return uint8 ``images`` (N,C,H,W) as a network with input (channels, size, size) sees them: uint8.

    Grey becomes RGB by repeating it; RGB becomes grey with the ITU-R 601 weights, rounded as PIL does; the size changes
    by bilinear interpolation with antialiasing. What already fits is returned as it is. UserError for channel counts
    other than 1 and 3, where they would have to change.
    """
    _check_images(images, "images")
    if images.shape[1] != channels:
        if {images.shape[1], channels} != {1, 3}:
            raise UserError(
                f"images have {images.shape[1]} channels, the network takes {channels}: only 1 and 3 convert"
            )
        images = _to_grey(images) if channels == 1 else images.expand(-1, 3, -1, -1).contiguous()
    if images.shape[2:] == (size, size):
        return images
    parts = [
        F.interpolate(part.float(), (size, size), mode="bilinear", align_corners=False, antialias=True)
        for part in torch.split(images, _CHUNK)
    ]
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def _to_grey(images: Tensor) -> Tensor:
    """Return (N,1,H,W) uint8 of RGB (N,3,H,W): (19595 R + 38470 G + 7471 B + 32768) >> 16, PIL's integer ITU-R 601."""
    red, green, blue = images.to(torch.int32).chunk(3, dim=1)
    grey = torch.bitwise_right_shift(red * 19595 + green * 38470 + blue * 7471 + 32768, 16)
    return grey.to(torch.uint8)


def to_input(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return uint8 ``images`` (B,C,H,W) as the network's input, float32: (images / 255 − mean) / std per channel.

    ``mean``, ``std``: per channel, of images scaled to [0, 1]. UserError when their number is not C.
    """
    _check_images(images, "images")
    if not images.shape[1] == len(mean) == len(std):
        raise UserError(f"images have {images.shape[1]} channels, mean has {len(mean)} and std {len(std)} values")
    shift = torch.tensor(mean, dtype=torch.float32, device=images.device).mul_(255).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32, device=images.device).mul_(255).reciprocal_().view(-1, 1, 1)
    return images.to(torch.float32).sub_(shift).mul_(scale)


def crop_and_flip(images: Tensor, generator: Generator, padding: int = 4, flip: bool = True) -> Tensor:
    """Return randomly shifted and mirrored ``images`` (B,C,H,W) uint8, of the same shape.

    Each image is padded with ``padding`` black pixels on every side (torchvision's ``RandomCrop`` fill 0), cropped back
    to H × W at one of the (2·padding + 1)² places, and mirrored left to right with probability 1/2 if ``flip``.
    ``generator`` is a CPU generator, so that every device draws alike. One gather over the flattened pixels; the
    alternatives measured (unfolded views, four-dimensional indexing, copies grouped by offset) take 1.3 to 6 times as
    long, and only a CPU loop over images is faster (by 1.2 to 2).
    """
    _check_images(images, "images")
    count, channels, height, width = images.shape
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    rows = torch.arange(height) + offsets[0, :, None]
    columns = torch.arange(width).expand(count, width)
    if flip:
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    columns = columns + offsets[1, :, None]
    wide = width + 2 * padding
    rows, columns = (rows * wide).to(images.device), columns.to(images.device)
    places = (rows[:, :, None] + columns[:, None, :]).view(count, 1, height * width).expand(-1, channels, -1)
    padded = F.pad(images, (padding,) * 4).view(count, channels, -1)
    return padded.gather(2, places).view(images.shape)


def _generator(*numbers: int) -> Generator:
    """Return a CPU generator whose stream depends on all of ``numbers``, well mixed."""
    seed = int(image_keys(0, "/".join(map(str, numbers)), torch.zeros(1, dtype=torch.int64)))
    return Generator().manual_seed(seed)


class Batches:
    """An iterable of (images float32 (B,C,H,W) normalised, labels (B,) int64) over a set, on its device.

    ``crop_padding``, ``flip``: augmentation by :func:`crop_and_flip`; none by default. ``resized_crop``: random parts
    of single images instead (and ``flip``, and ``policy``), as ``stream.Augmentation`` says. ``shuffle``: a new order
    every epoch. ``drop_last``: leave out a last batch that is not full. Order and augmentation depend only on (seed,
    epoch): call :meth:`set_epoch` before each epoch (Lightning does, through :attr:`sampler`). ``shard`` = (rank, world
    size): this process's share when several train together; all see the same order, take every n-th image of it, and
    get equally many (in a shuffled epoch the few images left over change every time; without shuffling the last ranks
    have fewer). UserError for an empty set, a batch size below 1, an impossible shard.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int = 0,
        shuffle: bool = False,
        crop_padding: int = 0,
        flip: bool = False,
        resized_crop: bool = False,
        policy: AutoAugment = "none",
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}: give 1 or more")
        if not 0 <= shard[0] < shard[1]:
            raise UserError(f"shard is {shard}: give (rank, world size) with 0 <= rank < world size")
        if len(images) == 0:
            raise UserError(f"data set '{images.name}' has no images to make batches of")
        self.images = images
        self.batch_size = batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed = seed
        self.shuffle = shuffle
        self.crop_padding = crop_padding
        self.flip = flip
        self.resized_crop = resized_crop
        self.policy: AutoAugment = policy
        self.drop_last = drop_last
        self.shard = shard
        self.epoch = 0

    @property
    def sampler(self) -> Batches:
        """Return itself: Lightning calls ``dataloader.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        self.epoch = epoch

    def _share(self) -> int:
        """Return how many images this process sees in an epoch."""
        rank, world = self.shard
        return len(self.images) // world if self.shuffle else len(range(rank, len(self.images), world))

    def __len__(self) -> int:
        share = self._share()
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def order(self) -> Tensor:
        """Return the indices (int64, on the CPU) of the images this process sees in this epoch, in order."""
        count = len(self.images)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=_generator(self.seed, self.epoch))
        return order[self.shard[0] :: self.shard[1]][: self._share()]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = torch.split(self.order(), self.batch_size)[: len(self)]
        single = Augmentation(self.seed, self.epoch, self.flip, self.policy) if self.resized_crop else None
        for number, images in enumerate(self.images.parts(batches, single)):
            if single is None and (self.crop_padding or self.flip):
                generator = _generator(self.seed, self.epoch, self.shard[0], number)
                images = crop_and_flip(images, generator, self.crop_padding, self.flip)
            yield to_input(images, self.mean, self.std), self.images.labels[batches[number].to(images.device)]
