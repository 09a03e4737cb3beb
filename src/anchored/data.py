"""From a row of the catalog to batches on the device.

Small image sets live in memory as uint8 and are augmented and normalised a batch at a time, as tensors: no worker
processes, no PIL. Every order and every augmentation depends on (seed, epoch) alone, so that a resumed run sees exactly
what an uninterrupted one would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from anchored import catalog
from anchored.catalog import DataSet
from anchored.corruptions.randomness import image_keys, normal, uniform
from anchored.errors import UserError
from anchored.readers import READERS, data_root, fetch, is_here

__all__ = [
    "Batches",
    "ImageSet",
    "as_seen_by",
    "crop_and_flip",
    "data_root",
    "fetch",
    "is_here",
    "load",
    "scaled",
    "to_input",
]

_CHUNK = 2048  # images resized at a time: bounds the memory their float copies take


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory with their labels.

    ``images`` (N,C,H,W) uint8; ``labels`` (N,) int64 in [0, len(classes)), on the same device; ``classes``: the name of
    each label; ``name``: the catalog row's, or any other for images of one's own. UserError when these do not fit.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

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


def _check_images(images: Tensor, what: str) -> None:
    """Raise UserError unless ``images`` is (N,C,H,W) uint8."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f"{what} are {images.dtype} {tuple(images.shape)}: give uint8 (N, C, H, W)")


def load(
    name: str, split: str, root: str | Path | None = None, *, channels: int | None = None, size: int | None = None
) -> ImageSet:
    """Return one split, "train" or "test", of the data set called ``name``.

    ``root``: the folder of downloaded sets; default $ANCHORED_DATA, else ~/.cache/anchored. ``channels`` and ``size``:
    the input of the network that will see the images, if it differs from the set's own: computed sets (noise, blobs)
    are then drawn at that shape, others pass through :func:`as_seen_by`. UserError, one line, when the set or split
    does not exist, or a file is missing, damaged or not what the catalog says.
    """
    row = catalog.get(name)
    count = {"train": row.train, "test": row.test}.get(split, 0)
    if count == 0:
        have = " and ".join(f"'{s}' ({n:,} images)" for s, n in (("train", row.train), ("test", row.test)) if n)
        raise UserError(f"data set '{name}' has no split '{split}': use {have}")
    shape = (channels or row.channels, size or row.size)
    if row.reader == "procedural":
        images, labels = _draw(name, split, count, shape), torch.zeros(count, dtype=torch.int64)
    else:
        images, labels = _read(row, split, root)
    if len(images) != count:
        raise UserError(f"data set '{name}' has {len(images):,} {split} images here; the catalog says {count:,}")
    return ImageSet(name, as_seen_by(images, *shape), labels, row.classes)


def _read(row: DataSet, split: str, root: str | Path | None) -> tuple[Tensor, Tensor]:
    """Return images (N,C,H,W) uint8 and labels (N,) int64 of ``row``'s files, only the classes it keeps."""
    raw_images, raw_labels = READERS[row.reader](row, split, root)
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
    channels, size = shape
    keys = image_keys(0, f"{name}/{split}", torch.arange(count))
    form = (channels, size, size)
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


def scaled(images: ImageSet, fraction: float, minimum: int = 1) -> ImageSet:
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
    return images.take(torch.cat(places).sort().values)


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
    """An iterable of (images float32 (B,C,H,W) normalised, labels (B,) int64) over an ImageSet, on its device.

    ``crop_padding``, ``flip``: augmentation by :func:`crop_and_flip`; none by default. ``shuffle``: a new order every
    epoch. ``drop_last``: leave out a last batch that is not full. Order and augmentation depend only on (seed, epoch):
    call :meth:`set_epoch` before each epoch (Lightning does, through :attr:`sampler`). ``shard`` = (rank, world size):
    this process's share when several train together; all see the same order, take every n-th image of it, and get
    equally many (in a shuffled epoch the few images left over change every time; without shuffling the last ranks have
    fewer). UserError for an empty set, a batch size below 1, an impossible shard.
    """

    def __init__(
        self,
        image_set: ImageSet,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        seed: int = 0,
        shuffle: bool = False,
        crop_padding: int = 0,
        flip: bool = False,
        drop_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}: give 1 or more")
        if not 0 <= shard[0] < shard[1]:
            raise UserError(f"shard is {shard}: give (rank, world size) with 0 <= rank < world size")
        if len(image_set) == 0:
            raise UserError(f"data set '{image_set.name}' has no images to make batches of")
        self.image_set = image_set
        self.batch_size = batch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.seed = seed
        self.shuffle = shuffle
        self.crop_padding = crop_padding
        self.flip = flip
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
        return len(self.image_set) // world if self.shuffle else len(range(rank, len(self.image_set), world))

    def __len__(self) -> int:
        share = self._share()
        return share // self.batch_size if self.drop_last else -(-share // self.batch_size)

    def order(self) -> Tensor:
        """Return the indices (int64, on the CPU) of the images this process sees in this epoch, in order."""
        count = len(self.image_set)
        order = torch.arange(count)
        if self.shuffle:
            order = torch.randperm(count, generator=_generator(self.seed, self.epoch))
        return order[self.shard[0] :: self.shard[1]][: self._share()]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order().to(self.image_set.images.device)
        for number, chosen in enumerate(torch.split(order, self.batch_size)[: len(self)]):
            images = self.image_set.images[chosen]
            if self.crop_padding or self.flip:
                generator = _generator(self.seed, self.epoch, self.shard[0], number)
                images = crop_and_flip(images, generator, self.crop_padding, self.flip)
            yield to_input(images, self.mean, self.std), self.image_set.labels[chosen]
