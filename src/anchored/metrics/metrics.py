"""Metrics: tensors -> one number, every one written once as a function of image weights.

A metric of N images is computed from weights w (R, N): how often each image counts in each of R replicates. The plain
metric is R = 1 with all weights one; a bootstrap replicate (``intervals.py``) is the same code with multinomial counts.
Legend: N images, M out-of-distribution images, K classes, R replicates, L distinct scores, P grid points.
All results are fractions, never percentages; ``METRICS`` says which ones are shown × 100.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics import smooth_ece as smooth_ece_

_BLOCK = 1 << 18  # elements worked on at once where a loop bounds memory: 2 MiB of float64, about a core's cache

WeightedMetric = Callable[[Tensor], Tensor]
"""Weights (R, N) float64, each row's total positive -> values (R,) float64."""
WeightedOODMetric = Callable[[Tensor, Tensor], Tensor]
"""Weights (R, N) of the in-distribution and (R, M) of the other images, float64 -> values (R,) float64."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: ``percent`` metrics × 100, and whether a higher value is the better one."""

    title: str
    percent: bool
    higher_is_better: bool


METRICS: dict[str, Metric] = {
    "accuracy": Metric("Accuracy", percent=True, higher_is_better=True),
    "auroc": Metric("AUROC", percent=True, higher_is_better=True),
    "fpr95": Metric("FPR at 95 % TPR", percent=True, higher_is_better=False),
    "aupr": Metric("AUPR", percent=True, higher_is_better=True),
    "smooth_ece": Metric("Smooth ECE", percent=False, higher_is_better=False),
    "smooth_ece_old": Metric("Smooth ECE (older edges)", percent=False, higher_is_better=False),
    "ece": Metric("ECE", percent=False, higher_is_better=False),
    "brier": Metric("Brier score", percent=False, higher_is_better=False),
    "nll": Metric("NLL", percent=False, higher_is_better=False),
    "linear_probe_accuracy": Metric("Linear probe accuracy", percent=True, higher_is_better=True),
    "linear_probe_ece": Metric("Linear probe smooth ECE", percent=False, higher_is_better=False),
}
"""The metric column of a results row -> how it is shown; the probe's two are ``accuracy`` and ``smooth_ece``."""


