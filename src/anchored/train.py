"""Training one cell: Lightning's Trainer drives, the loss is one visible line."""

from __future__ import annotations

import csv
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anchored import data, disk, optimiser, runs, start
from anchored import model as models
from anchored import stem as stems
from anchored.anchoring import AnchoredModel
from anchored.errors import UserError
from anchored.mixing import mix
from anchored.recipe import Cell, canonical, derived_seed
from anchored.residuals import Residuals, uniform_cross_entropy
from anchored.runs import Run
from anchored.settings import Training

Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


class TrainingStep(pl.LightningModule):
    """What happens to a batch, and the history that is kept of it."""

    def __init__(self, model: nn.Module, cell: Cell, classes: int, residuals: Residuals | None = None) -> None:
        super().__init__()
        self.model, self.cell, self.classes, self.residuals = model, cell, classes, residuals
        network = model.network if isinstance(model, AnchoredModel) else model
        self.factors = optimiser.factors(network, cell.train.rates, _parts(model) if cell.train.rates else {})
        self.frozen = optimiser.freeze(network, self.factors)
        self.history: list[dict[str, float]] = []
        self._started = 0.0
        self._draws = torch.Generator()  # of tail points

    def on_train_epoch_start(self) -> None:
        """Every draw of an epoch follows from (seed, epoch), so a resumed run repeats an uninterrupted one."""
        if isinstance(self.model, AnchoredModel):
            self.model.generator.manual_seed(derived_seed(self.cell.seed, "masks", self.current_epoch))
        torch.manual_seed(derived_seed(self.cell.seed, "dropout", self.current_epoch))
        if self.residuals is not None and self._mining:
            self._draws.manual_seed(derived_seed(self.cell.seed, "tail", self.current_epoch))
            self.residuals.fit()
        self._mixing = np.random.default_rng(derived_seed(self.cell.seed, "mixing", self.current_epoch))
        for module in self.frozen:
            module.eval()
        self._sums = torch.zeros(3, device=self.device)  # loss, correct, images
        self._started = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch: images (B,C,H,W), labels (B,)."""
        images, labels = batch
        images, targets = self._mixed(images, labels)
        logits = self.model(images)
        if isinstance(self.model, AnchoredModel):
            targets = self.model.targets(targets, self.classes)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.cell.train.label_smoothing)
        if self.residuals is not None:
            loss = loss + self.cell.tail_weight * self._tail_loss(images, labels)
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == labels).sum()
            self._sums += torch.stack([loss.detach() * len(labels), correct, correct.new_tensor(len(labels))])
        return loss

    @property
    def _mining(self) -> bool:
        """Whether the warm-up of hard Δ mining is over."""
        epochs = self.cell.train.epochs
        return self.current_epoch >= min(max(1, round(self.cell.tail.warmup * epochs)), epochs - 1)

    def _tail_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """CE(uniform, F([0, 0 − t])) at tail points t; zero during the warm-up."""
        assert self.residuals is not None
        assert isinstance(self.model, AnchoredModel)
        self.residuals.observe(images, self.model.order, labels)
        if not self._mining:
            return images.new_zeros(())
        tail = self.residuals.tail(self.cell.tail.points, self.cell.tail.mass, self._draws)
        return uniform_cross_entropy(self.model.masked_pass(-tail))

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets after mixup or CutMix: probabilities (B,N) with either, labels (B,) without."""
        settings = self.cell.train
        if settings.mixup == settings.cutmix == 0:
            return images, labels
        onehot = functional.one_hot(labels, self.classes).to(images.dtype)
        return mix(images, onehot, mixup=settings.mixup, cutmix=settings.cutmix, generator=self._mixing)

    def close_epoch(self) -> None:
        """Add a line to the history; refuse to go on from weights that are no longer numbers."""
        loss, correct, images = self._sums.tolist()
        if not torch.isfinite(self._sums).all():
            raise UserError(
                f"{self.cell.label}: the loss became {loss / images} in epoch {self.current_epoch + 1}: lower "
                f"train.learning_rate (now {self.cell.train.learning_rate:g}); the last good state was kept"
            )
        group = self.optimizers().param_groups[0]  # type: ignore[union-attr]
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "loss": loss / images,
                "accuracy": 100 * correct / images,
                "learning_rate": group["lr"] / group["factor"],
                "seconds": time.monotonic() - self._started,
            }
        )
        self.log_dict({"loss": loss / images, "accuracy": 100 * correct / images})  # for any logger of Lightning

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule, stepped once a batch."""
        settings = self.cell.train
        network = self.model.network if isinstance(self.model, AnchoredModel) else self.model
        optimizer = optimiser.optimizer(network, settings, self.factors)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: optimiser.rate(settings, step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The history and the cell travel with the state."""
        checkpoint["history"], checkpoint["cell"] = self.history, self.cell.digest()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history back; refuse the state of another training."""
        if checkpoint.get("cell") != self.cell.digest():
            raise UserError(f"{self.cell.label}: the checkpoint is another training's: remove it to start again")
        self.history = checkpoint["history"]


class TensorCheckpoints(CheckpointIO):
    """Lightning's checkpoints as one safetensors file: atomic, and nothing to unpickle."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the training state."""
        disk.save_tree(Path(path), {key: value for key, value in checkpoint.items() if key != "hparams_name"})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the training state, on the CPU."""
        tree: dict[str, Any] = disk.load_tree(Path(path))
        return tree

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the file."""
        Path(path).unlink(missing_ok=True)


