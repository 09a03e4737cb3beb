"""How soon torch's threads sleep: work on two threads, alone and beside other processes.

    python benchmarks/threads.py [--beside 2] [--turns 2]

GNU OpenMP's threads wait for each other busily, ``GOMP_SPINCOUNT`` times round a loop, before they sleep; the command
``anchored`` sets it (``cli.SPIN``). Each of its default and ours is tried in a process of its own, in turn (A B A B
...), first with the machine to itself and then beside processes that never rest. Printed: milliseconds, the least of
three tries, the median over turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator

from timing import options_of, seconds

DEFAULT = "300000"  # of libgomp where threads are not more than cores


def measured() -> dict[str, float]:
    """Milliseconds of each piece of work, in this process."""
    import torch
    from torch.nn import functional

    from anchored.corruptions import registry as corruptions
    from anchored.data import datasets
    from anchored.models import registry as networks

    torch.set_num_threads(2)
    images = datasets.load_split("fashion-mini-known", "test").images[:350]
    network = networks.build_network("small", channels=2, classes=7, seed=0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    inputs, labels = torch.randn(128, 2, 28, 28), torch.randint(7, (128,))

    def train() -> None:
        for _ in range(10):
            optimizer.zero_grad()
            functional.cross_entropy(network(inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(5):
            network(inputs)

    works: dict[str, Callable[[], object]] = {
        "10 training steps of 128 images": train,
        "5 forward passes of 128 images": forward,
        "snow on 350 images": lambda: corruptions.corrupt(images, "snow", 3, seed=0),
        "zoom blur on 350 images": lambda: corruptions.corrupt(images, "zoom_blur", 3, seed=0),
    }
    return {name: 1000 * least(work) for name, work in works.items()}


def least(work: Callable[[], object]) -> float:
    work()
    return min(seconds(work) for _ in range(3))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that never rest."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def tried(spin: str) -> dict[str, float]:
    """What a process with this ``GOMP_SPINCOUNT`` measures."""
    environment = {**os.environ, "GOMP_SPINCOUNT": spin, "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, __file__, "--here"], env=environment, capture_output=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    from anchored.cli.main import SPIN

    parser = options_of(__doc__, turns=2)
    parser.add_argument("--beside", type=int, default=2, help="other processes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measured()))
        return
    for count in (0, options.beside):
        with busy(count):
            turns = [(tried(DEFAULT), tried(SPIN)) for _ in range(options.turns)]
        print(f"beside {count} processes: default, {SPIN}")
        for name in turns[0][0]:
            default, ours = (statistics.median(turn[side][name] for turn in turns) for side in (0, 1))
            print(f"  {name:32s} {default:8.1f} {ours:8.1f}  {default / ours:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
