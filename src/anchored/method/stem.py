"""The first layers: find those that meet the image, and widen them exactly from C to 2C channels.

A linear layer with weights ``W`` becomes ``[W_r, W_d]`` on the pair ``[r, x − r]``. With ``W_r = W_d = W`` its output
is ``W*r + W*(x − r) = W*x``: the network's function is kept exactly, whatever the reference.

Layers are found by running the network, not by their names or order: every convolution and linear layer answers zeros,
so that only a layer on a direct way from the image still sees it. On that way the image may be rearranged, padded or
resized (anything linear that keeps channels apart), never changed otherwise. Parallel branches (RepVGG, MobileOne) each
meet the image, and each is widened. The result is compared with the given network before it is handed out.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anchored.errors import UserError, first_line
from anchored.method import equivalence

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""What can be widened, subclasses included."""

_SIDES = (32, 28, 64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)  # pixels; tried in this order
_CHANNEL_COUNTS = ("in_channels", "in_chans", "num_channels")  # where libraries note the image's channels, to check it


class _EnoughError(Exception):
    """Ends a pass that has shown what was wanted."""


@dataclass(frozen=True)
class Stem:
    """The layers that meet the image, how often each is called in a pass, and the images' shape it was found with."""

    calls: Mapping[str, int]
    shape: tuple[int, ...]  # (C,H,W); (C,L), (C,D,H,W) or (C,) for other than pictures

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which they are called."""
        return tuple(self.calls)


class PairOrder(nn.Module):
    """Brings the features of a pair into the order ``layer`` wants, by group: all the reference's, all the residual's.

    For grouped convolutions, and where the way to the layer shuffles channels (space to depth, patches with channels
    last). ``order`` (2F,): which feature of the input each one is taken from, along ``dim``.
    """

    order: Tensor

    def __init__(self, layer: nn.Module, order: Tensor, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim
        self.register_buffer("order", order, persistent=False)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's, for code that asks the first layer for its device or type."""
        weight: nn.Parameter = self.layer.weight  # type: ignore[assignment]
        return weight

    def forward(self, pairs: Tensor) -> Tensor:
        """Pairs in the network's own layout to the layer's output."""
        output: Tensor = self.layer(pairs.index_select(self.dim, self.order))
        return output


def find(network: nn.Module, name: str | None = None, example: Tensor | None = None) -> Stem:
    """Find the layers that meet the image: all of them, or the named one, which is then taken as it is.

    ``example``: a batch of images (B,C,H,W), of which only the shape matters; by default the size that the network
    says it wants, else the first of the usual sizes that it runs on.

    Raises ``UserError`` where there is none, the image is changed on its way, or the name leads nowhere.
    """
    probe = equivalence.twin(network)
    if name is not None and not isinstance(dict(network.named_modules()).get(name), LAYERS):
        raise UserError(
            f"stem '{name}' is not a convolution or linear layer of {_title(network)}: "
            f"its first ones are {_first(network)}"
        )
    shape, seen = _run(probe, example)
    zero = inputs_of(probe, torch.zeros(1, *shape))
    meeting = [n for n in seen if not _same(seen[n], zero[n])]
    if name is not None:
        _check_named(network, name, meeting)
        return Stem({name: len(seen[name])}, shape)
    if not meeting:
        raise UserError(
            f"no convolution or linear layer of {_title(network)} meets the image itself (its first ones are "
            f"{_first(network)}): anchor the part of it that takes the image"
        )
    stem = Stem({n: len(seen[n]) for n in meeting}, shape)
    other = equivalence.noise(shape, 1)
    second, both = (
        inputs_of(probe, other, stem.calls),
        inputs_of(probe, equivalence.noise(shape, 0) + other, stem.calls),
    )
    changed = [n for n in meeting if not _linear(seen[n], second[n], both[n], zero[n])]
    if changed:
        raise UserError(
            f"the image is changed before it meets {_names(changed)} of {_title(network)}, and not linearly: move that "
            f"step to the data's preprocessing, or name a layer to try with stem='{changed[0]}'"
        )
    return stem


def _check_named(network: nn.Module, name: str, meeting: list[str]) -> None:
    """Refuse a named layer that does not meet the image, or not alone."""
    if name not in meeting:
        found = f"{_names(meeting)} does, so give stem='{meeting[0]}'" if meeting else "no layer does"
        raise UserError(f"stem '{name}' does not meet the image in {_title(network)}: {found}")
    others = [n for n in meeting if n != name]
    if others:
        raise UserError(
            f"stem '{name}' is not alone: {_names(others)} of {_title(network)} meet the image too; "
            "leave stem= out, and all of them are widened"
        )


