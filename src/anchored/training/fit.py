"""Training of one cell by Lightning's Trainer; the training step is in ``step``."""

import contextlib
import csv
import io
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.layer_sync import LayerSync
from torch import Tensor, nn

from anchored.config.recipe import Cell, derived_seed
from anchored.config.settings import Training
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.image_sets import LabelledImages
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError, is_out_of_memory
from anchored.method.anchoring import AnchoredModel
from anchored.method.collectives import from_rank_zero, get_rank
from anchored.method.hard_delta import Residuals
from anchored.models import folder as models
from anchored.models import initialisation
from anchored.models.features import network_behind
from anchored.store import files
from anchored.store.layout import Run
from anchored.training import interruption, optimiser, reference_images
from anchored.training.checkpoints import TensorCheckpoints
from anchored.training.devices import find_device
from anchored.training.launch import trainer_options
from anchored.training.preconditions import Diverged, check_batch_size, claim_run
from anchored.training.step import TrainingStep

SYNC_STEPS = 32  # steps after which ranks agree on whether a checkpoint is due, which waits for the devices
Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


class CheckpointCallback(pl.Callback):
    """Saves the state after each epoch, and every ``minutes`` within one; reports progress."""

    def __init__(self, run: Run, progress: Progress, minutes: float = Training.checkpoint_minutes) -> None:
        self.run, self.progress, self.minutes = run, progress, minutes
        self._saved = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Start the time until the first checkpoint; signals are ours, not Lightning's."""
        self._saved = time.monotonic()
        interruption.install()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Report progress eight times an epoch, since reading the loss waits for the device; save where it is due."""
        every = max(1, int(trainer.num_training_batches) // 8)
        if trainer.global_step % every == 0:
            share = trainer.global_step / trainer.estimated_stepping_batches
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.progress(share, f"training, {epoch}, loss {outputs['loss'].item():.3f}")
        due = time.monotonic() - self._saved >= 60 * self.minutes or interruption.is_received()
        may_save = trainer.world_size == 1 or not self.minutes or trainer.global_step % SYNC_STEPS == 0
        if may_save and not trainer.is_last_batch and trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer, module)
            interruption.raise_received()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Save the state, and the history of epochs as ``training.csv``."""
        assert isinstance(module, TrainingStep)
        module.close_epoch()
        self._save(trainer, module)
        if trainer.is_global_zero:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(module.history[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(module.history)
            files.write_text(self.run.log_file, text.getvalue())
        interruption.raise_received()

    def _save(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingStep)
        module.refuse_divergence()
        self.run.refuse_removed()
        trainer.save_checkpoint(self.run.checkpoint_file)
        self._saved = time.monotonic()


class SyncBatchNorms(LayerSync):
    """Batch norms that share their statistics over all devices, those of timm's networks with what follows in them.

    Lightning's own plugin, which is torch's conversion, would drop their activations.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Exchange the batch norms; their parameters stay, under the same names."""
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(model)  # type: ignore[no-any-return,no-untyped-call]

    def revert(self, model: nn.Module) -> nn.Module:
        """Leave them, since what is kept are weights by name."""
        return model


def train(
    run: Run, cell: Cell, progress: Progress = lambda share, what: None, root: Path | None = None, **options: Any
) -> None:
    """Train a cell into a run's folder, on every rank, from its checkpoint if there is one, unless it is trained.

    Same seed, machine and number of devices, same weights, interrupted or not. ``root``: the folder of the data sets;
    ``options``: further ones of Lightning's Trainer, such as loggers. ``UserError`` where the folder holds another
    cell, the data do not suffice, or memory runs out; ``Diverged`` where the loss or a weight is not finite.
    """
    if from_rank_zero(lambda: claim_run(run, cell)):
        return
    config = initialisation.model_config(cell)
    images = _training_images(cell, root)
    model = initialisation.initial_model(cell, config)
    references = None
    if isinstance(model, AnchoredModel):
        references = reference_images.references(images, cell, config, root=root)
        model.set_references(references)
        model.set_training_references(reference_images.training_references(images, cell, config))
    step = TrainingStep(_prepared(model, cell.train), cell, len(config.classes), _residuals(cell, config))
    if cell.train.precision == "64-true":  # as Lightning makes it, but before a checkpoint is read into it
        step = step.double()
    trainer = _trainer(run, cell, progress, options)
    outliers = _outliers(cell, root)
    _fit(trainer, step, _batches(trainer, images, outliers, cell, config), run, config)
    from_rank_zero(lambda: _save_model(run, step.model, config, references))


def _prepared(model: nn.Module, settings: Training) -> nn.Module:
    """The model in its memory format, and its network compiled, in place, where the settings ask for it.

    Only the network: pairs and masks are drawn before it, by generators that cannot be traced.
    """
    if settings.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.compile != "none":
        # A step has at most three sizes (with tail points, and these alone): a graph each is faster than one for all.
        network_behind(model).compile(mode=settings.compile, dynamic=False)
    return model


def _training_images(cell: Cell, root: Path | None) -> LabelledImages:
    resized, view = cell.train.crop == "resized", datasets.input_format(cell.data)
    images = datasets.open_set(cell.data.train, "train", cell.data, view, root, originals=resized)
    check_batch_size(cell.data.train, len(images), cell.train)
    return images


def _outliers(cell: Cell, root: Path | None) -> LabelledImages | str:
    """Images of ``train.outliers``, or how they are made of the training images."""
    name = cell.train.outliers
    if not name or name in OUTLIERS:
        return name
    split, view = datasets.outlier_split(name, cell.data), datasets.input_format(cell.data)
    return datasets.open_set(name, split, cell.data, view, root, originals=cell.train.crop == "resized")


def _trainer(run: Run, cell: Cell, progress: Progress, options: dict[str, Any]) -> pl.Trainer:
    settings = cell.train
    checkpoints = CheckpointCallback(run, progress, settings.checkpoint_minutes)
    return pl.Trainer(
        **{
            "max_epochs": settings.epochs,
            "accelerator": find_device().type if settings.accelerator == "auto" else settings.accelerator,
            **trainer_options(settings.devices, settings.sync_batch_norm),
            "gradient_clip_val": settings.clip_norm or None,
            "precision": settings.precision,
            "deterministic": settings.deterministic,
            "plugins": [TensorCheckpoints(), *([SyncBatchNorms()] if settings.sync_batch_norm else [])],
            "callbacks": [*optimiser.averaging_callbacks(settings), checkpoints],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": run.path,
            **options,
        }
    )


def _batches(
    trainer: pl.Trainer,
    images: LabelledImages,
    outliers: LabelledImages | str,
    cell: Cell,
    config: models.ModelConfig,
) -> Batches:
    """This rank's share of every batch, augmented and normalised."""
    settings, device = cell.train, trainer.strategy.root_device
    return Batches(
        images.to(device), settings.batch_size // settings.devices, config.mean, config.std,
        seed=derived_seed(cell.seed, "order"), shuffle=True, crop_padding=settings.crop_padding, flip=settings.flip,
        resized_crop=settings.crop == "resized", policy=settings.policy, copies=2 if settings.consistency else 0,
        erasing=settings.random_erasing, repeats=settings.repeats,
        outliers=outliers if isinstance(outliers, str) else outliers.to(device), drop_last=True,
        shard=(trainer.global_rank, trainer.world_size),
    )  # fmt: skip


def _fit(trainer: pl.Trainer, step: TrainingStep, batches: Batches, run: Run, config: models.ModelConfig) -> None:
    """Train, from the checkpoint if there is one; errors that users can mend become one line with what to do."""
    resumed = from_rank_zero(run.checkpoint_file.exists)
    try:
        # Several ranks may wait for one another within a step: they end at once, at the last checkpoint.
        with interruption.delayed() if trainer.world_size == 1 else contextlib.nullcontext():
            trainer.fit(step, batches, ckpt_path=run.checkpoint_file if resumed else None)
    except SystemExit as stopped:  # Lightning makes an exit of an interruption, and ignores further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interruption.install()
        raise interruption.Interrupted(interruption.number_of(stopped.__context__)) from stopped
    except Diverged as error:
        raise Diverged(f"{error}{_save_last_good(run, step.model, config)}") from error
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{step.cell.label}: memory ran out: lower train.batch_size (now {step.cell.train.batch_size}) and the "
                "learning rate with it; it is not halved here, since batch norm and references depend on the batch"
            ) from error
        if resumed and not step.begun:
            raise UserError(
                f"{run.checkpoint_file} is not a checkpoint of this training: train into another folder, from the start"
            ) from error
        raise


def _save_model(run: Run, model: nn.Module, config: models.ModelConfig, references: Tensor | None) -> None:
    run.refuse_removed()
    if isinstance(model, AnchoredModel) and references is not None:
        model.float().set_references(references)  # the images themselves, not what 16 bits made of them
    models.save_model(run, model, config)
    run.checkpoint_file.unlink(missing_ok=True)


def _save_last_good(run: Run, model: nn.Module, config: models.ModelConfig) -> str:
    """Save the weights of the last checkpoint as a model folder, on rank 0; how to continue from them, in words."""
    if get_rank() > 0:
        return ""
    if not run.checkpoint_file.exists():
        return ", and train into another folder"
    state = files.load_tree(run.checkpoint_file)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in state.items() if name[:6] == "model."})
    models.save_model(run.last_good, model, config)
    return (
        f"; the last good weights are kept: start from them, into another folder, with --network.checkpoint "
        f"{run.last_good.path} --anchoring.stem kept"
    )


def _residuals(cell: Cell, config: models.ModelConfig) -> Residuals | None:
    """The residuals that hard Δ mining fits; None where λ is 0."""
    if not cell.tail_weight:
        return None
    shape, classes = (config.channels, config.size, config.size), len(config.classes) if cell.tail.per_class else 1
    return Residuals(shape, classes, pairs=cell.tail.pairs, rank=cell.tail.rank)
