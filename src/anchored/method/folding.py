"""Folding: an anchored network and its references back into a plain network of C channels.

For a fixed reference ``r`` a first layer ``[W_r, W_d]`` gives ``W_r*r + W_d*(x − r) = W_d*x + (W_r − W_d)*r``: a layer
of the standard size and a constant map. With K references only the map differs. A zero reference needs none, and nor do
equal halves. The layer's bias goes into the map, and so does a batch norm that follows the layer, so that the map costs
no work that the standard network does not do.
"""

from __future__ import annotations

import copy
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from anchored.errors import UserError, first_line
from anchored.method import equivalence
from anchored.method import stem as stems
from anchored.method.anchoring import AnchoredModel, checked_references, pair

_APPLY = {torch.conv1d: nn.Conv1d, torch.conv2d: nn.Conv2d, torch.conv3d: nn.Conv3d, functional.linear: nn.Linear}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
PASS = 16
"""Images that one pass holds at most where it takes several references at once: few images alone leave a processor idle
(10 passes of one image take 1.2 to 1.7 times as long as one of 10 on two cores), many fall out of its cache."""
_ZERO_PADS: dict[int, Any] = {3: nn.ZeroPad1d, 4: nn.ZeroPad2d, 5: nn.ZeroPad3d}  # by the dimensions of a batch


class _Turns(threading.local):
    """Where a thread is in its passes over K references: which ones now, and what the first layers found."""

    def __init__(self) -> None:
        self.now = range(1)
        self.shared: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[_Turns], tuple[()]]:  # copied and saved as new
        return _Turns, ()


