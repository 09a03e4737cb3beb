"""Out-of-distribution scores of one image from its logits; one sign everywhere: higher = more out-of-distribution.

Every score takes logits (N, K) of any real dtype (float16 too) and gives (N,) float64 on the same device. float64
because a float32 softmax rounds thousands of confident images to exactly one, which ties them. Finite logits up to the
dtype's range are safe. Raises ``UserError`` for another shape, no classes, or NaN or infinite logits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from anchored.errors import UserError

_BLOCK = 1 << 22
"""Logits converted to float64 at once (32 MiB), so that 50,000 × 1,000 logits need no second copy."""
_NORMALISED = 1e-3
"""Logits whose log-sum-exp is this near to zero are logarithms of probabilities."""


def energy(logits: Tensor) -> Tensor:
    """Free energy −ln Σ_k exp(z_k), in nats, any real number (temperature 1).

    Liu et al. 2020, https://arxiv.org/abs/2010.03759
    """
    return _by_rows(logits, lambda z: -z.logsumexp(1))


def max_softmax(logits: Tensor) -> Tensor:
    """Minus the largest class probability, −max_k softmax(z)_k, in [−1, −1/K].

    Hendrycks & Gimpel 2017, https://arxiv.org/abs/1610.02136
    """
    return _by_rows(logits, lambda z: -z.log_softmax(1).amax(1).exp())


def max_logit(logits: Tensor) -> Tensor:
    """Minus the largest logit, −max_k z_k, any real number.

    Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132
    """
    return _by_rows(logits, lambda z: -z.amax(1))


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted distribution, −Σ_k p_k ln p_k, in nats, in [0, ln K]; p = softmax(z).

    Used for detection in Hendrycks & Gimpel 2017 (the baseline's family), https://arxiv.org/abs/1610.02136
    """
    return _by_rows(logits, _entropy)


def _entropy(logits: Tensor) -> Tensor:
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


def _by_rows(logits: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise UserError(f"logits must have shape (N, K) with K > 0 classes, not {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise UserError("logits hold NaN or infinite values; look at the model's outputs before scoring them")
    rows = max(1, _BLOCK // logits.shape[1])
    return torch.cat([score(part.double()) for part in torch.split(logits.detach(), rows)])


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": energy,
    "max_softmax": max_softmax,
    "max_logit": max_logit,
    "entropy": entropy,
}
"""Score name -> function; ``energy`` is the default of the evaluation."""


def are_log_probabilities(logits: Tensor) -> bool:
    """Whether logits (N, K) are all logarithms of probabilities, which hold no energy."""
    return bool((logits.logsumexp(1).abs() < _NORMALISED).all())


def refuse_no_energy(score: str, logits: Tensor) -> None:
    """``UserError`` for the energy of logits (N, K) that are all logarithms of probabilities: it is zero."""
    if score == "energy" and are_log_probabilities(logits):
        raise UserError(
            "the logits are logarithms of probabilities, which hold no energy: give another score, such as max_softmax"
        )
