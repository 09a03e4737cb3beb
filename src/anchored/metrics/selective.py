"""Selective classification: the errors among the images that are accepted, from the most confident on.

``confidence`` (N,), any real numbers, higher = accepted sooner; ``correct`` (N,), 0 or 1. Images of one confidence are
accepted together; on curves they share their errors evenly, so that no order of the images counts.
All raise ``UserError`` for other values or shapes. Legend: N images; α the error wanted, δ = 1 − the confidence in it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.special import bdtr, betaincinv
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.weighted import BLOCK, check_values

START = 10
"""The tests of ``selective_threshold`` begin where a tenth of the images is accepted, or as many as α and δ need."""


_EULER = 0.5772156649015329  # −digamma(1)


class Selected(NamedTuple):
    """A threshold, and the held-out images that it accepts: ``errors`` of ``accepted`` are wrong; ``bound``: the upper
    Clopper–Pearson bound of that threshold alone. Where none can be certified: infinity, 0, 0, and 1."""

    threshold: float
    accepted: int
    errors: int
    bound: float


def risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Coverage i/N and risk (the share of errors) of the i most confident images, i = 1 ... N: two (N,) float64.

    El-Yaniv & Wiener 2010, https://jmlr.org/papers/v11/el-yaniv10a.html
    """
    errors = _running_errors(confidence, correct)
    accepted = torch.arange(1, len(errors) + 1, dtype=torch.float64, device=errors.device)
    return accepted / len(errors), errors / accepted


def aurc(confidence: Tensor, correct: Tensor) -> float:
    """Area under the risk-coverage curve, (1/N) Σ_i risk_i, in [0, 1]; less is better.

    Geifman et al. 2019, https://arxiv.org/abs/1805.08206
    """
    return float(risk_coverage(confidence, correct)[1].mean())


def augrc(confidence: Tensor, correct: Tensor) -> float:
    """Area under the generalised risk (wrong and accepted, of all images) by coverage, in [0, 1/2]; less is better.

    By trapezia from (0, 0), which is exactly (1 − AUROC_f) a (1 − a) + (1 − a)² / 2 with accuracy a and AUROC_f of
    confidence against correctness. Traub et al. 2024, https://arxiv.org/abs/2407.01032
    """
    errors = _running_errors(confidence, correct)
    return float((errors.sum() - errors[-1] / 2) / len(errors) ** 2)


