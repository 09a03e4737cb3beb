"""Whether the comparison's second network trains in the time of its first: processor time of steps and passes.

    python benchmarks/small_networks.py [--rounds 7]

``small_convnext`` against ``small`` (ResNet-8), as anchored networks have them, with two channels: 128 images of
28 × 28 a step, forward, backward and SGD; one thread, processor time, rounds of both in turn. Printed: milliseconds,
the median over rounds, and the median ratio of a round.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional

from anchored.models import registry as networks

NAMES = ("small", "small_convnext")
IMAGES = 128


def works(name: str) -> dict[str, Callable[[], object]]:
    """What is timed of one network."""
    network = networks.build_network(name, channels=2, classes=7, seed=0).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(IMAGES, 2, 28, 28, generator=generator).to(memory_format=torch.channels_last)
    labels = torch.randint(7, (IMAGES,), generator=generator)

    def train() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(network.train()(inputs), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        network.eval()(inputs)

    return {"training step": train, "pass": forward}


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Processor time of one call, the mean of several."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return 1000 * (time.process_time() - began) / times


def main() -> None:
    """Time both networks in turn, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    timed = {name: works(name) for name in NAMES}
    for what in timed[NAMES[0]]:
        rounds = [[milliseconds(timed[name][what], 5) for name in NAMES] for _ in range(options.rounds)]
        first, second = (statistics.median(each) for each in zip(*rounds, strict=True))
        ratio = statistics.median(b / a for a, b in rounds)
        low, high = (round_of(b / a for a, b in rounds) for round_of in (min, max))
        print(
            f"{what} of {IMAGES} images: {NAMES[0]} {first:.1f} ms, {NAMES[1]} {second:.1f} ms; "
            f"ratio {ratio:.2f} ({low:.2f} to {high:.2f})"
        )


if __name__ == "__main__":
    main()
