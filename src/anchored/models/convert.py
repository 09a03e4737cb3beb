"""Conversion of a network with its weights, plain or trained anchored elsewhere, into an anchored model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models.export import Exported, check_logits, sample_photos
from anchored.models.folder import ModelConfig
from anchored.models.model_card import model_card
from anchored.models.sources import named_folder, named_network, refuse_unused
from anchored.models.weights import WeightsFit
from anchored.store.files import atomic_path, write_text
from anchored.store.layout import Run


def convert(
    name: str,
    output: Path,
    *,
    network: str | None = None,
    pretrained: bool = False,
    checkpoint: str = "",
    which: str = "",
    references: Tensor | int = 0,
    like: str = "",
    mask_probability: float = 0.0,
    stem: str = "",
    at: str = "",
    channels: int = 0,
    size: int = 0,
    classes: int = 0,
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
) -> Exported:
    """Anchor a network with its weights exactly, and write it as a model folder, which a training can start from.

    Weights that were trained anchored, here or elsewhere, are written as they are. The decision of a standard run comes
    along: about the zero reference, which is what the folder has until it is trained, the logits are the same.

    Args:
        name: a network's name, or the folder of a standard run (here or on the hub), which says all the rest.
        output: the new folder.
        network: the name of the network in such a folder, where that is code (``python:...``) and you trust it.
        pretrained: the weights that are published with the name.
        checkpoint: a file of weights (.pth, .pt, .ckpt, .bin, .safetensors, an index of shards), or a folder with one:
            a plain network's, or those of a network that was trained anchored, here or with its authors' code.
        which: of several sets of weights in it: ``"ema"``, or the place of one.
        references: of weights that were trained anchored and hold none: training images (K,C,H,W), uint8 or
            normalised, or their number K, drawn from the training images of ``like``.
        like: the data set (a row of the catalog) that gives channels, size, mean, standard deviation and classes.
        mask_probability: α, of a later training, or of the one that the weights come from.
        stem: name of the first layer, where it cannot be found.
        at: name of the layer whose input is anchored in place of the image, see :func:`anchored.anchor`.
        channels, size, classes, mean, std: override those of the published weights and of ``like``.

    Raises:
        UserError: weights that do not fit or are not given, a network that cannot be anchored, an existing output.
    """
    fit: WeightsFit | None = None
    source = named_folder(name)
    if source is not None:
        refuse_unused(name, pretrained=pretrained, checkpoint=checkpoint, which=which, like=like, classes=classes,
                      channels=channels, size=size, mean=mean, std=std)  # fmt: skip
        given, config = models.load(source.path, network=network), models.read_config(source)
        if isinstance(given, AnchoredModel):
            raise UserError(f"{name} is anchored already: load it, train it on, or export it")
    else:
        given, config, fit = named_network(
            name,
            pretrained=pretrained,
            checkpoint=checkpoint,
            which=which,
            like=like,
            classes=classes,
            references=references,
            mask_probability=mask_probability,
            stem=stem,
            at=at,
            channels=channels,
            size=size,
            mean=mean,
            std=std,
        )
    config = dataclasses.replace(
        config,
        protocol="ram" if mask_probability else "anchored",
        mask_probability=mask_probability,
        stem=stem or config.stem,
        at=at,
    )
    already = isinstance(given, AnchoredModel)
    if not already and (not isinstance(references, int) or references):
        raise UserError(f"{name} was not trained anchored, and is anchored at the zero reference: leave references out")
    with atomic_path(output) as path:
        wide = given if already else models.build_model(config, fresh_stem=False, network=given)
        models.save_model(Run(path), wide, config)
        write_text(Run(path).card_file, model_card(Run(path), str(output)))
        checked = _checked(path, given, config, str(output))
        note = models.keep_decision(source, path, Run(path).weights_file) if source else ""
    return dataclasses.replace(checked, weights=str(fit or ""), notes=(note,))


def _checked(path: Path, given: nn.Module, config: ModelConfig, output: str) -> Exported:
    """Compare what was written with the network that was given.

    Where that was plain, with the zero reference and with photographs as references; else with its own references.
    """
    model, images = models.load(path, network=config.network), config.preprocess(sample_photos(config))
    assert isinstance(model, AnchoredModel)
    with torch.inference_mode():
        logits = [model(images)]
        if isinstance(given, AnchoredModel):
            return check_logits(output, logits[0], given(images))
        model.set_references(images[:2].clone())
        logits.append(model(images))
        return check_logits(output, torch.cat(logits), given(images).repeat(2, 1))
