"""What a training starts from: fresh weights, those published with the network's name, or a checkpoint's."""

import hashlib
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from anchored.config.recipe import Cell
from anchored.config.settings import Network
from anchored.data import datasets
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.method.folding import fold
from anchored.models import folder as models
from anchored.models import hub
from anchored.models import registry as networks
from anchored.models.checkpoint import read_checkpoint, weight_files
from anchored.models.folder import ModelConfig
from anchored.models.weights import fit_weights
from anchored.store import files
from anchored.store.layout import Run


def model_config(cell: Cell) -> ModelConfig:
    """The model that a cell trains."""
    row, view = datasets.training_row(cell.data), datasets.input_format(cell.data)
    mean, std = _normalisation(cell)
    if len(mean) == 1 and view.channels == 3:  # grey repeated
        mean, std = mean * 3, std * 3
    if len(mean) != view.channels:
        raise UserError(
            f"{row.name} has {row.channels} channels and data.channels is {view.channels}: give data.mean and "
            f"data.std, {view.channels} values each"
        )
    return ModelConfig(
        network=cell.network, protocol=cell.protocol, mask_probability=cell.mask_probability, channels=view.channels,
        size=view.size, mean=mean, std=std, classes=row.classes, trained_on=row.name,
        references=0 if cell.protocol == "standard" else cell.anchoring.references, mask_unit=cell.anchoring.mask_unit,
        mask_group=cell.anchoring.mask_group, reference_choice=cell.anchoring.reference_choice,
        masked_target=cell.anchoring.masked_target, batch_norm=cell.anchoring.batch_norm, width=cell.start.width,
        at="" if cell.protocol == "standard" else cell.anchoring.at, interpolation=view.interpolation, crop=view.crop,
        dropout=cell.train.dropout,
    )  # fmt: skip


def _normalisation(cell: Cell) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of a cell's inputs. The recipe's, else those of the weights that the cell starts
    from, else the data set's."""
    if cell.data.mean:
        return cell.data.mean, cell.data.std
    if cell.start.pretrained:
        published = networks.preprocessing(cell.network)
        return published.mean, published.std
    if cell.start.checkpoint and (run := _model_folder(_weights_file(cell.start.checkpoint))):
        config = models.read_config(run)
        return config.mean, config.std
    row = datasets.training_row(cell.data)
    return row.mean, row.std


def initial_model(cell: Cell, config: ModelConfig) -> nn.Module:
    """The module that a cell's training starts from, before its references are set.

    Every protocol starts from the same plain weights, the stem widened as ``anchoring.stem`` says. The exception is a
    checkpoint that was *trained* anchored: only anchored protocols can start from it, with its wide stem.
    """
    # The name is the recipe's own, so code may be imported.
    plain = models.build_plain_network(config, cell.seed, pretrained=cell.start.pretrained, allow_import=True)
    path, anchored_weights = Path(), None
    if cell.start.checkpoint:
        path = _weights_file(cell.start.checkpoint)
        if cell.start.sha256 not in ("", _sha256(path)):
            raise UserError(f"{path} holds other weights than the study began with (sha256 {cell.start.sha256})")
        weights = _checkpoint(path, cell.network)
        if not isinstance(weights, AnchoredModel):
            fit_weights(plain, weights, path, replace_head=True)
        elif cell.protocol == "standard":
            raise UserError(f"network.checkpoint {path} was trained anchored: a standard network cannot start from it")
        elif (there := models.read_config(Run(path.parent)).at) != config.at:
            place = [f"'{at}'" if at else "the image" for at in (there, config.at)]
            raise UserError(f"network.checkpoint {path} was trained anchored at {place[0]}, anchoring.at is {place[1]}")
        else:
            anchored_weights = dict(weights.network.state_dict())
    model = models.build_model(config, seed=cell.seed, fresh_stem=cell.anchoring.stem == "fresh", network=plain)
    if anchored_weights is not None:
        assert isinstance(model, AnchoredModel)
        fit_weights(model.network, anchored_weights, path, replace_head=True)
    return model


def _checkpoint(path: Path, network: str) -> dict[str, Tensor] | AnchoredModel:
    """Weights of the plain network, or the model where it was trained anchored. ``network``: the recipe's name, whose
    code may be imported where the folder is of the same one."""
    run = _model_folder(path)
    if run is None:
        return read_checkpoint(path).tensors
    model = models.load(run.path, network=network if models.read_config(run).network == network else None)
    if not isinstance(model, AnchoredModel):
        return dict(model.state_dict())
    # Converted and not trained: the same for every reference, and exactly the plain network's weights.
    return model if model.references is not None else dict(fold(model).state_dict())


def _model_folder(weights: Path) -> Run | None:
    """The model folder whose weights these are; None where they are another file, beside a model or not."""
    run = Run(weights.parent)
    return run if run.model_file.exists() and weights.name == run.weights_file.name else None


def with_checkpoint_hash(start: Network) -> Network:
    """The same settings with the hash of the checkpoint's weights, which binds a study's results to them."""
    if not start.checkpoint:
        return start
    digest = _sha256(_weights_file(start.checkpoint))
    if start.sha256 not in ("", digest):
        raise UserError(f"network.checkpoint {start.checkpoint} has sha256 {digest}, the recipe says {start.sha256}")
    return replace(start, sha256=digest)


def _weights_file(checkpoint: str) -> Path:
    """The weights of a checkpoint: the file itself, or those in a model folder, here or on the hub."""
    path = hub.local_run(checkpoint).path
    path = Run(path).weights_file if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"network.checkpoint {checkpoint}: there is no such file, and no folder with weights")
    return path


def _sha256(path: Path) -> str:
    """The hash of a file of weights; of an index, that of it and its shards."""
    digest = hashlib.sha256()
    for file in weight_files(path):
        digest.update(files.read_bytes(file))
    return digest.hexdigest()
