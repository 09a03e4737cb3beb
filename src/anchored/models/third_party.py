"""Networks of other libraries: timm's, torchvision's (the ImageNet rows of the registry too), and imported ones."""

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
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer

from anchored.errors import UserError, first_line
from anchored.method import equivalence
from anchored.method import stem as stems
from anchored.method.networks import give_logits, logits_of


@dataclass(frozen=True)
class NetworkSpec:
    """The images and classes that a network is built for."""

    channels: int
    classes: int
    size: int | None = None  # height and width of the images, pixels; None for the network's default
    width: float = 1.0  # factor of the hidden widths
    pretrained: bool = False
    dropout: float = 0.0

    def scaled(self, channels: int, step: int = 1) -> int:
        """A hidden width times the factor, rounded to a multiple of ``step``, which it is at least."""
        return step * max(1, round(channels * self.width / step))


@dataclass(frozen=True)
class Preprocessing:
    """Inputs of pretrained weights: images resized, cropped at the centre, then ``(x − mean) / std`` of x in [0, 1]."""

    resize: int  # pixels of the shorter side
    size: int  # height and width of the crop, pixels
    interpolation: str  # bilinear, bicubic, ...
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Library:
    """A library: the names of its networks, the builder of one, and the preprocessing of its pretrained weights."""

    names: Callable[[], frozenset[str]]
    build: Callable[[str, NetworkSpec], nn.Module]
    preprocessing: Callable[[str], Preprocessing]


@cache
def _timm_names() -> frozenset[str]:
    import timm  # on first use: it takes seconds

    return frozenset(timm.list_models()) | frozenset(timm.list_pretrained())


def _timm_build(name: str, spec: NetworkSpec) -> nn.Module:
    import timm

    def create(**options: Any) -> nn.Module:
        options |= {"drop_rate": spec.dropout} if spec.dropout else {}
        network: nn.Module = timm.create_model(
            name, spec.pretrained, num_classes=spec.classes, in_chans=spec.channels, **options
        )
        return network

    if spec.pretrained and not (timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()).has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}': near ones are in timm.list_pretrained()")
    try:
        if spec.size is None:
            return create()
        try:
            return create(img_size=spec.size)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return create()  # a network for images of any size
    except Exception as error:  # whatever the library and its downloads raise
        raise _cannot(f"timm:{name}", spec, error) from error


def _timm_preprocessing(name: str) -> Preprocessing:
    import timm
    from timm.data.config import resolve_data_config

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise UserError(f"timm has no pretrained weights for '{name}', so no preprocessing")
    data = resolve_data_config(pretrained_cfg=config.to_dict())  # type: ignore[no-untyped-call]
    size = int(data["input_size"][-1])
    resize = math.floor(size / data["crop_pct"])
    return Preprocessing(resize, size, data["interpolation"], tuple(data["mean"]), tuple(data["std"]))


# No auxiliary heads, whose logits a training loop would not expect, and no normalisation inside the network, which is
# left to preprocessing: these networks want [−1, 1] instead of ImageNet's mean and standard deviation.
_INCEPTION_OPTIONS = {"aux_logits": False, "transform_input": False, "init_weights": True}
_INCEPTIONS = ("googlenet", "inception_v3")


@cache
def _torchvision_names() -> frozenset[str]:
    return frozenset(torchvision.models.list_models(module=torchvision.models))


def _torchvision_build(name: str, spec: NetworkSpec) -> nn.Module:
    options: dict[str, Any] = dict(_INCEPTION_OPTIONS) if name in _INCEPTIONS else {}
    if spec.size is not None and name.startswith("vit_"):
        options["image_size"] = spec.size
    if spec.size is not None and name.startswith("maxvit_"):
        options["input_size"] = (spec.size, spec.size)
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=spec.classes, **options)
    except Exception as error:  # whatever the library raises
        raise _cannot(f"torchvision:{name}", spec, error) from error
    return _with_weights_and_channels(network, name, spec)


def _torchvision_preprocessing(name: str) -> Preprocessing:
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    mean, std = (((0.5,) * 3,) * 2) if name in _INCEPTIONS else (tuple(preset.mean), tuple(preset.std))
    return Preprocessing(preset.resize_size[0], preset.crop_size[0], preset.interpolation.value, mean, std)


def _with_weights_and_channels(network: nn.Module, name: str, spec: NetworkSpec) -> nn.Module:
    """The torchvision network of 3 channels, changed to the weights and the number of channels of ``spec``."""
    if spec.pretrained:
        _load_pretrained(network, name, spec)
    if spec.channels != 3:
        example = None if spec.size is None else torch.zeros(1, 3, spec.size, spec.size)
        for layer in stems.find_stem(network, example=example).names:
            _set_input_channels(network.get_submodule(layer), spec)
    return network


