"""Images in memory, and batches of any images: augmented, normalised, on the device.

Every order and every augmentation depends on (seed, epoch) alone, so that a resumed run sees exactly what an
uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Generator, Tensor

from anchored.corruptions.randomness import image_keys
from anchored.data.streaming import Augmentation, AutoAugment, Images, ImageStream, Labels, View
from anchored.errors import UserError

_CHUNK = 2048  # images resized at a time: bounds the memory their float copies take


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
            yield from _as_stream(self, View(*shape)).parts(batches, augmentation)
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


def _as_stream(images: ImageSet, seen: View) -> ImageStream:
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


def crop_and_flip(
    images: Tensor, generator: Generator, padding: int = 4, flip: bool = True, shard: tuple[int, int] = (0, 1)
) -> Tensor:
    """Return randomly shifted and mirrored ``images`` (B,C,H,W) uint8, of the same shape.

    Each image is padded with ``padding`` black pixels on every side (torchvision's ``RandomCrop`` fill 0), cropped back
    to H × W at one of the (2·padding + 1)² places, and mirrored left to right with probability 1/2 if ``flip``.
    ``generator`` is a CPU generator, so that every device draws alike. ``shard`` = (rank, world size): these images are
    every n-th of a larger batch, and are given what they would be given in it. One gather over the flattened pixels;
    the alternatives measured (unfolded views, four-dimensional indexing, copies grouped by offset) take 1.3 to 6 times
    as long, and only a CPU loop over images is faster (by 1.2 to 2).
    """
    _check_images(images, "images")
    count, channels, height, width = images.shape
    rank, world = shard
    offsets = torch.randint(0, 2 * padding + 1, (2, count * world), generator=generator)[:, rank::world]
    mirrored = (torch.rand(count * world, generator=generator) < 0.5)[rank::world]
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
    epoch): call :meth:`set_epoch` before each epoch (Lightning does, through :attr:`sampler`); ``state_dict`` and
    ``load_state_dict`` are those of torchdata's stateful loaders, to go on within an epoch. ``shard`` = (rank, world
    size): this process's share when several train together; all see the same order, take every n-th image of it, and
    get equally many (in a shuffled epoch the few images left over change every time; without shuffling the last ranks
    have fewer). Together, n processes see in each step what one would with n times the batch size, augmented alike.
    UserError for an empty set, a batch size below 1, an impossible shard.
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
        self._given = 0  # batches of the iteration under way
        self._resumed = (0, 0)  # epoch, and how many of its batches the next iteration leaves out

    @property
    def sampler(self) -> Batches:
        """Return itself: Lightning calls ``dataloader.sampler.set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of ``epoch``."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """How many batches of the epoch were given; Lightning keeps it in its checkpoints."""
        return {"epoch": self.epoch, "given": self._given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration, if it is of that epoch, begin after the batches that were given."""
        self._resumed = state["epoch"], state["given"] % len(self)

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
        begin = self._resumed[1] if self._resumed[0] == self.epoch else 0
        self._resumed = (0, 0)
        batches = torch.split(self.order(), self.batch_size)[begin : len(self)]
        single = Augmentation(self.seed, self.epoch, self.flip, self.policy) if self.resized_crop else None
        for number, (chosen, images) in enumerate(zip(batches, self.images.parts(batches, single), strict=True), begin):
            if single is None and (self.crop_padding or self.flip):
                generator = _generator(self.seed, self.epoch, 0, number)
                images = crop_and_flip(images, generator, self.crop_padding, self.flip, self.shard)
            self._given = number + 1
            yield to_input(images, self.mean, self.std), self.images.labels[chosen.to(images.device)]
