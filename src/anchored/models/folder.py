"""Model folders: building a module from its configuration, writing it to a folder, and loading it again.

A folder is ``weights.safetensors`` (weights and references) and ``model.json`` (all else that is needed to rebuild the
module and its preprocessing). Nothing is unpickled, and no code that a folder names is run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from PIL import Image
from pydantic import model_validator
from torch import Tensor, nn
from typing_extensions import Self

from anchored.config.recipe import derived_seed, kept
from anchored.config.settings import (
    LATER,
    Anchoring,
    BatchNormUpdate,
    Count,
    CountOrNone,
    Integer,
    MaskedTarget,
    MaskProbability,
    MaskUnit,
    Network,
    Number,
    Positive,
    Protocol,
    ReferenceChoice,
    ShareOrNone,
    Width,
)
from anchored.config.validation import not_empty, parse, settings_class, within
from anchored.data.preprocessing import InputFormat, Interpolation, fit_to_input, to_input
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel, anchor
from anchored.method.folding import fold
from anchored.models import hub, third_party
from anchored.models import registry as networks
from anchored.models.decision import Decided, Decision
from anchored.models.weights import fit_weights
from anchored.store.files import digest, load_tensors, read_bytes, read_json, save_tensors, write_json
from anchored.store.layout import Run


@settings_class
class ModelConfig:
    """What is needed to rebuild a module and to prepare its inputs: ``model.json``."""

    network: str
    protocol: Protocol
    mask_probability: MaskProbability
    channels: Annotated[Integer, within("give 1 to 64", ge=1, le=64)]
    size: Annotated[Integer, within("give 1 to 4096 pixels", ge=1, le=4096)]  # height and width of the images
    mean: tuple[Number, ...]  # per channel, of images in [0, 1]
    std: tuple[Positive, ...]
    classes: Annotated[tuple[str, ...], not_empty]
    trained_on: str  # row of the catalog; "" where that is not known
    references: CountOrNone
    """K; 0 for the standard protocol, and for the zero reference of a network that was not trained."""
    mask_unit: MaskUnit = Anchoring.mask_unit
    mask_group: Count = Anchoring.mask_group
    reference_choice: ReferenceChoice = Anchoring.reference_choice
    masked_target: MaskedTarget = Anchoring.masked_target
    batch_norm: BatchNormUpdate = Anchoring.batch_norm
    width: Width = Network.width  # factor on the hidden widths of networks that are rows
    dropout: ShareOrNone = field(default=0.0, metadata=LATER)  # of networks that take one
    stem: str = ""  # name of the first layer; "" where it is found without
    at: str = field(default=Anchoring.at, metadata=LATER)  # name of the hidden layer that is anchored; "" for the image
    interpolation: Interpolation = "bilinear"
    crop: Annotated[Number, within("give a share in [0.1, 1]", ge=0.1, le=1)] = 1.0
    """Share of the shorter side that the middle square keeps."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        return self

    @property
    def view(self) -> InputFormat:
        """The conversion of an image to the network's channels and size."""
        return InputFormat(self.channels, self.size, self.crop, self.interpolation)

    def preprocess(self, images: Tensor) -> Tensor:
        """Raw images (B,C,H,W) uint8 of any size to the network's inputs (B,channels,size,size) float32.

        As in evaluation: grey and colour are converted, the shorter side is resized to ``size / crop`` pixels with
        antialiasing, the middle square is cut out, and each channel is normalised, ``(image / 255 − mean) / std``.
        Images that have the final size already are not resized. Raises ``UserError`` for another type or shape.
        """
        return to_input(seen_as(images, self.view), self.mean, self.std)


def seen_as(images: Tensor, view: InputFormat) -> Tensor:
    """Raw images (B,C,H,W) uint8 of any size in a network's channels and size, as evaluation shows them: uint8.

    ``UserError`` for another type or shape.
    """
    if images.dtype != torch.uint8 or images.dim() != 4:
        raise UserError(f"images are {images.dtype} {tuple(images.shape)}: give uint8 (B,C,H,W), not normalised")
    height, width = images.shape[2:]
    whole = height == width and view.crop == 1 and view.interpolation == "bilinear"  # as sets of one size are seen
    if not whole and (height, width) != (view.size, view.size) and images.shape[1] in (1, 3):
        images = torch.stack(
            [view(Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())) for image in images.cpu()]
        ).to(images.device)
    return fit_to_input(images, view.channels, view.size)