def widen(
    network: nn.Module,
    name: str | None = None,
    *,
    fresh: bool,
    generator: torch.Generator | None = None,
    example: Tensor | None = None,
) -> tuple[nn.Module, Stem]:
    """A copy of ``network`` whose stem takes 2C channels, the reference's C, then the residual's C; and the stem.

    ``fresh=False`` gives both halves the stem's weights (an exact widening). ``fresh=True`` draws them anew, normal
    with the standard deviation of the given weights, so that the network's own initialisation rule decides the scale.
    Everything else is copied unchanged; the given network is not touched. A wide weight is ``[W_r, W_d]`` along its
    second dimension, within each group of a grouped convolution.

    Raises ``UserError`` where :func:`find` does, or the network, run on pairs, does not give the same answers.
    """
    stem = find(network, name, example)
    wide = copy.deepcopy(network)
    for each in stem.names:
        _widen_layer(wide, each, stem.shape[0])
    probe, images, other = equivalence.twin(network), equivalence.noise(stem.shape, 0), equivalence.noise(stem.shape, 1)
    try:
        pairs = inputs_of(equivalence.twin(wide), torch.cat([images, other], dim=1), stem.calls)
    except Exception as error:  # whatever the user's own code raises on 2C channels
        raise UserError(_no_pairs(network, stem, error)) from error
    first, second = inputs_of(probe, images, stem.calls), inputs_of(probe, other, stem.calls)
    for each in stem.names:
        layer = wide.get_submodule(each)
        order = _order(layer, pairs[each][0], first[each][0], second[each][0])
        if order is not None:
            wide = replace(wide, layer, PairOrder(layer, order.to(equivalence.device_of(network)), _feature_dim(layer)))
    _verify(network, wide, stem)
    if fresh:
        for each in stem.names:
            weight = core(wide.get_submodule(each)).weight
            weight.data = _drawn(weight, generator)
    return wide, stem


def halved(stem: Stem) -> Stem:
    """The stem that a wide one was widened from."""
    return Stem(stem.calls, (stem.shape[0] // 2, *stem.shape[1:]))


def core(layer: nn.Module) -> Any:
    """The convolution or linear layer itself, out of its :class:`PairOrder`."""
    return layer.layer if isinstance(layer, PairOrder) else layer


def replace(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put ``new`` wherever ``network`` has ``old``, under every name; gives the network, or ``new`` in its place."""
    if network is old:
        return new
    for module in list(network.modules()):
        for key, child in module._modules.items():  # named_children() would hide a second name of one module
            if child is old and module is not new:
                module._modules[key] = new
    return network


def set_channels(network: nn.Module, name: str, old: int, new: int) -> None:
    """Where the modules around a layer note how many channels images have, note ``new`` in the place of ``old``."""
    parts = name.split(".")[:-1]
    for depth in range(len(parts) + 1):
        module = network.get_submodule(".".join(parts[:depth]))
        for attribute in _CHANNEL_COUNTS:
            if vars(module).get(attribute) == old:
                setattr(module, attribute, new)


def inputs_of(network: nn.Module, images: Tensor, calls: Mapping[str, int] | None = None) -> dict[str, list[Tensor]]:
    """What each layer is given in a pass over ``images``, call by call, in the order of the first calls.

    Every convolution and linear layer answers zeros, so that nothing comes through one to another. ``calls``: the
    layers wanted (inside a :class:`PairOrder`) and how often each is called, after which the pass is given up; by
    default all of ``LAYERS`` in a whole pass.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, LAYERS)}
    wanted = layers if calls is None else {n: core(network.get_submodule(n)) for n in calls}
    seen: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.setdefault(name, []).append(inputs[0].detach().clone())
            if calls is not None and sum(map(len, seen.values())) == sum(calls.values()):
                raise _EnoughError

        return hook

    with ExitStack() as hooks, suppress(_EnoughError):
        for layer in layers.values():
            hooks.callback(layer.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output)).remove)
        for name, layer in wanted.items():
            hooks.callback(layer.register_forward_pre_hook(keep(name)).remove)
        equivalence.run(network, images)
    return seen


