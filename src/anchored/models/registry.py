"""Networks by name.

| name | what it is |
|---|---|
| a row of ``NETWORKS`` | the networks of the paper and the demo; ``width`` scales them |
| ``timm:NAME[.tag]`` | any network of timm |
| ``torchvision:NAME`` | any classifier of torchvision |
| ``published:NAME`` | a network that others trained (``models.published``) |
| ``python:package.module:factory`` | your own ``factory(channels, classes) -> nn.Module`` |

Add one row and one test to add a network.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from anchored.config.trust import CODE, refuse_code
from anchored.errors import UserError
from anchored.models import third_party
from anchored.models.resnet import Block, PostActivationBlock, PreActivationBlock, ResNet
from anchored.models.third_party import TIMM, Library, NetworkSpec

if TYPE_CHECKING:
    from types import ModuleType

PUBLISHED = "published"


def _torchvision() -> ModuleType:
    from anchored.models import torchvision_networks  # on first use: a network of our own should not wait for it

    return torchvision_networks


def of_torchvision(builder: str) -> Callable[[NetworkSpec], nn.Module]:
    """A builder of ``torchvision_networks``, which is imported when a network is built."""

    def build(spec: NetworkSpec) -> nn.Module:
        network: nn.Module = getattr(_torchvision(), builder)(spec)
        return network

    return build


LIBRARIES: dict[str, Library] = {
    "timm": TIMM,
    "torchvision": Library(
        lambda: _torchvision().LIBRARY.names(),
        lambda name, spec: _torchvision().LIBRARY.build(name, spec),
        lambda name: _torchvision().LIBRARY.preprocessing(name),
    ),
}


@dataclass(frozen=True)
class Architecture:
    """A row: the network's title in tables, its builder, and the name of the pretrained weights that fit it (or "")."""

    title: str
    build: Callable[[NetworkSpec], nn.Module]
    weights: str = ""
    dropout: bool = False  # whether its builder takes one


def _small_images(
    stem: int, widths: tuple[int, ...], depth: int, block: Block = PostActivationBlock, dropout: float = 0.0
) -> Callable[[NetworkSpec], nn.Module]:
    def build(spec: NetworkSpec) -> nn.Module:
        scaled = tuple(spec.scaled(width) for width in widths)
        return ResNet(
            spec.channels,
            spec.classes,
            stem=spec.scaled(stem),
            widths=scaled,
            depth=depth,
            block=block,
            dropout=spec.dropout or dropout,
        )

    return build


NETWORKS: dict[str, Architecture] = {
    # 11,173,962 parameters for CIFAR-10 (kuangliu/pytorch-cifar's ResNet18, the network of the CIFAR literature).
    "resnet18": Architecture("ResNet-18", _small_images(64, (64, 128, 256, 512), 2), dropout=True),
    # 2.2 M parameters (arXiv 1605.07146, table 4).
    "wrn40_2": Architecture("WRN-40-2", _small_images(16, (32, 64, 128), 6, PreActivationBlock), dropout=True),
    # The same with dropout 0.3 in its blocks, as the paper's reference code trains it: tables 8 and 9.
    "wrn40_2_dropout": Architecture(
        "WRN-40-2", _small_images(16, (32, 64, 128), 6, PreActivationBlock, dropout=0.3), dropout=True
    ),
    # The demo's: a ResNet-8, seconds per epoch on a laptop's CPU.
    "small": Architecture("ResNet-8", _small_images(16, (16, 32, 64), 1), dropout=True),
    # torchvision's ConvNeXt with two stages: no batch norm, less than half of ResNet-8's time (docs/how-to/methods.md).
    "small_convnext": Architecture("ConvNeXt, 4 blocks", of_torchvision("small_convnext")),
    # ImageNet's, of torchvision's classes: 11,689,512, 6,432,512 and 86,567,656 parameters for 1000 classes.
    "resnet18_imagenet": Architecture("ResNet-18", of_torchvision("resnet18"), "torchvision:resnet18"),
    "regnety_800mf": Architecture("RegNet", of_torchvision("regnety_800mf"), "torchvision:regnet_y_800mf"),
    "vit_b_16": Architecture("ViT-b-16", of_torchvision("vit_b_16"), "torchvision:vit_b_16"),
}


