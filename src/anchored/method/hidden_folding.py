"""Folding of a network that is anchored at a hidden layer: the same maps, after the first layers of that layer.

The front runs once, so do the wide layers, now of D features; K maps make K·B rows of their output. Without maps (one
half, or no references) the result is a network of the given one's class.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method import equivalence
from anchored.method import stem as stems
from anchored.method.folded import Folded, ReferenceLoop
from anchored.method.folding import merge_norms, narrowed
from anchored.method.hidden import HiddenAnchoredModel, HiddenViews
from anchored.method.hidden_layer import Alone, Entry
from anchored.method.networks import copy_network


class FoldedHidden(Folded):
    """Images (B,C,H,W) of one size to logits (B,N), the mean over references that were folded in at a hidden layer."""

    def __init__(self, network: nn.Module, name: str, shape: tuple[int, ...], copies: int, loop: ReferenceLoop) -> None:
        super().__init__(network, shape, copies, loop)
        self.name = name

    @property
    def _entry(self) -> Entry:
        return Entry.of(self.network.get_submodule(self.name))

    def _mean_logits(self, images: Tensor) -> Tensor:
        return self._entry.mean_logits(self.network, images, self.copies, self._show)

    def views(self, images: Tensor) -> HiddenViews:
        """Logits of images (B,C,H,W) for one reference after another; the wide layers run once."""
        self._check_size(images)
        return _FoldedHiddenViews(self, images)

    def _show(self, current: range, features: Tensor) -> Tensor:
        self.loop.current = current
        return features if len(current) == 1 else features.repeat(len(current), *[1] * (features.dim() - 1))


class _FoldedHiddenViews(HiddenViews):
    def __init__(self, folded: FoldedHidden, images: Tensor) -> None:
        super().__init__(folded.network, folded._entry, images, folded.copies, folded._show)
        self._loop, self._shared = folded.loop, dict[str, Tensor]()

    def logits(self) -> Tensor:
        self._loop.shared = self._shared
        try:
            return super().logits()
        finally:
            self._loop.current, self._loop.shared = range(1), {}

    def keep(self, places: Tensor) -> None:
        count = len(self._features)
        for name, output in self._shared.items():
            self._shared[name] = output.reshape(count, -1, *output.shape[1:])[places].flatten(0, 1)
        super().keep(places)


def fold_hidden(model: HiddenAnchoredModel, references: Tensor | None, *, fuse_batch_norm: bool) -> nn.Module:
    """See :func:`anchored.fold`; ``references`` (K,C,H,W) are images, None for features of zeros."""
    shape = model.place.image_shape if references is None else tuple(references.shape[1:])
    if shape[0] != model.place.image_shape[0] or len(shape) != len(model.place.image_shape):
        raise UserError(
            f"references are of {shape}, the network takes {model.place.image_shape[0]} channels: (K,C,H,W)"
        )
    model = HiddenAnchoredModel(copy_network(model.network), model.place).eval()
    model.references = references
    folded = _folded(model, shape, fuse_batch_norm)
    largest = _difference(equivalence.evaluation_copy(model), shape, folded)
    if largest > equivalence.tolerance(model):
        # Some networks amplify single precision's rounding beyond any tolerance: double precision decides then.
        exact = equivalence.double_copy(model)
        assert isinstance(exact, HiddenAnchoredModel)
        if not _difference(exact, shape, _folded(exact, shape, fuse_batch_norm)) <= equivalence.DOUBLE_TOLERANCE:
            raise UserError(
                f"{type(model.network).__name__} cannot be folded exactly at '{model.place.name}': folded, its outputs "
                f"differ (by {largest:.1g} of the largest)"
            )
    return folded


def _folded(model: HiddenAnchoredModel, shape: tuple[int, ...], fuse_batch_norm: bool) -> nn.Module:
    """The plain network, not compared yet. ``shape``: (C,H,W) of the images."""
    name, dim, loop = model.place.name, model.entry.dim, ReferenceLoop()
    features = model.reference_features()
    first = torch.zeros(1, *model.place.stem.shape) if features is None else features.movedim(dim, 1)
    stem = replace(model.place.stem_alone, shape=tuple(first.shape[1:]))
    first = first.detach().cpu().to(torch.promote_types(first.dtype, torch.float32))
    alone, copies, one_size = narrowed(Alone(model.network.get_submodule(name), dim), stem, first, loop)
    layer = alone.get_submodule("layer")
    network = copy_network(model.network).eval()
    network = stems.replace_module(network, network.get_submodule(name), layer)
    _remove_entries(layer)
    if one_size or "entry" in layer._modules:
        layer.register_forward_pre_hook(Entry(dim))  # of features now
    network = merge_norms(network, shape, everywhere=fuse_batch_norm)
    loop.shared.clear()
    return (FoldedHidden(network, name, shape, copies, loop) if one_size else network).eval()


def _remove_entries(layer: nn.Module) -> None:
    """Remove the hooks of the wide layer, wherever folding put it, and an ``entry`` that is the identity."""
    for module in layer.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if isinstance(hook, Entry):
                del module._forward_pre_hooks[key]
    entry = layer._modules.get("entry")
    if isinstance(entry, stems.LAYERS):
        weight = entry.weight.detach()
        if torch.equal(weight.flatten(1), torch.eye(len(weight)).to(weight)):
            del layer._modules["entry"]


def _difference(model: nn.Module, shape: tuple[int, ...], folded: nn.Module) -> float:
    images = torch.cat([equivalence.random_image(shape, seed) for seed in (7, 8)]).double()
    expected = equivalence.network_outputs(model, images)
    return expected.difference(equivalence.network_outputs(equivalence.evaluation_copy(folded), images))
