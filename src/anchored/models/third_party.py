"""Networks that others' code builds: what a library is to the registry, timm, and imported ones."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from anchored.errors import UserError, first_line
from anchored.method import equivalence
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
        raise cannot_build(f"timm:{name}", spec, error) from error


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


TIMM = Library(_timm_names, _timm_build, _timm_preprocessing)


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
        raise cannot_build(f"python:{path}", spec, error) from error
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
        raise cannot_build(name, spec, error) from error
    try:
        logits = logits_of(outputs)
    except UserError as error:
        raise UserError(f"network '{name}': {error}") from error
    if logits.shape != (1, spec.classes):
        raise UserError(f"network '{name}' gives {tuple(logits.shape)} for one image, not logits (1, {spec.classes})")
    if logits is not outputs:
        give_logits(network)


def cannot_build(name: str, spec: NetworkSpec, error: Exception) -> UserError:
    """The error of a network that a library could not build, or whose weights it could not get."""
    if isinstance(error, UserError):
        return error
    side = "" if spec.size is None else f"×{spec.size}×{spec.size}"
    what = "pretrained weights cannot be had" if spec.pretrained else "cannot be built"
    hint = ": is the network reachable, or are they in the library's cache?" if spec.pretrained else ""
    return UserError(
        f"network '{name}' {what} for {spec.channels}{side} images and {spec.classes} classes "
        f"({first_line(error)}){hint}"
    )
