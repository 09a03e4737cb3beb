"""The stem, a network's first layers: find those that take the image, and widen them exactly from C to 2C channels.

A linear layer with weights ``W`` becomes ``[W_r, W_d]`` on the pair ``[r, x − r]``. With ``W_r = W_d = W`` its output
is ``W*r + W*(x − r) = W*x``: the network's function is kept exactly, whatever the reference.

Layers are found by running the network, not by their names or order: every convolution and linear layer is made to
output zeros, so that only a layer on a direct path from the image still depends on it. On that path the image may be
rearranged, padded or resized (anything linear that keeps channels apart), never changed otherwise. Parallel branches
(RepVGG, MobileOne) each take the image, and each is widened. The result is compared with the given network.
"""

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
from anchored.method.networks import copy_network, give_logits, logits_of

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # what can be widened, subclasses included

_SIDES = (32, 28, 64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384, 448, 512)  # pixels; tried in this order
_CHANNEL_COUNTS = ("in_channels", "in_chans", "num_channels")  # where libraries note the image's channels, to check it


class _StopForward(Exception):  # control flow, not an error
    """Ends a forward pass once every input that is wanted was recorded."""


@dataclass(frozen=True)
class Stem:
    """The layers that take the image, their calls in a forward pass, and the shape of the image they were run on."""

    calls: Mapping[str, int]  # name of a layer -> calls in one pass
    shape: tuple[int, ...]  # (C,H,W); (C,L), (C,D,H,W) or (C,) for signals, volumes and vectors

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the layers, in the order in which they are called."""
        return tuple(self.calls)


class PairOrder(nn.Module):
    """Reorders the features of a pair for a wide ``layer``: in every group the reference's, then the residual's.

    For grouped convolutions, and where the path to the layer shuffles channels (space to depth, patches with channels
    last). ``order`` (2F,) int64: index of the input feature that each feature is taken from, along ``dim``.
    """

    order: Tensor

    def __init__(self, layer: nn.Module, order: Tensor, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim
        self.register_buffer("order", order, persistent=False)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's, for code that reads the first layer's device or dtype."""
        weight: nn.Parameter = self.layer.weight  # type: ignore[assignment]
        return weight

    def forward(self, pairs: Tensor) -> Tensor:
        """Features of pairs, in the network's own order, to the layer's output."""
        output: Tensor = self.layer(pairs.index_select(self.dim, self.order))
        return output


def find_stem(network: nn.Module, name: str | None = None, example: Tensor | None = None) -> Stem:
    """Find the layers that take the image: all of them, or check the named one.

    ``example``: a batch of images (B,C,H,W), of which only the shape matters; by default the size in the network's own
    configuration, else the first of the usual sizes that it runs on.

    Raises ``UserError`` where there is none, the image is changed before it, or the name is not such a layer.
    """
    probe = equivalence.evaluation_copy(network)
    if name is not None and not isinstance(dict(network.named_modules()).get(name), LAYERS):
        raise UserError(
            f"stem '{name}' is not a convolution or linear layer of {_title(network)}: "
            f"its first ones are {_first(network)}"
        )
    shape, first = _inputs_of_random_image(probe, example)
    zero = layer_inputs(probe, torch.zeros(1, *shape))
    stem_names = [n for n in first if not _same(first[n], zero[n])]
    if name is not None:
        _check_named(network, name, stem_names)
        return Stem({name: len(first[name])}, shape)
    if not stem_names:
        raise UserError(
            f"no convolution or linear layer of {_title(network)} meets the image itself (its first ones are "
            f"{_first(network)}): anchor the part of it that takes the image"
        )
    stem = Stem({n: len(first[n]) for n in stem_names}, shape)
    images = equivalence.random_image(shape, 0), equivalence.random_image(shape, 1)
    second, both = (layer_inputs(probe, image, stem.calls) for image in (images[1], images[0] + images[1]))
    changed = [n for n in stem_names if not _linear(first[n], second[n], both[n], zero[n])]
    if changed:
        raise UserError(
            f"the image is changed before it meets {_names(changed)} of {_title(network)}, and not linearly: move that "
            f"step to the data's preprocessing, or name a layer to try with stem='{changed[0]}'"
        )
    return stem


def image_shape(network: nn.Module, example: Tensor | None = None) -> tuple[int, ...]:
    """A shape (C,H,W) of images that a network in evaluation mode runs on; see :func:`find_stem`."""
    return _inputs_of_random_image(network, example)[0]


def _check_named(network: nn.Module, name: str, stem_names: list[str]) -> None:
    if name not in stem_names:
        hint = f"{_names(stem_names)} does, so give stem='{stem_names[0]}'" if stem_names else "no layer does"
        raise UserError(f"stem '{name}' does not meet the image in {_title(network)}: {hint}")
    others = [n for n in stem_names if n != name]
    if others:
        raise UserError(
            f"stem '{name}' is not alone: {_names(others)} of {_title(network)} meet the image too; "
            "leave stem= out, and all of them are widened"
        )


