"""The common corruptions ÷ imagecorruptions-imaug, images a second; their share of a sweep over the demo's test set.

    python benchmarks/corruptions.py [--turns 3] [--names fog,snow] [--sizes 32,224] [--cores 1]

One process, in turn (A B A B ...). On one core, one thread each, seconds are the process's CPU time, so that other work
on the machine counts little; it counts against ours, which needs the caches more. On more cores both may use as many
threads (torch's and OpenCV's) and seconds are the wall's: the peer leaves most of them idle. The peer corrupts one
image per call, ours a batch (256 images of 32 px, 8 of 224 px), the same images. Constants are each side's own: the
port has ImageNet-C's only, ours takes CIFAR-C's at 32 px. A corruption's ratio is the geometric mean over its five
severities of the median over turns; a size's last line has that over corruptions.

The sweep: 19 × 5 over the demo's test set, 1,400 images of 28 × 28, with the demo's network: seconds of corrupting and
of the network's forward pass, one after the other. So does evaluation on a CPU.
"""

from __future__ import annotations

import functools
import statistics
import time
from typing import Any

import cv2
import imagecorruptions
import numpy as np
import skimage.data
import torch
from PIL import Image
from timing import options_of, seconds
from torch import Tensor

from anchored.corruptions.registry import CORRUPTIONS, corrupt, expand
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.models import registry as networks

BATCH = {32: 256, 224: 8}
SEVERITIES = (1, 2, 3, 4, 5)
COMMON = [name for name, row in CORRUPTIONS.items() if "c" in row.families]


def photos(size: int, count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Squares of skimage's astronaut, (count, size, size, 3): no two alike."""
    image = Image.fromarray(skimage.data.astronaut())  # type: ignore[no-untyped-call]
    boxes = [(i, i, 512 - i, 512 - i) for i in range(count)]
    return np.stack([np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box)) for box in boxes])


def speed(name: str, severity: int, size: int, turns: int) -> tuple[float, float, float]:
    """Ours ÷ theirs, and images a second of both."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    images = photos(size, BATCH[size])
    batch, some = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), images[: 24 if size == 32 else 8]
    corrupt(batch, name, severity, seed=0), imagecorruptions.corrupt(images[0], severity, name)
    pairs = []
    for _ in range(turns):
        ours = seconds(lambda: corrupt(batch, name, severity, seed=0), clock) / len(batch)
        theirs = seconds(lambda: [imagecorruptions.corrupt(each, severity, name) for each in some], clock) / len(some)
        pairs.append((theirs / ours, 1 / ours, 1 / theirs))
    ratio, mine, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    return ratio, mine, other


def compare(names: list[str], size: int, turns: int) -> None:
    print(f"{size} px: images a second, ours and the port's (means over severities); ratio [least, greatest severity]")
    means = []
    for name in names:
        found = [speed(name, severity, size, turns) for severity in SEVERITIES]
        ratios = [each[0] for each in found]
        means.append(statistics.geometric_mean(ratios))
        mine, other = (statistics.mean(each[place] for each in found) for place in (1, 2))
        print(
            f"  {name:18s} {mine:9.0f} {other:7.0f}  {means[-1]:7.2f}  [{min(ratios):.2f}, {max(ratios):.2f}]",
            flush=True,
        )
    print(f"  geometric mean of {len(means)} ratios: {statistics.geometric_mean(means):.2f}, least {min(means):.2f}")


@torch.inference_mode()
def sweep(size: int = 28, count: int = 1400) -> None:
    """Seconds of both parts of the demo's sweep, one after the other."""
    test = datasets.load_split("fashion-mini-known", "test")
    network = networks.build_network("small", channels=1, classes=7, seed=0).eval()
    images = test.images[:count]
    inputs = to_input(images, (0.3,), (0.3,))
    names = expand(["c"], size, size)

    def forward() -> list[Tensor]:
        return [network(part) for part in torch.split(inputs, 256)]

    forward()
    for name in names:
        corrupt(images[:2], name, 1, seed=0)
    corrupting = passes = 0.0
    for name in names:
        for severity in SEVERITIES:
            corrupting += seconds(functools.partial(corrupt, images, name, severity, seed=0))
            passes += seconds(forward)
    threads, share = torch.get_num_threads(), corrupting / (corrupting + passes)
    print(f"sweep, {len(names)} × 5 over {count} images of {size} × {size}, {threads} threads: ", end="")
    print(f"{corrupting:.1f} s corrupting, {passes:.1f} s in the network, {share:.0%} of the sum")


def main() -> None:
    parser = options_of(__doc__, turns=3)
    parser.add_argument("--names", default="")
    parser.add_argument("--sizes", default="32,224")
    parser.add_argument("--cores", type=int, default=1)
    chosen = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(chosen.cores)
    cv2.setNumThreads(chosen.cores)
    names = chosen.names.split(",") if chosen.names else COMMON
    for size in map(int, chosen.sizes.split(",")):
        compare(names, size, chosen.turns)
    torch.set_num_threads(threads)
    sweep()


if __name__ == "__main__":
    main()
