"""Calibration errors of confidences: binned (ECE) and smooth.

``confidence`` (N,) in [0, 1] and ``correct`` (N,) boolean or 0/1, as ``classification.per_image`` gives them. The plain
metrics raise ``UserError`` for other values, other shapes, no images, NaN or infinity; the weighted forms do not check.
Legend: N images, R replicates.
"""

import torch
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.smooth_ece_curve import SmoothECECurve
from anchored.metrics.weighted import WeightedMetric, check_values, unweighted


def ece(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error (L1): Σ_b (n_b / N) |mean confidence − accuracy| over equal-width bins, in [0, 1].

    Bin b holds b/B <= c < (b + 1)/B; the last one is closed: a confidence of one counts.
    Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    confidence, correct = _check_confidence(confidence, correct)
    return unweighted(weighted_ece(confidence, correct, bins), confidence)


def weighted_ece(confidence: Tensor, correct: Tensor, bins: int = 15) -> WeightedMetric:
    """The weighted form of ``ece``."""
    if bins < 1:
        raise UserError(f"ECE needs at least one bin, not {bins}")
    cell = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.nn.functional.one_hot(cell, bins) * (confidence - correct)[:, None]  # (N, bins)
    return lambda weights: (weights @ gaps).abs().sum(1) / weights.sum(1)


def smooth_ece(confidence: Tensor, correct: Tensor, variant: str = "reflect") -> float:
    """Smooth calibration error smECE_σ at its fixed point σ = smECE_σ, in [0, 1].

    smECE_σ = ∫ |Σ_i (c_i − y_i) φ_σ(t, c_i)| dt / N over t in [0, 1], φ_σ the Gaussian kernel reflected at 0 and 1; σ
    is the least multiple of 1/1024 >= smECE_σ. Pool all images of a set first: the mean over batches is biased.
    ``variant`` (``UserError`` for another one): ``"reflect"`` divides the integral by the smoothed density on the same
    points, as relplot >= 1.0.2; ``"reflect_old"`` is the mean over grid points, ends included, as relplot 1.0 and 1.0.1
    (where all confidences are near one it cuts mass at the edge: 0.40 for always wrong at 1.0). Both equal it to 1e-9.
    Błasiok & Nakkiran 2023, https://arxiv.org/abs/2309.12236
    """
    confidence, correct = _check_confidence(confidence, correct)
    return unweighted(weighted_smooth_ece(confidence, correct, variant), confidence)


def weighted_smooth_ece(confidence: Tensor, correct: Tensor, variant: str = "reflect") -> WeightedMetric:
    """The weighted form of ``smooth_ece``: R replicates share the images' grid cells and the kernels."""
    if variant not in ("reflect", "reflect_old"):
        raise UserError(f"smooth ECE has the variants 'reflect' and 'reflect_old', not {variant!r}")
    return SmoothECECurve(confidence.double(), (confidence - correct).double(), variant == "reflect_old")


def _check_confidence(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    confidence, correct = check_values(confidence, "confidence"), check_values(correct, "correct")
    if confidence.shape != correct.shape:
        raise UserError(f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} differ in length")
    # A float32 softmax may exceed one by rounding; anything more is not a probability.
    if float(confidence.min()) < -1e-6 or float(confidence.max()) > 1 + 1e-6:
        raise UserError("confidence must lie in [0, 1]: these look like logits or percentages, not probabilities")
    if not bool(((correct == 0) | (correct == 1)).all()):
        raise UserError("correct must be 0 or 1 (or boolean) for every image")
    return confidence.clamp(0, 1), correct