def find_network(name: str) -> Architecture:
    """The row of a network, one made for a library's or an imported one; ``UserError`` with near names if unknown."""
    if name in NETWORKS:
        return NETWORKS[name]
    prefix, _, rest = name.partition(":")
    if prefix in LIBRARIES:
        library = LIBRARIES[prefix]
        if rest not in library.names():
            near = difflib.get_close_matches(rest, library.names(), n=3)
            hint = f"near ones are {', '.join(f'{prefix}:{each}' for each in near)}" if near else "see its list"
            raise UserError(f"no network '{name}': {prefix} does not have it; {hint}")
        return Architecture(rest, lambda spec: library.build(rest, spec), name, dropout=prefix == "timm")
    if prefix == PUBLISHED:
        return _published(name)
    if f"{prefix}:" == CODE:
        return Architecture(rest.rpartition(":")[2], lambda spec: third_party.import_network(rest, spec))
    if name.endswith(("/", os.sep)):
        raise UserError(f"there is no folder '{name}'")
    near = difflib.get_close_matches(name, NETWORKS, n=1)
    near = [f"{each}:{name}" for each, library in LIBRARIES.items() if not near and name in library.names()][:1] or near
    hint = (
        f"did you mean '{near[0]}'?"
        if near
        else f"there are {', '.join(NETWORKS)}, timm:NAME, torchvision:NAME and published:NAME"
    )
    raise UserError(f"no network '{name}': {hint}")


def _published(name: str) -> Architecture:
    from anchored.models import published  # on first use: it is made of this module's rows

    row = published.find_published(name)
    return Architecture(row.layout.title, lambda spec: published.build_published(row, spec), name)


def build_network(
    name: str,
    *,
    channels: int,
    classes: int,
    seed: int,
    size: int | None = None,
    width: float = 1.0,
    pretrained: bool = False,
    allow_import: bool = False,
    dropout: float = 0.0,
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
        dropout: its probability, in [0, 1); 0 leaves the network as it is. Of the package's own networks for small
            images and of timm's.

    Raises:
        UserError: an unknown name, a width, dropout or pretrained weights that the network does not have, weights that
            cannot be downloaded, a name that leads to code without ``allow_import``, or a network that does not take
            such images.
    """
    refuse_code(name, (name,) if allow_import else ())
    architecture = check_network(name, width=width, pretrained=pretrained, dropout=dropout)
    spec = NetworkSpec(channels, classes, size, width, pretrained, dropout)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone; torch.manual_seed would move the others too
        network = architecture.build(spec)
    if name not in NETWORKS and size is not None:
        third_party.check_logits_shape(network, name, spec)
    return network


def check_network(name: str, *, width: float = 1.0, pretrained: bool = False, dropout: float = 0.0) -> Architecture:
    """Return a network's row; ``UserError`` where there is none, or it has no such variant. Nothing is built."""
    architecture = find_network(name)
    if not 0 < width <= 16:
        raise UserError(f"network.width is {width:g}: give a factor above 0 and at most 16")
    if width != 1 and (name not in NETWORKS or pretrained):
        raise UserError(
            f"network '{name}'{' pretrained' if pretrained else ''} has one width: leave network.width at 1"
        )
    if dropout and not architecture.dropout:
        own = ", ".join(each for each, row in NETWORKS.items() if row.dropout)
        raise UserError(f"train.dropout is {dropout:g}, which '{name}' does not take: take {own} or one of timm")
    if pretrained and not architecture.weights:
        raise UserError(f"network '{name}' has no pretrained weights: take one of timm or torchvision, or train it")
    return architecture


def preprocessing(name: str) -> third_party.Preprocessing:
    """The preprocessing of a network's pretrained weights; ``UserError`` where it has none."""
    weights = find_network(name).weights
    if not weights:
        raise UserError(f"network '{name}' has no pretrained weights, so no preprocessing of its own")
    prefix, _, rest = weights.partition(":")
    if prefix == PUBLISHED:
        from anchored.models import published

        return published.find_published(rest).preprocessing
    return LIBRARIES[prefix].preprocessing(rest)
