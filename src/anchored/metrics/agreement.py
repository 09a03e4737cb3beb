"""What a network's answers under several references say without labels: disagreement, and an estimate of accuracy.

Legend: K references, N images, C classes. Logits by reference are (K, N, C) of any floating dtype; results are float64
on their device. With K = 1 nothing disagrees: spread and disagreement are 0, agreement is 1.
"""

import math

import torch
from torch import Tensor

from anchored.errors import UserError


def mean_spread(logits: Tensor) -> Tensor:
    """OOD score (N,) in [0, √½]: mean over classes of the s.d. over references of the logistic function of the logit.

    n − 1 in the denominator. Thiagarajan et al. 2022, https://arxiv.org/abs/2207.07235
    """
    by_class = _checked(logits).sigmoid()
    return by_class.std(dim=0).mean(dim=1) if len(logits) > 1 else by_class.new_zeros(by_class.shape[1])


def disagreement(logits: Tensor) -> Tensor:
    """OOD score (N,) in nats, [0, ln min(K, C)]: entropy of the mean of the probabilities minus their mean entropy.

    The Jensen-Shannon divergence of the references' answers, the mutual information of class and reference.
    Houlsby et al. 2011, https://arxiv.org/abs/1112.5745
    """
    log_p = _checked(logits).log_softmax(dim=2)
    mean = log_p.logsumexp(dim=0) - math.log(len(logits))
    return (_entropy(mean) - _entropy(log_p).mean(dim=0)).clamp(min=0)


def _entropy(log_p: Tensor) -> Tensor:
    return -(log_p.exp() * log_p).sum(dim=-1)


def pair_agreement(logits: Tensor) -> Tensor:
    """Share of pairs of references that give an image the same class, (N,) in [0, 1]: Σ_c n_c (n_c − 1) / K (K − 1).

    Its mean over images estimates accuracy without a label where the network is calibrated over references.
    Jiang et al. 2022, https://arxiv.org/abs/2106.13799
    """
    votes = torch.nn.functional.one_hot(_checked(logits).argmax(dim=2), logits.shape[2]).sum(dim=0).double()  # (N, C)
    count = len(logits)
    return (votes * (votes - 1)).sum(dim=1) / (count * (count - 1)) if count > 1 else votes.new_ones(len(votes))


def threshold(scores: Tensor, correct: Tensor) -> float:
    """The score t for which the share of labelled images with scores >= t is their accuracy, as nearly as can be.

    ``scores`` (N,), higher = surer; ``correct`` (N,) 0 or 1. The share of other images with scores >= t then estimates
    their accuracy. Average thresholded confidence, Garg et al. 2022, https://arxiv.org/abs/2201.04234
    """
    if scores.shape != correct.shape or scores.ndim != 1 or len(scores) == 0:
        raise UserError(f"give a score and 0 or 1 for each image, not {tuple(scores.shape)} and {tuple(correct.shape)}")
    right = round(float(correct.double().sum()))
    ordered = scores.double().sort(descending=True).values
    if right == 0:
        return math.inf
    return float(ordered[right - 1])


def _checked(logits: Tensor) -> Tensor:
    if logits.ndim != 3 or len(logits) == 0 or logits.shape[2] < 1:
        raise UserError(f"logits by reference must have shape (K, N, C), K and C > 0, not {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise UserError("logits hold NaN or infinite values; look at the model's outputs before scoring them")
    return logits.detach().double()


REFERENCE_SCORES = {"spread": mean_spread, "disagreement": disagreement}
"""Score name -> function of logits by reference; higher = more out-of-distribution, as all scores."""
