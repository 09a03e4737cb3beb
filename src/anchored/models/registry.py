"""Networks by name, their penultimate features, and how their pretrained weights want images.

| name | what it is |
|---|---|
| a row of ``NETWORKS`` | the networks of the paper and the demo; ``width`` scales them |
| ``timm:NAME[.tag]`` | any network of timm |
| ``torchvision:NAME`` | any classifier of torchvision |
| ``python:package.module:factory`` | your own ``factory(channels, classes) -> nn.Module`` |

Add one row and one test to add a network.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.models import third_party
from anchored.models.resnet import PreActivationBlock, ResNet
from anchored.models.third_party import LIBRARIES, Wanted

IMPORT = "python"  # prefix of names that lead to code


@dataclass(frozen=True)
class Architecture:
    """A row: how tables call the network, how to build it, and whose pretrained weights fit it (none if empty)."""

    title: str
    build: Callable[[Wanted], nn.Module]
    weights: str = ""


def _small_images(stem: int, widths: tuple[int, ...], depth: int, **options: object) -> Callable[[Wanted], nn.Module]:
    def build(wanted: Wanted) -> nn.Module:
        scaled = tuple(wanted.scaled(width) for width in widths)
        return ResNet(
            wanted.channels,
            wanted.classes,
            stem=wanted.scaled(stem),
            widths=scaled,
            depth=depth,
            **options,  # type: ignore[arg-type]
        )

    return build


NETWORKS: dict[str, Architecture] = {
    # 11,173,962 parameters for CIFAR-10 (kuangliu/pytorch-cifar's ResNet18, the network of the CIFAR literature).
    "resnet18": Architecture("ResNet-18", _small_images(64, (64, 128, 256, 512), 2)),
    # 2.2 M parameters (arXiv 1605.07146, table 4).
    "wrn40_2": Architecture("WRN-40-2", _small_images(16, (32, 64, 128), 6, block=PreActivationBlock)),
    # The demo's: a ResNet-8, seconds per epoch on a laptop's CPU.
    "small": Architecture("ResNet-8", _small_images(16, (16, 32, 64), 1)),
    # ImageNet's, of torchvision's classes: 11,689,512, 6,432,512 and 86,567,656 parameters for 1000 classes.
    "resnet18_imagenet": Architecture("ResNet-18", third_party.resnet18, "torchvision:resnet18"),
    "regnety_800mf": Architecture("RegNet", third_party.regnety_800mf, "torchvision:regnet_y_800mf"),
    "vit_b_16": Architecture("ViT-b-16", third_party.vit_b_16, "torchvision:vit_b_16"),
}


def get(name: str) -> Architecture:
    """The row of a network, or one made for a library's or your own; ``UserError`` with near matches if unknown."""
    if name in NETWORKS:
        return NETWORKS[name]
    prefix, _, rest = name.partition(":")
    if prefix in LIBRARIES:
        library = LIBRARIES[prefix]
        known = library.names()
        if rest not in known:
            near = difflib.get_close_matches(rest, known, n=3)
            hint = f"near ones are {', '.join(f'{prefix}:{each}' for each in near)}" if near else "see its list"
            raise UserError(f"no network '{name}': {prefix} does not have it; {hint}")
        return Architecture(rest, lambda wanted: library.build(rest, wanted), name)
    if prefix == IMPORT:
        return Architecture(rest.rpartition(":")[2], lambda wanted: third_party.imported(rest, wanted))
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    near = [f"{each}:{name}" for each, library in LIBRARIES.items() if not near and name in library.names()][:1] or near
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(NETWORKS)}, timm:NAME and torchvision:NAME"
    raise UserError(f"no network '{name}': {hint}")


