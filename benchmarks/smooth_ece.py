"""How often the 95 % interval of smooth ECE holds the known truth: ``python benchmarks/smooth_ece.py``.

Its speed beside relplot is a line of ``cpu.py --sections metrics``.
"""

import torch
from timing import options_of

from anchored.metrics.bounded import Figure
from anchored.metrics.calibration import smooth_ece, weighted_smooth_ece
from anchored.metrics.intervals import bootstrap, interval_of, percentile_interval


def confidences(count: int, generator: torch.Generator) -> torch.Tensor:
    """Confidences in [0.55, 1], most near one, as a trained classifier gives them."""
    u = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    return (1 - 0.45 * u.amin(1) * u[:, 1]).sort().values


def truth(confidence: torch.Tensor, bias: float) -> torch.Tensor:
    """Chance of being right: overconfident by 4 · bias · c (1 − c)."""
    return confidence - 4 * bias * confidence * (1 - confidence)


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
    options_of(__doc__).parse_args()
    for n in (500, 2000, 10_000):
        for b in (0.0, 0.05, 0.1, 0.3):
            print(coverage(n, b), flush=True)
