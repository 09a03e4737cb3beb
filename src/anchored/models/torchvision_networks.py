"""torchvision's networks, and those made of its parts. Imported on first use: torchvision takes as long as torch."""

from __future__ import annotations

import math
import sys
from functools import cache, partial
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vision_transformer import VisionTransformer

from anchored.errors import UserError
from anchored.method import stem as stems
from anchored.models.third_party import Library, NetworkSpec, Preprocessing, cannot_build

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
        raise cannot_build(f"torchvision:{name}", spec, error) from error
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
        raise cannot_build(f"torchvision:{name}", spec, error) from error
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


class _SmallResNeXt(TorchvisionResNet):  # type: ignore[misc]
    """Its blocks in three stages, and a 3×3 stem."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(Bottleneck, [3, 3, 3, 1], num_classes=spec.classes, groups=4, width_per_group=32)
        self.conv1 = nn.Conv2d(spec.channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool, self.layer4 = nn.Identity(), nn.Identity()
        self.fc = nn.Linear(256 * Bottleneck.expansion, spec.classes)


def resnext29(spec: NetworkSpec) -> nn.Module:
    """ResNeXt-29 32×4d for small images (arXiv 1611.05431)."""
    return _SmallResNeXt(spec)


LIBRARY = Library(_torchvision_names, _torchvision_build, _torchvision_preprocessing)
