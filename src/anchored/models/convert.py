"""Conversion of a plain network with its weights into an anchored model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anchored.data.catalog import registry as catalog
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models import hub
from anchored.models import registry as networks
from anchored.models.export import Exported, check_logits, sample_photos
from anchored.models.folder import ModelConfig
from anchored.models.model_card import model_card
from anchored.store.files import atomic_path, load_tensors, write_text
from anchored.store.layout import Run


def convert(
    name: str,
    output: Path,
    *,
    network: str | None = None,
    pretrained: bool = False,
    checkpoint: str = "",
    like: str = "",
    mask_probability: float = 0.0,
    stem: str = "",
    channels: int = 0,
    size: int = 0,
    classes: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Exported:
    """Anchor a network with its weights, exactly, and write it as a model folder, which a training can start from.

    Args:
        name: a network's name, or the folder of a standard run (here or on the hub), which says all the rest.
        output: the new folder.
        network: the name of the network in such a folder, where that is code (``python:...``) and you trust it.
        pretrained: the weights that are published with the name.
        checkpoint: a safetensors file of the plain network's weights.
        like: the data set (a row of the catalog) that gives channels, size, mean, standard deviation and classes.
        mask_probability: α, of a later training.
        stem: name of the first layer, where it cannot be found.
        channels, size, classes, mean, std: override those of the published weights and of ``like``.

    Raises:
        UserError: weights that do not fit or are not given, a network that cannot be anchored, an existing output.
    """
    if hub.is_hub_name(name) or Path(name).is_dir():
        plain, config = models.load(name, network=network), models.read_config(hub.local_run(name))
        if isinstance(plain, AnchoredModel):
            raise UserError(f"{name} is anchored already: load it, train it on, or export it")
    else:
        facts = _input_and_classes(name, like, channels=channels, size=size, classes=classes, mean=mean, std=std)
        config = ModelConfig(name, "standard", 0.0, references=0, trained_on=like, **facts)
        if pretrained == bool(checkpoint):
            raise UserError(f"{name}: say which weights are anchored, --pretrained or --checkpoint FILE.safetensors")
        plain = models.build_plain_network(config, pretrained=pretrained, allow_import=True).eval()
        if checkpoint:
            models.load_weights(plain, load_tensors(Path(checkpoint))[0], Path(checkpoint))
    config = dataclasses.replace(
        config, protocol="ram" if mask_probability else "anchored", mask_probability=mask_probability, stem=stem
    )
    with atomic_path(output) as path:
        models.save_model(Run(path), models.build_model(config, fresh_stem=False, network=plain), config)
        write_text(Run(path).card_file, model_card(Run(path), str(output)))
        return _converted(path, plain, config, str(output))


def _converted(path: Path, plain: nn.Module, config: ModelConfig, output: str) -> Exported:
    """Compare what was written with the plain network: with the zero reference, and with photographs as references."""
    model, images = models.load(path, network=config.network), config.preprocess(sample_photos(config))
    assert isinstance(model, AnchoredModel)
    with torch.inference_mode():
        logits = [model(images)]
        model.set_references(images[:2].clone())
        logits.append(model(images))
        return check_logits(output, torch.cat(logits), plain(images).repeat(2, 1))


def _input_and_classes(name: str, like: str, classes: int, **given: Any) -> dict[str, Any]:
    """Fields of a :class:`ModelConfig`: those given, else the catalog row's, else the published weights'."""
    facts: dict[str, Any] = {}
    if weights := networks.find_network(name).weights:
        published = networks.preprocessing(name)
        facts = {key: getattr(published, key) for key in ("size", "interpolation", "mean", "std")}
        facts |= {"crop": published.size / published.resize, "channels": len(published.mean)}
        facts["classes"] = _class_names(weights)
    if like:
        row = catalog.get_dataset(like)
        facts |= {key: getattr(row, key) for key in ("channels", "size", "mean", "std", "classes")}
        facts |= {"interpolation": "bilinear", "crop": 1.0}
    facts |= {key: value for key, value in given.items() if value}
    if classes and classes != len(facts.get("classes", ())):
        facts["classes"] = tuple(map(str, range(classes)))
    missing = [key for key in ("channels", "size", "mean", "std", "classes") if not facts.get(key)]
    if missing:
        flags = ", ".join(f"--{key}" for key in missing)
        raise UserError(
            f"{name}: what its weights are for is not known, give {flags}, or --like with a data set's name"
        )
    return facts


def _class_names(weights: str) -> tuple[str, ...]:
    """Classes of published weights: torchvision's categories, for timm's 1000 ImageNet's names, else numbers."""
    library, _, name = weights.partition(":")
    if library == "torchvision":
        from torchvision.models import get_model_weights

        return tuple(get_model_weights(name).DEFAULT.meta["categories"])
    from timm import get_pretrained_cfg
    from timm.data.imagenet_info import ImageNetInfo

    config: Any = get_pretrained_cfg(name)
    if config.num_classes != 1000:
        return tuple(map(str, range(config.num_classes)))
    return tuple(ImageNetInfo().index_to_description(number).partition(",")[0] for number in range(1000))
