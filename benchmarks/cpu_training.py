"""Lines of ``cpu.py`` on training: a step, the loop round it, augmented batches; beside peers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import peers
import pytorch_lightning as pl
import torch
from bench import CLASSES, Bench, Figures, Line, Way, matrix_rate, ratio, spread, stepping
from timing import seconds, turned
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms import v2

from anchored import anchor
from anchored.cli.main import KEPT
from anchored.config.recipe import Cell
from anchored.config.settings import Anchoring, Data, Tail, Training
from anchored.data.batches import Batches
from anchored.data.image_sets import ImageSet
from anchored.method.hard_delta import Residuals, uniform_cross_entropy
from anchored.models import registry as networks
from anchored.store.layout import Run
from anchored.training.fit import CheckpointCallback
from anchored.training.step import TrainingStep

DEMO, RESNET = "demo network, 28", "ResNet-18, 32"
CASES = {  # title: (network, channels, pixels, images)
    DEMO: ("small", 1, 28, 128),
    RESNET: ("resnet18", 3, 32, 64),
    "WRN-40-2, 32": ("wrn40_2", 3, 32, 64),
    "ViT-S/16, 224": ("timm:vit_small_patch16_224", 3, 224, 8),
}
TINY = {DEMO: ("small", 1, 16, 4), RESNET: ("small", 3, 32, 4)}
USUAL = Way(channels_last=True)
WAYS = {
    "float32": Way(),
    "channels-last": USUAL,
    "bfloat16": Way(half=True),
    "bfloat16, channels-last": Way(half=True, channels_last=True),
}


def cases(bench: Bench) -> dict[str, tuple[str, int, int, int]]:
    return TINY if bench.tiny else CASES


def built(bench: Bench, title: str) -> tuple[nn.Module, tuple[int, int, int], int]:
    """A network, an image's shape, images of a batch."""
    name, channels, size, count = cases(bench)[title]
    network = networks.build_network(name, channels=channels, classes=CLASSES, seed=0, size=size)
    return network, (channels, size, size), count


# --- The machine ------------------------------------------------------------------------------------------------------


def peak_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for name in ("float32", "bfloat16"):
        yield f"matrix product, {name}", partial(_product, bench, name)
    for half in (False, True):
        yield f"convolution, {'bfloat16' if half else 'float32'}", partial(_convolution, bench, half)


def _product(bench: Bench, name: str) -> Figures:
    return {"GFLOP/s": spread([each / 1e9 for each in matrix_rate(bench, name)])}


def _convolution(bench: Bench, half: bool) -> Figures:
    return {"GFLOP/s": spread([each / 1e9 for each in convolution_rate(bench, half)])}


def convolution_rate(bench: Bench, half: bool) -> list[float]:
    """Operations a second, forward and backward, of the 3 × 3 convolution that gets most of the machine of three."""
    found = []
    for channels, size in [(16, 4)] if bench.tiny else [(64, 32), (128, 16), (256, 8)]:
        layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        images = bench.random(64, channels, size, size).contiguous(memory_format=torch.channels_last)
        images.requires_grad_()

        def work(layer: nn.Module = layer, images: Tensor = images) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                result = layer(images)
            result.sum().backward()

        operations = 3 * 2 * 9 * channels**2 * images.shape[0] * size**2
        found.append([operations / each for each in bench.in_turn(layer=work)["layer"]])
    return max(found, key=statistics.median)


# --- A step -----------------------------------------------------------------------------------------------------------


def step_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in cases(bench):
        yield title, partial(_step, bench, title)
    yield f"hard Δ mining, {RESNET}", partial(_mining, bench)


def _step(bench: Bench, title: str) -> Figures:
    """The masked one has a mask an image, so that all turns do the same."""
    network, shape, count = built(bench, title)
    anchored = anchor(network, 0.25, mask_unit="image", example=torch.zeros(2, *shape))
    found = bench.in_turn(
        anchored=stepping(bench, anchored, shape, count, USUAL),
        standard=stepping(bench, network, shape, count, USUAL),
    )
    return {
        "anchored ÷ standard": ratio(found["anchored"], found["standard"]),
        "images/s": spread([count / each for each in found["standard"]]),
    }


