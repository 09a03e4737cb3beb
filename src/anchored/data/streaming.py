"""Images that are decoded as they are needed, by worker processes: what a set is when it does not fit in memory.

What a batch holds depends on its indices, and in training on (seed, epoch, index): never on the number of workers.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from anchored.corruptions.randomness import image_keys
from anchored.errors import UserError

if TYPE_CHECKING:
    from torchvision.transforms import v2

Interpolation = Literal["bilinear", "bicubic"]
AutoAugment = Literal["none", "rand_augment", "trivial_augment", "auto_augment"]
Labels = npt.NDArray[np.int64]
Item = TypeVar("Item")

_LONGEST = 50  # sides' ratio of an image that is resized whole: beyond it, the copy would not fit in memory
_FEW = 256  # images that are decoded sooner than worker processes start
_WORKERS = 16  # processes by default, at most: more wait for the disk

_POLICIES = {
    "rand_augment": "RandAugment",
    "trivial_augment": "TrivialAugmentWide",
    "auto_augment": "AutoAugment",
}


class Index(Protocol):
    """A list of encoded images, found but not decoded; picklable. ``readers.ImageIndex`` is one."""

    @property
    def labels(self) -> Labels:
        """The label of each image, (N,)."""
        ...

    def __len__(self) -> int: ...

    def decode(self, index: int) -> Image.Image:
        """Return one image, "L" or "RGB"; UserError naming its file where it is not a whole image."""
        ...


class Images(Protocol):
    """A set of labelled images, in memory or not: what training and evaluation take."""

    @property
    def name(self) -> str:
        """The catalog row's name, or that of own images."""
        ...

    @property
    def labels(self) -> Tensor:
        """The label of each image, (N,) int64."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The name of each label."""
        ...

    def __len__(self) -> int: ...

    def to(self, device: torch.device | str) -> Images:
        """Return the same set, giving its tensors on ``device``."""
        ...

    def take(self, indices: Tensor) -> Images:
        """Return the images at ``indices`` (K,), in that order."""
        ...

    def parts(self, batches: Sequence[Tensor], augmentation: Augmentation | None = None) -> Iterator[Tensor]:
        """Give the images of each batch of indices (B,) in turn: uint8 (B,C,H,W), on the set's device."""
        ...


@dataclass(frozen=True)
class View:
    """How a network sees an image of any size: its shorter side becomes ``size / crop`` pixels, then the middle square.

    ``channels``, ``size``: the network's input. An image that has the input's size already is not touched. UserError
    where ``crop`` is not in (0, 1].
    """

    channels: int
    size: int
    crop: float = 1.0
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 0 < self.crop <= 1:
            raise UserError(f"crop is {self.crop:g}: give the share of the shorter side that is kept, in (0, 1]")

    @property
    def mode(self) -> str:
        """Pillow's name of the colours."""
        return "L" if self.channels == 1 else "RGB"

    def __call__(self, image: Image.Image) -> Tensor:
        """Return ``image`` as the network sees it, uint8 (C,size,size): torchvision's Resize and CenterCrop of a PIL
        image, to the last bit."""
        image = image.convert(self.mode)
        if image.size != (self.size, self.size):
            short, wanted = min(image.size), math.floor(self.size / self.crop)
            if max(image.size) > _LONGEST * short:
                raise UserError(f"an image of {image.width} × {image.height} pixels is too long to be resized: crop it")
            width, height = (int(wanted * side / short) for side in image.size)
            image = image.resize((width, height), Image.Resampling[self.interpolation.upper()])
            left, top = (round((side - self.size) / 2) for side in image.size)
            image = image.crop((left, top, left + self.size, top + self.size))
        return _pixels(image)


def _pixels(image: Image.Image) -> Tensor:
    """Return an "L" or "RGB" image as uint8 (C,H,W)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


@dataclass(frozen=True)
class Augmentation:
    """What training makes of one image at a time: torchvision's reference for ImageNet.

    A random part of it (8 to 100 % of the area, sides 3:4 to 4:3) at the input's size, mirrored with probability 1/2 if
    ``flip``, then ``policy``. The draws of image i follow from (seed, epoch, i).
    """

    seed: int
    epoch: int
    flip: bool = True
    policy: AutoAugment = "none"

    def transform(self, seen: View) -> v2.Transform:
        """The transform of one image to a network's input size."""
        from torchvision.transforms import v2  # takes longer to import than torch, and is seldom needed

        mode = v2.InterpolationMode(seen.interpolation)
        steps = [v2.RandomResizedCrop(seen.size, interpolation=mode)]
        steps += [v2.RandomHorizontalFlip()] if self.flip else []
        steps += [getattr(v2, _POLICIES[self.policy])(interpolation=mode)] if self.policy != "none" else []
        return v2.Compose(steps)

    def keys(self, indices: Tensor) -> list[int]:
        """The seed of each image's draws."""
        return image_keys(self.seed, f"augmentation/{self.epoch}", indices).tolist()