def build_model(
    config: ModelConfig, *, seed: int = 0, fresh_stem: bool = True, network: nn.Module | None = None
) -> nn.Module:
    """The untrained module: images (B,C,H,W), normalised, to logits (B,N).

    Protocols with the same seed have the same initial weights, the stem apart. ``network``: the plain network to anchor
    in place of a freshly initialised one.
    """
    network = build_plain_network(config, seed) if network is None else network
    if config.protocol == "standard":
        return network
    return anchor(
        network,
        config.mask_probability,
        fresh_stem=fresh_stem,
        stem=config.stem or None,
        at=config.at or None,
        example=_example(config),
        mask_unit=config.mask_unit,
        mask_group=config.mask_group,
        masked_target=config.masked_target,
        batch_norm=config.batch_norm,
        generator=torch.Generator().manual_seed(derived_seed(seed, "stem")),
    )


def _example(config: ModelConfig) -> Tensor:
    return torch.zeros(1, config.channels, config.size, config.size)


def build_plain_network(
    config: ModelConfig, seed: int = 0, *, pretrained: bool = False, allow_import: bool = False
) -> nn.Module:
    """The plain C-channel network of a model, freshly initialised by seed, or with its published weights."""
    return networks.build_network(
        config.network,
        channels=config.channels,
        classes=len(config.classes),
        seed=derived_seed(seed, "weights"),
        size=config.size,
        width=config.width,
        pretrained=pretrained,
        allow_import=allow_import,
        dropout=config.dropout,
    )