def _mining(bench: Bench) -> Figures:
    """Hard Δ mining's own work (moments, fit once in 100 steps, tail points) added to a step that shows its points."""
    network, shape, count = built(bench, RESNET)
    model = anchor(network, 0.25, mask_unit="image").train().to(memory_format=torch.channels_last)
    images, draws = bench.random(count, *shape).contiguous(memory_format=torch.channels_last), torch.Generator()
    labels, residuals = torch.arange(count) % CLASSES, Residuals(shape)
    fixed = bench.random(count // 2, *shape)
    fit = seconds(lambda: (residuals.observe(images, torch.arange(count).flip(0), labels), residuals.fit()))

    def step(mining: bool) -> None:
        tail = residuals.tail(len(fixed), 1e-4, draws) if mining else fixed
        logits = model(images, -tail)
        if mining:
            residuals.observe(images, model.order, labels)
        loss = functional.cross_entropy(logits[:count], labels)
        (loss + 0.1 * uniform_cross_entropy(logits[count:])).backward()  # type: ignore[no-untyped-call]

    found = bench.in_turn(mining=lambda: step(True), plain=lambda: step(False))
    return {"with mining ÷ as many points": ratio([each + fit / 100 for each in found["mining"]], found["plain"])}


def way_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in cases(bench):
        yield title, partial(_ways, bench, title)


def _ways(bench: Bench, title: str) -> Figures:
    works = {}
    for name, way in WAYS.items():
        network, shape, count = built(bench, title)
        works[name] = stepping(bench, network, shape, count, way)
    found = bench.in_turn(**works)
    with FlopCounterMode(display=False) as counter:
        works["float32"]()
    best = min(found, key=lambda name: statistics.median(found[name]))
    rate = counter.get_total_flops() / statistics.median(found[best])
    peak = statistics.median(convolution_rate(bench, WAYS[best].half))
    compared = {f"{name} ÷ float32": ratio(found[name], found["float32"]) for name in list(WAYS)[1:]}
    return {**compared, "best": best, "share of peak": rate / peak}


def allocator_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in list(cases(bench))[: 1 if bench.tiny else 2]:
        yield title, partial(_allocator, bench, title)


def _allocator(bench: Bench, title: str) -> Figures:
    """Processor time of steps of one thread, in processes of their own: glibc reads the environment as they start."""
    if platform.libc_ver()[0] != "glibc":
        raise peers.NotHere("the settings are glibc's")
    kept = {variable: str(size) for variable, (_, size) in KEPT.items()}
    found = turned(
        bench.turns, lambda: _fresh_process(bench, title, kept), lambda: _fresh_process(bench, title, {}), warm_up=0
    )
    return {"kept ÷ default": ratio(*found), "ms a step": spread([1e3 * each for each in found[0]])}


def _fresh_process(bench: Bench, title: str, environment: dict[str, str]) -> float:
    """Processor seconds of a step in a new process with these of the allocator's settings and no others."""
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    others = {name: value for name, value in os.environ.items() if name not in KEPT}
    with mock.patch.dict(os.environ, {**others, **environment}, clear=True):
        process = context.Process(target=_processor_seconds, args=(bench, title, found))
        process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a process ended with exit status {process.exitcode}")
    return float(found.get())


def _processor_seconds(bench: Bench, title: str, found: Any) -> None:
    torch.set_num_threads(1)
    network, shape, count = built(bench, title)
    step, steps = stepping(bench, network, shape, count, USUAL), 1 if bench.tiny else 60 if title == DEMO else 4
    step()
    began = time.process_time()
    for _ in range(steps):
        step()
    found.put((time.process_time() - began) / steps)


# --- The loop ---------------------------------------------------------------------------------------------------------


def loop_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title in (DEMO, RESNET):
        yield title, partial(_loop, bench, title)


def random_images(count: int, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, *shape), generator=draw, dtype=torch.uint8), torch.arange(count) % CLASSES


def image_set(images: Tensor, labels: Tensor) -> ImageSet:
    """Images (N,C,H,W) uint8 with their labels (N,)."""
    return ImageSet("random", images, labels, tuple(map(str, range(CLASSES))))


