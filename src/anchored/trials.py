"""Trying a network out: runs on a copy, and the comparison of what comes out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

EXACT = 1e-4
"""Greatest difference over greatest value that rounding explains, in single precision on the CPU."""
EXACT_ELSEWHERE = 1e-2
"""The same on accelerators, whose convolutions may round their inputs (TF32), and in half precision."""


def twin(network: nn.Module) -> nn.Module:
    """A copy to try things on: evaluation mode, at least single precision, the same parameters where they have that."""
    single = _single(network)
    copied = copy.deepcopy(network, {id(p): p for p in network.parameters()} if single else {}).eval()
    return copied if single else copied.float()


@torch.no_grad()
def run(network: nn.Module, images: Tensor) -> Any:
    """A pass on the network's device, in its precision, that leaves the global random state alone."""
    precision = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    with torch.random.fork_rng(devices=[]):
        return network(images.to(device_of(network), precision))


def difference(first: Any, second: Any) -> float:
    """Greatest difference of two networks' outputs over the greatest output; infinite where their shapes differ."""
    ours, theirs = ([t.detach().cpu() for t in tensors_in(each)] for each in (first, second))
    if [t.shape for t in ours] != [t.shape for t in theirs] or not ours:
        return math.inf
    scale = max(float(t.abs().max()) for t in ours) or 1.0
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in zip(ours, theirs, strict=True)) / scale
    return worst if math.isfinite(worst) else math.inf


def tolerance(network: nn.Module) -> float:
    """The difference that rounding explains on the network's device, in its precision."""
    return EXACT if device_of(network).type == "cpu" and _single(network) else EXACT_ELSEWHERE


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors in an output, or in nested lists and mappings of them."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from tensors_in(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from tensors_in(value)


def noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """One random image (1,C,H,W)."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def device_of(network: nn.Module) -> torch.device:
    """Where the network's tensors are."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _single(network: nn.Module) -> bool:
    return all(p.dtype not in (torch.float16, torch.bfloat16) for p in network.parameters())


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