class RankingCurve:
    """The weighted form of ``aurc``, ``augrc`` and the AUROC of confidence against errors, from one sort.

    Weights (R, N), each row's total positive -> (R, 3), in that order. Weights w stand for w images of one confidence
    each, whole or not: the sum over them of (E + e j / w) / (W + j), j = 1 ... w, is e + (E − e W / w) (H(W + w) −
    H(W)), with H(x) = digamma(x + 1) + γ, the harmonic numbers. The AUROC (detection of errors by low confidence;
    Hendrycks & Gimpel 2017, https://arxiv.org/abs/1610.02136) is 1/2 where all images are right, or all wrong.
    """

    def __init__(self, confidence: Tensor, correct: Tensor) -> None:
        confidence, wrong = _checked(confidence, correct)
        values, self.order = (-confidence).sort(stable=True)
        self.wrong = wrong[self.order]
        self.ends = torch.diff(values, append=values.new_full((1,), math.inf)).nonzero()[:, 0]  # of tied ones the last

    def __call__(self, weights: Tensor) -> Tensor:
        """Values (R, 3) of weights (R, N)."""
        return torch.cat([self._block(part) for part in torch.split(weights, max(1, BLOCK // weights.shape[1]))])

    def risk(self, weights: Tensor, coverage: Tensor) -> Tensor:
        """The risk (R, Q) at each coverage (Q,) in (0, 1]: the share of errors among the so many most confident."""
        accepted, running = self._running(weights)
        accepted, running = (torch.nn.functional.pad(each, (1, 0)) for each in (accepted, running))
        wanted = coverage * accepted[:, -1:]
        place = torch.searchsorted(accepted, wanted).clamp(1, accepted.shape[1] - 1)
        (low, high), (before, after) = (
            (each.gather(1, place - 1), each.gather(1, place)) for each in (accepted, running)
        )
        part = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        return (before + part * (after - before)) / wanted

    def _running(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and those of errors, of each confidence and all higher ones: two (R, L)."""
        ordered = weights[:, self.order]
        return ordered.cumsum(1)[:, self.ends], (ordered * self.wrong).cumsum(1)[:, self.ends]

    def _block(self, weights: Tensor) -> Tensor:
        accepted, running = self._running(weights)
        count, errors = _steps(accepted), _steps(running)
        total, wrong, share = accepted[:, -1], running[:, -1], errors / count.clamp(min=1e-300)
        before, harmonic = running - errors, torch.digamma(accepted + 1)
        steps = torch.diff(harmonic, prepend=harmonic.new_full((len(harmonic), 1), -_EULER))
        aurc = (errors + (before - share * (accepted - count)) * steps).sum(1) / total
        augrc = (count * (before + errors / 2)).sum(1) / total**2
        a = 1 - wrong / total
        mixed = (a > 0) & (a < 1)
        auroc = 1 - (augrc - (1 - a) ** 2 / 2) / torch.where(mixed, a * (1 - a), 1)
        return torch.stack([aurc, augrc, torch.where(mixed, auroc, 0.5)], dim=1)


def _steps(running: Tensor) -> Tensor:
    return torch.diff(running, prepend=torch.zeros_like(running[:, :1]))


def weighted_scod_aurc(in_scores: Tensor, correct: Tensor, out_scores: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The area under the risk-coverage curve of test images and out-of-distribution ones, half and half, as a metric of
    weights (R, N), (R, M) -> (R,): an error is a test image of a wrong class, or any out-of-distribution one, accepted.

    ``in_scores`` (N,), ``out_scores`` (M,): OOD scores, the lowest accepted first. Each set weighs one half whatever
    its size, so that sets compare. At best, all outside images last and no other error, (1 − ln 2) / 2 = 0.15.
    "SCOD": Xia & Bouganis 2022, https://arxiv.org/abs/2207.07517
    """
    inside, outside = check_values(in_scores, "in_scores"), check_values(out_scores, "out_scores")
    wrong = torch.zeros(len(outside), dtype=torch.float64, device=correct.device)
    curve = RankingCurve(-torch.cat([inside, outside.to(inside.device)]), torch.cat([correct.double(), wrong]))

    def metric(in_weights: Tensor, out_weights: Tensor) -> Tensor:
        each = (in_weights.shape[1] + out_weights.shape[1]) / 2
        halves = [each * weights / weights.sum(1, keepdim=True) for weights in (in_weights, out_weights)]
        return curve(torch.cat(halves, dim=1))[:, 0]

    return metric


def _running_errors(confidence: Tensor, correct: Tensor) -> Tensor:
    """Errors among the i most confident images (N,), ties shared evenly."""
    confidence, wrong = _checked(confidence, correct)
    _, level, count = torch.unique(-confidence, return_inverse=True, return_counts=True)
    errors = torch.zeros(len(count), dtype=torch.float64, device=wrong.device).scatter_add_(0, level, wrong)
    running: Tensor = (errors / count).repeat_interleave(count).cumsum(0)
    return running


def _checked(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    confidence, correct = check_values(confidence, "confidence"), check_values(correct.double(), "correct")
    if confidence.shape != correct.shape or not bool(((correct == 0) | (correct == 1)).all()):
        raise UserError("correct must be 0 or 1 for every image that has a confidence")
    return confidence, 1 - correct.to(confidence.device)


def accepted_needed(error: float, confidence: float) -> int:
    """The fewest accepted images, all right, that show an error below ``error``: ⌈ln(1 − confidence) / ln(1 − α)⌉."""
    if not (0 < error < 1 and 0 < confidence < 1):
        raise UserError(f"the error {error:g} and its confidence {confidence:g} are shares in (0, 1)")
    return math.ceil(math.log1p(-confidence) / math.log1p(-error) - 1e-9)


def selective_threshold(confidence: Tensor, correct: Tensor, error: float, level: float = 0.95) -> Selected:
    """The lowest confidence threshold at which the error among accepted images (>= it) is at most ``error``, shown with
    probability ``level`` over the held-out images.

    Learn then test, in a fixed sequence: beginning with the max(N/10, ``accepted_needed``) most confident images, and
    one value of confidence further each time, "the error is above α" is tested by the exact binomial tail
    P(Bin(accepted, α) <= errors), until a test does not reject at δ; the threshold before is it. No correction for the
    number of tests is due. That needs an error that does not fall as less confident images are let in; the place of the
    first test depends on N, α and δ alone. Where the first fails no threshold is certified.
    ``UserError`` for fewer images than ``accepted_needed``.
    Angelopoulos et al. 2021, https://arxiv.org/abs/2110.01052; binomial: Geifman & El-Yaniv 2017,
    https://arxiv.org/abs/1705.08500
    """
    needed, (values, wrong) = accepted_needed(error, level), _checked(confidence, correct)
    if len(values) < needed:
        raise UserError(
            f"an error of {error:g} shown with confidence {level:g} needs {needed:,} held-out images, and there are "
            f"{len(values):,}: give more, or a looser level"
        )
    levels, level_of, count = torch.unique(-values, return_inverse=True, return_counts=True)
    errors = torch.zeros(len(count), dtype=torch.float64, device=wrong.device).scatter_add_(0, level_of, wrong)
    accepted, errors = count.cumsum(0).cpu(), errors.cumsum(0).long().cpu()
    first = int(torch.searchsorted(accepted, max(needed, math.ceil(len(values) / START))))
    p = torch.as_tensor(bdtr(errors.double().numpy(), accepted.numpy(), error))
    failed = (p[first:] > 1 - level).nonzero()
    last = (first + int(failed[0]) if len(failed) else len(p)) - 1
    if last < first:
        return Selected(math.inf, 0, 0, 1.0)
    k, n = int(errors[last]), int(accepted[last])
    bound = 1.0 if k == n else float(betaincinv(k + 1, n - k, level))
    return Selected(-float(levels[last]), n, k, bound)
