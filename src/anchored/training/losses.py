"""Losses of other methods on logits: AugMix's consistency, LogitNorm. Legend: V views, B batch, N classes."""

import torch
from torch import Tensor
from torch.nn import functional


def jensen_shannon(logits: Tensor) -> Tensor:
    """Mean over the batch of the Jensen–Shannon divergence, in nats, between the views' probabilities: (V,B,N) to ().

    The mean over views of KL(p ‖ m), m the mean of the views' probabilities, from 0 to log V (AugMix, arXiv 1912.02781,
    with V = 3; m is kept from 0 as its authors do).
    """
    probabilities = logits.float().softmax(dim=-1)  # differences of answers are lost in bfloat16
    mean = probabilities.mean(dim=0).clamp(1e-7, 1).log()
    each: Tensor = functional.kl_div(mean.expand_as(probabilities), probabilities, reduction="none").sum(dim=-1)
    return each.mean()


def normalised_logits(logits: Tensor, temperature: float) -> Tensor:
    """Logits (B,N) divided by their Euclidean length and by ``temperature`` (LogitNorm, arXiv 2205.09310)."""
    lengths: Tensor = torch.linalg.vector_norm(logits, dim=-1, keepdim=True) + 1e-7
    return logits / (lengths * temperature)
