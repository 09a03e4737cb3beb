"""Comparing the outputs of two networks, on copies in evaluation mode."""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchored.method.networks import copy_network

SINGLE_TOLERANCE = 1e-4  # largest relative difference that rounding explains, in single precision on the CPU
LOW_TOLERANCE = 1e-2
"""The same in half precision, and on accelerators, whose convolutions may round their inputs (TF32)."""
DOUBLE_TOLERANCE = 1e-8
"""The same in double precision. Networks that amplify single precision's rounding (6e-8) to 1e-2 stay below it."""


def evaluation_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode and at least single precision; it shares the parameters where they have that."""
    single = _is_single(network)
    copied: nn.Module = copy_network(network, share_parameters=single).train().eval()  # train() drops what is cached
    return copied if single else copied.float()


def double_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode and double precision, on the CPU (not every accelerator has that precision)."""
    copied: nn.Module = copy_network(network).cpu().double().train().eval()
    return copied


@torch.no_grad()
def run_network(network: nn.Module, images: Tensor) -> Any:
    """A forward pass on the network's device, in its precision, that leaves the global random state alone."""
    precision = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    with torch.random.fork_rng(devices=[]):
        return network(images.to(device_of(network), precision))


@dataclass
class NetworkOutputs:
    """The outputs, and what the last layer was given: a new head often gives zeros, whatever its input."""

    outputs: Any
    last_input: Tensor | None

    def difference(self, others: "NetworkOutputs") -> float:
        """:func:`max_relative_difference` of the outputs and of the last layer's inputs. The latter only where they
        have the same shape: a network's one layer is also its first, which is what changes."""
        difference = max_relative_difference(self.outputs, others.outputs)
        if self.last_input is None or others.last_input is None or self.last_input.shape != others.last_input.shape:
            return difference
        return max(difference, max_relative_difference(self.last_input, others.last_input))


def network_outputs(network: nn.Module, images: Tensor) -> NetworkOutputs:
    """Run a network on images (B,C,H,W), as it is: make an :func:`evaluation_copy` first."""
    last: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last[:] = [inputs[0].detach()]

    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)):
                hooks.callback(layer.register_forward_pre_hook(keep).remove)
        outputs = run_network(network, images)
    return NetworkOutputs(outputs, last[0] if last else None)


def max_relative_difference(expected: Any, actual: Any) -> float:
    """Largest absolute difference over the largest absolute expected value, the maximum over the outputs' tensors.
    Infinite where shapes differ, or where a difference is not finite."""
    ours, theirs = ([t.detach().cpu().double() for t in tensors_in(outputs)] for outputs in (expected, actual))
    if [t.shape for t in ours] != [t.shape for t in theirs] or not ours:
        return math.inf
    largest = max(float((a - b).abs().max() / (a.abs().max() or 1)) for a, b in zip(ours, theirs, strict=True))
    return largest if math.isfinite(largest) else math.inf


def tolerance(network: nn.Module) -> float:
    """The relative difference that rounding explains on the network's device, in its precision."""
    return SINGLE_TOLERANCE if device_of(network).type == "cpu" and _is_single(network) else LOW_TOLERANCE


def tensors_in(outputs: Any) -> Iterator[Tensor]:
    """The tensors in an output, or in nested lists and mappings of them."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (Mapping, list, tuple)):
        for value in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from tensors_in(value)


def random_image(shape: tuple[int, ...], seed: int) -> Tensor:
    """One standard normal image (1,C,H,W) of ``shape`` (C,H,W)."""
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))


def device_of(network: nn.Module) -> torch.device:
    """The device of the network's tensors."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _is_single(network: nn.Module) -> bool:
    return all(p.dtype not in (torch.float16, torch.bfloat16) for p in network.parameters())