def widen_stem(
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

    Raises ``UserError`` where :func:`find_stem` does, or the network, run on pairs, does not give the same outputs.
    """
    stem = find_stem(network, name, example)
    wide = copy_network(network)
    for layer_name in stem.names:
        _widen_layer(wide, layer_name, stem.shape[0])
    wide = _with_pair_order(network, wide, stem)
    outputs = _verify(network, wide, stem)
    if not isinstance(outputs, Tensor):
        logits_of(outputs)  # refuses what holds none
        give_logits(wide)
    if fresh:
        for layer_name in stem.names:
            weight = inner_layer(wide.get_submodule(layer_name)).weight
            drawn = torch.randn(
                weight.shape, generator=generator, dtype=weight.dtype
            )  # on the CPU, for all devices alike
            half = weight.detach()[:, : weight.shape[1] // 2]
            weight.data = (drawn * half.std().cpu()).to(weight.device)
    return wide, stem


def _with_pair_order(network: nn.Module, wide: nn.Module, stem: Stem) -> nn.Module:
    """The wide network with a :class:`PairOrder` around the layers that need one."""
    probe, images = equivalence.evaluation_copy(network), [equivalence.random_image(stem.shape, s) for s in (0, 1)]
    try:
        pairs = layer_inputs(equivalence.evaluation_copy(wide), torch.cat(images, dim=1), stem.calls)
    except Exception as error:  # whatever the user's own code raises on 2C channels
        raise UserError(_no_pairs(network, stem, error)) from error
    first, second = (layer_inputs(probe, image, stem.calls) for image in images)
    for name in stem.names:
        layer = wide.get_submodule(name)
        order = _order(layer, pairs[name][0], first[name][0], second[name][0])
        if order is not None:
            ordered = PairOrder(layer, order.to(equivalence.device_of(network)), _feature_dim(layer))
            wide = replace_module(wide, layer, ordered)
    return wide


def narrow_stem(wide: Stem) -> Stem:
    """The stem of C channels that a stem of 2C channels was widened from."""
    return Stem(wide.calls, (wide.shape[0] // 2, *wide.shape[1:]))


def inner_layer(layer: nn.Module) -> Any:
    """The convolution or linear layer inside a :class:`PairOrder`, or the layer itself."""
    return layer.layer if isinstance(layer, PairOrder) else layer


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Replace ``old`` under all its names in ``network``; returns the network, or ``new`` where that is ``old``."""
    if network is old:
        return new
    for module in list(network.modules()):
        for key, child in module._modules.items():  # named_children() would hide a second name of one module
            if child is old and module is not new:
                module._modules[key] = new
    return network


def set_channels(network: nn.Module, name: str, old: int, new: int) -> None:
    """Set the channel counts of images, ``old``, that are attributes of the modules around a layer to ``new``."""
    parts = name.split(".")[:-1]
    for depth in range(len(parts) + 1):
        module = network.get_submodule(".".join(parts[:depth]))
        for attribute in _CHANNEL_COUNTS:
            if vars(module).get(attribute) == old:
                setattr(module, attribute, new)


def layer_inputs(network: nn.Module, images: Tensor, calls: Mapping[str, int] | None = None) -> dict[str, list[Tensor]]:
    """The inputs of each layer in a forward pass over ``images``, call by call, in the order of the first calls.

    Every convolution and linear layer is made to output zeros, so that no layer's input depends on another's output.
    ``calls``: the layers to record (inside a :class:`PairOrder`) and how often each is called, after which the pass is
    stopped; by default all of ``LAYERS`` in a whole pass.
    """
    layers = {n: m for n, m in network.named_modules() if isinstance(m, LAYERS)}
    wanted = layers if calls is None else {n: inner_layer(network.get_submodule(n)) for n in calls}
    inputs_by_name: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            inputs_by_name.setdefault(name, []).append(inputs[0].detach().clone())
            if calls is not None and sum(map(len, inputs_by_name.values())) == sum(calls.values()):
                raise _StopForward

        return hook

    with ExitStack() as hooks, suppress(_StopForward):
        for layer in layers.values():
            hooks.callback(layer.register_forward_hook(lambda _, inputs, output: torch.zeros_like(output)).remove)
        for name, layer in wanted.items():
            hooks.callback(layer.register_forward_pre_hook(record(name)).remove)
        equivalence.run_network(network, images)
    return inputs_by_name


def _inputs_of_random_image(
    network: nn.Module, example: Tensor | None
) -> tuple[tuple[int, ...], dict[str, list[Tensor]]]:
    """The first shape that the network runs on, and its layers' inputs for a random image of that shape."""
    reason = "no size to try"
    for shape in [tuple(example.shape[1:])] if example is not None else _shapes(network):
        try:
            return shape, layer_inputs(network, equivalence.random_image(shape, 0))
        except Exception as error:  # noqa: PERF203  # whatever the user's own code raises
            reason = first_line(error)
    tried = "the usual sizes" if example is None else "×".join(map(str, example.shape[1:]))
    raise UserError(
        f"{_title(network)} does not run on images of {tried} ({reason}): give a batch of its images as example="
    )


def _shapes(network: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes (C,H,W) to try: those in the network's own configuration, then the usual ones."""
    layers: list[Any] = [m for m in network.modules() if isinstance(m, LAYERS)]
    conv = next((m for m in layers if not isinstance(m, nn.Linear)), None)
    axes = 2 if conv is None else len(conv.kernel_size)
    configured = [getattr(network, "image_size", None), getattr(getattr(network, "config", None), "image_size", None)]
    configured.append(getattr(getattr(network, "patch_embed", None), "img_size", None))
    config = getattr(network, "pretrained_cfg", None) or {}
    configured.append(tuple(config.get("input_size", ())[1:]) if isinstance(config, Mapping) else None)
    sizes = [(size,) * axes if isinstance(size, int) else tuple(size) for size in configured if size]
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
    layer: Any = network.get_submodule(name)
    if parametrize.is_parametrized(layer):
        raise UserError(
            f"'{name}' of {_title(network)} has parametrised weights: make them plain first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    if "weight" not in layer._parameters:
        raise UserError(
            f"the weights of '{name}' of {_title(network)} are computed from others: make them plain first "
            "(torch.nn.utils.remove_weight_norm, remove_spectral_norm, prune.remove)"
        )
    weight = layer.weight.detach()
    layer.weight = nn.Parameter(torch.cat([weight, weight], dim=1), requires_grad=layer.weight.requires_grad)
    inputs = "in_features" if isinstance(layer, nn.Linear) else "in_channels"
    setattr(layer, inputs, 2 * getattr(layer, inputs))
    set_channels(network, name, channels, 2 * channels)


def _order(layer: Any, pairs: Tensor, first: Tensor, second: Tensor) -> Tensor | None:
    """The ``order`` of a :class:`PairOrder` around a wide layer; None where its input is in order already.

    ``pairs``: the wide layer's input for the pair of two images; ``first``, ``second``: the narrow one's for each.
    Features are matched by their values, which random images make unique.
    """
    dim = _feature_dim(layer)
    wanted = torch.cat([first, second], dim=dim)
    if pairs.shape != wanted.shape:
        return None  # the comparison of outputs decides
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


def _verify(network: nn.Module, wide: nn.Module, stem: Stem) -> Any:
    """The outputs for a random image; a widening that changes them, with a random reference, is refused. Some networks
    amplify single precision's rounding beyond any tolerance: double precision decides then."""
    image, reference = (equivalence.random_image(stem.shape, seed).double() for seed in (3, 4))
    pair = torch.cat([reference, image - reference], dim=1)

    def difference(copied: Callable[[nn.Module], nn.Module]) -> tuple[float, Any]:
        expected = equivalence.network_outputs(copied(network), image)
        try:
            return expected.difference(equivalence.network_outputs(copied(wide), pair)), expected.outputs
        except Exception as error:  # whatever the user's own code raises on 2C channels
            raise UserError(_no_pairs(network, stem, error)) from error

    largest, outputs = difference(equivalence.evaluation_copy)
    if largest <= equivalence.tolerance(network):
        return outputs
    with suppress(Exception):  # code of the network that knows single precision only
        if difference(equivalence.double_copy)[0] <= equivalence.DOUBLE_TOLERANCE:
            return outputs
    raise UserError(
        f"{_title(network)} cannot be anchored exactly at {_names(stem.names)}: widened, its outputs differ "
        f"(by {largest:.1g} of the largest); is the image used elsewhere? Name another layer with stem="
    )


def _linear(first: list[Tensor], second: list[Tensor], both: list[Tensor], zero: list[Tensor]) -> bool:
    """Whether f(x + y) = f(x) + f(y) and f(0) = 0, call by call."""
    if not len(first) == len(second) == len(both):
        return False
    calls = zip(first, second, both, zero, strict=True)
    limit = equivalence.SINGLE_TOLERANCE  # NaN is not within it
    return all(not z.any() and bool((c - a - b).abs().max() <= limit * c.abs().max()) for a, b, c, z in calls)


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


def _title(network: nn.Module) -> str:
    return type(network).__name__
