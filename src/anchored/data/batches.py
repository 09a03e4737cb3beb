"""Batches of labelled images: shuffled, augmented, normalised, on the device.

Every order and every augmentation depends on (seed, epoch) alone, so that a resumed run sees exactly what an
uninterrupted one would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace

import torch
from torch import Generator, Tensor

from anchored.config.settings import Policy
from anchored.corruptions.randomness import image_keys
from anchored.data.augmentation import Augmentation, crop_and_flip, erase, occurrence_keys
from anchored.data.image_sets import LabelledImages
from anchored.data.policies import POLICIES
from anchored.data.preprocessing import to_input
from anchored.data.synthetic_ood import make_ood
from anchored.errors import UserError
from anchored.method.devices import to_device


def _generator(*numbers: int) -> Generator:
    """Return a CPU generator whose stream depends on all of ``numbers``, well mixed."""
    seed = int(image_keys(0, "/".join(map(str, numbers)), torch.zeros(1, dtype=torch.int64)))
    return Generator().manual_seed(seed)


@dataclass(eq=False, repr=False)
class Batches:
    """An iterable of (images float32 (B,C,H,W) normalised, labels (B,) int64) over a set, on its device.

    Further images may follow the B: with ``copies`` that many times B under the policy, and then B ``outliers``.

    ``crop_padding``, ``flip``: augmentation by :func:`crop_and_flip`; none by default. ``resized_crop``: random parts
    of single images instead (and ``flip``, and ``policy``), as ``Augmentation`` says. ``policy``: those of ``POLICIES``
    work on whole batches, after either crop; with ``copies`` on these alone. ``erasing``: the share of images with a
    rectangle of noise (:func:`erase`). ``repeats``: how often each image stands in a batch; an epoch has so many times
    fewer. ``outliers``: images that are no class's, or how they are made of the training images (``OUTLIERS``); a new
    order every epoch, cropped, flipped and erased like the others. ``shuffle``: a new order every epoch.
    ``drop_last``: leave out a last batch that is not full. Order and augmentation depend only on (seed, epoch): call
    :meth:`set_epoch` before each epoch (Lightning does, through :attr:`sampler`); ``state_dict`` and
    ``load_state_dict`` are those of torchdata's stateful loaders, to go on within an epoch. ``shard`` = (rank, world
    size): this process's share when several train together; all see the same order, take every n-th image of it, and
    get equally many (in a shuffled epoch the few images left over change every time; without shuffling the last ranks
    have fewer). Together, n processes see in each step what one would with n times the batch size, augmented alike, but
    for ``repeats`` of an image, which ranks share out.
    UserError for an empty set, a batch size below 1, an impossible shard.
    """

    images: LabelledImages
    batch_size: int
    mean: Sequence[float]
    std: Sequence[float]
    _: KW_ONLY
    seed: int = 0
    shuffle: bool = False
    crop_padding: int = 0
    flip: bool = False
    resized_crop: bool = False
    policy: Policy = "none"
    copies: int = 0
    erasing: float = 0.0
    repeats: int = 1
    outliers: LabelledImages | str = ""
    drop_last: bool = False
    shard: tuple[int, int] = (0, 1)
    epoch: int = field(default=0, init=False)
    _given: int = field(default=0, init=False)  # batches of the iteration under way
    _resumed: tuple[int, int] = field(default=(0, 0), init=False)  # epoch, how many of its batches to leave out next

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}: give 1 or more")
        if not 0 <= self.shard[0] < self.shard[1]:
            raise UserError(f"shard is {self.shard}: give (rank, world size) with 0 <= rank < world size")
        if len(self.images) == 0:
            raise UserError(f"data set '{self.images.name}' has no images to make batches of")

    @property
    def sampler(self) -> "Batches":
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
        own = order[self.shard[0] :: self.shard[1]][: self._share()]
        return own if self.repeats == 1 else own.repeat_interleave(self.repeats)[: self._share()]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        begin = self._resumed[1] if self._resumed[0] == self.epoch else 0
        self._resumed = (0, 0)
        batches = torch.split(self.order(), self.batch_size)[begin : len(self)]
        single = plain = None
        if self.resized_crop:
            one_at_a_time = "none" if self.policy == "augmix" or self.policy == "pixmix" else self.policy
            plain = Augmentation(self.seed, self.epoch, self.flip)
            single = replace(plain, policy=one_at_a_time)
        drawn = zip(batches, self.images.parts(batches, single), self._outliers(batches, begin, plain), strict=True)
        for number, (chosen, images, outliers) in enumerate(drawn, begin):
            self._given = number + 1
            images = self._augmented(self._shifted(images, 0, number), chosen)
            if outliers is not None:
                images = torch.cat([images, self._shifted(outliers, 1, number)])
            inputs = to_input(images, self.mean, self.std)
            if self.erasing:
                parts = range(len(inputs) // len(chosen))  # the images, their copies, the outliers
                keys = torch.cat([self._keys(chosen, f"erasing/{part}" if part else "erasing") for part in parts])
                inputs = erase(inputs, keys, self.erasing)
            yield inputs, self.images.labels[to_device(chosen, images.device)]

    def _shifted(self, images: Tensor, purpose: int, number: int) -> Tensor:
        """Randomly cropped and flipped, if they are to be and were not; ``purpose``: 0 images, 1 outliers."""
        if self.resized_crop or not (self.crop_padding or self.flip):
            return images
        generator = _generator(self.seed, self.epoch, purpose, number)
        return crop_and_flip(images, generator, self.crop_padding, self.flip, self.shard)

    def _augmented(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Under the policy, if it works on whole batches; or followed by copies that are."""
        if self.policy not in POLICIES or (self.resized_crop and self.policy == "trivial_augment"):
            return images
        policy = POLICIES[self.policy]
        if not self.copies:
            return policy(images, self._keys(chosen, "policy"))
        copies = (policy(images, self._keys(chosen, f"policy/{copy}")) for copy in range(1, self.copies + 1))
        return torch.cat([images, *copies])

    def _keys(self, chosen: Tensor, purpose: str) -> Tensor:
        """A key per image, (B,) int64 on the CPU, of (seed, purpose, epoch, image), new for each repeat."""
        return occurrence_keys(self.seed, f"{purpose}/{self.epoch}", chosen)

    def _outliers(
        self, batches: Sequence[Tensor], begin: int, augmentation: Augmentation | None
    ) -> Iterator[Tensor | None]:
        """As many outliers, uint8, for each batch, if there are to be any; cropped as ``augmentation`` says."""
        if self.outliers == "":
            yield from (None for _ in batches)
        elif isinstance(self.outliers, str):
            for chosen, images in zip(batches, self.images.parts(batches, augmentation), strict=True):
                yield make_ood(images, self.outliers, seed=self.seed + self.epoch, indices=chosen)
        else:
            rank, world = self.shard
            generators = (_generator(self.seed, self.epoch, 2, begin + i) for i in range(len(batches)))
            count = len(self.outliers)
            places = [
                torch.randint(0, count, (len(chosen) * world,), generator=generator)[rank::world]
                for chosen, generator in zip(batches, generators, strict=True)
            ]
            yield from self.outliers.parts(places, augmentation)