def save_model(run: Run, model: nn.Module, config: ModelConfig) -> None:
    """Write ``model.json``, then the weights and references, whose file exists exactly when training is complete.

    In single precision, which networks are built in, whatever they were trained in.
    """
    write_json(run.model_file, kept(config))
    state = {name: t.float() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    save_tensors(run.weights_file, state)


def read_config(run: Run) -> ModelConfig:
    """Read ``model.json``; ``UserError`` where it is missing, malformed, or has other fields or values."""
    if not run.model_file.exists():
        raise UserError(f"{run.path} is not a trained run: it has no {run.model_file.name}")
    where = f"{run.model_file} does not describe a model of this version of anchored"
    config: ModelConfig = parse(ModelConfig, read_json(run.model_file), where)
    return config


def load(source: str | Path, *, network: nn.Module | str | None = None) -> nn.Module:
    """The trained module of a folder, in evaluation mode, on the CPU: images (B,C,H,W), normalised, to logits.

    Args:
        source: the folder of a run or of a converted model, or ``hub:owner/name[@revision]`` on the Hugging Face hub.
        network: the plain C-channel network, or its name again, where ``model.json`` names one that is code
            (``python:...``), which is never imported because a folder says so.

    The module has three more attributes: ``preprocess`` (:meth:`ModelConfig.preprocess`) turns raw uint8 images into
    inputs, ``classes`` names the logits, and ``decide`` gives the :class:`~anchored.models.decision.Decided` of raw
    uint8 images, where the folder was calibrated (``anchored calibrate``). ``references`` are those of training.
    Nothing is unpickled. Raises ``UserError`` where the folder holds no complete model, or weights of another network.

    Example:
        >>> model = anchored.load("runs/demo/runs/small-ram-0.25-seed10")
        >>> names = [model.classes[i] for i in model(model.preprocess(images)).argmax(dim=1)]
    """
    if Path(source).suffix.lower() == ".safetensors":
        return _load_exported(Path(source), network)
    run = hub.local_run(source)
    config = read_config(run)
    if not run.weights_file.exists():
        raise UserError(f"{run.path}: training is not complete, there is no {run.weights_file.name}; train it first")
    model = build_model(config, network=_plain_network(config, run.model_file, network))
    weights, _ = load_tensors(run.weights_file)
    if isinstance(model, AnchoredModel):
        _set_references(run, model, config, weights.get("references"))
    fit_weights(model, weights, run.weights_file, strict=True)
    model.__dict__["decide"] = partial(_decide, run, model, config)
    return with_preprocessing(model, config)


def _decide(run: Run, model: nn.Module, config: ModelConfig, images: Tensor) -> Decided:
    """What is decided of raw images (B,C,H,W) uint8 of any size; ``UserError`` where the run was not calibrated."""
    rule = read_decision(run)
    device = next(model.parameters()).device
    with torch.inference_mode():
        return rule.decide(model(config.preprocess(images.to(device))))


def read_decision(run: Run) -> Decision:
    """The decision in a model's folder; ``UserError`` where there is none, or it is for other weights."""
    if not run.decision_file.exists():
        raise UserError(
            f"{run.path} has no {run.decision_file.name}: calibrate it first (anchored calibrate {run.path})"
        )
    return Decision.read(run.decision_file, weights_digest(run))


def keep_decision(source: Run, folder: Path, weights_file: Path) -> str:
    """Write a model's decision, if it has one, into another folder, for the weights there; a line on what became of it.

    For weights of the same logits up to rounding, which the caller has compared: decisions are made of logits alone.
    """
    name = source.decision_file.name
    if not source.decision_file.exists():
        return ""
    try:
        rule = read_decision(source)
    except UserError as error:
        return f"{name} was left out: {error}"
    replace(rule, weights=digest(read_bytes(weights_file))).save(folder / name)
    return f"{name} came along, for these weights"


def _load_exported(path: Path, network: nn.Module | str | None) -> nn.Module:
    """The folded network of a safetensors file that ``anchored export`` wrote; see :func:`load`."""
    weights, text = load_tensors(path)
    config, _ = exported_config(path, text)
    folded = _plain_network(config, path, network)
    if config.protocol != "standard" and weights.keys() != folded.state_dict().keys():
        stem, at = config.stem or None, config.at or None
        wide = anchor(folded, fresh_stem=True, stem=stem, at=at, example=_example(config))
        # References other than zero, so that the folded network has the maps that are loaded into it.
        folded = fold(wide, torch.ones(config.references, *_example(config).shape[1:]))
    fit_weights(folded, weights, path, strict=True)
    return with_preprocessing(folded, config)


def exported_config(path: Path, text: Mapping[str, str]) -> tuple[ModelConfig, dict[str, Any]]:
    """The model of a file that ``anchored export`` wrote, and what else its text ``anchored`` says of it.

    ``UserError`` where the text is not there, or says something else.
    """
    try:
        said = json.loads(text["anchored"])
        return parse(ModelConfig, said["model"]), said
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a model that anchored exported: {error}") from error


def _plain_network(config: ModelConfig, path: Path, network: nn.Module | str | None) -> nn.Module:
    """The given network, else the one that the file ``path`` names: imported only where the caller gives that name."""
    if isinstance(network, nn.Module):
        spec = third_party.NetworkSpec(config.channels, len(config.classes), config.size)
        third_party.check_logits_shape(network, type(network).__name__, spec)
        return network
    if network not in (None, config.network):
        raise UserError(f"{path} is of network '{config.network}', not '{network}'")
    try:
        return build_plain_network(config, allow_import=network is not None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def with_preprocessing(model: nn.Module, config: ModelConfig) -> nn.Module:
    """The module in evaluation mode, with the attributes ``preprocess`` and ``classes`` of :func:`load`."""
    model.__dict__.update(preprocess=config.preprocess, classes=config.classes)
    return model.eval()


def _set_references(run: Run, model: AnchoredModel, config: ModelConfig, references: Tensor | None) -> None:
    expected = (config.references, config.channels, config.size, config.size) if config.references else None
    shape = None if references is None else tuple(references.shape)
    if shape != expected:
        raise UserError(f"{run.weights_file} holds references {shape}, but {run.model_file} says {expected}")
    if references is not None:
        try:
            model.set_references(references)
        except UserError as error:
            raise UserError(f"{run.weights_file}: {error}") from error


def weights_digest(run: Run) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the weights file, which cached outputs are bound to."""
    return digest(read_bytes(run.weights_file))
