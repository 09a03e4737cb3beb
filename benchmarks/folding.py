"""Folding: what a folded network costs against the standard one, and K references against K passes.

    python benchmarks/folding.py [--quick]

Each figure is a ratio of two things timed in turn in one process (A B B A ...); the median over the turns is printed
with its 95 % interval (order statistics: a machine's noise has long tails). The anchored networks have halves that
differ and one random reference, so that the map is there. Peers: the standard network in evaluation mode; K passes of
it; ONNX Runtime on the exported network. Each side has four copies that take turns, because where weights happen to lie
in memory makes one copy a percent faster than another. With one thread (OMP_NUM_THREADS=1) what is timed is its
processor time, which other processes disturb less, else time on the wall.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from timing import begin, case_options, seconds
from torch import Tensor, nn

import anchored
from anchored.models import registry as networks

CASES = {  # title: (network, pixels, images, share of the turns)
    "ResNet-18, 32×32": ("resnet18", 32, 4, 1.0),
    "ResNet-18, 224×224": ("resnet18_imagenet", 224, 1, 1.0),
    "EfficientNet-Lite0, 224×224": ("timm:efficientnet_lite0", 224, 1, 1.0),
    "ViT-B/16, 224×224": ("vit_b_16", 224, 1, 0.25),
}
K = 10
COPIES = 4


def balanced(first: Callable[[], Any], second: Callable[[], Any], turns: int) -> str:
    """Median of the times of first / second over turns with its interval, after a turn of every copy."""
    for _ in range(COPIES):
        first(), second()
    ratios = sorted(_ratio(first, second, turn % 2 == 1) for turn in range(turns))
    rank = int(stats.binom.ppf(0.025, turns, 0.5))  # at most 2.5 % that so few turns lie below the true median
    return f"{statistics.median(ratios):.3f}  [{ratios[rank]:.3f}, {ratios[-1 - rank]:.3f}]"


def _ratio(first: Callable[[], Any], second: Callable[[], Any], turned: bool) -> float:
    if turned:
        return 1 / _ratio(second, first, False)
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    return seconds(first, clock) / seconds(second, clock)


def trained_alike(name: str, size: int) -> tuple[nn.Module, anchored.AnchoredModel]:
    """A standard network and an anchored one, both in evaluation mode, whose folding needs a map."""
    network = networks.build_network(name, channels=3, classes=10, seed=0, size=size).eval()
    model = anchored.anchor(network, fresh_stem=True, example=torch.zeros(1, 3, size, size)).eval()
    model.set_references(torch.randn(1, 3, size, size))
    return network, model


def in_turn(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    """A pass over the images, of another copy of the model at each call."""
    copies = itertools.cycle([copy.deepcopy(model) for _ in range(COPIES)])
    return lambda: next(copies)(images)


def onnx_runtime(model: nn.Module, images: Tensor, folder: str) -> Callable[[], Any]:
    """A pass of ONNX Runtime over the images."""
    onnxruntime: Any = importlib.import_module("onnxruntime")  # it has no types
    path = Path(folder) / f"{id(model)}.onnx"
    program = torch.onnx.export(model, (images,), dynamo=True, input_names=["images"], verbose=False)
    assert program is not None
    program.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {"images": images.numpy()}
    return lambda: session.run(None, given)


def report(title: str, turns: int, folder: str) -> None:
    """The ratios of one network."""
    name, size, count, share = CASES[title]
    turns = max(3, round(share * turns))
    standard, model = trained_alike(name, size)
    images = torch.randn(count, 3, size, size)
    folded, peer = anchored.fold(model), in_turn(standard, images)

    def against(module: nn.Module) -> str:
        return balanced(in_turn(module, images), peer, turns)

    def passes() -> None:
        for _ in range(K):
            peer()

    print(f"{title}, {count} images")
    print("  folded ÷ standard:", against(folded))
    print("  standard ÷ standard (the noise):", against(standard))
    print("  folded, batch norm fused ÷ standard:", against(anchored.fold(model, fuse_batch_norm=True)))
    print("  anchored ÷ standard:", against(model))
    many = in_turn(anchored.fold(model, torch.randn(K, 3, size, size)), images)
    print(f"  {K} references folded ÷ {K} standard passes:", balanced(many, passes, max(3, turns // 4)))
    ort, ort_peer = onnx_runtime(folded, images, folder), onnx_runtime(standard, images, folder)
    print("  ONNX Runtime, folded ÷ standard:", balanced(ort, ort_peer, turns))
    print("  ONNX Runtime folded ÷ torch standard:", balanced(ort, peer, turns), flush=True)


@torch.inference_mode()
def main() -> None:
    titles, turns = begin(case_options(__doc__, 200, CASES).parse_args(), CASES)
    with tempfile.TemporaryDirectory() as folder:
        for title in titles:
            report(title, turns, folder)


if __name__ == "__main__":
    main()
