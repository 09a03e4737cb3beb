"""Promises of decisions against what is realised, over many draws of held-out images; what deciding costs.

``python benchmarks/decisions.py [--draws 2000] [--seed 0]`` prints a line a case: the mean of the realised rate beside
the one that is promised, and the share of draws whose rate is within the 95 % interval that the law gives (of a case
with ties the share above, or below, the interval's safe end). Of abstention: how often the true error is above the one
that was to be shown, which may be in 5 % of the draws, and the mean share of images accepted.

``--cost`` prints instead, in percent, the time of ``Decision.decide`` on the CPU (all its parts, p-values off 2,000
held-out images) ÷ that of the forward pass that gave the logits: ResNet-18, 128 images of 32 px, in turn in one process
on one thread, seconds of the process (``--turns``), median with least and greatest; then the seconds that the areas
under the risk-coverage curves of 50,000 images take with their intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from time import process_time
from typing import NamedTuple

import torch
from scipy.special import ndtr
from timing import options_of, paired, seconds
from torch import Tensor

from anchored.metrics import conformal, selective
from anchored.metrics.bounded import Figure, plain_figures
from anchored.metrics.intervals import estimate
from anchored.models.decision import fit_decision
from anchored.models.registry import build_network

LEVEL = 0.95


class Found(NamedTuple):
    """One case: what is promised, what was realised on average, and how often the law's interval held it."""

    case: str
    promised: float
    mean: float
    inside: float


def false_alarms(n: int, rate: float, draws: int, generator: torch.Generator, *, ties: bool) -> Found:
    """Normal scores, or ten values of them."""
    held = torch.randn(draws, n, generator=generator, dtype=torch.float64)
    held = (held * 2).round() if ties else held
    thresholds = torch.tensor([conformal.alarm_threshold(scores, rate) for scores in held], dtype=torch.float64)
    cut = (thresholds + 0.5) / 2 if ties else thresholds  # of rounded scores, those above begin half a step later
    realised = torch.from_numpy(ndtr(-cut.numpy()))
    low, high = conformal.alarm_interval(n, rate, LEVEL)
    inside = realised <= high if ties else (realised >= low) & (realised <= high)
    return Found(f"false alarms, n={n}{', ties' * ties}", rate, float(realised.mean()), float(inside.double().mean()))


def coverage(
    method: conformal.SetMethod,
    n: int,
    level: float,
    draws: int,
    generator: torch.Generator,
    *,
    random: bool,
    ties: bool,
) -> Found:
    """Held-out images drawn from a population of 20,000 with known labels; ties: probabilities of one digit."""
    logits = 2 * torch.randn(20_000, 8, generator=generator, dtype=torch.float64)
    p = (logits.softmax(1) * 10).round() / 10 if ties else logits.softmax(1)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)
    u = torch.rand(len(p), generator=generator, dtype=torch.float64) if random else None
    own = conformal.set_scores(p, method, u).gather(1, labels)[:, 0]
    chosen = torch.randint(len(own), (draws, n), generator=generator)
    zero = torch.zeros(n, dtype=torch.int64)
    quantiles = torch.stack([conformal.set_quantiles(own[some, None], zero, level)[0] for some in chosen])
    realised = torch.searchsorted(own.sort().values, quantiles + 1e-12, right=True).double() / len(own)
    low, high = conformal.coverage_interval(n, level, LEVEL)
    # Without a draw of its own, APS has many images at the sum of all probabilities: tied, like rounded ones.
    tied = ties or (method != "lac" and not random)
    inside = realised >= low if tied else (realised >= low) & (realised <= high)
    case = f"coverage, {method}{', randomised' * random}, n={n}{', ties' * ties}"
    return Found(case, level, float(realised.mean()), float(inside.double().mean()))


def abstention(
    n: int, error: float, draws: int, generator: torch.Generator, *, ties: bool = False, misled: bool = False
) -> Found:
    """Confidences that are the chance of being right; ``misled``: but for the highest tenth, right by half."""
    grid = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    confidence_at, wrong_at = _population(grid, ties=ties, misled=misled)
    risk_below = wrong_at.flip(0).cumsum(0) / torch.arange(1, len(grid) + 1, dtype=torch.float64)
    ascending = confidence_at  # of the grid, which is in order of confidence
    broken, accepted = 0, 0.0
    for _ in range(draws):
        place = torch.rand(n, generator=generator, dtype=torch.float64)
        confidence, wrong = _population(place, ties=ties, misled=misled)
        correct = (torch.rand(n, generator=generator, dtype=torch.float64) >= wrong).double()
        found = selective.selective_threshold(confidence, correct, error, LEVEL)
        above = 0 if math.isinf(found.threshold) else len(grid) - int(torch.searchsorted(ascending, found.threshold))
        broken += bool(above) and float(risk_below[above - 1]) > error + 1e-9
        accepted += above / len(grid) / draws
    case = f"abstention, error {error:g}, n={n}{', ties' * ties}{', misled' * misled}, accepts {accepted:.0%}"
    return Found(case, 1 - LEVEL, broken / draws, float("nan"))


