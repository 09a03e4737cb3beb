"""Peak memory while a network is evaluated on a set, and on one ten times as large.

    python benchmarks/memory.py [--images 1000] [--size 224]

Each pass runs in a process of its own: JPEG files are decoded by two worker processes, corrupted, and put through a
network (a linear one, since it is not what is measured), and the logits go to disk. Printed is the greatest memory that
the process and its workers had together (Pss of /proc, twenty times a second, so that shared pages count once) for the
small set and the large, the median of what they had, and the ratio. Kept as one tensor, as sets below ``data.memory``
are, the large set would take the last line's memory. Linux only.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import options_of
from torch import Tensor, nn

from anchored.corruptions import registry as corruptions
from anchored.data.image_sets import ImageStream
from anchored.data.image_sources import index_files
from anchored.data.preprocessing import InputFormat
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Pass, save_outputs
from anchored.models.folder import ModelConfig
from anchored.store.layout import Run

CLASSES = 100


def write_images(folder: Path, count: int) -> list[Path]:
    """``count`` names for 50 different JPEG photographs of 400 × 320 pixels: links, so that they need no room."""
    rng = np.random.default_rng(0)
    for number in range(50):
        coarse = Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8))
        coarse.resize((400, 320), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    links = [folder / f"link{number}.jpg" for number in range(count)]
    for number, link in enumerate(links):
        link.symlink_to(f"{number % 50}.jpg")
    return links


def memory(process: int) -> int:
    """Bytes that a process holds, its part of shared pages (Pss); 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))


def family() -> list[int]:
    """This process and its children, whichever thread started them."""
    children = [file.read_text().split() for file in Path("/proc/self/task").glob("*/children")]
    return [os.getpid(), *(int(child) for some in children for child in some)]


def evaluate(paths: list[Path], size: int, folder: Path, found: multiprocessing.Queue[tuple[int, int, float]]) -> None:
    """Evaluate on ``paths``; put the peak and median memory in bytes and the seconds into ``found``."""
    torch.set_num_threads(1)
    config = ModelConfig(
        "small", "standard", 0.0, 3, size, (0.5,) * 3, (0.25,) * 3, tuple(map(str, range(CLASSES))), "photographs", 0
    )
    index = dataclasses.replace(index_files(paths), labels=np.arange(len(paths)) % CLASSES)
    stream = ImageStream("photographs", index, config.classes, InputFormat(3, size, 0.875), torch.arange(len(paths)), 2)

    def change(images: Tensor, places: Tensor) -> Tensor:
        return corruptions.corrupt(images, "contrast", 3, seed=0, indices=places)

    samples, stop = list[int](), threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            samples.append(sum(map(memory, family())))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    side = size // 28
    network = nn.Sequential(nn.AvgPool2d(28), nn.Flatten(), nn.Linear(3 * side * side, CLASSES))
    save_outputs(
        Run(folder), "test", str(len(paths)), lambda: Pass(Classifier.of(network, config), stream, 50, False, change)
    )
    stop.set()
    watcher.join()
    found.put((max(samples), int(statistics.median(samples)), time.perf_counter() - start))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--images", type=int, default=1000, help="of the smaller set")
    parser.add_argument("--size", type=int, default=224, help="of the network's input, pixels")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    peaks = []
    with tempfile.TemporaryDirectory() as name:
        paths = write_images(Path(name), 10 * options.images)
        for count in (options.images, 10 * options.images):
            found = context.Queue()
            process = context.Process(target=evaluate, args=(paths[:count], options.size, Path(name) / "run", found))
            process.start()
            peak, middle, seconds = found.get()
            process.join()
            peaks.append(peak)
            rate = f"{count / seconds:.0f} images a second"
            print(f"{count:7,} images: peak {peak / 1e6:.0f} MB, median {middle / 1e6:.0f} MB, {rate}", flush=True)
    tensor = 10 * options.images * 3 * options.size**2
    print(f"ten times the images: {peaks[1] / peaks[0]:.3f} times the memory, {(peaks[1] - peaks[0]) / 1e6:+.0f} MB")
    print(f"as one tensor the larger set would take {tensor / 1e6:,.0f} MB more")


if __name__ == "__main__":
    main()
