"""Folding: an anchored network and its references back into a plain network of C channels.

For a fixed reference ``r`` a first layer ``[W_r, W_d]`` gives ``W_r*r + W_d*(x − r) = W_d*x + (W_r − W_d)*r``: a layer
of the standard size and a constant map. K references differ in the map alone. A zero reference needs none, and neither
do equal halves. The layer's bias goes into the map, and so does a batch norm that follows the layer, so that the folded
network does no more work than the standard one.
"""

import copy
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
from anchored.method.folded import Folded, Mapped, ReferenceLoop
from anchored.method.hidden import HiddenAnchoredModel
from anchored.method.networks import copy_network

_APPLY = {torch.conv1d: nn.Conv1d, torch.conv2d: nn.Conv2d, torch.conv3d: nn.Conv3d, functional.linear: nn.Linear}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ZERO_PADS: dict[int, Any] = {3: nn.ZeroPad1d, 4: nn.ZeroPad2d, 5: nn.ZeroPad3d}  # by the dimensions of a batch


def fold(model: nn.Module, references: Tensor | None = None, *, fuse_batch_norm: bool = False) -> nn.Module:
    """A plain network of C channels with the anchored one's outputs in evaluation mode, at the standard network's cost.

    Args:
        model: an anchored model (of :func:`anchored.anchor` or :func:`anchored.load`). It is copied, not changed.
        references: (K,C,H,W), normalised; default the model's own, or zero where it has none. The result is the mean of
            the logits over them.
        fuse_batch_norm: also merge every batch norm that directly follows a convolution or linear layer into it.

    Returns:
        A module in evaluation mode, of the model's device and dtype: images (B,C,H,W) to logits (B,N). It can be
        copied, compiled, exported (``torch.export``, ONNX) for any batch size, and its ``state_dict`` saved. With
        references it takes images of their size only. For a zero reference it is of the network's own class.

    Raises:
        UserError: not an anchored model, references that do not fit, or a network that cannot be folded exactly: the
            result is compared with the model.
    """
    if not isinstance(model, AnchoredModel):
        raise UserError(f"fold takes an anchored model, not {type(model).__name__}: make one with anchored.anchor()")
    given = model.references if references is None else checked_references(references)
    if isinstance(model, HiddenAnchoredModel):
        from anchored.method.hidden_folding import fold_hidden  # it builds upon this module

        return fold_hidden(model, given, fuse_batch_norm=fuse_batch_norm)
    example = None if given is None else torch.cat([given[:1], given[:1]], dim=1)
    stem = model.stem or stems.narrow_stem(stems.find_stem(model.network, example=example))
    if given is not None and (given.dim() != 1 + len(stem.shape) or given.shape[1] != stem.shape[0]):
        raise UserError(f"references are {tuple(given.shape)}, the network takes {stem.shape[0]} channels: (K,C,H,W)")
    shape = stem.shape if given is None else tuple(given.shape[1:])
    stem = stems.Stem(stem.calls, shape)
    shown = torch.zeros(1, *shape)
    if given is not None and given.any():
        shown = given.detach().cpu().to(torch.promote_types(given.dtype, torch.float32))
    folded = _folded(model.network, stem, shown, fuse_batch_norm)
    largest = _difference(model.network, shown, folded)
    if largest > equivalence.tolerance(model.network):
        # Some networks amplify single precision's rounding beyond any tolerance: double precision decides then.
        exact = equivalence.double_copy(model.network)
        if not _difference(exact, shown, _folded(exact, stem, shown, fuse_batch_norm)) <= equivalence.DOUBLE_TOLERANCE:
            raise UserError(
                f"{type(model.network).__name__} cannot be folded exactly: folded, its outputs differ "
                f"(by {largest:.1g} of the largest)"
            )
    return folded


def _folded(wide: nn.Module, stem: stems.Stem, references: Tensor, fuse_batch_norm: bool) -> nn.Module:
    """The plain network, not compared yet. ``stem.shape``: (C,H,W) of the ``references`` (K,C,H,W)."""
    loop = ReferenceLoop()
    network, copies, one_size = narrowed(wide, stem, references, loop)
    network = merge_norms(network, stem.shape, everywhere=fuse_batch_norm)
    loop.shared.clear()
    return (Folded(network, stem.shape, copies, loop) if one_size else network).eval()


def merge_norms(network: nn.Module, shape: tuple[int, ...], *, everywhere: bool) -> nn.Module:
    """Merge the batch norms that follow a :class:`Mapped` into it, or all that directly follow a layer."""
    for layer, norm in _layers_before_norms(network, equivalence.random_image(shape, 7)):
        if everywhere or isinstance(layer, Mapped):
            _merge_norm(layer, norm)
            network = stems.replace_module(network, norm, _after_normalising(norm))
    return network


