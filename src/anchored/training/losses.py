"""Losses of other methods on logits: AugMix's consistency, LogitNorm. Legend: V views, B batch, N classes."""

import torch
from torch import Tensor


def jensen_shannon(logits: Tensor) -> Tensor:
    """Mean over the batch of the Jensen–Shannon divergence, in nats, between the views' probabilities: (V,B,N) to ().

    The mean over views of KL(p ‖ m), m the mean of the views' probabilities, from 0 to log V (AugMix, arXiv 1912.02781,
    with V = 3; m is kept from 0 as its authors do).
    """
    log_probabilities = logits.float().log_softmax(dim=-1)  # differences of answers are lost in bfloat16
    probabilities = log_probabilities.exp()  # the logarithm of one that is 0 would have no gradient
    mean = probabilities.mean(dim=0).clamp(1e-7, 1).log()
    each: Tensor = (probabilities * (log_probabilities - mean)).sum(dim=-1)
    return each.mean()


def normalised_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B,N) divided by their Euclidean length and by ``temperature`` (LogitNorm, arXiv 2205.09310)."""
    lengths: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True) + 1e-7
    return logits / (lengths * temperature)