@dataclass(frozen=True, eq=False)
class ImageStream:
    """A set of encoded images, decoded by ``workers`` processes as they are asked for.

    ``chosen`` (N,): the places of its images in ``index``, in its order. ``workers`` −1: one for every core that this
    process may use, at most 16; none for a few images; 0: no other process.
    """

    name: str
    index: Index
    classes: tuple[str, ...]
    seen: View
    chosen: Tensor
    labels: Tensor
    workers: int = -1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.chosen)

    def to(self, device: torch.device | str) -> ImageStream:
        """Return the same set, giving its tensors on ``device``."""
        return replace(self, labels=self.labels.to(device), device=torch.device(device))

    def take(self, indices: Tensor) -> ImageStream:
        """Return the images at ``indices`` (K,), integers, in that order."""
        return replace(self, chosen=self.chosen[indices.cpu()], labels=self.labels[indices.to(self.labels.device)])

    def parts(self, batches: Sequence[Tensor], augmentation: Augmentation | None = None) -> Iterator[Tensor]:
        """Give the images of each batch of indices (B,) in turn: uint8 (B,C,H,W), on the set's device.

        UserError naming the file where one is not a whole image, or when a worker is killed.
        """
        for images, problems in self.attempts(batches, augmentation):
            if problems:
                raise UserError(next(iter(problems.values())))
            yield images

    def attempts(
        self, batches: Sequence[Tensor], augmentation: Augmentation | None = None
    ) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """As ``parts``, with what is wrong with each image that cannot be read, by its place in the batch.

        Such an image is black.
        """
        jobs = _Jobs(self.index, self.seen, [self.chosen[batch.cpu()] for batch in batches], augmentation)
        workers = min(self._processes(sum(map(len, batches))), len(batches))
        loader = DataLoader(
            jobs,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            # Forked processes share the index; what torch and Pillow need in them holds no locks.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one, and other people's draws would change
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                batches_made = iter(loader)
            for images, problems in batches_made:
                yield images.to(self.device, non_blocking=True), problems
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that reads {self.name} was killed, for want of memory perhaps: lower data.workers (now "
                f"{workers}) or the batch size"
            ) from error

    def _processes(self, images: int) -> int:
        if self.workers >= 0:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes that train together on this machine
        return min(cores, _WORKERS) if images > _FEW and cores > 1 else 0


class _Jobs(Dataset[tuple[Tensor, dict[int, str]]]):
    """What the workers do: one batch a job."""

    def __init__(self, index: Index, seen: View, batches: Sequence[Tensor], augmentation: Augmentation | None) -> None:
        self.index, self.seen, self.batches, self.augmentation = index, seen, batches, augmentation
        self.transform = None if augmentation is None else augmentation.transform(seen)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[int, str]]:
        places = self.batches[number]
        keys = None if self.augmentation is None else self.augmentation.keys(places)
        images, problems = [], {}
        for i, place in enumerate(places.tolist()):
            try:
                images.append(self._one(place, None if keys is None else keys[i]))
            except UserError as error:  # noqa: PERF203 -- as text: across processes an error loses its one line
                images.append(torch.zeros(self.seen.channels, self.seen.size, self.seen.size, dtype=torch.uint8))
                problems[i] = str(error)
        # In a worker this stacks into shared memory at once; a tensor filled here and moved there leaves holes in the
        # worker's heap that glibc does not use again.
        return default_collate(images), problems

    def _one(self, place: int, key: int | None) -> Tensor:
        image = self.index.decode(place)
        if self.transform is None or key is None:
            return self.seen(image)
        # torchvision draws from the global generator; it is put back, so that nobody else's draws change.
        state = torch.default_generator.get_state()
        try:
            torch.default_generator.manual_seed(key)
            return _pixels(self.transform(image.convert(self.seen.mode)))
        finally:
            torch.default_generator.set_state(state)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Give what an iterator gives, the next item being made by a thread meanwhile: one item waits, never more."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not the end