def narrowed(wide: nn.Module, stem: stems.Stem, references: Tensor, loop: ReferenceLoop) -> tuple[nn.Module, int, bool]:
    """The network with its first layers folded; the number of maps; whether it takes images of one size only."""
    network, probe = copy_network(wide).eval(), equivalence.evaluation_copy(wide)
    try:
        pairs = [pair(torch.zeros_like(reference), reference) for reference in torch.split(references, 1)]
        equivalence.run_network(probe, pairs[0])
        inputs = [stems.layer_inputs(probe, each, stem.calls) for each in pairs]
    except Exception as error:  # whatever the user's own code raises
        raise UserError(f"the references do not fit the network: {first_line(error)}") from error
    layers = {name: _wide_layer(network, name, [calls[name] for calls in inputs]) for name in stem.calls}
    copies = max(layer.copies for layer in layers.values())
    for name, layer in layers.items():
        stems.set_channels(network, name, 2 * stem.shape[0], stem.shape[0])
        network = stems.replace_module(network, network.get_submodule(name), layer.folded(copies, loop))
    return network, max(copies, 1), copies > 0 or any(layer.pads for layer in layers.values())


@dataclass(frozen=True)
class _WideLayer:
    """A wide first layer and what it computes, in double precision, on the CPU."""

    name: str
    layer: Any
    kind: type[Any]  # the plain layer that applies the same weight
    weight: Tensor  # [W_r, W_d] as applied, after any standardisation
    pads: tuple[int, ...]  # zeros that the layer's own code adds, in functional.pad's order; () if none
    maps: Tensor  # (K·rows, ...): its outputs of [r, −r], an image of zeros: (W_r − W_d)*r with the bias
    copies: int  # K; 0 if the outputs do not depend on the references
    views: bool  # whether it is called on several views of the image

    def folded(self, copies: int, loop: ReferenceLoop) -> nn.Module:
        """The layer of half as many inputs, with the maps of ``copies`` references, or with its bias if that is 0."""
        if copies and self.views:
            raise UserError(f"'{self.name}' sees several views of an image, each with its own map: it cannot be folded")
        wide, weight = self.layer, self.weight.chunk(2, dim=1)[1].to(self.layer.weight)
        is_plain = not self.pads and torch.equal(self.weight, wide.weight.detach().cpu().double())
        narrow = copy_network(wide) if is_plain else _plain(wide, self.kind)
        inputs = "in_features" if isinstance(narrow, nn.Linear) else "in_channels"
        setattr(narrow, inputs, getattr(wide, inputs) // 2)
        narrow.weight = nn.Parameter(weight, requires_grad=wide.weight.requires_grad)
        layer = nn.Sequential(_ZERO_PADS[weight.dim()](self.pads), narrow) if self.pads else narrow
        if not copies:
            return layer
        narrow.bias = None  # it is in the maps
        return Mapped(self.name, layer, self.maps.to(weight), copies, loop)


def _wide_layer(network: nn.Module, name: str, calls: list[list[Tensor]]) -> _WideLayer:
    """Run a wide layer on its inputs for the pairs ``[r, −r]``. ``calls``: for each reference, call by call."""
    layer = stems.inner_layer(network.get_submodule(name))
    exact = copy_network(layer).cpu().double()
    with torch.no_grad(), _Recorder() as recorder:
        maps = torch.cat([exact(inputs[0].cpu().double()) for inputs in calls])
    if len(recorder.applied) != len(calls):
        raise UserError(
            f"'{name}' ({type(layer).__name__}) does not apply one weight to its input: it cannot be folded"
        )
    function, applied_to, weight = recorder.applied[0]
    unchanged = torch.equal(weight, exact.weight)
    pads = () if unchanged else _pads(name, calls[0][0].cpu().double(), applied_to, exact)
    for_reference, for_residual = weight.detach().chunk(2, dim=1)
    depends = any(bool(inputs[0].any()) for inputs in calls) and not torch.equal(for_reference, for_residual)
    views = any(not torch.equal(view, inputs[0]) for inputs in calls for view in inputs[1:])
    copies = len(calls) if depends else 0
    return _WideLayer(name, layer, _APPLY[function], weight.detach(), pads, maps, copies, views)


def _pads(name: str, inputs: Tensor, padded: Tensor, layer: Any) -> tuple[int, ...]:
    """The zeros that a layer's own code puts around its input (TensorFlow's "same"); () where torch's padding does."""
    extra = [after - before for after, before in zip(padded.shape[2:], inputs.shape[2:], strict=True)]
    if not any(extra) or getattr(layer, "padding_mode", "zeros") != "zeros":
        return ()
    pads = tuple(side for both in reversed(extra) for side in (both // 2, both - both // 2))
    if min(extra) < 0 or not torch.equal(functional.pad(inputs, pads), padded):
        raise UserError(f"'{name}' ({type(layer).__name__}) changes its input in a way that cannot be folded")
    return pads


def _plain(layer: Any, kind: type[Any]) -> Any:
    """A layer of class ``kind`` with the sizes, bias and device of ``layer``; its weight is to be set."""
    options = {"bias": layer.bias is not None, "device": layer.weight.device, "dtype": layer.weight.dtype}
    if kind is nn.Linear:
        narrow = kind(layer.in_features, layer.out_features, **options)
    else:
        sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
        given = {name: getattr(layer, name) for name in sizes}
        narrow = kind(**given, padding_mode=layer.padding_mode, **options)
    narrow.bias = copy.deepcopy(layer.bias)
    return narrow


class _Recorder(TorchFunctionMode):
    """Records calls of torch functions: the weights that are applied, and the uses of each watched tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[tuple[Any, Tensor, Tensor]] = []  # function, its input, its weight
        self.made_by: dict[int, tuple[nn.Module, Tensor]] = {}  # by the tensor's id, valid since the tensor is kept
        self.uses: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _APPLY:
            arguments = dict(zip(("input", "weight"), args, strict=False)) | (kwargs or {})
            self.applied.append((func, arguments["input"], arguments["weight"]))
        if any(True for _ in equivalence.tensors_in(result)):  # reading a shape is no use
            self.uses.update(id(t) for t in equivalence.tensors_in([args, kwargs or {}]) if id(t) in self.made_by)
        return result


def _layers_before_norms(network: nn.Module, images: Tensor) -> list[tuple[nn.Module, nn.Module]]:
    """Layers whose output goes to a batch norm with running statistics and nowhere else, each with that batch norm."""
    pairs: list[tuple[nn.Module, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()
    recorder = _Recorder()

    def record_output(layer: nn.Module, _: Any, output: Any) -> None:
        calls[layer] += 1
        recorder.made_by[id(output)] = (layer, output)
        recorder.uses[id(output)] = 0  # uses so far were the layer's own: a map is added in place

    def record_input(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in recorder.made_by and inputs[0].dim() > 1:
            pairs.append((recorder.made_by[id(inputs[0])][0], norm, id(inputs[0])))

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, (Mapped, *stems.LAYERS)):
                hooks.callback(module.register_forward_hook(record_output).remove)
            elif isinstance(module, _NORMS) and module.running_var is not None:
                hooks.callback(module.register_forward_pre_hook(record_input).remove)
        with recorder:
            equivalence.run_network(network, images)
    weights = {id(weight) for _, _, weight in recorder.applied}
    return [
        (layer, norm)
        for layer, norm, output in pairs
        if recorder.uses[output] == calls[layer] == calls[norm] == 1
        and id(_inner_layer(layer).weight) in weights
        and "weight" in _inner_layer(layer)._parameters  # not weight norm's or pruning's, computed at each pass
        and _after_normalising(norm) is not norm
        and not (isinstance(_inner_layer(layer), nn.Linear) and recorder.made_by[output][1].dim() > 2)  # over tokens
    ]


def _merge_norm(layer: nn.Module, norm: Any) -> None:
    """Merge the batch norm that follows a layer into it: ``γ(y − μ)/√(v + ε) + β`` of its output ``y``, by channel."""
    inner = _inner_layer(layer)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    shift = shift if norm.bias is None else shift + norm.bias.detach().double()
    weight = inner.weight.detach()
    wide = (-1, *[1] * (weight.dim() - 2))
    inner.weight = nn.Parameter((weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight))
    if isinstance(layer, Mapped):
        layer.maps = (layer.maps.double() * scale.view(wide) + shift.view(wide)).to(layer.maps)
    else:
        bias = 0 if inner.bias is None else inner.bias.detach().double()
        inner.bias = nn.Parameter((bias * scale + shift).to(weight))


def _after_normalising(norm: Any) -> nn.Module:
    """The rest of a batch norm after normalising: nothing, or timm's dropout and activation; itself if unknown."""
    if type(norm) in _NORMS:
        return nn.Identity()
    if isinstance(getattr(norm, "act", None), nn.Module) and isinstance(getattr(norm, "drop", None), nn.Module):
        return nn.Sequential(norm.drop, norm.act)
    return norm  # type: ignore[no-any-return]


def _inner_layer(layer: Any) -> Any:
    """The convolution or linear layer inside a :class:`Mapped` and its padding."""
    return layer.inner if isinstance(layer, Mapped) else layer


def _difference(wide: nn.Module, references: Tensor, folded: nn.Module) -> float:
    """How far a folded network's outputs are from the mean of the wide one's over references, on random images."""
    images = torch.cat([equivalence.random_image(tuple(references.shape[1:]), seed) for seed in (7, 8)]).double()
    probe, each_reference = equivalence.evaluation_copy(wide), torch.split(references.double(), 1)
    by_reference = [equivalence.network_outputs(probe, pair(images, reference)) for reference in each_reference]
    expected = by_reference[-1]
    if len(by_reference) > 1:
        expected.outputs = torch.stack([each.outputs for each in by_reference]).mean(dim=0)
    return expected.difference(equivalence.network_outputs(equivalence.evaluation_copy(folded), images))
