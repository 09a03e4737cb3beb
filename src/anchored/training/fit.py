"""Training one cell: Lightning's Trainer drives, what happens to a batch is in ``step``."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from anchored.config.recipe import Cell, canonical, derived_seed
from anchored.config.settings import Training
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.image_sets import LabelledImages
from anchored.data.preprocessing import to_input
from anchored.errors import UserError, is_out_of_memory
from anchored.method import collectives
from anchored.method.anchoring import AnchoredModel
from anchored.method.hard_delta import Residuals
from anchored.models import folder as models
from anchored.models import initialisation
from anchored.store import files, layout
from anchored.store.layout import Run
from anchored.training import distributed, optimiser
from anchored.training.checkpoints import TensorCheckpoints
from anchored.training.step import Diverged, TrainingStep

ASK = 32  # steps after which processes ask each other whether a checkpoint is due, which waits for the devices
Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


class Keeper(pl.Callback):
    """Keeps the state after each epoch, and every ``minutes`` within one; tells now and then how far training is."""

    def __init__(self, run: Run, progress: Progress, minutes: float = Training.checkpoint_minutes) -> None:
        self.run, self.progress, self.minutes = run, progress, minutes
        self._kept = 0.0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """The time until the first checkpoint begins."""
        self._kept = time.monotonic()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Tell how far training is, a few times an epoch (reading the loss waits for the device); keep the state."""
        every = max(1, int(trainer.num_training_batches) // 8)
        if trainer.global_step % every == 0:
            share = trainer.global_step / trainer.estimated_stepping_batches
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.progress(share, f"training, {epoch}, loss {outputs['loss'].item():.3f}")
        due = time.monotonic() - self._kept >= 60 * self.minutes
        asks = trainer.world_size == 1 or not self.minutes or trainer.global_step % ASK == 0
        if asks and not trainer.is_last_batch and trainer.strategy.reduce_boolean_decision(due, all=False):
            self._keep(trainer, module)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the state and the log."""
        assert isinstance(module, TrainingStep)
        module.close_epoch()
        self._keep(trainer, module)
        if not trainer.is_global_zero:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(module.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(module.history)
        files.write_text(self.run.log_file, text.getvalue())

    def _keep(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, TrainingStep)
        module.refuse_divergence()
        trainer.save_checkpoint(self.run.checkpoint_file)
        self._kept = time.monotonic()


def train(
    run: Run, cell: Cell, progress: Progress = lambda share, what: None, root: Path | None = None, **trainer: Any
) -> None:
    """Train a cell into a run's folder; nothing is done where that is complete, and a started training goes on.

    Same seed and machine, same weights, interrupted or not. ``trainer`` holds further options of Lightning's Trainer
    (loggers, say). Raises ``UserError`` where the folder holds another cell, or the loss stops being a number.
    """
    bind(run, cell)
    if not run.weights_file.exists():
        where = None if root is None else str(root)
        _train(progress, trainer, folder=str(run.path), settings=dataclasses.asdict(cell), root=where)


@distributed.shared(in_step=True)
def _train(
    progress: Progress = lambda share, what: None,
    options: dict[str, Any] | None = None,
    *,
    folder: str,
    settings: dict[str, Any],
    root: str | None,
) -> None:
    """What each process does to train a cell; the first one writes."""
    run, cell = Run(Path(folder)), Cell.parse(settings, folder)
    config = initialisation.model_config(cell)
    seen, resized = datasets.input_format(cell.data), cell.train.crop == "resized"
    images = datasets.open_set(cell.data.train, "train", cell.data, seen, root, originals=resized)
    if len(images) < cell.train.batch_size:
        raise UserError(
            f"{cell.data.train} gives {len(images)} training images, fewer than train.batch_size "
            f"{cell.train.batch_size}: lower the batch size or raise data.fraction"
        )
    model = initialisation.initial_model(cell, config)
    if isinstance(model, AnchoredModel):
        model.set_references(_references(images, config, cell.seed))
    # channels_last: up to twice as fast on CPUs and tensor cores; the results of a machine stay reproducible.
    step = TrainingStep(
        model.to(memory_format=torch.channels_last), cell, len(config.classes), _residuals(cell, config)
    )
    engine = pl.Trainer(
        **{
            "max_epochs": cell.train.epochs,
            "accelerator": cell.train.accelerator,
            **distributed.trainer_options(cell.train.devices, cell.train.sync_batch_norm),
            "gradient_clip_val": cell.train.clip_norm or None,
            "precision": cell.train.precision,
            "deterministic": cell.train.deterministic,
            "plugins": [TensorCheckpoints()],
            "callbacks": [*optimiser.averages(cell.train), Keeper(run, progress, cell.train.checkpoint_minutes)],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": run.path,
            **(options or {}),
        }
    )
    batches = Batches(
        images.to(engine.strategy.root_device),
        cell.train.batch_size // cell.train.devices,
        config.mean,
        config.std,
        seed=derived_seed(cell.seed, "order"),
        shuffle=True,
        crop_padding=cell.train.crop_padding,
        flip=cell.train.flip,
        resized_crop=resized,
        policy=cell.train.policy,
        drop_last=True,
        shard=(engine.global_rank, engine.world_size),
    )
    _fit(engine, step, batches, run, config)
    if engine.is_global_zero:
        models.save_model(run, step.model, config)
        run.checkpoint_file.unlink(missing_ok=True)


def _fit(engine: pl.Trainer, step: TrainingStep, batches: Batches, run: Run, config: models.ModelConfig) -> None:
    """Train, from the checkpoint on where there is one; what goes wrong is told in one line with what to do."""
    there = run.checkpoint_file.exists()
    try:
        engine.fit(step, batches, ckpt_path=run.checkpoint_file if there else None)
    except SystemExit as stopped:  # Lightning makes an exit of Ctrl-C, and ignores further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from stopped
    except Diverged as error:
        raise UserError(f"{error}{_last_good(run, step.model, config)}") from error
    except UserError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise UserError(
                f"{step.cell.label}: memory ran out: lower train.batch_size (now {step.cell.train.batch_size}) and the "
                "learning rate with it; it is not halved here, since batch norm and references depend on the batch"
            ) from error
        if there and not step.begun:
            raise UserError(
                f"{run.checkpoint_file} is not a checkpoint of this training: remove it to train from the start"
            ) from error
        raise


def _last_good(run: Run, model: nn.Module, config: models.ModelConfig) -> str:
    """Keep the weights of the last checkpoint as a model folder, and say how to go on from them."""
    if collectives.place()[0] > 0:
        return ""
    if not run.checkpoint_file.exists():
        return ", and train into another folder"
    state = files.load_tree(run.checkpoint_file)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): each for name, each in state.items() if name[:6] == "model."})
    models.save_model(run.last_good, model, config)
    return (
        f"; the last good weights are kept: start from them, into another folder, with --network.checkpoint "
        f"{run.last_good.path} --anchoring.stem kept"
    )


def bind(run: Run, cell: Cell) -> None:
    """Claim a folder for a cell; ``UserError`` where it holds another one."""
    settings = json.loads(canonical(cell))
    with files.os_errors_as_user_errors(run.path, "read"):
        claimed = run.cell_file.exists()
    if claimed:
        found = json.loads(canonical(Cell.parse(files.read_json(run.cell_file), run.cell_file)))
        if found != settings:
            raise UserError(
                f"{run.path} holds another training ({layout.first_difference(found, settings)}): choose another folder"
            )
        return
    files.write_json(run.cell_file, settings)


def _residuals(cell: Cell, config: models.ModelConfig) -> Residuals | None:
    """What hard Δ mining fits, where the cell has a λ."""
    if not cell.tail_weight:
        return None
    shape, classes = (config.channels, config.size, config.size), len(config.classes) if cell.tail.per_class else 1
    return Residuals(shape, classes, pairs=cell.tail.pairs, rank=cell.tail.rank)


def _references(images: LabelledImages, config: models.ModelConfig, seed: int) -> Tensor:
    """K training images (K,C,H,W), drawn by seed, not augmented, normalised."""
    if config.references > len(images):
        raise UserError(f"anchoring.references is {config.references}, but there are {len(images)} training images")
    generator = torch.Generator().manual_seed(derived_seed(seed, "references"))
    chosen = torch.randperm(len(images), generator=generator)[: config.references]
    return to_input(next(images.parts([chosen])), config.mean, config.std)
