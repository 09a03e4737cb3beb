"""Trying a network out: runs on a copy, and the comparison of what comes out."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
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


@dataclass
class Answers:
    """The outputs, and what the last layer was given: a new head often answers zeros, whatever it sees."""

    outputs: Any
    last: Tensor | None

    def unlike(self, others: Answers) -> float:
        """How far other answers are from these: :func:`difference` of the outputs and of the last layer's inputs.

        The latter where they have the same shape: a network's one layer is also its first, which is what changes.
        """
        worst = difference(self.outputs, others.outputs)
        if self.last is None or others.last is None or self.last.shape != others.last.shape:
            return worst
        return max(worst, difference(self.last, others.last))


def answers(network: nn.Module, images: Tensor) -> Answers:
    """What a network makes of images."""
    last: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last[:] = [inputs[0].detach()]

    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
                hooks.callback(layer.register_forward_pre_hook(keep).remove)
        outputs = run(network, images)
    return Answers(outputs, last[0] if last else None)


def difference(first: Any, second: Any) -> float:
    """Greatest difference of two networks' outputs over the greatest output, the worst of their tensors; not a number
    or of other shapes is infinite.
    """
    ours, theirs = ([t.detach().cpu().double() for t in tensors_in(each)] for each in (first, second))
    if [t.shape for t in ours] != [t.shape for t in theirs] or not ours:
        return math.inf
    worst = max(float((a - b).abs().max() / (a.abs().max() or 1)) for a, b in zip(ours, theirs, strict=True))
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
