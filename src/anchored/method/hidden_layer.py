"""The hidden layer that a network is anchored at: a hook on it, its first layers widened, and what is checked of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchored.errors import UserError, first_line
from anchored.method import equivalence
from anchored.method import stem as stems
from anchored.method.anchoring import pair
from anchored.method.networks import copy_network, give_logits, logits_of

ROWS = 128
"""Rows (references × images) of a pass over the rear part, at most, unless there are more images than that. Further
passes run the front on one image, whose features are not used: 1 / ROWS of a pass over the front for each row."""


class _Running(threading.local):
    """What becomes of the features in the pass that a thread runs now; None outside of one."""

    change: Callable[[Tensor], Tensor] | None = None

    def __reduce__(self) -> "tuple[type[_Running], tuple[()]]":  # copied and saved as new
        return _Running, ()


class _StopForward(Exception):  # control flow, not an error
    """Ends a forward pass at the layer."""


class Entry:
    """A hook on a layer, before it runs: changes its first input, then applies the layer's ``entry`` where it has one.

    An ``entry`` is a linear layer from pairs to features, added where the layer's own first step cannot be widened: it
    is no linear one, or a residual connection takes the features along.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.width = 0  # 2D; 0 for features of any width
        self._running = _Running()

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """The layer's inputs, changed: torch calls it so."""
        features, *rest = inputs
        if self._running.change is not None:
            features = self._running.change(features)
        elif self.width not in (0, features.shape[self.dim]):
            raise UserError(
                "the layer that the model is anchored at was called outside of the model's own pass: call the anchored "
                "model, not its network; with activation checkpointing, checkpoint the whole model or other layers"
            )
        own = layer._modules.get("entry")
        return (features if own is None else own(features), *rest)

    @staticmethod
    def of(layer: nn.Module) -> "Entry":
        """The hook of a layer that has one."""
        return next(hook for hook in layer._forward_pre_hooks.values() if isinstance(hook, Entry))

    @contextmanager
    def changing(self, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """A context in which the layer is given what ``change`` makes of the features."""
        self._running.change = change
        try:
            yield
        finally:
            self._running.change = None

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """The features h of images (B,C,H,W); only the front runs."""
        found: list[Tensor] = []

        def stop(features: Tensor) -> Tensor:
            found.append(features)
            raise _StopForward

        with self.changing(stop), suppress(_StopForward):
            network(images)
        return found[0]

    def mean_logits(
        self, network: nn.Module, images: Tensor, references: int, show: Callable[[range, Tensor], Tensor]
    ) -> Tensor:
        """The mean of the logits (B,N) over K ``references``; the images pass the front once.

        ``show``: some of the references, as a range of k of them, and the features h, to k·B rows for the layer.
        """
        kept: list[Tensor] = []

        def rows(current: range, features: Tensor) -> Tensor:
            if not kept:
                kept.append(features)
            return show(current, kept[0])

        # A compiled or exported program must not depend on the number of images: all references in one pass.
        together = references if torch.compiler.is_compiling() else max(1, ROWS // max(1, len(images)))
        sums = []
        for first in range(0, references, together):
            current = range(first, min(first + together, references))
            with self.changing(partial(rows, current)):
                logits = network(images if first == 0 else images[:1])
            sums.append(logits if len(current) == 1 else logits.unflatten(0, (len(current), -1)).sum(dim=0))
        return torch.stack(sums).sum(dim=0) / references if references > 1 else sums[0]


class Alone(nn.Module):
    """A layer by itself, from features with D first, (B,D,...): what the first layers are looked for and widened in."""

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.layer, self.dim = layer, dim

    def forward(self, features: Tensor) -> Tensor:
        """Features (B,D,...), or pairs (B,2D,...), to the layer's output, the first tensor of it."""
        return next(equivalence.tensors_in(self.layer(features.movedim(1, self.dim))))


@dataclass(frozen=True)
class HiddenPlace:
    """Where a network is anchored: the hooked layer, its wide first layers, and the shapes it was found with."""

    name: str
    stem: stems.Stem  # names in the whole network; the shape is that of one image's features, D first
    image_shape: tuple[int, ...]

    @property
    def stem_alone(self) -> stems.Stem:
        """The same with the names in an :class:`Alone`."""
        calls = {f"layer{name.removeprefix(self.name)}": count for name, count in self.stem.calls.items()}
        return stems.Stem(calls, self.stem.shape)


def anchor_at(
    network: nn.Module, at: str, *, fresh: bool, generator: torch.Generator | None, example: Tensor | None = None
) -> tuple[nn.Module, HiddenPlace]:
    """A copy of ``network`` whose layer ``at`` takes pairs through an :class:`Entry`, and where that is.

    The layer's own first layers are widened (:func:`anchored.method.stem.widen_stem`), exactly with ``fresh=False``.
    Where they cannot be, the layer gets an ``entry``: a linear layer, 1×1, of both halves the identity.

    ``UserError`` where there is no such layer, where it is not the only way through the network, or where the network's
    code does not take more rows after the layer than before; the result is compared with the given network.
    """
    probe = equivalence.evaluation_copy(network)
    if at not in dict(probe.named_modules()) or not at:
        children = ", ".join(name for name, _ in probe.named_children())
        raise UserError(f"at='{at}' is no layer of {type(network).__name__}, which has {children}, and theirs")
    shape = stems.image_shape(probe, example)
    features, dim = _features(probe, at, shape)
    _refuse_other_ways(probe, at, shape, features)
    copied = copy_network(network)
    name, wide, found = _widened(copied, at, features, dim, fresh=fresh, generator=generator)
    copied = stems.replace_module(copied, copied.get_submodule(name), wide)
    if not isinstance(outputs := equivalence.run_network(probe, equivalence.random_image(shape, 0)), Tensor):
        logits_of(outputs)  # refuses what holds none
        give_logits(copied)
    calls = {name + own.removeprefix("layer"): count for own, count in found.calls.items()}
    place = HiddenPlace(name, stems.Stem(calls, found.shape), shape)
    if not fresh:
        _verify(network, copied, place)
    Entry.of(wide).width = 2 * features.shape[dim]
    return copied, place


def _widened(
    network: nn.Module, at: str, features: Tensor, dim: int, **options: Any
) -> tuple[str, nn.Module, stems.Stem]:
    """The wide layer with its hook, its name, and its first layers in an :class:`Alone`.

    ``network`` may be changed. The layer is ``at``; where that needs an entry, the innermost that its input goes to.
    """
    layer, example = network.get_submodule(at), features[:1].movedim(dim, 1)
    with suppress(UserError):  # the features are not for linear layers alone
        alone, found = stems.widen_stem(Alone(layer, dim), example=example, **options)
        wide: Any = alone.get_submodule("layer")
        wide.register_forward_pre_hook(Entry(dim))
        return at, wide, found
    while type(layer).forward is nn.Sequential.forward and len(layer._modules):
        child = next(iter(layer._modules))  # what runs the children one by one would run an entry among them
        at, layer = f"{at}.{child}", layer.get_submodule(child)
    layer.add_module("entry", _identity(features, dim).to(equivalence.device_of(network)))
    layer.register_forward_pre_hook(Entry(dim))
    alone, found = stems.widen_stem(Alone(layer, dim), "layer.entry", example=example, **options)
    return at, alone.get_submodule("layer"), found


def _identity(features: Tensor, dim: int) -> nn.Module:
    """A linear layer that gives its input, D features along ``dim``."""
    size, axes = features.shape[dim], features.dim() - 2
    layer: Any
    if dim == -1 or axes == 0:
        layer = nn.Linear(size, size, bias=False)
    else:
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](size, size, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(size).view_as(layer.weight))
    return layer  # type: ignore[no-any-return]


def _features(network: nn.Module, at: str, shape: tuple[int, ...]) -> tuple[Tensor, int]:
    """The input (2,...) of the layer for two random images, and which of its dimensions is that of features."""
    images = torch.cat([equivalence.random_image(shape, seed) for seed in (0, 1)])
    calls: list[tuple[Any, ...]] = []
    dims: list[int] = []
    layer, hooks = network.get_submodule(at), []

    def see(inner: Any, inputs: tuple[Any, ...]) -> None:
        if len(calls) == 1 and inputs and isinstance(inputs[0], Tensor) and (dim := _dim_of(inner, inputs[0])):
            dims.append(dim)

    try:
        hooks.append(layer.register_forward_pre_hook(lambda _, inputs: calls.append(inputs)))
        hooks += [module.register_forward_pre_hook(see) for module in layer.modules()]
        equivalence.run_network(network, images)
    finally:
        for hook in hooks:
            hook.remove()
    if len(calls) != 1:
        raise UserError(f"'{at}' runs {len(calls)} times in a pass of {type(network).__name__}, not once: name another")
    features = next(iter(calls[0]), None)
    if not isinstance(features, Tensor) or not features.is_floating_point() or features.dim() not in range(2, 6):
        raise UserError(f"'{at}' of {type(network).__name__} is not given features (B,D,...) first: name another layer")
    if len(features) != len(images):
        raise UserError(
            f"'{at}' of {type(network).__name__} is given {len(features)} rows for {len(images)} images: name a layer "
            "that sees an image in one row"
        )
    last = features.dim() > 2 and (dims[0] if dims else 1) == -1
    return features.detach().clone(), -1 if last else 1


def _dim_of(layer: Any, inputs: Tensor) -> int:
    """The dimension of features of what a layer is given; 0 where that cannot be told."""
    if isinstance(layer, nn.Linear):
        return -1
    if isinstance(layer, (*stems.LAYERS, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
        return 1
    normalised = getattr(layer, "normalized_shape", None)  # of layer and RMS norms, whoever's
    if not normalised:
        return 0
    channels_first = inputs.dim() > 3 and inputs.shape[1] == normalised[-1]  # timm's LayerNorm2d, for example
    return 1 if channels_first or len(normalised) > 1 else -1


def _refuse_other_ways(network: nn.Module, at: str, shape: tuple[int, ...], features: Tensor) -> None:
    """``UserError`` where, with the layer's input held fast, the outputs still depend on the images."""
    one, other = (torch.cat([equivalence.random_image(shape, seed)] * 2) for seed in (0, 5))
    entry = Entry(1)
    hook = network.get_submodule(at).register_forward_pre_hook(entry)
    try:
        with entry.changing(lambda _: features):
            first, second = (equivalence.network_outputs(network, images) for images in (one, other))
    finally:
        hook.remove()
    if not first.difference(second) <= equivalence.tolerance(network):
        raise UserError(
            f"'{at}' of {type(network).__name__} is not the only way from the image to the logits (a connection around "
            "it, or a branch beside it): name the block or stage that holds both"
        )


def _verify(network: nn.Module, wide: nn.Module, place: HiddenPlace) -> None:
    """Compare with the given network, for two images with two references each; ``UserError`` where they differ."""
    images = torch.cat([equivalence.random_image(place.image_shape, seed) for seed in (3, 4)]).double()
    title = type(network).__name__

    def difference(copied: Callable[[nn.Module], nn.Module]) -> float:
        expected = equivalence.network_outputs(copied(network), images.repeat(2, *[1] * len(place.image_shape)))
        probe = copied(wide)
        entry = Entry.of(probe.get_submodule(place.name))

        def show(features: Tensor) -> Tensor:
            references = torch.randn(2, *features.shape[1:], generator=torch.Generator().manual_seed(6))
            return torch.cat([pair(features, r[None], dim=entry.dim) for r in references.to(features)])

        try:
            with entry.changing(show):
                return expected.difference(equivalence.network_outputs(probe, images))
        except Exception as error:  # whatever the user's own code raises on more rows than it began with
            raise UserError(
                f"{title} does not run on several references after '{place.name}' ({first_line(error)}): its code "
                "remembers the number of images; name another layer"
            ) from error

    largest = difference(equivalence.evaluation_copy)
    if largest <= equivalence.tolerance(network):
        return
    with suppress(Exception):  # code of the network that knows single precision only
        if difference(equivalence.double_copy) <= equivalence.DOUBLE_TOLERANCE:
            return
    raise UserError(
        f"{title} cannot be anchored exactly at '{place.name}': its outputs differ (by {largest:.1g} of the largest); "
        "name another layer"
    )
