"""Labelled images: in memory as one tensor (ImageSet), or decoded as they are needed by worker processes (ImageStream).

What a batch holds depends on its indices, and in training on (seed, epoch, index): never on the number of workers.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from anchored.data.augmentation import Augmentation
from anchored.data.image_sources import ImageIndex
from anchored.data.preprocessing import InputFormat, check_uint8, fit_to_input, tensor_to_pil
from anchored.errors import UserError
from anchored.method.devices import to_device

Item = TypeVar("Item")

_FEW = 256  # images that are decoded sooner than worker processes start
_WORKERS = 16  # processes by default, at most: more wait for the disk


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory with their labels.

    ``images`` (N,C,H,W) uint8; ``labels`` (N,) int64 in [0, len(classes)), on the same device; ``classes``: the name of
    each label; ``name``: the catalog row's, or any other; ``shown``: (channels, size) that ``parts`` gives, None for
    the images' own. UserError when these do not fit.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    shown: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_uint8(self.images, f"images of {self.name}")
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

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the same set with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def take(self, indices: Tensor) -> "ImageSet":
        """Return the images at ``indices`` (K,), integers, in that order."""
        indices = indices.to(self.images.device)
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def parts(self, batches: Sequence[Tensor], augmentation: Augmentation | None = None) -> Iterator[Tensor]:
        """Give the images of each batch of indices (B,) in turn: uint8 (B,C,H,W), on the set's device."""
        shape = self.shown or (self.images.shape[1], self.images.shape[2])
        for chosen in batches:
            images = self.images[to_device(chosen, self.images.device)]
            if augmentation is not None:
                # By PIL, whose resizing and policies differ from those on tensors: the same images as from a stream.
                augment, keys = augmentation.to(InputFormat(*shape)), augmentation.keys(chosen.cpu())
                pairs = zip(images.cpu(), keys, strict=True)
                yield torch.stack([augment(tensor_to_pil(image), key) for image, key in pairs]).to(images.device)
            else:
                yield images if self.shown is None else fit_to_input(images, *shape)


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Encoded images, decoded by ``workers`` processes as they are asked for.

    ``chosen`` (N,): the places of its images in ``index``, in its order. ``target``: the network's input that they
    become. ``workers`` −1: one for every core that this process may use, at most 16; none for a few images; 0: no other
    process.
    """

    name: str
    index: ImageIndex
    classes: tuple[str, ...]
    target: InputFormat
    chosen: Tensor
    workers: int = -1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.chosen)

    @cached_property
    def labels(self) -> Tensor:
        """The label of each image, (N,) int64, on the set's device."""
        return torch.from_numpy(self.index.labels)[self.chosen].to(self.device)

    def to(self, device: torch.device | str) -> "ImageStream":
        """Return the same set, giving its tensors on ``device``."""
        return replace(self, device=torch.device(device))

    def take(self, indices: Tensor) -> "ImageStream":
        """Return the images at ``indices`` (K,), integers, in that order."""
        return replace(self, chosen=self.chosen[indices.cpu()])

    def parts(self, batches: Sequence[Tensor], augmentation: Augmentation | None = None) -> Iterator[Tensor]:
        """Give the images of each batch of indices (B,) in turn: uint8 (B,C,H,W), on the set's device. UserError naming
        the file where one is not a whole image, or when a worker is killed."""
        for images, problems in self.attempts(batches, augmentation):
            if problems:
                raise UserError(next(iter(problems.values())))
            yield images

    def attempts(
        self, batches: Sequence[Tensor], augmentation: Augmentation | None = None
    ) -> Iterator[tuple[Tensor, dict[int, str]]]:
        """As ``parts``, with what is wrong with each image that cannot be read, by its place in the batch. Such an
        image is black."""
        jobs = _DecodeBatches(self.index, self.target, [self.chosen[batch.cpu()] for batch in batches], augmentation)
        workers = min(self._processes(sum(map(len, batches))), len(batches))
        loader = DataLoader(
            jobs,
            batch_size=None,
            num_workers=workers,
            prefetch_factor=2 if workers else None,
            # Forked processes share the index; what torch and Pillow need in them holds no locks.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it draws from the global one, and the draws of others would change
        )
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
                decoded = iter(loader)
            if before is not None and threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, before)  # else torch raises of a killed worker wherever we are just then
            for images, problems in decoded:
                yield to_device(images, self.device), problems
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


LabelledImages = ImageSet | ImageStream
"""A set of N labelled images, in memory or not: what training and evaluation take."""


@dataclass(frozen=True, eq=False)
class GivenInputs:
    """A network's inputs of any shape in memory, prepared by whoever gave them: nothing is corrupted or resized.

    ``images`` (N,...) float32; ``labels`` (N,) int64; ``classes``: the name of each label.
    """

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Tensor) -> "GivenInputs":
        """Return the inputs at ``indices`` (N,), in their order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])

    def parts(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Give the inputs of each batch of indices (B,) in turn."""
        return (self.images[chosen] for chosen in batches)


class _DecodeBatches(Dataset[tuple[Tensor, dict[int, str]]]):
    """What the workers do: item n is batch n, decoded."""

    def __init__(
        self, index: ImageIndex, target: InputFormat, batches: Sequence[Tensor], augmentation: Augmentation | None
    ) -> None:
        self.index, self.target, self.batches, self.augmentation = index, target, batches, augmentation

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, dict[int, str]]:
        places = self.batches[number]
        keys = [0] * len(places) if self.augmentation is None else self.augmentation.keys(places)
        augment = None if self.augmentation is None else self.augmentation.to(self.target)
        images, problems = [], {}
        for i, (place, key) in enumerate(zip(places.tolist(), keys, strict=True)):
            try:
                image = self.index.decode(place)
                images.append(self.target(image) if augment is None else augment(image, key))
            except UserError as error:  # noqa: PERF203 -- as text: across processes an error loses its one line
                images.append(torch.zeros(self.target.channels, self.target.size, self.target.size, dtype=torch.uint8))
                problems[i] = str(error)
        # In a worker this stacks into shared memory at once; a tensor filled here and moved there leaves holes in the
        # worker's heap that glibc does not use again.
        return default_collate(images), problems


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Give what an iterator gives, the next item being made by a thread meanwhile: one item waits, never more."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not the end