def _population(place: Tensor, *, ties: bool, misled: bool) -> tuple[Tensor, Tensor]:
    """Confidence and chance of being wrong at places in [0, 1] of the order of confidence."""
    confidence = 1 - 0.6 * (1 - place) ** 3
    confidence = (confidence * 20).round() / 20 if ties else confidence
    wrong = 1 - confidence
    return confidence, torch.where(place > 0.9, 0.5, wrong) if misled else wrong


def cases(draws: int, generator: torch.Generator) -> Iterator[Found]:
    """All of them."""
    for n in (20, 200, 2000):
        for ties in (False, True):
            yield false_alarms(n, 0.05, draws, generator, ties=ties)
    for n in (20, 200, 2000):
        yield coverage("lac", n, 0.9, draws, generator, random=False, ties=False)
    for method in ("aps", "raps"):
        for random in (False, True):
            for n in (20, 200):
                yield coverage(method, n, 0.9, draws, generator, random=random, ties=False)
    yield coverage("lac", 20, 0.9, draws, generator, random=False, ties=True)
    yield coverage("lac", 200, 0.9, draws, generator, random=False, ties=True)
    yield abstention(20, 0.2, draws, generator)
    for n, error in ((200, 0.05), (1000, 0.05), (1000, 0.01), (5000, 0.01)):
        yield abstention(n, error, draws, generator)
    yield abstention(1000, 0.05, draws, generator, ties=True)
    yield abstention(1000, 0.05, draws, generator, misled=True)


def cost(classes: int, sets: conformal.SetMethod, turns: int, generator: torch.Generator) -> str:
    """Time of deciding ÷ time of the forward pass, percent."""
    torch.set_num_threads(1)
    network = build_network("resnet18", channels=3, classes=classes, seed=0).eval()
    held, labels = torch.randn(2000, classes, generator=generator), torch.arange(2000) % classes
    rule = fit_decision(held + 9 * torch.eye(classes)[labels], labels, error=0.1, sets=sets)
    images = torch.randn(128, 3, 32, 32, generator=generator)
    with torch.inference_mode():
        logits = network(images)
        return paired(
            lambda: 100 * seconds(lambda: rule.decide(logits), process_time),
            lambda: seconds(lambda: network(images), process_time),
            turns,
        )


def curves(images: int, replicates: int, generator: torch.Generator) -> str:
    """Seconds of AURC, AUGRC and the AUROC of errors with their intervals, one thread, process time."""
    torch.set_num_threads(1)
    confidence = torch.rand(images, generator=generator)
    correct = (torch.rand(images, generator=generator) < confidence).double()
    ranking = selective.RankingCurve(confidence, correct)
    right = int(correct.sum())
    figures = [*plain_figures(("aurc", "augrc"), images), Figure("misclassification_auroc", (right, images - right))]
    taken = seconds(lambda: estimate(ranking, figures, [images], generator, replicates), process_time)
    alone = seconds(lambda: ranking(torch.ones(1, images, dtype=torch.float64)), process_time)
    return f"{images:,} images, {replicates:,} replicates: {taken:.1f} s; without intervals {1000 * alone:.0f} ms"


def main() -> None:
    parser = options_of(__doc__, turns=5)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cost", action="store_true", help="the time of deciding alone")
    options = parser.parse_args()
    if options.cost:
        for classes in (10, 1000):
            share = cost(classes, "aps", options.turns, torch.Generator().manual_seed(options.seed))
            print(f"deciding with APS sets, {classes} classes, % of a forward pass: {share}", flush=True)
        taken = curves(50_000, 1000, torch.Generator().manual_seed(options.seed))
        print(f"AURC, AUGRC and AUROC of errors: {taken}", flush=True)
        return
    for found in cases(options.draws, torch.Generator().manual_seed(options.seed)):
        inside = "" if math.isnan(found.inside) else f"  in the law's interval {found.inside:.1%}"
        print(f"{found.case:<58} promised {found.promised:.3f}  realised {found.mean:.4f}{inside}", flush=True)


if __name__ == "__main__":
    main()
