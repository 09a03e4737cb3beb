"""A trained network and its folder: from settings to module, from module to files and back."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anchored import data, networks
from anchored.anchoring import AnchoredModel, anchor
from anchored.errors import UserError
from anchored.recipe import Anchoring, Cell, Network, Protocol, derived_seed
from anchored.runs import Run, load_tensors, read_json, save_tensors, write_json
from anchored.stream import Interpolation


@dataclass(frozen=True)
class ModelConfig:
    """What is needed to rebuild a module and to feed it: ``model.json``."""

    network: str
    protocol: Protocol
    mask_probability: float
    channels: int
    size: int  # height and width of the images, pixels
    mean: tuple[float, ...]  # per channel, of images in [0, 1]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    trained_on: str  # row of the catalog
    references: int  # K; 0 for the standard protocol
    mask_unit: str = Anchoring.mask_unit
    masked_target: str = Anchoring.masked_target
    batch_norm: str = Anchoring.batch_norm
    width: float = Network.width  # factor on the hidden widths of networks that are rows
    interpolation: Interpolation = "bilinear"
    crop: float = 1.0  # share of the shorter side that the middle square keeps


def config_of(cell: Cell) -> ModelConfig:
    """The model that a cell trains."""
    row, seen = data.describe(cell.data), data.seen_by(cell.data)
    return ModelConfig(
        network=cell.network,
        protocol=cell.protocol,
        mask_probability=cell.alpha,
        channels=seen.channels,
        size=seen.size,
        mean=row.mean,
        std=row.std,
        classes=row.classes,
        trained_on=row.name,
        references=0 if cell.protocol == "standard" else cell.anchoring.references,
        mask_unit=cell.anchoring.mask_unit,
        masked_target=cell.anchoring.masked_target,
        batch_norm=cell.anchoring.batch_norm,
        width=cell.start.width,
        interpolation=seen.interpolation,
        crop=seen.crop,
    )


def build(config: ModelConfig, *, seed: int = 0, fresh_stem: bool = True) -> nn.Module:
    """The untrained module: images (B,C,H,W), normalised, to logits (B,N).

    Protocols with the same seed have the same initial weights, the stem apart.
    """
    network = networks.build(
        config.network,
        channels=config.channels,
        classes=len(config.classes),
        seed=derived_seed(seed, "weights"),
        size=config.size,
        width=config.width,
    )
    if config.protocol == "standard":
        return network
    return anchor(
        network,
        config.mask_probability,
        fresh_stem=fresh_stem,
        mask_unit=config.mask_unit,  # type: ignore[arg-type]  # checked by anchor()
        masked_target=config.masked_target,  # type: ignore[arg-type]
        batch_norm=config.batch_norm,  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(derived_seed(seed, "stem")),
    )


def save(run: Run, model: nn.Module, config: ModelConfig) -> None:
    """Write ``model.json``, then the weights and references: their presence says that training is complete."""
    write_json(run.model_file, dataclasses.asdict(config))
    save_tensors(run.weights_file, dict(model.state_dict()))


def read_config(run: Run) -> ModelConfig:
    """Read ``model.json``; ``UserError`` where it is missing, malformed or has other fields."""
    if not run.model_file.exists():
        raise UserError(f"{run.path} is not a trained run: it has no {run.model_file.name}")
    fields: Any = read_json(run.model_file)
    try:
        tuples: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
        return ModelConfig(**tuples)
    except (TypeError, AttributeError) as error:
        raise UserError(f"{run.model_file} does not describe a model of this version of anchored: {error}") from error


def load(folder: str | Path) -> nn.Module:
    """The trained module of a run's folder, in evaluation mode, on the CPU: images (B,C,H,W), normalised, to logits.

    ``.references`` are those of training. Normalise images with the ``mean`` and ``std`` of the folder's
    ``model.json``. Nothing is unpickled. Raises ``UserError`` where the folder holds no complete run, or weights of
    another network.
    """
    run = Run(Path(folder))
    config = read_config(run)
    if not run.weights_file.exists():
        raise UserError(f"{run.path}: training is not complete, there is no {run.weights_file.name}; train it first")
    model = build(config)
    weights, _ = load_tensors(run.weights_file)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"{run.weights_file} does not fit {run.model_file}: {str(error).splitlines()[1].strip()}"
        ) from error
    if isinstance(model, AnchoredModel):
        _check_references(run, model, config)
    return model.eval()


def _check_references(run: Run, model: AnchoredModel, config: ModelConfig) -> None:
    wanted = (config.references, config.channels, config.size, config.size)
    found = None if model.references is None else tuple(model.references.shape)
    if found != wanted:
        raise UserError(f"{run.weights_file} holds references {found}, but {run.model_file} says {wanted}")


def weights_digest(run: Run) -> str:
    """Short hash of the weights file: outputs are bound to it."""
    return hashlib.sha256(run.weights_file.read_bytes()).hexdigest()[:16]
