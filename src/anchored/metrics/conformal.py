"""Decisions whose error rate is bounded with finitely many held-out images: temperature, p-values, thresholds, sets.

The bounds hold for images that are exchangeable with the held-out ones (as drawn from the same source, in any order),
for any classifier, and on average over held-out images; for those at hand the rate is random, and its law is known.
Scores are higher = more foreign (OOD scores, and non-conformity scores of classes). All is float64.
Legend: n held-out images, N images, K classes. Vovk et al. 2005, https://doi.org/10.1007/b106715
"""

import math
from typing import Literal

import torch
from scipy.special import betaincinv
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.classification import per_image
from anchored.metrics.weighted import BLOCK, check_values

SetMethod = Literal["lac", "aps", "raps"]
SET_METHODS: tuple[SetMethod, ...] = ("lac", "aps", "raps")
PENALTY, FREE = 0.01, 5
"""λ and k_reg of RAPS: what each class beyond the first ``FREE`` adds to its score (a setting of the paper's)."""

COLDEST, HOTTEST = 1e-2, 1e2
_ROUNDING = 1e-9  # relative, of a level times a number of images, which is a whole number or a fraction far from one
_EQUAL = 1e-12  # scores that differ by less are tied: sums of up to 1e3 probabilities, in another order


# --- Temperature --------------------------------------------------------------------------------------------------


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T > 0 at which softmax(logits / T) has the least NLL, in [0.01, 100].

    Convex in 1/T: the slope mean(Σ_k p_k z_k − z_label) rises with it, by mean Var_p(z); found by Newton's steps inside
    a bracket, to 1e-10. Where each image's label has the largest logit, NLL falls for ever as T → 0 and nothing is
    learnt of it: T = 1. ``logits`` (n, K), ``labels`` (n,), as in ``per_image``.
    Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    if bool(per_image(logits, labels).correct.all()):
        return 1.0
    centred = logits.detach().double() - logits.detach().double().gather(1, labels.to(logits.device).long()[:, None])
    low, high, sharpness = 1 / HOTTEST, 1 / COLDEST, 1.0
    for _ in range(100):
        slope, curvature = _slope(centred, sharpness)
        low, high = (sharpness, high) if slope < 0 else (low, sharpness)
        step = sharpness - slope / curvature if curvature > 0 else high
        following = step if low < step < high else (low + high) / 2
        if abs(following - sharpness) <= 1e-10 * sharpness:
            break
        sharpness = following
    return 1 / following


