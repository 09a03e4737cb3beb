"""Networks of other libraries: timm's, torchvision's, and what an import path leads to."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer

from anchored.errors import UserError, first_line
from anchored.method import equivalence
from anchored.method import stem as stems


@dataclass(frozen=True)
class Wanted:
    """What a network is built for."""

    channels: int
    classes: int
    size: int | None = None  # height and width of the images, pixels; None for the network's own
    width: float = 1.0  # factor of the hidden widths
    pretrained: bool = False

    def scaled(self, channels: int, step: int = 1) -> int:
        """A hidden width times the factor, a whole multiple of ``step``."""
        return step * max(1, round(channels * self.width / step))


@dataclass(frozen=True)
class Preprocessing:
    """How pretrained weights want images: resized, cropped at the centre, then ``(x − mean) / std`` of x in [0, 1]."""

    resize: int  # pixels of the shorter side
    size: int  # height and width of the crop, pixels
    interpolation: str  # bilinear, bicubic, ...
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Library:
    """A library: its networks' names, how to build one, and how its pretrained weights want images."""

    names: Callable[[], frozenset[str]]
    build: Callable[[str, Wanted], nn.Module]
    preprocessing: Callable[[str], Preprocessing]


@cache
def _timm_names() -> frozenset[str]:
    import timm  # on first use: it takes seconds

    return frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def _timm_build(name: str, wanted: Wanted) -> nn.Module:
    import timm

    def create(**options: Any) -> nn.Module:
        network: nn.Module = timm.create_model(
            name, wanted.pretrained, num_classes=wanted.classes, in_chans=wanted.channels, **options
        )
        return network

    if wanted.pretrained and not (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}': near ones are in timm.list_pretrained()")
    try:
        if wanted.size is None:
            return create()
        try:
            return create(img_size=wanted.size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return create()  # a network for images of any size
    except Exception as error:  # whatever the library and its downloads raise
        raise _cannot(f"timm:{name}", wanted, error) from error


def _timm_preprocessing(name: str) -> Preprocessing:
    import timm
    from timm.data.config import resolve_data_config

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}', so no preprocessing")
    found = resolve_data_config(pretrained_cfg=config.to_dict())  # type: ignore[no-untyped-call]
    size = int(found["input_size"][-1])
    resize = math.floor(size / found["crop_pct"])
    return Preprocessing(resize, size, found["interpolation"], tuple(found["mean"]), tuple(found["std"]))


# Options of torchvision's networks: no second head, whose logits a training loop would not expect, and no change of the
# image inside the network, which preprocessing does better (these two divide [−1, 1] instead of ImageNet's deviations).
_INCEPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


@cache
def _torchvision_names() -> frozenset[str]:
    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _torchvision_build(name: str, wanted: Wanted) -> nn.Module:
    options: dict[str, Any] = dict(_INCEPTIONS.get(name, {}))
    if wanted.size is not None and name.startswith("vit_"):
        options["image_size"] = wanted.size
    if wanted.size is not None and name.startswith("maxvit_"):
        options["input_size"] = (wanted.size, wanted.size)
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=wanted.classes, **options)
    except Exception as error:  # whatever the library raises
        raise _cannot(f"torchvision:{name}", wanted, error) from error
    return _finished(network, name, wanted)


def _torchvision_preprocessing(name: str) -> Preprocessing:
    found = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (((0.5,) * 3,) * 2) if name in _INCEPTIONS else (tuple(found.mean), tuple(found.std))
    return Preprocessing(found.resize_size[0], found.crop_size[0], found.interpolation.value, mean, std)


def _finished(network: nn.Module, name: str, wanted: Wanted) -> nn.Module:
    """A network of torchvision's class with the weights and the number of channels that are wanted."""
    if wanted.pretrained:
        _load(network, name, wanted)
    if wanted.channels != 3:
        example = None if wanted.size is None else torch.zeros(1, 3, wanted.size, wanted.size)
        for each in stems.find(network, example=example).names:
            _respread(network.get_submodule(each), wanted)
    return network


