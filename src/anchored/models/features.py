"""The head of a network, and its penultimate features: the inputs of that head."""

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel


def network_behind(model: nn.Module) -> nn.Module:
    """The network that an anchored model calls for each of its references; any other module itself."""
    return model.network if isinstance(model, AnchoredModel) else model


def find_head(model: nn.Module) -> nn.Linear | None:
    """A copy on the CPU, with a bias, of the linear layer (D → N) that gives a model's logits; None without one."""
    network = network_behind(model)
    try:
        head = network.get_submodule(head_name(network))
    except UserError:
        return None
    if not isinstance(head, nn.Linear):
        return None
    head = copy.deepcopy(head).cpu().float()
    if getattr(head, "bias", None) is None:
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    return head.requires_grad_(False).eval()


def head_name(network: nn.Module) -> str:
    """Name of the layer that gives the logits: timm's classifier, else the linear layer that was registered last."""
    classifier = getattr(network, "get_classifier", lambda: None)()
    heads: list[str] = [
        n for n, m in network.named_modules() if m is classifier or (classifier is None and isinstance(m, nn.Linear))
    ]
    if not heads:
        raise UserError(f"{type(network).__name__} has no linear layer to take for its head")
    return heads[-1]


@contextlib.contextmanager
def penultimate_features(network: nn.Module, *, detached: bool = True) -> Iterator[list[Tensor]]:
    """A context in which every forward pass appends its penultimate features (B,D) to the list that it gives.

    They are the inputs of the classifier: timm's (``get_classifier``; of several heads the mean of their inputs,
    concatenated where the widths differ), else of the linear layer that is called last, or where there is none of the
    last convolution. Positions and tokens are averaged. Gradients flow through them unless they are ``detached``.
    ``UserError`` where there is no such layer.
    """
    classifier = getattr(network, "get_classifier", lambda: None)()
    heads: list[nn.Module] = []
    if isinstance(classifier, (tuple, list, nn.ModuleList)):
        heads = list(classifier)
    elif isinstance(classifier, nn.Module):
        heads = [classifier]
    linear, convolutions = (
        [m for m in network.modules() if isinstance(m, kind)] for kind in (nn.Linear, nn.modules.conv._ConvNd)
    )
    layers: dict[nn.Module, None] = dict.fromkeys([*heads, *(linear or convolutions)])
    if not layers:
        raise UserError(f"{type(network).__name__} has no linear layer, so no penultimate features")
    last_inputs: dict[nn.Module, Tensor] = {}  # by layer, in the order of the last calls
    features: list[Tensor] = []

    def record_input(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last_inputs.pop(layer, None)
        last_inputs[layer] = inputs[0].detach() if detached else inputs[0]

    def append_features(*_: object) -> None:
        called = [head for head in heads if head in last_inputs] or list(last_inputs)[-1:]
        if not called:
            raise UserError(f"{type(network).__name__} calls no layer that it shows, so it has no penultimate features")
        pooled = [_pooled(layer, last_inputs[layer]) for layer in called]
        same_width = len({each.shape for each in pooled}) == 1
        features.append(torch.stack(pooled).mean(dim=0) if same_width else torch.cat(pooled, dim=1))
        last_inputs.clear()

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(record_input).remove)
        hooks.callback(network.register_forward_hook(append_features).remove)
        yield features


def _pooled(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A classifier's input to (B,D): from (B,...,D) where it is or holds a linear layer of width D, else (B,D,...)."""
    if inputs.dim() == 2:
        return inputs
    widths = [inner.in_features for inner in layer.modules() if isinstance(inner, nn.Linear)]
    last = inputs.dim() == 3 or inputs.shape[-1] in widths[:1]
    return inputs.flatten(1, -2).mean(dim=1) if last else inputs.flatten(2).mean(dim=2)
