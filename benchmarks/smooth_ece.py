"""Smooth ECE with its interval: 1000 replicates by us, against calling relplot on each resample.

``python benchmarks/smooth_ece.py``             prints the ratio of the times (one process, the same kind of resamples)
``python benchmarks/smooth_ece.py --coverage``  prints how often the 95 % interval holds the known truth
"""

import argparse
import time

import relplot
import torch

from anchored.intervals import _gap, _percentile, bootstrap
from anchored.metrics import smooth_ece, weighted_smooth_ece

IMAGES, REPLICATES, PEER_CALLS = 50_000, 1000, 20


def confidences(count: int, generator: torch.Generator) -> torch.Tensor:
    """Confidences in [0.55, 1], most near one, as a trained classifier gives them."""
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return (1 - 0.45 * u.amin(1) * u[:, 1]).sort().values


def truth(confidence: torch.Tensor, bias: float) -> torch.Tensor:
    """Chance of being right: overconfident by 4 · bias · c (1 − c)."""
    return confidence - 4 * bias * confidence * (1 - confidence)


def speed(bias: float) -> str:
    generator = torch.Generator().manual_seed(0)
    f = confidences(IMAGES, generator)
    y = (torch.rand(IMAGES, generator=generator, dtype=torch.float64) < truth(f, bias)).double()
    start = time.perf_counter()
    bootstrap(weighted_smooth_ece(f, y), [IMAGES], generator, REPLICATES)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    for _ in range(PEER_CALLS):
        drawn = torch.randint(IMAGES, (IMAGES,), generator=generator)
        relplot.smECE(f[drawn].numpy(), y[drawn].numpy())
    peer = (time.perf_counter() - start) * REPLICATES / PEER_CALLS
    return f"bias {bias}: ours {ours:.2f} s, relplot {peer:.1f} s (from {PEER_CALLS} calls), ratio {peer / ours:.1f}"


def coverage(count: int, bias: float, sets: int = 200, replicates: int = 200) -> str:
    generator = torch.Generator().manual_seed(1)
    f = confidences(1_000_000, generator)
    # The truth: the same error with the chance of being right in place of the outcome, on very many images.
    known = float(weighted_smooth_ece(f, truth(f, bias))(torch.ones(1, len(f), dtype=torch.float64))) if bias else 0.0
    held, plain, width = 0, 0, 0.0
    for _ in range(sets):
        f = confidences(count, generator)
        y = (torch.rand(count, generator=generator, dtype=torch.float64) < truth(f, bias)).double()
        draws = bootstrap(weighted_smooth_ece(f, y), [count], generator, replicates)
        value = smooth_ece(f, y)
        ours, percentile = _gap(value, draws, 0.95), _percentile(value, draws, 0.95)
        held, plain = held + (ours.low <= known <= ours.high), plain + (percentile.low <= known <= percentile.high)
        width += (ours.high - ours.low) / sets
    return (
        f"{count} images, truth {known:.4f}: ours {held / sets:.3f} (width {width:.4f}), percentile {plain / sets:.3f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--coverage", action="store_true")
    if parser.parse_args().coverage:
        for n in (500, 2000, 10_000):
            for b in (0.0, 0.05, 0.1, 0.3):
                print(coverage(n, b), flush=True)
    else:
        print(f"{torch.get_num_threads()} threads")
        for b in (0.3, 0.0):
            print(speed(b), flush=True)
