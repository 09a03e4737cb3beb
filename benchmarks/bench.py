"""What lines of benchmarks share: the device and its clock, networks, ways of computing a step."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timing import turned
from torch import Tensor, nn
from torch.nn import functional

from anchored.data.image_sets import ImageSet
from anchored.models import registry as networks

Figures = dict[str, Any]
Line = Callable[[], Figures]
Work = Callable[[], Any]

CLASSES = 10


@dataclass(frozen=True)
class Bench:
    """Where, how large, and how often."""

    device: torch.device
    tiny: bool
    turns: int

    def seconds(self, work: Work, times: int) -> float:
        """Seconds of one call, of so many in a row, on the device."""
        if self.device.type != "cuda":
            began = time.perf_counter()
            for _ in range(times):
                work()
            return (time.perf_counter() - began) / times
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(times):
            work()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / times

    def in_turn(self, **works: Work) -> dict[str, list[float]]:
        """Seconds of a call of each, measured in turn, forwards and backwards; after two calls that do not count."""
        times, enough = {}, 0.0 if self.tiny else 0.05
        for name, work in works.items():
            self.seconds(work, 2)
            times[name] = max(1, math.ceil(enough / self.seconds(work, 1)))
        timed = (partial(self.seconds, work, times[name]) for name, work in works.items())
        return dict(zip(works, turned(self.turns, *timed, warm_up=0), strict=True))

    def random(self, *shape: int) -> Tensor:
        """Standard normal numbers, by seed."""
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(self.device)

    def pixels(self, count: int, size: int) -> Tensor:
        """Images (B,3,size,size) uint8 with structure at two scales, on the CPU."""
        draw = torch.Generator().manual_seed(1)
        coarse = torch.randint(224, (count, 3, -(-size // 8), -(-size // 8)), generator=draw, dtype=torch.uint8)
        fine = torch.randint(32, (count, 3, size, size), generator=draw, dtype=torch.uint8)
        return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :size, :size] + fine

    def image_set(self, count: int, size: int) -> ImageSet:
        """Labelled images, on the CPU."""
        names = tuple(map(str, range(CLASSES)))
        return ImageSet("random", self.pixels(count, size), torch.arange(count) % CLASSES, names)

    def peak_memory(self, work: Work) -> float:
        """GB (10⁹ bytes) of the device that a call needs at most; 0 on a CPU."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        work()
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if on_gpu else 0.0


def spread(values: Sequence[float]) -> Figures:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def ratio(first: Sequence[float], second: Sequence[float]) -> Figures:
    """The spread of first / second, turn by turn."""
    return spread([one / other for one, other in zip(first, second, strict=True)])


CASES = {  # title: (network, pixels, images)
    "ResNet-18, 32": ("resnet18", 32, 512),
    "WRN-40-2, 32": ("wrn40_2", 32, 512),
    "ResNet-18, 224": ("resnet18_imagenet", 224, 128),
    "RegNetY-800MF, 224": ("regnety_800mf", 224, 128),
    "ViT-B/16, 224": ("vit_b_16", 224, 64),
}
TINY = {"ResNet-8, 16": ("small", 16, 4), "test ViT, 32": ("timm:test_vit", 32, 2)}


@dataclass(frozen=True)
class Way:
    """How a step is computed."""

    half: bool = False  # bfloat16 by autocast
    channels_last: bool = False
    compiled: str = ""  # mode of torch.compile

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.half)


WAYS = {
    "fp32": Way(),
    "fp32, channels-last": Way(channels_last=True),
    "bf16": Way(half=True),
    "bf16, channels-last": Way(half=True, channels_last=True),
    "bf16, channels-last, compiled": Way(half=True, channels_last=True, compiled="default"),
    "bf16, channels-last, CUDA graphs": Way(half=True, channels_last=True, compiled="reduce-overhead"),
}
USUAL = WAYS["bf16, channels-last"]


def titles(bench: Bench) -> list[str]:
    """The networks."""
    return list(TINY if bench.tiny else CASES)


def matrix_rate(bench: Bench, kind: str) -> list[float]:
    """Operations a second of the product of square matrices that fill the card: float32, tf32 or bfloat16."""
    side = 64 if bench.tiny else 8192 if bench.device.type == "cuda" else 2048
    matrix = bench.random(side, side).to(torch.bfloat16 if kind == "bfloat16" else torch.float32)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    try:
        return [2 * side**3 / each for each in bench.in_turn(product=lambda: matrix @ matrix)["product"]]
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def case(bench: Bench, title: str) -> tuple[nn.Module, int, int]:
    """A network on the CPU, its images' pixels, and how many it takes."""
    name, size, count = (TINY if bench.tiny else CASES)[title]
    return networks.build_network(name, channels=3, classes=CLASSES, seed=0, size=size), size, count


def stepping(bench: Bench, model: nn.Module, shape: tuple[int, int, int], count: int, way: Way) -> Work:
    """A whole step on one batch: forward, loss, backward, SGD too slow to change anything."""
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    model = model.to(bench.device).to(memory_format=layout).train()
    images = bench.random(count, *shape).contiguous(memory_format=layout)
    labels = torch.arange(count, device=bench.device) % CLASSES
    optimizer = torch.optim.SGD(model.parameters(), 1e-9, momentum=0.9)
    if way.compiled:
        getattr(model, "network", model).compile(mode=way.compiled, dynamic=False)

    def step() -> None:
        optimizer.zero_grad()
        with way.autocast(bench.device):
            loss = functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step
