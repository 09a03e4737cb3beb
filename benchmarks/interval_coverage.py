"""How often the 95 % interval of each figure holds the known truth, and how wide it is, against other methods.

``python benchmarks/interval_coverage.py [--draws 1000] [--replicates 200] [--seed 0]`` prints one line a figure and
truth: coverage (mean width) of ours, of the percentile interval, and for AUROC of Newcombe's method 5 and of DeLong's
on the logit scale. Accuracy under corruption: 19 corruptions of the same images, errors of one image correlated.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from anchored.metrics import detection
from anchored.metrics.bounded import Figure
from anchored.metrics.calibration import weighted_smooth_ece
from anchored.metrics.intervals import LEVEL, bootstrap, interval_of, percentile_interval
from anchored.metrics.weighted import weighted_mean

Ends = tuple[float, float]
Drawn = tuple[Callable[..., Tensor], Figure, dict[str, Ends]]  # weighted metric, what it is, other methods' intervals
Z = float(norm.ppf((1 + LEVEL) / 2))


def newcombe(value: float, n: int, m: int) -> Ends:
    """Newcombe 2006, method 5: θ with (θ − value)² = z² θ(1 − θ)[...] / (n m), https://doi.org/10.1002/sim.2324."""

    def excess(t: float) -> float:
        shape = 1 + ((n + m) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (t - value) ** 2 - Z**2 * t * (1 - t) * shape / (n * m)

    return (brentq(excess, 0, value) if value > 0 else 0.0), (brentq(excess, value, 1) if value < 1 else 1.0)


def delong(ins: Tensor, outs: Tensor) -> Ends:
    """DeLong et al. 1988 on the logit scale; no width where all pairs are in order."""
    n, m = len(ins), len(outs)
    below = torch.searchsorted(ins.sort().values, outs).double() / n
    above = 1 - torch.searchsorted(outs.sort().values, ins).double() / m
    area, error = float(below.mean()), math.sqrt(float(below.var() / m + above.var() / n))
    if not 0 < area < 1:
        return area, area
    logit, half = math.log(area / (1 - area)), Z * error / (area * (1 - area))
    return 1 / (1 + math.exp(half - logit)), 1 / (1 + math.exp(-half - logit))


def accuracy(p: float, n: int, generator: torch.Generator) -> Drawn:
    correct = (torch.rand(n, generator=generator, dtype=torch.float64) < p).double()
    return weighted_mean(correct), Figure("accuracy", (n,)), {}


def corrupted(p: float, n: int, generator: torch.Generator) -> Drawn:
    """Mean accuracy over 19 corruptions: each image has a chance of its own to be right, from Beta(2p, 2(1 − p))."""
    torch.manual_seed(int(torch.randint(1 << 62, (1,), generator=generator)))
    shape = torch.tensor([2 * p], dtype=torch.float64), torch.tensor([2 * (1 - p)], dtype=torch.float64)
    chance = torch.distributions.Beta(*shape).sample((n,))  # (N, 1)
    correct = (torch.rand(n, 19, generator=generator, dtype=torch.float64) < chance).double()
    return weighted_mean(correct.mean(1)), Figure("accuracy", (n,), mean=True), {}


def areas(metric: str, shift: float, n: int, m: int, generator: torch.Generator) -> Drawn:
    """Normal scores, those of outliers ``shift`` higher."""
    ins = torch.randn(n, generator=generator, dtype=torch.float64)
    outs = torch.randn(m, generator=generator, dtype=torch.float64) + shift
    weighted = getattr(detection, f"weighted_{metric}")(ins, outs)
    others = {}
    if metric == "auroc":
        others = {"Newcombe 5": newcombe(detection.auroc(ins, outs), n, m), "logit DeLong": delong(ins, outs)}
    return weighted, Figure({"fpr_at_tpr": "fpr95"}.get(metric, metric), (n, m)), others


def calibration(p: float, n: int, generator: torch.Generator) -> Drawn:
    """A network that is sure of every image (confidence 1) and right with chance p: smooth ECE 1 − p."""
    correct = (torch.rand(n, generator=generator, dtype=torch.float64) < p).double()
    return weighted_smooth_ece(torch.ones_like(correct), correct), Figure("smooth_ece", (n,)), {}


def line(name: str, truth: float, draw: Callable[[], Drawn], options: argparse.Namespace) -> str:
    """One row of the table."""
    held: dict[str, int] = {}
    wide: dict[str, float] = {}
    generator = torch.Generator().manual_seed(options.seed + 1)
    for _ in range(options.draws):
        weighted, figure, others = draw()
        value = float(weighted(*(torch.ones(1, size, dtype=torch.float64) for size in figure.sizes)))
        resampled = bootstrap(weighted, figure.sizes, generator, options.replicates)
        found = {
            "ours": interval_of(figure, value, resampled)[1:],
            "percentile": percentile_interval(value, resampled)[1:],
        }
        for method, (low, high) in (found | others).items():
            held[method] = held.get(method, 0) + (low <= truth <= high)
            wide[method] = wide.get(method, 0.0) + high - low
    cells = [f"{method} {held[method] / options.draws:.3f} ({wide[method] / options.draws:.2g})" for method in held]
    return f"| {name} | {truth:.5g} | {' | '.join(cells)} |"


def rows(generator: torch.Generator) -> Iterator[tuple[str, float, Callable[[], Drawn]]]:
    """Name, truth, and what makes one data set."""
    for p, n in ((0.5, 1400), (0.998, 300), (0.999, 1400)):
        yield f"accuracy, {n}", p, partial(accuracy, p, n, generator)
        yield f"mean accuracy over 19 corruptions, {n}", p, partial(corrupted, p, n, generator)
        yield f"smooth ECE, {n}", 1 - p, partial(calibration, p, n, generator)
    for area in (0.5, 0.9, 0.99, 0.99995):
        shift = math.sqrt(2) * float(norm.ppf(area))
        for n, m in ((1400, 1000), (1400, 200)):
            yield f"AUROC, {n} and {m}", area, partial(areas, "auroc", shift, n, m, generator)
            flagged = float(norm.sf(norm.ppf(0.05) + shift))
            yield f"FPR95, {n} and {m}", flagged, partial(areas, "fpr_at_tpr", shift, n, m, generator)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--replicates", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the data that are drawn, and of the resamples")
    parser.add_argument("--only", default="", help="figures whose name begins like this")
    options = parser.parse_args()
    for name, truth, draw in rows(torch.Generator().manual_seed(options.seed)):
        if name.lower().startswith(options.only.lower()):
            print(line(name, truth, draw, options), flush=True)
