"""The first layer: find the one that meets the image, and widen it from C to 2C channels.

A linear first layer with weights ``W`` becomes ``[W_r, W_d]`` on the pair ``[r, x − r]``. With ``W_r = W_d = W`` its
output is ``W*r + W*(x − r) = W*x``: the network's function is kept exactly, whatever the reference.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from anchored.errors import UserError

LINEAR_IN_THE_IMAGE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def find(network: nn.Module, name: str | None = None) -> tuple[str, nn.Module]:
    """Name and layer of the stem: the named one, or the first convolution in order of registration.

    Raises ``UserError`` where there is none, the name leads nowhere, or the layer cannot be widened.
    """
    layers = {n: layer for n, layer in network.named_modules() if isinstance(layer, LINEAR_IN_THE_IMAGE)}
    if name is None:
        if not layers:
            raise UserError(f"{type(network).__name__} has no convolution to anchor: name its first layer with stem=")
        name = next(iter(layers))
    if name not in layers:
        known = ", ".join(list(layers)[:5]) or "none"
        raise UserError(f"stem '{name}' is not a convolution of {type(network).__name__}: the first ones are {known}")
    if layers[name].groups != 1:
        raise UserError(f"stem '{name}' is a grouped convolution ({layers[name].groups} groups): it cannot be widened")
    return name, layers[name]


def widen(
    network: nn.Module, name: str | None = None, *, fresh: bool, generator: torch.Generator | None = None
) -> nn.Module:
    """A copy of ``network`` whose stem takes 2C channels: the reference's C, then the residual's C.

    ``fresh=False`` gives both halves the stem's weights (an exact widening). ``fresh=True`` draws them anew, normal
    with the standard deviation of the given weights, so that the network's own initialisation rule decides the scale.
    Everything else is copied unchanged; the given network is not touched.
    """
    name, _ = find(network, name)
    network = copy.deepcopy(network)
    old = network.get_submodule(name)
    assert isinstance(old, LINEAR_IN_THE_IMAGE)
    wide = copy.deepcopy(old)
    wide.in_channels = 2 * old.in_channels
    weight = old.weight.detach()
    wide.weight = nn.Parameter(_drawn(weight, generator) if fresh else torch.cat([weight, weight], dim=1))
    if name == "":
        return wide
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, wide)
    return network


def _drawn(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    shape = (weight.shape[0], 2 * weight.shape[1], *weight.shape[2:])
    noise = torch.randn(shape, generator=generator, dtype=weight.dtype)  # on the CPU: the same on every device
    return (noise * weight.std().cpu()).to(weight.device)
