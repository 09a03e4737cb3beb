"""What is asked of any network: that it can be copied, and that it gives logits."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from anchored.errors import UserError, first_line


def copy_network(network: nn.Module, *, share_parameters: bool = False) -> Any:
    """A copy of a network, or of a part of it; with the same parameters, if wanted.

    Tensors that a module computed and keeps (weight norm's and pruning's weights, attention biases) are copied without
    the graph that they come from, which ``deepcopy`` refuses. ``UserError`` for weights without values, or other things
    that cannot be copied.
    """
    title = type(network).__name__
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise UserError(f"'{name}' of {title} is on the meta device, without values: load its weights first")
        if isinstance(tensor, UninitializedParameter):
            raise UserError(f"'{name}' of {title} has no size yet: run the network on a batch of images first")
    memo: dict[int, Any] = {id(p): p for p in network.parameters()} if share_parameters else {}
    for module in network.modules():
        memo |= {id(tensor): tensor.detach().clone() for tensor in _computed(vars(module))}
    try:
        return copy.deepcopy(network, memo)
    except Exception as error:  # whatever the user's own objects raise
        raise UserError(f"{title} cannot be copied ({first_line(error)}): copy.deepcopy has to work on it") from error


def _computed(values: Any) -> Iterator[Tensor]:
    """The tensors in a module's attributes, and in lists and dictionaries there, that were computed from others."""
    if isinstance(values, Tensor):
        if not values.is_leaf:
            yield values
    elif isinstance(values, (Mapping, list, tuple)):
        for value in values.values() if isinstance(values, Mapping) else values:
            yield from _computed(value)


def logits_of(outputs: Any) -> Tensor:
    """The logits in what a network gives: a tensor itself, or the ``logits`` of a ModelOutput, named tuple or dict."""
    logits = outputs
    if not isinstance(outputs, Tensor):
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the network gives a {type(outputs).__name__}, not logits (B,N) or something with .logits: wrap it in a "
            "module that gives the logits"
        )
    return logits


def give_logits(network: nn.Module) -> nn.Module:
    """The network, made to give :func:`logits_of` what it gives (every classifier of Hugging Face's transformers)."""
    if _only_logits not in network._forward_hooks.values():
        network.register_forward_hook(_only_logits)
    return network


def _only_logits(_: nn.Module, inputs: Any, outputs: Any) -> Tensor:
    return logits_of(outputs)
