"""Training: what anchoring costs a step, what the loop costs, and how fast augmented batches come.

    python benchmarks/training.py [--turns 15]

Each figure is a ratio of two things timed in turn in one process (A B A B ...); the median over the turns is printed
with the least and the greatest. Peers: the standard network's step; a bare forward and backward pass; torchvision's PIL
transforms in a torch DataLoader.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from timing import options_of, paired, seconds
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from anchored import anchor
from anchored.config.recipe import Cell
from anchored.config.settings import Anchoring, Data, Tail, Training
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.method.hard_delta import Residuals, uniform_cross_entropy
from anchored.models import registry as networks
from anchored.store.layout import Run
from anchored.study.progress import quiet
from anchored.training.fit import CheckpointCallback
from anchored.training.step import TrainingStep


def steps(model: nn.Module, batches: list[tuple[Tensor, Tensor]], optimizer: torch.optim.Optimizer | None) -> float:
    """Seconds of forward and backward (and the optimiser's step, where there is one) over the batches."""

    def work() -> None:
        for images, labels in batches:
            if optimizer is not None:
                optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
            if optimizer is not None:
                optimizer.step()

    return seconds(work)


def random_batches(count: int, size: int, channels: int, side: int) -> list[tuple[Tensor, Tensor]]:
    return [
        (
            torch.randn(size, channels, side, side).contiguous(memory_format=torch.channels_last),
            torch.randint(7, (size,)),
        )
        for _ in range(count)
    ]


def anchoring_step(turns: int) -> str:
    """Anchored (α = 0.25) step ÷ standard step, ResNet-18, 32×32, batch 64, optimiser included."""
    network = networks.build_network("resnet18", channels=3, classes=7, seed=0)
    batches = random_batches(2, 64, 3, 32)

    def stepping(model: nn.Module) -> Callable[[], float]:
        model = model.train().to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9)
        return lambda: steps(model, batches, optimizer)

    return paired(stepping(anchor(network, 0.25)), stepping(network), turns)


def mining_step(turns: int) -> str:
    """Hard Δ mining's own work (moments, fit once in 100 steps, tail points) added to a step that shows its points.

    ResNet-18, 32×32, batch 64, 32 tail points.
    """
    model = anchor(networks.build_network("resnet18", channels=3, classes=7, seed=0), 0.25).train()
    model = model.to(memory_format=torch.channels_last)
    batches, draws = random_batches(2, 64, 3, 32), torch.Generator()
    fixed, residuals = torch.randn(32, 3, 32, 32), Residuals((3, 32, 32))
    fit = seconds(lambda: (residuals.observe(batches[0][0], torch.arange(64), batches[0][1]), residuals.fit()))

    def step(mining: bool) -> float:
        def work() -> None:
            for images, labels in batches:
                tail = residuals.tail(32, 1e-4, draws) if mining else fixed
                logits = model(images, -tail)
                if mining:
                    residuals.observe(images, model.order, labels)
                loss = functional.cross_entropy(logits[: len(images)], labels)
                (loss + 0.1 * uniform_cross_entropy(logits[len(images) :])).backward()  # type: ignore[no-untyped-call]

        return seconds(work) + mining * fit * len(batches) / 100

    return paired(lambda: step(True), lambda: step(False), turns)


def loop(network: str, channels: int, side: int, count: int, batch: int, turns: int) -> str:
    """A whole step of our training (batches, augmentation, optimiser, Lightning, log) ÷ bare forward and backward."""
    settings = Training(epochs=1, batch_size=batch, learning_rate=1e-4, accelerator="cpu", crop_padding=2)
    cell = Cell(network, "anchored", 0.0, 0.0, 0, Data(), Anchoring(), Tail(), settings)
    model = anchor(networks.build_network(network, channels=channels, classes=7, seed=0)).train()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randint(256, (count * batch, channels, side, side), dtype=torch.uint8)
    names = tuple("abcdefg")
    image_set = ImageSet("random", images, torch.randint(7, (len(images),)), names)
    mean = (0.5,) * channels
    batches = Batches(image_set, batch, mean, mean, shuffle=True, crop_padding=2, flip=True, drop_last=True)
    bare = random_batches(count, batch, channels, side)

    def whole() -> float:
        return epoch_seconds(TrainingStep(model, cell, 7), batches, accelerator="cpu", devices=1)

    return paired(whole, lambda: steps(model.train(), bare, None), turns)


def epoch_seconds(step: TrainingStep, batches: Batches, **options: Any) -> float:
    """Seconds of an epoch by Lightning's Trainer with ``options``, from the first batch to the last step."""
    with tempfile.TemporaryDirectory() as folder:
        keeper = Clock(Run(Path(folder)), lambda share, what: None)
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[keeper],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(step, batches)
        return keeper.seconds


class Clock(CheckpointCallback):
    """Times the epoch from the first batch's loading to the last step's end; start-up and checkpoint apart."""

    seconds = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()  # the last steps are under way
        self.seconds = time.perf_counter() - self.start


class PILImages(Dataset[tuple[Tensor, int]]):
    """The peer: each image through torchvision's PIL transforms."""

    def __init__(self, images: Tensor, labels: Tensor, mean: tuple[float, ...]) -> None:
        to_pil = v2.ToPILImage()
        self.images = [to_pil(image) for image in images]
        self.labels = labels.tolist()
        self.transform = v2.Compose(
            [
                v2.RandomCrop(images.shape[-1], padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(list(mean), list(mean)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def loader(channels: int, side: int, turns: int) -> str:
    """Augmented, normalised batches of 128 a second: ours ÷ a torchvision PIL DataLoader's; one thread, no workers."""
    images, labels = torch.randint(256, (2560, channels, side, side), dtype=torch.uint8), torch.randint(7, (2560,))
    mean = (0.5,) * channels
    ours = Batches(
        ImageSet("random", images, labels, tuple("abcdefg")),
        128,
        mean,
        mean,
        shuffle=True,
        crop_padding=4,
        flip=True,
    )
    peer = DataLoader(PILImages(images, labels, mean), 128, shuffle=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return paired(lambda: seconds(lambda: list(peer)), lambda: seconds(lambda: list(ours)), turns)
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    turns: int = options_of(__doc__, turns=15).parse_args().turns
    quiet()
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("augmented batches/s ÷ torchvision PIL DataLoader, 3×32×32:", loader(3, 32, turns))
    print("augmented batches/s ÷ torchvision PIL DataLoader, 1×28×28:", loader(1, 28, turns))
    print("training loop ÷ bare forward + backward, demo network 28×28:", loop("small", 1, 28, 20, 128, turns))
    print("training loop ÷ bare forward + backward, ResNet-18 32×32:", loop("resnet18", 3, 32, 4, 64, turns))
    print("anchored step ÷ standard step, ResNet-18 32×32:", anchoring_step(turns))
    print("step with hard Δ mining ÷ step that shows as many points alone, ResNet-18 32×32:", mining_step(turns))


if __name__ == "__main__":
    main()
