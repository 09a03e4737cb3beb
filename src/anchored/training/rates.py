"""Learning rates by part of a network, and frozen parts."""

from collections.abc import Mapping, Sequence

from torch import nn

from anchored.errors import UserError
from anchored.method import stem as stems
from anchored.method.anchoring import AnchoredModel
from anchored.models.features import head_name, network_behind


def named_parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Names in ``train.rates`` (``stem``, ``head``) -> names of the network's modules."""
    network = network_behind(model)
    stem = model.stem if isinstance(model, AnchoredModel) else None
    return {"stem": (stem or stems.find_stem(network)).names, "head": (head_name(network),)}


def rate_factors(
    network: nn.Module, rates: Mapping[str, float], parts: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """The factor on the learning rate of every parameter and module of ``network``, by name.

    ``rates``: factors by the name of a module or parameter; the longest name that holds one decides, and 1 where there
    is none. ``parts``: names such as ``stem`` that stand for modules. ``UserError`` for a name that leads nowhere.
    """
    names = [name for name, _ in (*network.named_modules(), *network.named_parameters())]
    wanted = {name: factor for part, factor in rates.items() for name in parts.get(part, (part,))}
    for name in wanted:
        if name not in names:
            known = ", ".join(dict.fromkeys([*parts, *(child for child, _ in network.named_children())]))
            raise UserError(f"train.rates names '{name}', which the network has not: there are {known}")

    def factor(name: str) -> float:
        holders = [part for part in wanted if part in ("", name) or name.startswith(f"{part}.")]
        return wanted[max(holders, key=len)] if holders else 1.0

    return {name: factor(name) for name in names}


def freeze(network: nn.Module, of: Mapping[str, float]) -> None:
    """Take the gradient from the parts whose factor is 0; ``UserError`` where that is every part."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(of[name] > 0)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("train.rates freezes every part: leave one with a factor above 0, such as {'': 0, head: 1}")


def hold(network: nn.Module, of: Mapping[str, float]) -> None:
    """Put the modules that are frozen, with all that is in them, into evaluation mode.

    Those that the network has now: batch norms are exchanged where several devices share their statistics.
    """
    trained = [name.split(".") for name, factor in of.items() if factor > 0]
    moving = {".".join(parts[:depth]) for parts in trained for depth in range(len(parts) + 1)}
    for name, module in network.named_modules():
        if name in of and name not in moving:
            module.training = False
