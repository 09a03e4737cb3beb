"""Anchoring at a hidden layer: what K = 10 references cost, in forward passes of the standard ResNet-18.

    python benchmarks/hidden.py [--quick] [--only 'ResNet-18, 32×32'] [--at layer3 layer4]

Both sides are timed in turn in one process (A B A B ...), processor time where there is one thread (OMP_NUM_THREADS=1).
Beside each ratio of times stands that of the arithmetic, counted by torch (multiplications and additions of
convolutions and matrices): with F and R the shares of front and rear, F + K·R and the wider first layers; folded, these
run once, and plain.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from timing import begin, case_options, paired, seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import anchored
from anchored.models import registry as networks

K = 10
CASES = {  # title: (network, pixels, images of a batch, the first layer that is not in the front)
    "ResNet-18, 32×32": (
        "resnet18", 32, (1, 16), {"layer2": "blocks.2", "layer3": "blocks.4", "layer4": "blocks.6",
                                  "last block": "blocks.7", "head": "head"},
    ),
    "ResNet-18, 224×224": (
        "resnet18_imagenet", 224, (1, 4), {"layer2": "layer2", "layer3": "layer3", "layer4": "layer4",
                                           "last block": "layer4.1", "head": "fc"},
    ),
}  # fmt: skip

PLACES = ["the image", "layer2", "layer3", "layer4", "last block", "head"]


def operations(module: nn.Module, images: Tensor) -> int:
    counter = FlopCounterMode(display=False)
    with counter:
        module(images)
    return counter.get_total_flops()


def timed(module: nn.Module, images: Tensor, calls: int) -> Callable[[], float]:
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def work() -> None:
        for _ in range(calls):
            module(images)

    return lambda: seconds(work, clock) / calls


def report(title: str, turns: int, only: list[str]) -> None:
    name, size, batches, places = CASES[title]
    standard = networks.build_network(name, channels=3, classes=10, seed=0, size=size).eval()
    references = torch.randn(K, 3, size, size)
    print(f"{title}: K = {K} references ÷ one pass of the standard network")
    print("| anchored at | images | arithmetic | measured | folded: arithmetic | measured |")
    print("|---|---:|---:|---:|---:|---:|")
    for place, at in {"the image": None, **places}.items():
        if place not in only:
            continue
        model = anchored.anchor(standard, at=at, fresh_stem=True, example=references[:1]).eval()
        model.set_references(references)
        folded = anchored.fold(model)
        for count in batches:
            images = torch.randn(count, 3, size, size)
            cells: list[Any] = [place, count]
            model(images)  # the features of the references are computed once
            for module in (model, folded):
                peer = timed(standard, images, 3 if count == 1 else 1)
                cells.append(f"{operations(module, images) / operations(standard, images):.2f}")
                cells.append(paired(timed(module, images, 1), peer, turns, digits=2))
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


@torch.inference_mode()
def main() -> None:
    parser = case_options(__doc__, 15, CASES)
    parser.add_argument("--at", nargs="+", default=PLACES, help="these layers of %(default)s")
    options = parser.parse_args()
    titles, turns = begin(options, CASES)
    for title in titles:
        report(title, turns, options.at)


if __name__ == "__main__":
    main()