def build(
    name: str,
    *,
    channels: int,
    classes: int,
    seed: int,
    size: int | None = None,
    width: float = 1.0,
    pretrained: bool = False,
    allow_import: bool = False,
) -> nn.Module:
    """A network for images (B,channels,size,size) and logits (B,classes); the global random state is left alone.

    Args:
        name: see the module's table.
        channels: of the images, C.
        classes: N.
        seed: of the initial weights: the same seed gives the same weights.
        size: height and width of the images, pixels, for networks that are built for one; default the network's own.
        width: factor of the hidden widths, for quick trials; rows only.
        pretrained: take the library's weights (downloaded by the library), with a new head unless it has as many
            classes, and its first layer summed or spread over another number of channels.
        allow_import: import the code that a ``python:`` name leads to. Only for names that your own command line or
            recipe gives, never for one that was read from a downloaded file.

    Raises:
        UserError: an unknown name, a width or pretrained weights that the network does not have, weights that cannot be
            downloaded, a name that leads to code without ``allow_import``, or a network that does not take such images.
    """
    architecture = get(name)
    wanted = Wanted(channels, classes, size, width, pretrained)
    if name.startswith(f"{IMPORT}:") and not allow_import:
        raise UserError(f"network '{name}' is code to be imported: only your own recipe or command line may name it")
    if not 0 < width <= 16:
        raise UserError(f"network.width is {width:g}: give a factor above 0 and at most 16")
    if width != 1 and (name not in NETWORKS or pretrained):
        raise UserError(
            f"network '{name}'{' pretrained' if pretrained else ''} has one width: leave network.width at 1"
        )
    if pretrained and not architecture.weights:
        raise UserError(f"network '{name}' has no pretrained weights: take one of timm or torchvision, or train it")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone; torch.manual_seed would move the others too
        network = architecture.build(wanted)
    if name not in NETWORKS and size is not None:
        third_party.check(network, name, wanted)
    return network


def preprocessing(name: str) -> third_party.Preprocessing:
    """How a network's pretrained weights want images; ``UserError`` where it has none."""
    weights = get(name).weights
    if not weights:
        raise UserError(f"network '{name}' has no pretrained weights, so no preprocessing of its own")
    prefix, _, rest = weights.partition(":")
    return LIBRARIES[prefix].preprocessing(rest)


@contextlib.contextmanager
def features_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the penultimate features (B,D) of every forward pass are appended to the list it gives.

    They are what the classifier is given: timm's own (``get_classifier``; of networks with several heads the mean of
    what they are given, or all of it where the widths differ), else the linear layer that is called last, or without
    any the last convolution. Positions and tokens are averaged.
    """
    given = getattr(network, "get_classifier", lambda: None)()
    heads: list[nn.Module] = []
    if isinstance(given, (tuple, list, nn.ModuleList)):
        heads = list(given)
    elif isinstance(given, nn.Module):
        heads = [given]
    linear, convolutions = (
        [m for m in network.modules() if isinstance(m, kind)] for kind in (nn.Linear, nn.modules.conv._ConvNd)
    )
    layers: dict[nn.Module, None] = dict.fromkeys([*heads, *(linear or convolutions)])
    if not layers:
        raise UserError(f"{type(network).__name__} has no linear layer, so no penultimate features")
    last: dict[nn.Module, Tensor] = {}  # by layer, in the order of the last calls
    kept: list[Tensor] = []

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last.pop(layer, None)
        last[layer] = inputs[0].detach()

    def keep(*_: object) -> None:
        called = [head for head in heads if head in last] or list(last)[-1:]
        if not called:
            raise UserError(f"{type(network).__name__} calls no layer that it shows, so it has no penultimate features")
        found = [_pooled(layer, last[layer]) for layer in called]
        alike = len({features.shape for features in found}) == 1
        kept.append(torch.stack(found).mean(dim=0) if alike else torch.cat(found, dim=1))
        last.clear()

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_pre_hook(note).remove)
        hooks.callback(network.register_forward_hook(keep).remove)
        yield kept


def _pooled(layer: nn.Module, inputs: Tensor) -> Tensor:
    """A classifier's input to (B,D): (B,...,D) for a linear layer, or one inside of that width, else (B,D,...)."""
    if inputs.dim() == 2:
        return inputs
    widths = [inner.in_features for inner in layer.modules() if isinstance(inner, nn.Linear)]
    last = inputs.dim() == 3 or inputs.shape[-1] in widths[:1]
    return inputs.flatten(1, -2).mean(dim=1) if last else inputs.flatten(2).mean(dim=2)
