"""Classification metrics of logits and labels: accuracy, Brier score, negative log-likelihood.

Legend: N images, K classes. All results are fractions or nats, never percentages.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from anchored.errors import UserError
from anchored.metrics.weighted import BLOCK


class PerImage(NamedTuple):
    """What the metrics of a labelled set need of each image: four (N,) float64 tensors on the logits' device.

    ``confidence`` max_k p_k in [1/K, 1]; ``correct`` 1 where argmax_k (the first, if tied) is the label, else 0;
    ``squared_error`` Σ_k (p_k − y_k)² in [0, 2]; ``log_loss`` −ln p_label in [0, ∞), nats.
    """

    confidence: Tensor
    correct: Tensor
    squared_error: Tensor
    log_loss: Tensor


def per_image(logits: Tensor, labels: Tensor) -> PerImage:
    """Logits (N, K) of any floating dtype and labels (N,) of an integer dtype -> the columns every metric is made from.

    Computed in float64, some rows at a time: memory stays bounded. Raises ``UserError`` for wrong shapes,
    no images, NaN or infinite logits, labels that are not integers in [0, K).
    """
    _check_logits(logits, labels)
    rows = max(1, BLOCK // logits.shape[1])
    parts = zip(torch.split(logits.detach(), rows), torch.split(labels.to(logits.device).long(), rows), strict=True)
    return PerImage(*map(torch.cat, zip(*(_columns(*part) for part in parts), strict=True)))


def _columns(logits: Tensor, labels: Tensor) -> PerImage:
    log_p = logits.double().log_softmax(1)  # (n, K)
    log_p_label = log_p.gather(1, labels[:, None])[:, 0]
    # Σ (p − y)² = Σ p² − 2 p_label + 1, grouped so that a perfect prediction gives 0 and not a rounding error.
    squared = log_p.exp().scatter(1, labels[:, None], 0.0).square().sum(1) + torch.expm1(log_p_label).square()
    # argmax on the logits themselves: log_softmax can round two different logits to one value.
    return PerImage(log_p.amax(1).exp(), (logits.argmax(1) == labels).double(), squared, -log_p_label)


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