def _load_pretrained(network: nn.Module, name: str, spec: NetworkSpec) -> None:
    """Load torchvision's best weights, all but those of a head of another number of classes."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        published = weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except Exception as error:  # whatever the download raises
        raise _cannot(f"torchvision:{name}", spec, error) from error
    state = network.state_dict()
    fitting = {key: value for key, value in published.items() if key in state and state[key].shape == value.shape}
    missing = set(state) - set(fitting)
    if spec.classes != len(weights.meta["categories"]):  # another head
        missing = {key for key in missing if state[key].shape[:1] != (spec.classes,)}
    if missing:
        raise UserError(
            f"torchvision:{name}: the pretrained weights do not fit images of {spec.size} pixels "
            f"('{min(missing)}'): use {weights.transforms().crop_size[0]}"
        )
    network.load_state_dict(fitting, strict=False)


def _set_input_channels(layer: Any, spec: NetworkSpec) -> None:
    """Change the channels of a first layer of 3: pretrained weights repeated and rescaled (summed for one)."""
    weight = layer.weight.detach()
    outputs, _, *kernel = weight.shape
    if spec.pretrained:
        repeated = weight.repeat(1, math.ceil(spec.channels / 3), *[1] * len(kernel))[:, : spec.channels]
        weight = weight.sum(dim=1, keepdim=True) if spec.channels == 1 else repeated * (3 / spec.channels)
    else:
        weight = torch.randn(outputs, spec.channels, *kernel) * weight.std()
    layer.weight, layer.in_channels = nn.Parameter(weight), spec.channels


LIBRARIES: dict[str, Library] = {
    "timm": Library(_timm_names, _timm_build, _timm_preprocessing),
    "torchvision": Library(_torchvision_names, _torchvision_build, _torchvision_preprocessing),
}


class _ScaledResNet(TorchvisionResNet):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's ResNet-18 with every width scaled."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.spec = spec
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=spec.classes)
        if spec.width != 1:
            self.conv1 = nn.Conv2d(3, spec.scaled(64), 7, 2, 3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            self.bn1 = nn.BatchNorm2d(spec.scaled(64))
            self.fc = nn.Linear(spec.scaled(512), spec.classes)

    def _make_layer(self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        if planes == 64:  # the first stage: its input is the stem's output
            self.inplanes = self.spec.scaled(64)
        stage: nn.Sequential = super()._make_layer(block, self.spec.scaled(planes), blocks, stride, dilate)
        return stage


def resnet18(spec: NetworkSpec) -> nn.Module:
    """ResNet-18 for ImageNet (arXiv 1512.03385)."""
    return _with_weights_and_channels(_ScaledResNet(spec), "resnet18", spec)


def regnety_800mf(spec: NetworkSpec) -> nn.Module:
    """RegNetY-800MF (arXiv 2003.13678), with the constants of torchvision's ``regnet_y_800mf``."""
    params = BlockParams.from_init_params(
        depth=14, w_0=spec.scaled(56, 8), w_a=38.84 * spec.width, w_m=2.4, group_width=16, se_ratio=0.25
    )
    norm = partial(nn.BatchNorm2d, eps=1e-5, momentum=0.1)
    network = RegNet(params, num_classes=spec.classes, stem_width=spec.scaled(32, 8), norm_layer=norm)
    return _with_weights_and_channels(network, "regnet_y_800mf", spec)


def small_convnext(spec: NetworkSpec) -> nn.Module:
    """A ConvNeXt (arXiv 2201.03545) for small images: patches of 4 pixels, two blocks of 32 channels and two of 64.

    Layer norm throughout. Layer scale begins at 1, since few blocks and short trainings need no slow start.
    """
    first, second = spec.scaled(32), spec.scaled(64)
    stages = [CNBlockConfig(first, second, 2), CNBlockConfig(second, None, 2)]
    network = ConvNeXt(stages, layer_scale=1.0, num_classes=spec.classes)
    return _with_weights_and_channels(network, "small_convnext", spec)


def vit_b_16(spec: NetworkSpec) -> nn.Module:
    """ViT-B/16 (arXiv 2010.11929); the width scales the number of heads, of 64 features each."""
    size, heads = spec.size or 224, spec.scaled(12)
    if size % 16:
        raise UserError(f"network 'vit_b_16' cuts images into patches of 16 pixels: {size} is not a multiple")
    network = VisionTransformer(size, 16, 12, heads, 64 * heads, 256 * heads, num_classes=spec.classes)
    return _with_weights_and_channels(network, "vit_b_16", spec)


def import_network(path: str, spec: NetworkSpec) -> nn.Module:
    """The network that ``package.module:factory`` returns for (channels, classes)."""
    module, _, factory = path.partition(":")
    if not (module and factory):
        raise UserError(f"network 'python:{path}': write python:package.module:factory")
    try:
        build = getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"network 'python:{path}' cannot be imported: {first_line(error)}") from error
    try:
        network = build(spec.channels, spec.classes)
    except Exception as error:  # whatever the user's own code raises
        raise _cannot(f"python:{path}", spec, error) from error
    if not isinstance(network, nn.Module):
        raise UserError(f"network 'python:{path}' gives a {type(network).__name__}: it has to give a torch.nn.Module")
    return network


def check_logits_shape(network: nn.Module, name: str, spec: NetworkSpec) -> None:
    """Refuse a network that does not turn one image (1,C,H,W) into logits (1,N); else take ``.logits``."""
    size = spec.size or 224
    try:
        images = torch.zeros(1, spec.channels, size, size)
        outputs = equivalence.run_network(equivalence.evaluation_copy(network), images)
    except Exception as error:  # whatever the library or the user's own code raises
        raise _cannot(name, spec, error) from error
    try:
        logits = logits_of(outputs)
    except UserError as error:
        raise UserError(f"network '{name}': {error}") from error
    if logits.shape != (1, spec.classes):
        raise UserError(f"network '{name}' gives {tuple(logits.shape)} for one image, not logits (1, {spec.classes})")
    if logits is not outputs:
        give_logits(network)


def _cannot(name: str, spec: NetworkSpec, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    side = "" if spec.size is None else f"×{spec.size}×{spec.size}"
    what = "pretrained weights cannot be had" if spec.pretrained else "cannot be built"
    hint = ": is the network reachable, or are they in the library's cache?" if spec.pretrained else ""
    return UserError(
        f"network '{name}' {what} for {spec.channels}{side} images and {spec.classes} classes "
        f"({first_line(error)}){hint}"
    )