def whole_epoch(images: Tensor, labels: Tensor, model: nn.Module, protocol: str, batch: int) -> float:
    """Seconds of an epoch of our training: batches, crops and flips, optimiser, Lightning, log."""
    settings = Training(epochs=1, batch_size=batch, learning_rate=1e-4, accelerator="cpu", crop_padding=4)
    alpha = 0.25 if protocol == "ram" else 0.0
    cell = Cell("benchmark", protocol, alpha, 0.0, 0, Data(), Anchoring(), Tail(), settings)  # type: ignore[arg-type]
    half, given = (0.5,) * images.shape[1], image_set(images, labels)
    batches = Batches(given, batch, half, half, shuffle=True, crop_padding=4, flip=True, drop_last=True)
    model = model.train().to(memory_format=torch.channels_last)
    return epoch_seconds(TrainingStep(model, cell, CLASSES), batches, accelerator="cpu", devices=1)


def _loop(bench: Bench, title: str) -> Figures:
    network, shape, batch = built(bench, title)
    steps = 2 if bench.tiny else 30 if title == DEMO else 5
    images, labels = random_images(steps * batch, shape)
    model = anchor(network)
    inputs = bench.random(batch, *shape).contiguous(memory_format=torch.channels_last)

    def bare() -> None:
        for _ in range(steps):
            functional.cross_entropy(model(inputs), labels[:batch]).backward()  # type: ignore[no-untyped-call]

    def bare_epoch() -> float:
        model.train().to(memory_format=torch.channels_last)
        return seconds(bare)

    bares, wholes = turned(bench.turns, bare_epoch, lambda: whole_epoch(images, labels, model, "anchored", batch))
    return {"bare ÷ loop": ratio(bares, wholes), "images/s": spread([len(images) / each for each in wholes])}


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


# --- Peers ------------------------------------------------------------------------------------------------------------


def peer_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for title, name in (("demo network, 32", "small"), (RESNET, "small" if bench.tiny else "resnet18")):
        yield f"LLNL/anchoring, {title}", partial(_llnl, bench, name)
        yield f"torch-uncertainty, {title}", partial(_torch_uncertainty, bench, name)


def _epoch_of(bench: Bench, name: str) -> tuple[Tensor, Tensor]:
    """So many images that starting a peer's workers counts little; LLNL's batches have 128."""
    return random_images(256 if bench.tiny else 12_800 if name == "small" else 1_920, (3, 32, 32))


def _llnl(bench: Bench, name: str) -> Figures:
    """Both train with RAM, α = 0.25, with SGD; the peer loads with two workers, as it does by itself."""
    images, labels = _epoch_of(bench, name)
    model = anchor(networks.build_network(name, channels=3, classes=CLASSES, seed=0), 0.25)

    def build() -> nn.Module:
        return networks.build_network(name, channels=6, classes=CLASSES, seed=0)

    theirs, ours = turned(
        1 if bench.tiny else min(bench.turns, 3),
        lambda: peers.llnl_epoch(images, labels, build),
        lambda: whole_epoch(images, labels, model, "ram", 128),
    )
    return {"peer ÷ ours": ratio(theirs, ours), "images/s": spread([len(images) / each for each in ours])}


def _torch_uncertainty(bench: Bench, name: str) -> Figures:
    """Both train the standard network; the peer loads with one worker, as it does by itself."""
    images, labels = _epoch_of(bench, name)
    network = networks.build_network(name, channels=3, classes=CLASSES, seed=0)
    theirs, ours = turned(
        1 if bench.tiny else min(bench.turns, 3),
        lambda: peers.torch_uncertainty_epoch(images, labels, network.train(), CLASSES, 128),
        lambda: whole_epoch(images, labels, network, "standard", 128),
    )
    return {"peer ÷ ours": ratio(theirs, ours), "images/s": spread([len(images) / each for each in ours])}


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


def loader_lines(bench: Bench) -> Iterator[tuple[str, Line]]:
    for shape in ((3, 32, 32), (1, 28, 28)):
        yield "×".join(map(str, shape)), partial(_loader, bench, shape)


def _loader(bench: Bench, shape: tuple[int, int, int]) -> Figures:
    """Augmented, normalised batches of 128; one thread, no workers."""
    images, labels = random_images(256 if bench.tiny else 2560, shape)
    half = (0.5,) * shape[0]
    ours = Batches(image_set(images, labels), 128, half, half, shuffle=True, crop_padding=4, flip=True)
    peer = DataLoader(PILImages(images, labels, half), 128, shuffle=True)
    with one_thread():
        found = bench.in_turn(peer=lambda: list(peer), ours=lambda: list(ours))
    return {
        "peer ÷ ours": ratio(found["peer"], found["ours"]),
        "images/s": spread([len(images) / each for each in found["ours"]]),
    }


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
