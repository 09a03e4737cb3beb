"""Detection of out-of-distribution images by their scores: AUROC, FPR at a TPR, AUPR.

``in_scores`` (N,) and ``out_scores`` (M,), any real dtype, higher = more out-of-distribution; out-of-distribution is
the positive class. All functions raise ``UserError`` for empty, non-finite or not one-dimensional scores.
Legend: N in-distribution and M out-of-distribution images, R replicates, L distinct scores. Results are fractions.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.weighted import BLOCK, WeightedOODMetric, check_values, unweighted


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve, P(out > in) + ½ P(out = in), in [0, 1]; exact, by ranks.

    Equals ``sklearn.metrics.roc_auc_score``. Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747
    """
    return unweighted(weighted_auroc(in_scores, out_scores), in_scores, out_scores)


def fpr_at_tpr(in_scores: Tensor, out_scores: Tensor, tpr: float = 0.95) -> float:
    """False positive rate at a true positive rate: share of in-distribution images flagged, in [0, 1].

    The threshold is the highest score s such that {score >= s} holds at least ``tpr`` of the OUT-OF-DISTRIBUTION
    images (no interpolation): the first point of ``sklearn.metrics.roc_curve(drop_intermediate=False)`` with
    TPR >= ``tpr``. Out-of-distribution is positive, as in OpenOOD 1.5 and pytorch-ood; ODIN and Liu et al. 2020 keep
    95 % of the in-distribution images instead, which gives other numbers.
    Raises ``UserError`` also for ``tpr`` outside (0, 1]. Yang et al. 2022, https://arxiv.org/abs/2210.07242
    """
    if not 0 < tpr <= 1:
        raise UserError(f"tpr is a fraction in (0, 1], not {tpr}")
    return unweighted(weighted_fpr_at_tpr(in_scores, out_scores, tpr), in_scores, out_scores)


def aupr(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the precision-recall curve as average precision, Σ_t (recall_t − recall_{t−1}) precision_t, in [0, 1].

    "AUPR-out": out-of-distribution is positive; tied scores are one threshold; no interpolation. Equals
    ``sklearn.metrics.average_precision_score``. It depends on M / (N + M).
    """
    return unweighted(weighted_aupr(in_scores, out_scores), in_scores, out_scores)


def weighted_auroc(in_scores: Tensor, out_scores: Tensor) -> WeightedOODMetric:
    """The weighted form of ``auroc``."""
    return _of_curve(in_scores, out_scores, _auroc_of_curve)


def weighted_fpr_at_tpr(in_scores: Tensor, out_scores: Tensor, tpr: float = 0.95) -> WeightedOODMetric:
    """The weighted form of ``fpr_at_tpr``."""
    return _of_curve(in_scores, out_scores, partial(_fpr_of_curve, tpr=tpr))


def weighted_aupr(in_scores: Tensor, out_scores: Tensor) -> WeightedOODMetric:
    """The weighted form of ``aupr``."""
    return _of_curve(in_scores, out_scores, _aupr_of_curve)


def _of_curve(in_scores: Tensor, out_scores: Tensor, summary: Callable[[Tensor, Tensor], Tensor]) -> WeightedOODMetric:
    """Scores -> a metric of weights (R, N), (R, M); scores are sorted once, then a running sum per replicate.

    ``summary``: false and true positives (R, L), from the highest score down -> values (R,).
    """
    ins, outs = check_values(in_scores, "in_scores"), check_values(out_scores, "out_scores").to(in_scores.device)
    levels, level = torch.unique(torch.cat([-ins, -outs]), return_inverse=True)  # ascending in −score
    in_level, out_level, rows = level[: len(ins)], level[len(ins) :], max(1, BLOCK // len(levels))

    def cumulative(weights: Tensor, level: Tensor) -> Tensor:
        n = len(weights)
        return weights.new_zeros(n, len(levels)).scatter_add_(1, level.expand(n, -1), weights).cumsum_(1)

    def metric(in_weights: Tensor, out_weights: Tensor) -> Tensor:
        blocks = zip(torch.split(in_weights, rows), torch.split(out_weights, rows), strict=True)
        return torch.cat([summary(cumulative(a, in_level), cumulative(b, out_level)) for a, b in blocks])

    return metric


def _steps(running: Tensor) -> Tensor:
    return torch.diff(running, prepend=torch.zeros_like(running[:, :1]))


def _auroc_of_curve(false: Tensor, true: Tensor) -> Tensor:
    # Trapezia over thresholds: within one score, each (in, out) pair counts one half.
    return (_steps(false) * (true - _steps(true) / 2)).sum(1) / (false[:, -1] * true[:, -1])


def _fpr_of_curve(false: Tensor, true: Tensor, tpr: float) -> Tensor:
    threshold = (true / true[:, -1:] >= tpr).to(torch.uint8).argmax(1, keepdim=True)  # the first from the top
    return false.gather(1, threshold)[:, 0] / false[:, -1]


def _aupr_of_curve(false: Tensor, true: Tensor) -> Tensor:
    return (_steps(true) * true / (true + false).clamp(min=1e-300)).sum(1) / true[:, -1]