class Keeper(pl.Callback):
    """After each epoch: the checkpoint and the log; now and then a word on how far training is."""

    def __init__(self, run: Run, progress: Progress) -> None:
        self.run, self.progress = run, progress

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        """Tell the share of steps done, a few times an epoch (reading the loss waits for the device)."""
        every = max(1, int(trainer.num_training_batches) // 8)
        if trainer.global_step % every == 0:
            share = trainer.global_step / trainer.estimated_stepping_batches
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self.progress(share, f"training, {epoch}, loss {outputs['loss'].item():.3f}")

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Keep the state."""
        assert isinstance(module, TrainingStep)
        module.close_epoch()
        trainer.save_checkpoint(self.run.checkpoint_file)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(module.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(module.history)
        disk.write_text(self.run.log_file, text.getvalue())


def train(
    run: Run, cell: Cell, progress: Progress = lambda share, what: None, root: Path | None = None, **trainer: Any
) -> None:
    """Train a cell into a run's folder; nothing is done where that is complete, and a started training goes on.

    Same seed and machine, same weights, interrupted or not. ``trainer`` holds further options of Lightning's Trainer
    (loggers, say). Raises ``UserError`` where the folder holds another cell, or the loss stops being a number.
    """
    bind(run, cell)
    if run.weights_file.exists():
        return
    config = start.config_of(cell)
    seen, resized = data.seen_by(cell.data), cell.train.crop == "resized"
    images = data.open_set(cell.data.train, "train", cell.data, seen, root, originals=resized)
    if len(images) < cell.train.batch_size:
        raise UserError(
            f"{cell.data.train} gives {len(images)} training images, fewer than train.batch_size "
            f"{cell.train.batch_size}: lower the batch size or raise data.fraction"
        )
    model = start.begin(cell, config)
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
            "devices": 1,
            "gradient_clip_val": cell.train.clip_norm or None,
            "precision": cell.train.precision,
            "deterministic": cell.train.deterministic,
            "plugins": [TensorCheckpoints()],
            "callbacks": [*averages(cell.train), Keeper(run, progress)],
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": run.path,
            **trainer,
        }
    )
    batches = data.Batches(
        images.to(engine.strategy.root_device),
        cell.train.batch_size,
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
    try:
        engine.fit(step, batches, ckpt_path=run.checkpoint_file if run.checkpoint_file.exists() else None)
    except SystemExit as stopped:  # Lightning makes an exit of Ctrl-C, and ignores further ones
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt from stopped
    models.save(run, step.model, config)
    run.checkpoint_file.unlink(missing_ok=True)


class Average(WeightAveraging):
    """Moving average of weights and buffers, ``average ← decay · average + (1 − decay) · weights`` after each step.

    In warm-up it follows the weights. At the end of training it takes their place.
    """

    def __init__(self, decay: float, warmup: float) -> None:
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]
        self.warmup = warmup

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        """Average; a count of zero makes torch copy."""
        if trainer.global_step <= self.warmup * trainer.estimated_stepping_batches:
            assert self._average_model is not None
            self._average_model.n_averaged.zero_()
        super().on_train_batch_end(trainer, *rest)


def averages(settings: Training) -> list[pl.Callback]:
    """The callback that averages weights, where the settings ask for it; it goes before those that save them."""
    return [Average(settings.average, settings.warmup)] if settings.average else []


def bind(run: Run, cell: Cell) -> None:
    """Claim a folder for a cell; ``UserError`` where it holds another one."""
    settings = json.loads(canonical(cell))
    if run.cell_file.exists():
        found = json.loads(canonical(Cell.parse(disk.read_json(run.cell_file), run.cell_file)))
        if found != settings:
            raise UserError(
                f"{run.path} holds another training ({runs.difference(found, settings)}): choose another folder"
            )
        return
    disk.write_json(run.cell_file, settings)


def _residuals(cell: Cell, config: models.ModelConfig) -> Residuals | None:
    """What hard Δ mining fits, where the cell has a λ."""
    if not cell.tail_weight:
        return None
    shape, classes = (config.channels, config.size, config.size), len(config.classes) if cell.tail.per_class else 1
    return Residuals(shape, classes, pairs=cell.tail.pairs, rank=cell.tail.rank)


def _parts(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The first and the last layers of any network, by the names that ``train.rates`` knows them by."""
    network = model.network if isinstance(model, AnchoredModel) else model
    stem = model.stem if isinstance(model, AnchoredModel) else None
    return {"stem": (stem or stems.find(network)).names, "head": (models.head_of(network),)}


def _references(images: data.Images, config: models.ModelConfig, seed: int) -> Tensor:
    """K training images (K,C,H,W), drawn by seed, not augmented, normalised."""
    if config.references > len(images):
        raise UserError(f"anchoring.references is {config.references}, but there are {len(images)} training images")
    generator = torch.Generator().manual_seed(derived_seed(seed, "references"))
    chosen = torch.randperm(len(images), generator=generator)[: config.references]
    return data.to_input(next(images.parts([chosen])), config.mean, config.std)