def _run(network: nn.Module, example: Tensor | None) -> tuple[tuple[int, ...], dict[str, list[Tensor]]]:
    """The shape that the network runs on, and what its layers saw of a random image of that shape."""
    reason = "no size to try"
    for shape in [tuple(example.shape[1:])] if example is not None else _shapes(network):
        try:
            return shape, inputs_of(network, equivalence.noise(shape, 0))
        except Exception as error:  # noqa: PERF203  # whatever the user's own code raises
            reason = first_line(error)
    tried = _show(tuple(example.shape[1:])) if example is not None else "the usual sizes"
    raise UserError(
        f"{_title(network)} does not run on images of {tried} ({reason}): give a batch of its images as example="
    )


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes (C,H,W) to try: what the network says of itself, then the usual ones."""
    layers: list[Any] = [m for m in network.modules() if isinstance(m, LAYERS)]
    conv = next((m for m in layers if not isinstance(m, nn.Linear)), None)
    axes = 2 if conv is None else len(conv.kernel_size)
    noted = [getattr(network, "image_size", None), getattr(getattr(network, "config", None), "image_size", None)]
    noted.append(getattr(getattr(network, "patch_embed", None), "img_size", None))
    config = getattr(network, "pretrained_cfg", None) or {}
    noted.append(tuple(config.get("input_size", ())[1:]) if isinstance(config, Mapping) else None)
    sizes = [(size,) * axes if isinstance(size, int) else tuple(size) for size in noted if size]
    sizes += [(side,) * axes for side in (_SIDES if axes < 3 else (16, 32, 64))]
    if conv is None and layers:
        features = layers[0].in_features
        for channels in (3, 1):
            side = math.isqrt(features // channels)
            if channels * side * side == features:
                yield (channels, side, side)
        yield (features,)
    for size in dict.fromkeys(sizes):
        for channels in dict.fromkeys(([] if conv is None else [conv.in_channels]) + [3, 1]):
            yield (channels, *size)


def _widen_layer(network: nn.Module, name: str, channels: int) -> None:
    """Give a layer twice its inputs, both halves its weights."""
    layer: Any = network.get_submodule(name)
    if parametrize.is_parametrized(layer):
        raise UserError(
            f"'{name}' of {_title(network)} has parametrised weights: remove them first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(torch.cat([weight, weight], dim=1), requires_grad=layer.weight.requires_grad)
    inputs = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(layer, inputs, 2 * getattr(layer, inputs))
    set_channels(network, name, channels, 2 * channels)


def _order(layer: Any, pairs: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
    """Where each feature that the wide layer wants lies in what reaches it; None where they lie as wanted.

    ``pairs``: what reaches the wide layer of the pair of two images; ``first``, ``second``: what reached the narrow one
    of each. Features are matched by their values, which random images make unique.
    """
    dim = _feature_dim(layer)
    wanted = torch.cat([first, second], dim=dim)
    if pairs.shape != wanted.shape:
        return None  # the comparison of outputs will tell
    order = torch.arange(wanted.shape[dim], device=wanted.device)
    if not torch.allclose(pairs, wanted, rtol=1e-4, atol=1e-5):
        columns = wanted.movedim(dim, 0).flatten(1).double()
        key = torch.randn(columns.shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        key = key.to(columns.device)
        ranks = (columns @ key).argsort().argsort()
        order = (pairs.movedim(dim, 0).flatten(1).double() @ key).argsort()[ranks]
    groups = getattr(layer, "groups", 1)
    order = order.view(2, groups, -1).transpose(0, 1).flatten()
    return None if torch.equal(order, torch.arange(len(order), device=order.device)) else order


def _verify(network: nn.Module, wide: nn.Module, stem: Stem) -> None:
    """Refuse a widening that changes answers, on a random image with a random reference."""
    images, references = equivalence.noise(stem.shape, 3), equivalence.noise(stem.shape, 4)
    given = equivalence.answers(equivalence.twin(network), images)
    try:
        found = equivalence.answers(equivalence.twin(wide), torch.cat([references, images - references], dim=1))
    except Exception as error:  # whatever the user's own code raises on 2C channels
        raise UserError(_no_pairs(network, stem, error)) from error
    worst = given.unlike(found)
    if worst > equivalence.tolerance(network):
        raise UserError(
            f"{_title(network)} cannot be anchored exactly at {_names(stem.names)}: widened, it answers differently "
            f"(by {worst:.1g} of its greatest output); is the image used elsewhere? Name another layer with stem="
        )


def _drawn(weight: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)  # on the CPU: the same on every device
    half = weight.detach()[:, : weight.shape[1] // 2]
    return (drawn * half.std().cpu()).to(weight.device)


def _linear(first: list[Tensor], second: list[Tensor], both: list[Tensor], zero: list[Tensor]) -> bool:
    """Whether f(x + y) = f(x) + f(y) and f(0) = 0, call by call."""
    if not len(first) == len(second) == len(both):
        return False
    calls = zip(first, second, both, zero, strict=True)
    return all(
        not z.any() and bool((c - a - b).abs().max() <= equivalence.EXACT * c.abs().max()) for a, b, c, z in calls
    )  # False for NaN


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _feature_dim(layer: nn.Module) -> int:
    return -1 if isinstance(layer, nn.Linear) else 1


def _no_pairs(network: nn.Module, stem: Stem, error: Exception) -> str:
    return (
        f"{_title(network)} does not take pairs of {2 * stem.shape[0]} channels after widening {_names(stem.names)} "
        f"({first_line(error)}): it uses the image elsewhere too, or has its channel count written into its code"
    )


def _first(network: nn.Module) -> str:
    names = [name for name, layer in network.named_modules() if isinstance(layer, LAYERS)]
    return _names(names[:5]) or "none"


def _names(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _show(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _title(network: nn.Module) -> str:
    return type(network).__name__
