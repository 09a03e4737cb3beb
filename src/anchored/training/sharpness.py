"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412): the gradient where the loss is highest nearby."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def moved_uphill(parameters: Sequence[nn.Parameter], radius: float) -> Iterator[None]:
    """Within it the parameters stand ``radius`` further along their gradient, all together; after it where they were.

    Those without a gradient stay. A gradient of length 0 moves nothing.
    """
    moved = [each for each in parameters if each.grad is not None]
    kept = [each.detach().clone() for each in moved]
    with torch.no_grad():
        gradients = [each.grad for each in moved if each.grad is not None]
        length = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients]).norm()
        for each, gradient in zip(moved, gradients, strict=True):
            each.add_(gradient * (radius / (length + 1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for each, value in zip(moved, kept, strict=True):
                each.copy_(value)