def _check_scores(scores: Tensor, name: str) -> Tensor:
    if scores.ndim != 1 or scores.numel() == 0:
        raise UserError(f"{name} must be one value per image, shape (N,) with N > 0, not {tuple(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise UserError(f"{name} holds NaN or infinite values; look at the model's outputs before measuring them")
    return scores.detach().double()


def _check_logits(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] < 2:
        raise UserError(f"logits must have shape (N, K), N > 0 images and K > 1 classes, not {tuple(logits.shape)}")
    if labels.shape != logits.shape[:1]:
        raise UserError(f"labels must have shape ({logits.shape[0]},) like the logits, not {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels must be class numbers of an integer dtype, not {labels.dtype}")
    if not bool(torch.isfinite(logits).all()):
        raise UserError("logits hold NaN or infinite values; look at the model's outputs before measuring them")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(f"labels run from {low} to {high}, but the logits have {logits.shape[1]} classes (0 to K - 1)")


def _check_confidence(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    confidence, hits = _check_scores(confidence, "confidence"), _check_scores(correct, "correct")
    if confidence.shape != hits.shape:
        raise UserError(f"confidence {tuple(confidence.shape)} and correct {tuple(hits.shape)} differ in length")
    # A float32 softmax may exceed one by rounding; anything more is not a probability.
    if float(confidence.min()) < -1e-6 or float(confidence.max()) > 1 + 1e-6:
        raise UserError("confidence must lie in [0, 1]: these look like logits or percentages, not probabilities")
    if not bool(((hits == 0) | (hits == 1)).all()):
        raise UserError("correct must be 0 or 1 (or boolean) for every image")
    return confidence.clamp(0, 1), hits


@dataclass(frozen=True)
class PerImage:
    """What the metrics of a labelled set need of each image: four (N,) float64 tensors on the logits' device.

    ``confidence`` max_k p_k in [1/K, 1]; ``correct`` 1 where argmax_k (the first, if tied) is the label, else 0;
    ``squared_error`` Σ_k (p_k − y_k)² in [0, 2]; ``log_loss`` −ln p_label in [0, ∞), nats.
    """

    confidence: Tensor
    correct: Tensor
    squared_error: Tensor
    log_loss: Tensor

    def sorted(self) -> "PerImage":
        """The same images in order of confidence: smooth ECE then need not reorder every replicate's weights."""
        order = self.confidence.argsort()
        return PerImage(*(getattr(self, field.name)[order] for field in fields(self)))


def per_image(logits: Tensor, labels: Tensor) -> PerImage:
    """Logits (N, K) of any floating dtype and labels (N,) of an integer dtype -> the columns every metric is made from.

    Computed in float64, some rows at a time: memory stays bounded. Raises ``UserError`` for wrong shapes,
    no images, NaN or infinite logits, labels that are not integers in [0, K).
    """
    _check_logits(logits, labels)
    rows = max(1, _BLOCK // logits.shape[1])
    parts = zip(torch.split(logits.detach(), rows), torch.split(labels.to(logits.device).long(), rows), strict=True)
    return PerImage(*(torch.cat(column) for column in zip(*(_columns(*part) for part in parts), strict=True)))


def _columns(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    log_p = logits.double().log_softmax(1)  # (n, K)
    own = log_p.gather(1, labels[:, None])[:, 0]
    # Σ (p − y)² = Σ p² − 2 p_label + 1, grouped so that a perfect prediction gives 0 and not a rounding error.
    squared = log_p.exp().scatter(1, labels[:, None], 0.0).square().sum(1) + torch.expm1(own).square()
    # argmax on the logits themselves: log_softmax can round two different logits to one value.
    return log_p.amax(1).exp(), (logits.argmax(1) == labels).double(), squared, -own


def weighted_mean(values: Tensor) -> WeightedMetric:
    """Values (N,) -> the metric Σ_i w_i v_i / Σ_i w_i."""
    return lambda weights: weights @ values / weights.sum(1)


def weighted_ece(confidence: Tensor, correct: Tensor, bins: int) -> WeightedMetric:
    """The weighted form of ``ece``."""
    if bins < 1:
        raise UserError(f"ECE needs at least one bin, not {bins}")
    cell = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.nn.functional.one_hot(cell, bins) * (confidence - correct)[:, None]  # (N, bins)
    return lambda weights: (weights @ gaps).abs().sum(1) / weights.sum(1)


IMAGE_METRICS: dict[str, Callable[[PerImage], WeightedMetric]] = {
    "accuracy": lambda images: weighted_mean(images.correct),
    "smooth_ece": lambda images: weighted_smooth_ece(images.confidence, images.correct, "reflect"),
    "smooth_ece_old": lambda images: weighted_smooth_ece(images.confidence, images.correct, "reflect_old"),
    "ece": lambda images: weighted_ece(images.confidence, images.correct, 15),
    "brier": lambda images: weighted_mean(images.squared_error),
    "nll": lambda images: weighted_mean(images.log_loss),
}
"""Metric name -> images -> its weighted form. What ``intervals.image_intervals`` measures."""


def _plain(metric: Callable[..., Tensor], *samples: Tensor) -> float:
    return float(metric(*(torch.ones(1, len(x), dtype=torch.float64, device=samples[0].device) for x in samples)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose largest logit is the label's, in [0, 1]; the first wins a tie. Else as ``per_image``."""
    return float(per_image(logits, labels).correct.mean())


def brier(logits: Tensor, labels: Tensor) -> float:
    """Multi-class Brier score, mean_i Σ_k (p_ik − y_ik)², in [0, 2], not halved; p = softmax. Else as ``per_image``.
    Brier 1950, https://doi.org/10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2
    """
    return float(per_image(logits, labels).squared_error.mean())


def nll(logits: Tensor, labels: Tensor) -> float:
    """Negative log-likelihood, mean_i −ln softmax(logits_i)[label_i], nats, in [0, ∞). Else as ``per_image``."""
    return float(per_image(logits, labels).log_loss.mean())


def confidence(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The two columns of ``per_image``, confidence (N,) in [1/K, 1] and correct (N,) in {0, 1}; errors as there."""
    return (images := per_image(logits, labels)).confidence, images.correct


def ece(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error (L1): Σ_b (n_b / N) |mean confidence − accuracy| over equal-width bins, in [0, 1].

    ``confidence`` (N,) in [0, 1], ``correct`` (N,) boolean or 0/1. Bin b holds b/B <= c < (b + 1)/B; the last one is
    closed: a confidence of one counts. Raises ``UserError`` for other values, shapes or NaN.
    Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    confidence, hits = _check_confidence(confidence, correct)
    return _plain(weighted_ece(confidence, hits, bins), confidence)


def weighted_ood(in_scores: Tensor, out_scores: Tensor, curve: Callable[[Tensor, Tensor], Tensor]) -> WeightedOODMetric:
    """Scores (N,), (M,) -> a metric of weights (R, N), (R, M); sorted once, then a running sum per replicate.

    ``curve``: false and true positives (R, L), from the highest score down -> values (R,).
    Raises ``UserError`` for empty, non-finite or not one-dimensional scores.
    """
    ins, outs = _check_scores(in_scores, "in_scores"), _check_scores(out_scores, "out_scores").to(in_scores.device)
    levels, level = torch.unique(torch.cat([-ins, -outs]), return_inverse=True)  # ascending in −score
    where_in, where_out, rows = level[: len(ins)], level[len(ins) :], max(1, _BLOCK // len(levels))

    def cumulative(weights: Tensor, where: Tensor) -> Tensor:
        n = len(weights)
        return weights.new_zeros(n, len(levels)).scatter_add_(1, where.expand(n, -1), weights).cumsum_(1)

    def metric(weights_in: Tensor, weights_out: Tensor) -> Tensor:
        blocks = zip(torch.split(weights_in, rows), torch.split(weights_out, rows), strict=True)
        return torch.cat([curve(cumulative(a, where_in), cumulative(b, where_out)) for a, b in blocks])

    return metric


def _steps(running: Tensor) -> Tensor:
    return torch.diff(running, prepend=torch.zeros_like(running[:, :1]))


def _auroc_curve(false: Tensor, true: Tensor) -> Tensor:
    # Trapezia over thresholds: within one score, each (in, out) pair counts one half.
    return (_steps(false) * (true - _steps(true) / 2)).sum(1) / (false[:, -1] * true[:, -1])


def _fpr_curve(false: Tensor, true: Tensor, tpr: float) -> Tensor:
    reached = (true / true[:, -1:] >= tpr).to(torch.uint8).argmax(1, keepdim=True)  # first threshold, from the top
    return false.gather(1, reached)[:, 0] / false[:, -1]


def _aupr_curve(false: Tensor, true: Tensor) -> Tensor:
    return (_steps(true) * true / (true + false).clamp(min=1e-300)).sum(1) / true[:, -1]


OOD_METRICS: dict[str, Callable[[Tensor, Tensor], WeightedOODMetric]] = {
    "auroc": partial(weighted_ood, curve=_auroc_curve),
    "fpr95": partial(weighted_ood, curve=partial(_fpr_curve, tpr=0.95)),
    "aupr": partial(weighted_ood, curve=_aupr_curve),
}
"""Metric name -> (in_scores, out_scores) -> its weighted form. What ``intervals.ood_intervals`` measures."""


def auroc(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the ROC curve, P(out > in) + ½ P(out = in), in [0, 1]; exact, by ranks.

    ``in_scores`` (N,), ``out_scores`` (M,), any real dtype; out-of-distribution is the positive class, higher = more
    out-of-distribution. Equals ``sklearn.metrics.roc_auc_score``. Errors as in ``weighted_ood``.
    Hanley & McNeil 1982, https://doi.org/10.1148/radiology.143.1.7063747
    """
    return _plain(weighted_ood(in_scores, out_scores, _auroc_curve), in_scores, out_scores)


def fpr_at_tpr(in_scores: Tensor, out_scores: Tensor, tpr: float = 0.95) -> float:
    """False positive rate at a true positive rate: share of in-distribution images flagged, in [0, 1].

    The threshold is the highest score s such that {score >= s} holds at least ``tpr`` of the OUT-OF-DISTRIBUTION
    images (no interpolation): the first point of ``sklearn.metrics.roc_curve(drop_intermediate=False)`` with
    TPR >= ``tpr``. Out-of-distribution is positive, as in OpenOOD 1.5 and pytorch-ood; ODIN and Liu et al. 2020 keep
    95 % of the in-distribution images instead, which gives other numbers. Signs, shapes as in ``auroc``.
    Raises ``UserError`` also for ``tpr`` outside (0, 1]. Yang et al. 2022, https://arxiv.org/abs/2210.07242
    """
    if not 0 < tpr <= 1:
        raise UserError(f"tpr is a fraction in (0, 1], not {tpr}")
    return _plain(weighted_ood(in_scores, out_scores, partial(_fpr_curve, tpr=tpr)), in_scores, out_scores)


def aupr(in_scores: Tensor, out_scores: Tensor) -> float:
    """Area under the precision-recall curve as average precision, Σ_t (recall_t − recall_{t−1}) precision_t, in [0, 1].

    Out-of-distribution is the positive class ("AUPR-out"); tied scores are one threshold; no interpolation. Equals
    ``sklearn.metrics.average_precision_score``. It depends on M / (N + M). Signs, shapes and errors as in ``auroc``.
    """
    return _plain(weighted_ood(in_scores, out_scores, _aupr_curve), in_scores, out_scores)


def smooth_ece(confidence: Tensor, correct: Tensor, variant: str = "reflect") -> float:
    """Smooth calibration error smECE_σ at its fixed point σ = smECE_σ, in [0, 1].

    smECE_σ = ∫ |Σ_i (c_i − y_i) φ_σ(t, c_i)| dt / N over t in [0, 1], φ_σ the Gaussian kernel reflected at 0 and 1; σ
    is the least multiple of 1/1024 >= smECE_σ. Pool all images of a set first: the mean over batches is biased.
    ``confidence`` (N,) in [0, 1], ``correct`` (N,) boolean or 0/1; errors as in ``ece``, or an unknown ``variant``:
    ``"reflect"`` divides the integral by the smoothed density on the same points, as relplot >= 1.0.2;
    ``"reflect_old"`` is the mean over grid points, ends included, as relplot 1.0 and 1.0.1 (where all confidences are
    near one it cuts mass at the edge: 0.40 for always wrong at 1.0). Both equal it to 1e-9.
    Błasiok & Nakkiran 2023, https://arxiv.org/abs/2309.12236
    """
    confidence, hits = _check_confidence(confidence, correct)
    return _plain(weighted_smooth_ece(confidence, hits, variant), confidence)


def weighted_smooth_ece(confidence: Tensor, correct: Tensor, variant: str = "reflect") -> WeightedMetric:
    """The weighted form of ``smooth_ece``: R replicates share the images' grid cells and the kernels."""
    if variant not in ("reflect", "reflect_old"):
        raise UserError(f"smooth ECE has the variants 'reflect' and 'reflect_old', not {variant!r}")
    return smooth_ece_.Curve(confidence.double(), (confidence - correct).double(), variant == "reflect_old")