def _slope(centred: Tensor, sharpness: float) -> tuple[float, float]:
    """First and second derivative of the NLL in 1/T; ``centred`` (n, K): logits minus the label's."""
    first = second = 0.0
    for part in torch.split(centred, max(1, BLOCK // centred.shape[1])):
        p = (part * sharpness).softmax(1)
        mean = (p * part).sum(1)
        first += float(mean.sum())
        second += float((p * (part - mean[:, None]).square()).sum())
    return first / len(centred), second / len(centred)


# --- How many images a level needs --------------------------------------------------------------------------------


def images_needed(rate: float) -> int:
    """The fewest held-out images with which an error ``rate`` in (0, 1) can be promised: ⌈1 / rate⌉ − 1."""
    return math.ceil((1 - _ROUNDING) / _check_rate(rate, "rate")) - 1


def _check_rate(rate: float, name: str) -> float:
    if not 0 < rate < 1:
        raise UserError(f"{name} is {rate:g}: give a share in (0, 1)")
    return rate


def _errors_left(n: int, rate: float, name: str, what: str = "held-out images") -> int:
    """⌊rate (n + 1)⌋, which of the largest scores is the threshold; ``UserError`` where it is none."""
    if n < (needed := images_needed(_check_rate(rate, name))):
        raise UserError(f"{name} needs {needed:,} {what}, and there are {n:,}: give more, or a looser level")
    return math.floor(rate * (n + 1) * (1 + _ROUNDING))


# --- Foreign images -----------------------------------------------------------------------------------------------


def p_values(scores: Tensor, held_out: Tensor, draws: Tensor | None = None) -> Tensor:
    """How usual images are: the share of held-out ones with a score as high or higher, (N,) in [1/(n + 1), 1].

    p = (1 + #{i: s_i >= s}) / (n + 1): P(p <= a) <= a for each a, ties or none. With ``draws`` u (N,), uniform in
    [0, 1], ties are broken at random, p = (#{s_i > s} + u (1 + #{s_i = s})) / (n + 1), and P(p <= a) = a.
    ``scores`` (N,), ``held_out`` (n,). Vovk et al. 2005; Bates et al. 2023, https://arxiv.org/abs/2104.08279
    """
    ordered = check_values(held_out, "held_out").sort().values
    scores = scores.detach().double().to(ordered.device)
    as_high = len(ordered) - torch.searchsorted(ordered, scores)  # NaN is above all
    if draws is None:
        return (1 + as_high).double() / (len(ordered) + 1)
    higher = len(ordered) - torch.searchsorted(ordered, scores, right=True)
    return (higher + draws.double() * (1 + as_high - higher)) / (len(ordered) + 1)


def alarm_threshold(held_out: Tensor, rate: float) -> float:
    """The threshold of a false-alarm ``rate``: score > threshold exactly where ``p_values`` <= rate.

    It is the ⌊rate (n + 1)⌋-th largest of the scores ``held_out`` (n,). Where many tie with it, fewer alarms are given
    than promised. ``UserError`` for fewer images than ``images_needed(rate)``.
    """
    ordered = check_values(held_out, "held_out").sort(descending=True).values
    return float(ordered[_errors_left(len(ordered), rate, f"a false-alarm rate of {rate:g}") - 1])


def alarm_interval(n: int, rate: float, level: float = 0.95) -> tuple[float, float]:
    """Where the realised false-alarm rate of ``alarm_threshold`` lies with probability ``level``, over held-out images.

    Its law, for scores without ties, is Beta(k, n + 1 − k) with k = ⌊rate (n + 1)⌋, of mean k / (n + 1) <= rate; with
    ties it is lower. Vovk 2012, https://arxiv.org/abs/1209.2673
    """
    return _beta_interval(_errors_left(n, rate, f"a false-alarm rate of {rate:g}"), n, level)


def _beta_interval(k: int, n: int, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    return float(betaincinv(k, n + 1 - k, tail)), float(betaincinv(k, n + 1 - k, 1 - tail))


def new_images_interval(law: tuple[int, int], images: int, level: float = 0.95) -> tuple[float, float]:
    """Where the rate on so many new ``images`` lies with probability ``level``: the beta-binomial law, quantiles of it.

    ``law``: (k, n) of the Beta(k, n + 1 − k) that the realised rate has.
    """
    from scipy.stats import betabinom  # slow to import

    k, n = law
    found = betabinom(images, k, n + 1 - k).ppf([(1 - level) / 2, (1 + level) / 2]) / images
    return float(found[0]), float(found[1])


def alarm_law(n: int, rate: float) -> tuple[int, int]:
    """(k, n) of the law of the realised false-alarm rate, Beta(k, n + 1 − k)."""
    return _errors_left(n, rate, f"a false-alarm rate of {rate:g}"), n


# --- Prediction sets ----------------------------------------------------------------------------------------------


def set_scores(
    probabilities: Tensor, method: SetMethod, draws: Tensor | None = None, penalty: float = PENALTY, free: int = FREE
) -> Tensor:
    """The non-conformity of each class of each image, (N, K), from probabilities (N, K); higher = less fitting.

    ``lac``: 1 − p_k, which gives the smallest sets on average (Sadinle et al. 2019, https://arxiv.org/abs/1609.00451).
    ``aps``: the probabilities of the classes up to k, from the largest down; sets grow with an image's difficulty
    (Romano et al. 2020, https://arxiv.org/abs/2006.02544). ``raps``: aps + ``penalty`` (rank_k − ``free``)⁺, ranks from
    1, which cuts long tails (Angelopoulos et al. 2021, https://arxiv.org/abs/2009.14193).

    With ``draws`` u (N,), uniform in [0, 1], aps and raps take u p_k off, as in the papers: their coverage is exact.
    Without, the default, the same image always has the same set, and sets are a little larger. ``UserError`` for
    another method.
    """
    if method not in SET_METHODS:
        raise UserError(f"the sets are {method!r}: give {', '.join(SET_METHODS)}")
    p = probabilities.detach().double()
    if method == "lac":
        return 1 - p
    ordered, places = p.sort(dim=1, descending=True, stable=True)
    scores = ordered.cumsum(1)
    if draws is not None:
        scores = scores - draws.double()[:, None] * ordered
    if method == "raps":
        ranks = torch.arange(1, p.shape[1] + 1, device=p.device, dtype=torch.float64)
        scores = scores + penalty * (ranks - free).clamp(min=0)
    return torch.empty_like(scores).scatter_(1, places, scores)


def set_quantiles(scores: Tensor, labels: Tensor, coverage: float, *, by_class: bool = False) -> Tensor:
    """The largest score (K,) with which a class is in an image's set, for sets that hold the label with ``coverage``.

    That is the ⌈coverage (n + 1)⌉-th smallest score of the held-out images' labels, of ``scores`` (n, K), ``labels``
    (n,), the same for all classes. ``by_class``: of each class's own images, so that coverage holds for each
    (Mondrian; Vovk 2012, https://arxiv.org/abs/1209.2673); a class with fewer images than
    ``images_needed(1 − coverage)``, or none, gets infinity: it is in every set. ``UserError`` where all are too few.
    """
    labels = labels.to(scores.device).long()
    own = scores.gather(1, labels[:, None])[:, 0]
    if not by_class:
        left = _errors_left(len(own), 1 - coverage, f"a coverage of {coverage:g}")
        return own.sort(descending=True).values[left - 1].expand(scores.shape[1]).clone()
    found = own.new_full((scores.shape[1],), math.inf)
    needed = images_needed(_check_rate(1 - coverage, "1 − coverage"))
    for label in range(len(found)):
        of_class = own[labels == label].sort(descending=True).values
        if len(of_class) >= needed:
            found[label] = of_class[_errors_left(len(of_class), 1 - coverage, "coverage") - 1]
    if bool(found.isinf().all()):
        raise UserError(
            f"a coverage of {coverage:g} by class needs {needed:,} held-out images of a class, and none has as many"
        )
    return found


def prediction_sets(scores: Tensor, quantiles: Tensor, top: Tensor | None = None) -> Tensor:
    """Which classes are in each image's set, (N, K) boolean: score <= quantile. ``top`` (N,): classes that always are.

    Sets can be empty, which says that no class fits; ``top`` = argmax, which only adds to the coverage, rules it out.
    """
    found = scores <= quantiles.to(scores.device) + _EQUAL
    return found if top is None else found.scatter(1, top[:, None], True)


def coverage_law(n: int, coverage: float) -> tuple[int, int]:
    """(k, n) of the law of the realised coverage, Beta(k, n + 1 − k), k = ⌈coverage (n + 1)⌉, of mean k / (n + 1)."""
    return n + 1 - _errors_left(n, 1 - coverage, f"a coverage of {coverage:g}"), n


def coverage_interval(n: int, coverage: float, level: float = 0.95) -> tuple[float, float]:
    """Where the realised coverage lies with probability ``level``, over held-out images; with ties it is higher."""
    return _beta_interval(coverage_law(n, coverage)[0], n, level)