def _load(network: nn.Module, name: str, wanted: Wanted) -> None:
    """Load torchvision's best weights, all but those of a head of another number of classes."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        found = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # whatever the download raises
        raise _cannot(f"torchvision:{name}", wanted, error) from error
    own = network.state_dict()
    fitting = {key: value for key, value in found.items() if key in own and own[key].shape == value.shape}
    missing = sorted(set(own) - set(fitting))
    head = {key for key in missing if own[key].shape[:1] == (wanted.classes,)}
    if wanted.classes == len(weights.meta["categories"]):
        head = set()
    if set(missing) - head:
        raise UserError(
            f"torchvision:{name}: the pretrained weights do not fit images of {wanted.size} pixels "
            f"('{min(set(missing) - head)}'): use {weights.transforms().crop_size[0]}"
        )
    network.load_state_dict(fitting, strict=False)


def _respread(layer: Any, wanted: Wanted) -> None:
    """Give a first layer of 3 channels another number: pretrained weights repeated and rescaled (summed for one)."""
    weight = layer.weight.detach()
    outputs, _, *kernel = weight.shape
    if wanted.pretrained:
        repeated = weight.repeat(1, math.ceil(wanted.channels / 3), *[1] * len(kernel))[:, : wanted.channels]
        spread = weight.sum(dim=1, keepdim=True) if wanted.channels == 1 else repeated * (3 / wanted.channels)
    else:
        spread = torch.randn(outputs, wanted.channels, *kernel) * weight.std()
    layer.weight, layer.in_channels = nn.Parameter(spread), wanted.channels


LIBRARIES: dict[str, Library] = {
    "timm": Library(_timm_names, _timm_build, _timm_preprocessing),
    "torchvision": Library(_torchvision_names, _torchvision_build, _torchvision_preprocessing),
}


class _ScaledResNet(TorchvisionResNet):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's ResNet-18 with every width scaled."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=wanted.classes)
        if wanted.width != 1:
            self.conv1 = nn.Conv2d(3, wanted.scaled(64), 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = nn.BatchNorm2d(wanted.scaled(64))
            self.fc = nn.Linear(wanted.scaled(512), wanted.classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:  # the first: what enters it is the stem's output
            self.inplanes = self.wanted.scaled(64)
        stage: nn.Sequential = super()._make_layer(block, self.wanted.scaled(planes), blocks, stride, dilate)
        return stage


def resnet18(wanted: Wanted) -> nn.Module:
    """ResNet-18 for ImageNet (arXiv 1512.03385)."""
    return _finished(_ScaledResNet(wanted), "resnet18", wanted)


def regnety_800mf(wanted: Wanted) -> nn.Module:
    """RegNetY-800MF (arXiv 2003.13678), with the constants of torchvision's ``regnet_y_800mf``."""
    params = BlockParams.from_init_params(
        depth=14, w_0=wanted.scaled(56, 8), w_a=38.84 * wanted.width, w_m=2.4, group_width=16, se_ratio=0.25
    )
    norm = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1)
    network = RegNet(params, num_classes=wanted.classes, stem_width=wanted.scaled(32, 8), norm_layer=norm)
    return _finished(network, "regnet_y_800mf", wanted)


def vit_b_16(wanted: Wanted) -> nn.Module:
    """ViT-B/16 (arXiv 2010.11929); the width scales the number of heads, of 64 features each."""
    size, heads = wanted.size or 224, wanted.scaled(12)
    if size % 16:
        raise UserError(f"network 'vit_b_16' cuts images into patches of 16 pixels: {size} is not a multiple")
    network = VisionTransformer(size, 16, 12, heads, 64 * heads, 256 * heads, num_classes=wanted.classes)
    return _finished(network, "vit_b_16", wanted)


def imported(path: str, wanted: Wanted) -> nn.Module:
    """What ``package.module:factory`` makes of (channels, classes)."""
    module, _, factory = path.partition(":")
    if not (module and factory):
        raise UserError(f"network 'python:{path}': write python:package.module:factory")
    try:
        make = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"network 'python:{path}' cannot be imported: {first_line(error)}") from error
    try:
        network = make(wanted.channels, wanted.classes)
    except Exception as error:  # whatever the user's own code raises
        raise _cannot(f"python:{path}", wanted, error) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"network 'python:{path}' gives a {type(network).__name__}: it has to give a torch.nn.Module")
    return network


def check(network: nn.Module, name: str, wanted: Wanted) -> None:
    """Refuse a network that does not turn the images wanted into logits."""
    size = wanted.size or 224
    try:
        logits = equivalence.run(equivalence.twin(network), torch.zeros(1, wanted.channels, size, size))
    except Exception as error:  # whatever the library or the user's own code raises
        raise _cannot(name, wanted, error) from error
    if not isinstance(logits, Tensor) or logits.shape != (1, wanted.classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"network '{name}' gives {found} for one image, not logits (1, {wanted.classes})")


def _cannot(name: str, wanted: Wanted, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    side = "" if wanted.size is None else f"×{wanted.size}×{wanted.size}"
    what = "pretrained weights cannot be had" if wanted.pretrained else "cannot be built"
    hint = ": is the network reachable, or are they in the library's cache?" if wanted.pretrained else ""
    return UserError(
        f"network '{name}' {what} for {wanted.channels}{side} images and {wanted.classes} classes "
        f"({first_line(error)}){hint}"
    )
