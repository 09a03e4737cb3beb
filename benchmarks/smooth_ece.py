"""Smooth ECE with its interval: 1000 replicates by us, against calling relplot on each resample.

``python benchmarks/smooth_ece.py``             prints the ratio of the times, in turn in one process: median [range]
``python benchmarks/smooth_ece.py --coverage``  prints how often the 95 % interval holds the known truth
"""

import statistics
import time

import relplot
import torch
from timing import median_and_range, options_of, seconds

from anchored.metrics.bounded import Figure
from anchored.metrics.calibration import smooth_ece, weighted_smooth_ece
from anchored.metrics.intervals import bootstrap, interval_of, percentile_interval, resample

IMAGES, REPLICATES, PEER_CALLS = 50_000, 1000, 20


def confidences(count: int, generator: torch.Generator) -> torch.Tensor:
    """Confidences in [0.55, 1], most near one, as a trained classifier gives them."""
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return (1 - 0.45 * u.amin(1) * u[:, 1]).sort().values


def truth(confidence: torch.Tensor, bias: float) -> torch.Tensor:
    """Chance of being right: overconfident by 4 · bias · c (1 − c)."""
    return confidence - 4 * bias * confidence * (1 - confidence)


def speed(bias: float, turns: int) -> str:
    """Both in turn, so that what else the machine does meets both; the same values on the same resamples."""
    generator = torch.Generator().manual_seed(0)
    f = confidences(IMAGES, generator)
    y = (torch.rand(IMAGES, generator=generator, dtype=torch.float64) < truth(f, bias)).double()
    ratios, ours, peers, apart = [], [], [], 0.0
    for _ in range(turns):
        ours.append(seconds(lambda: bootstrap(weighted_smooth_ece(f, y), [IMAGES], generator, REPLICATES)))
        counts = resample(IMAGES, PEER_CALLS, generator, "cpu")
        samples = [(f.repeat_interleave(n).numpy(), y.repeat_interleave(n).numpy()) for n in counts.long()]
        start = time.perf_counter()
        found = [relplot.smECE(*sample) for sample in samples]
        peers.append((time.perf_counter() - start) * REPLICATES / PEER_CALLS)
        ratios.append(peers[-1] / ours[-1])
        apart = max(apart, float((weighted_smooth_ece(f, y)(counts) - torch.tensor(found)).abs().max()))
    times = f"ours {statistics.median(ours):.2f} s, relplot {statistics.median(peers):.1f} s"
    ratio = f"ratio {median_and_range(ratios, 1)}"
    how = f"{turns} turns, relplot's from {PEER_CALLS} calls each; values differ by {apart:.0e} at most"
    return f"bias {bias}: {times}, {ratio}, {how}"


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
        ours, percentile = interval_of(Figure("smooth_ece", (count,)), value, draws), percentile_interval(value, draws)
        held, plain = held + (ours.low <= known <= ours.high), plain + (percentile.low <= known <= percentile.high)
        width += (ours.high - ours.low) / sets
    return (
        f"{count} images, truth {known:.4f}: ours {held / sets:.3f} (width {width:.4f}), percentile {plain / sets:.3f}"
    )


if __name__ == "__main__":
    parser = options_of(__doc__, turns=5)
    parser.add_argument("--coverage", action="store_true")
    options = parser.parse_args()
    if options.coverage:
        for n in (500, 2000, 10_000):
            for b in (0.0, 0.05, 0.1, 0.3):
                print(coverage(n, b), flush=True)
    else:
        print(f"{torch.get_num_threads()} threads")
        for b in (0.3, 0.0):
            print(speed(b, options.turns), flush=True)