class Mapped(nn.Module):
    """A first layer and the constant maps of K references: ``layer(x) + maps[k]``, ``layer(x)`` computed once.

    ``maps``: (K·rows, ...), where ``rows`` is how many rows of the layer's input belong to one image: 1, or an image's
    tokens where they are counted along the batch.
    """

    maps: Tensor

    def __init__(self, name: str, layer: nn.Module, maps: Tensor, copies: int, turns: _Turns) -> None:
        super().__init__()
        self.name, self.layer, self.copies, self.turns = name, layer, copies, turns
        self.rows = len(maps) // copies
        self.register_buffer("maps", maps)

    @property
    def weight(self) -> nn.Parameter:
        """The layer's, for code that asks the first layer for its device or type."""
        weight: nn.Parameter = _core(self).weight
        return weight

    def forward(self, images: Tensor) -> Tensor:
        """What reaches the layer of T·B images, the same B for each of the T references whose turn it is, to its
        outputs (T·B·rows, ...)."""
        now, shared = self.turns.now, self.turns.shared
        output = self.layer(images[: images.shape[0] // len(now)]) if now.start == 0 else shared[self.name]
        if self.copies > 1:
            shared[self.name] = output
        # In place where nobody needs the layer's output again: no second tensor of its size.
        last = len(now) == 1 and now.stop == self.copies
        added = [output.add_(self._map(k, output)) if last else output + self._map(k, output) for k in now]
        return added[0] if len(now) == 1 else torch.cat(added)

    def _map(self, k: int, output: Tensor) -> Tensor:
        """The map of a reference, for outputs (B·rows, ...)."""
        one = self.maps[k * self.rows : (k + 1) * self.rows].to(output.dtype)
        return one if self.rows == 1 else one.repeat(output.shape[0] // self.rows, *[1] * (one.dim() - 1))


class Folded(nn.Module):
    """Images (B,C,H,W) of one size, normalised, to logits (B,N): the mean over the references that were folded in.

    Attributes:
        network: takes images (B,C,H,W); its first layers are :class:`Mapped`.
        shape: (C,H,W) of the images, which is that of the references.
        copies: K.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, ...], copies: int, turns: _Turns) -> None:
        super().__init__()
        self.network, self.shape, self.copies, self.turns = network, shape, copies, turns

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,C,H,W) to logits (B,N); ``UserError`` for images of another size."""
        if tuple(images.shape[1:]) != self.shape:
            found, wanted = ("×".join(map(str, shape)) for shape in (images.shape[1:], self.shape))
            raise UserError(f"images are {found}, the folded network takes {wanted}: resize them, or fold it again")
        # A compiled or exported program does not depend on how many images there are: one reference a pass.
        together = 1 if torch.compiler.is_compiling() else min(self.copies, max(1, PASS // max(1, len(images))))
        parts: list[Tensor] = []
        try:
            for first in range(0, self.copies, together):
                self.turns.now = now = range(first, min(first + together, self.copies))
                logits = self.network(images if len(now) == 1 else images.repeat(len(now), *[1] * len(self.shape)))
                parts.append(logits if len(now) == 1 else logits.unflatten(0, (len(now), -1)).sum(dim=0))
        finally:
            self.turns.now = range(1)
            self.turns.shared.clear()
        return torch.stack(parts).sum(dim=0) / self.copies if self.copies > 1 else parts[0]

    def extra_repr(self) -> str:
        """The settings, for ``print(model)``."""
        return f"shape={self.shape}, copies={self.copies}"


def fold(model: nn.Module, references: Tensor | None = None, *, fuse_batch_norm: bool = False) -> nn.Module:
    """A plain network of C channels that answers as the anchored one does in evaluation mode, at the standard cost.

    Args:
        model: an anchored model (of :func:`anchored.anchor` or :func:`anchored.load`). It is copied, not changed.
        references: (K,C,H,W), normalised; default the model's own, or zero where it has none. The result is the mean of
            the logits over them.
        fuse_batch_norm: also merge every batch norm that directly follows a convolution or linear layer into it.

    Returns:
        A module in evaluation mode, of the model's device and type: images (B,C,H,W) to logits (B,N). It can be copied,
        compiled, exported (``torch.export``, ONNX) for any batch size, and its ``state_dict`` saved. With references
        it takes images of their size only. For a zero reference it is of the network's own class.

    Raises:
        UserError: not an anchored model, unfit references, or a network that cannot be folded exactly: the result is
            compared with the model before it is handed out.
    """
    if not isinstance(model, AnchoredModel):
        raise UserError(f"fold takes an anchored model, not {type(model).__name__}: make one with anchored.anchor()")
    given = model.references if references is None else checked_references(references)
    example = None if given is None else torch.cat([given[:1], given[:1]], dim=1)
    stem = model.stem or stems.halved(stems.find(model.network, example=example))
    if given is not None and (given.dim() != 1 + len(stem.shape) or given.shape[1] != stem.shape[0]):
        raise UserError(f"references are {tuple(given.shape)}, the network takes {stem.shape[0]} channels: (K,C,H,W)")
    shape = stem.shape if given is None else tuple(given.shape[1:])
    shown = torch.zeros(1, *shape)
    if given is not None and given.any():
        shown = given.detach().cpu().to(torch.promote_types(given.dtype, torch.float32))
    turns = _Turns()
    network, copies, fixed = _narrowed(model.network, stem, shown, turns)
    image = equivalence.noise(shape, 7)
    for layer, norm in _followed(network, image):
        if fuse_batch_norm or isinstance(layer, Mapped):
            _absorb(layer, norm)
            network = stems.replace(network, norm, _rest(norm))
    turns.shared.clear()
    folded = (Folded(network, shape, copies, turns) if fixed else network).eval()
    _verify(model.network, shown, folded, torch.cat([image, equivalence.noise(shape, 8)]))
    return folded


def _narrowed(wide: nn.Module, stem: stems.Stem, references: Tensor, turns: _Turns) -> tuple[nn.Module, int, bool]:
    """The network with its first layers folded; how many maps they have; whether its images have one size."""
    network, probe = copy.deepcopy(wide).eval(), equivalence.twin(wide)
    try:
        equivalence.run(probe, pair(torch.zeros_like(references[:1]), references[:1]))
        seen = [stems.inputs_of(probe, pair(torch.zeros_like(r), r), stem.calls) for r in torch.split(references, 1)]
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"the references do not fit the network: {first_line(error)}") from error
    layers = {name: _wide_layer(network, name, [each[name] for each in seen]) for name in stem.calls}
    copies = max(layer.copies for layer in layers.values())
    for name, layer in layers.items():
        stems.set_channels(network, name, 2 * stem.shape[0], stem.shape[0])
        network = stems.replace(network, network.get_submodule(name), layer.folded(copies, turns))
    return network, max(copies, 1), copies > 0 or any(layer.pads for layer in layers.values())


@dataclass(frozen=True)
class _WideLayer:
    """A wide first layer and what it does, in double precision, on the CPU."""

    name: str
    layer: Any
    kind: type[Any]  # the plain layer that applies the same weight
    weight: Tensor  # [W_r, W_d] as applied, after any standardisation
    pads: tuple[int, ...]  # zeros that the layer's own code adds, as functional.pad takes them; () if none
    maps: Tensor  # (K·rows, ...): its outputs of [r, −r], an image of zeros: (W_r − W_d)*r with the bias
    copies: int  # K; 0 if the references make no difference
    views: bool  # whether it is called on several views of the image

    def folded(self, copies: int, turns: _Turns) -> nn.Module:
        """The layer of half as many inputs, with the maps of ``copies`` references; with its bias if that is 0."""
        if copies and self.views:
            raise UserError(f"'{self.name}' sees several views of an image, each with its own map: it cannot be folded")
        given, weight = self.layer, self.weight.chunk(2, dim=1)[1].to(self.layer.weight)
        as_it_is = not self.pads and torch.equal(self.weight, given.weight.detach().cpu().double())
        narrow = copy.deepcopy(given) if as_it_is else _plain(given, self.kind)
        inputs = "in_features" if isinstance(narrow, nn.Linear) else "in_channels"
        setattr(narrow, inputs, getattr(given, inputs) // 2)
        narrow.weight = nn.Parameter(weight, requires_grad=given.weight.requires_grad)
        layer = nn.Sequential(_ZERO_PADS[weight.dim()](self.pads), narrow) if self.pads else narrow
        if not copies:
            return layer
        narrow.bias = None  # it is in the maps
        return Mapped(self.name, layer, self.maps.to(weight), copies, turns)


def _wide_layer(network: nn.Module, name: str, calls: list[list[Tensor]]) -> _WideLayer:
    """Look at a wide layer at work. ``calls``: what reaches it of ``[r, −r]``, for each reference, call by call."""
    layer = stems.core(network.get_submodule(name))
    exact = copy.deepcopy(layer).cpu().double()
    with torch.no_grad(), _Watch() as watch:
        maps = torch.cat([exact(each[0].cpu().double()) for each in calls])
    if len(watch.applied) != len(calls):
        raise UserError(
            f"'{name}' ({type(layer).__name__}) does not apply one weight to its input: it cannot be folded"
        )
    function, inner, weight = watch.applied[0]
    standard = torch.equal(weight, exact.weight)
    pads = () if standard else _pads(name, calls[0][0].cpu().double(), inner, exact)
    for_reference, for_residual = weight.detach().chunk(2, dim=1)
    depends = any(bool(each[0].any()) for each in calls) and not torch.equal(for_reference, for_residual)
    views = any(not torch.equal(call, each[0]) for each in calls for call in each[1:])
    copies = len(calls) if depends else 0
    return _WideLayer(name, layer, _APPLY[function], weight.detach(), pads, maps, copies, views)


def _pads(name: str, given: Tensor, inner: Tensor, layer: Any) -> tuple[int, ...]:
    """The zeros that a layer's own code puts around its input (TensorFlow's "same"); () where torch's padding does."""
    extra = [after - before for after, before in zip(inner.shape[2:], given.shape[2:], strict=True)]
    if not any(extra) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return ()
    pads = tuple(side for each in reversed(extra) for side in (each // 2, each - each // 2))
    if min(extra) < 0 or not torch.equal(functional.pad(given, pads), inner):
        raise UserError(f"'{name}' ({type(layer).__name__}) changes its input in a way that cannot be folded")
    return pads


def _plain(layer: Any, kind: type[Any]) -> Any:
    """A plain layer of the sizes of ``layer``, on its device; its weight is to be set."""
    own = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if kind is nn.Linear:
        narrow = kind(layer.in_features, layer.out_features, **own)
    else:
        names = (
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        )
        narrow = kind(**{name: getattr(layer, name) for name in names}, **own)
    narrow.bias = copy.deepcopy(layer.bias)
    return narrow


class _Watch(TorchFunctionMode):
    """Watches torch functions at work: the weights that are applied, and how often each watched tensor is used."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[tuple[Any, Tensor, Tensor]] = []  # function, its input, its weight
        self.made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # by the tensor's id, valid as the tensor is kept
        self.uses: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _APPLY:
            named = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self.applied.append((func, named["input"], named["weight"]))
        if any(True for _ in equivalence.tensors_in(result)):  # not the mere question for a shape
            self.uses.update(id(t) for t in equivalence.tensors_in([args, kwargs or {}]) if id(t) in self.made_by)
        return result


def _followed(network: nn.Module, images: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Layers whose output goes to a batch norm with running statistics and nowhere else, each with that batch norm."""
    pairs: list[tuple[nn.Module, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()
    watch = _Watch()

    def made(layer: nn.Module, _: Any, output: Any) -> None:
        calls[layer] += 1
        watch.made_by[id(output)] = (layer, output)
        watch.uses[id(output)] = 0  # uses on the way were the layer's own: a map is added in place

    def taken(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in watch.made_by and inputs[0].dim() > 1:
            pairs.append((watch.made_by[id(inputs[0])][0], norm, id(inputs[0])))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, (Mapped, *stems.LAYERS)):
                hooks.callback(module.register_forward_hook(made).remove)
            elif isinstance(module, _NORMS) and module.running_var is not None:
                hooks.callback(module.register_forward_pre_hook(taken).remove)
        with watch:
            equivalence.run(network, images)
    weights = {id(weight) for _, _, weight in watch.applied}
    return [
        (layer, norm)
        for layer, norm, output in pairs
        if watch.uses[output] == calls[layer] == calls[norm] == 1
        and id(_core(layer).weight) in weights
        and _rest(norm) is not norm
        and not (isinstance(_core(layer), nn.Linear) and watch.made_by[output][1].dim() > 2)  # norm over tokens
    ]


def _absorb(layer: nn.Module, norm: Any) -> None:
    """Give a layer the batch norm that follows it: ``γ(y − μ)/√(v + ε) + β`` of its output ``y``, by channel."""
    core = _core(layer)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    weight = core.weight.detach()
    wide = (-1, *[1] * (weight.dim() - 2))
    core.weight = nn.Parameter((weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight))
    if isinstance(layer, Mapped):
        layer.maps = (layer.maps.double() * scale.view(wide) + shift.view(wide)).to(layer.maps)
    else:
        bias = 0 if core.bias is None else core.bias.detach().double()
        core.bias = nn.Parameter((bias * scale + shift).to(weight))


def _rest(norm: Any) -> nn.Module:
    """What a batch norm does after normalising: nothing, or timm's dropout and activation; itself if unknown."""
    if type(norm) in _NORMS:
        return nn.Identity()
    if isinstance(getattr(norm, "act", None), nn.Module) and isinstance(getattr(norm, "drop", None), nn.Module):
        return nn.Sequential(norm.drop, norm.act)
    return norm  # type: ignore[no-any-return]


def _core(layer: Any) -> Any:
    """The convolution or linear layer inside a :class:`Mapped` and its padding."""
    inner = layer.layer if isinstance(layer, Mapped) else layer
    return inner[-1] if isinstance(inner, nn.Sequential) else inner


def _verify(wide: nn.Module, references: Tensor, folded: nn.Module, images: Tensor) -> None:
    """Refuse a folding that changes answers, on random images."""
    probe = equivalence.twin(wide)
    alone = [equivalence.answers(probe, pair(images, reference)) for reference in torch.split(references, 1)]
    expected = alone[-1]
    if len(alone) > 1:
        expected.outputs = torch.stack([each.outputs for each in alone]).mean(dim=0)
    worst = expected.unlike(equivalence.answers(equivalence.twin(folded), images))
    if worst > equivalence.tolerance(wide):
        raise UserError(
            f"{type(wide).__name__} cannot be folded exactly: folded, it answers differently (by {worst:.1g} of its "
            "greatest output)"
        )
