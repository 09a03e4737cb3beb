"""What a training begins with: fresh weights, those published with the network's name, or a checkpoint's."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from anchored.config.recipe import Cell
from anchored.config.settings import Network
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.method.folding import fold
from anchored.models import folder as model
from anchored.models import hub
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig, Normalisation
from anchored.store.files import load_tensors
from anchored.store.layout import Run


def config_of(cell: Cell) -> ModelConfig:
    """The model that a cell trains, normalised like the one it starts from where the recipe does not say."""
    return model.config_of(cell, _normalisation(cell))


def _normalisation(cell: Cell) -> Normalisation | None:
    """How inputs of the model that a cell starts from are normalised; None where that is not known."""
    if cell.start.pretrained:
        published = networks.preprocessing(cell.network)
        return published.mean, published.std
    if not cell.start.checkpoint:
        return None
    folder = Run(_weights_file(cell.start.checkpoint).parent)
    if not folder.model_file.exists():
        return None
    config = model.read_config(folder)
    return config.mean, config.std


def begin(cell: Cell, config: ModelConfig) -> nn.Module:
    """The module that a cell's training begins with, before its references are set.

    Every protocol starts from the same plain weights, the stem widened as ``anchoring.stem`` says. Only a folder that
    was *trained* anchored is another start: for anchored protocols alone, with its wide stem.
    """
    plain = model.plain(config, cell.seed, pretrained=cell.start.pretrained, allow_import=True)  # the recipe's own
    wide = None
    if cell.start.checkpoint:
        path = _weights_file(cell.start.checkpoint)
        if cell.start.sha256 not in ("", _sha256(path)):
            raise UserError(f"{path} holds other weights than the study began with (sha256 {cell.start.sha256})")
        weights = _checkpoint(path)
        if not isinstance(weights, AnchoredModel):
            model.fill(plain, weights, path, replace_head=True)
        elif cell.protocol == "standard":
            raise UserError(f"network.checkpoint {path} was trained anchored: a standard network cannot start from it")
        else:
            wide = dict(weights.network.state_dict())
    made = model.build(config, seed=cell.seed, fresh_stem=cell.anchoring.stem == "fresh", network=plain)
    if wide is not None:
        assert isinstance(made, AnchoredModel)
        model.fill(made.network, wide, path, replace_head=True)
    return made


def _checkpoint(path: Path) -> dict[str, Tensor] | AnchoredModel:
    """Weights of the plain network, or the model where it was trained anchored."""
    folder = Run(path.parent)
    if not folder.model_file.exists():
        return load_tensors(path)[0]
    started = model.load(folder.path)
    if not isinstance(started, AnchoredModel):
        return dict(started.state_dict())
    # Converted and not trained: the same for every reference, and exactly the plain network's weights.
    return started if started.references is not None else dict(fold(started).state_dict())


def pinned(start: Network) -> Network:
    """The same start with the hash of its checkpoint's weights, so that a study's results are bound to them."""
    if not start.checkpoint:
        return start
    found = _sha256(_weights_file(start.checkpoint))
    if start.sha256 not in ("", found):
        raise UserError(f"network.checkpoint {start.checkpoint} has sha256 {found}, the recipe says {start.sha256}")
    return replace(start, sha256=found)


def _weights_file(checkpoint: str) -> Path:
    """The weights of a checkpoint: the file itself, or a folder's, here or on the hub."""
    path = hub.fetch(checkpoint) if hub.is_name(checkpoint) else Path(checkpoint)
    path = Run(path).weights_file if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"network.checkpoint {checkpoint}: there is no such file, and no folder with weights")
    return path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
