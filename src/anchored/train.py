"""Training one cell: Lightning's Trainer drives, the loss is one visible line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from anchored import data, disk, optimiser, ranks, runs, start, together
from anchored import model as models
from anchored import stem as stems
from anchored.anchoring import AnchoredModel, average_statistics
from anchored.checkpoints import Draws, TensorCheckpoints, everyones, own_of
from anchored.errors import UserError, is_out_of_memory
from anchored.mixing import mix
from anchored.recipe import Cell, canonical, derived_seed
from anchored.residuals import Residuals, uniform_cross_entropy
from anchored.runs import Run
from anchored.settings import Training

ASK = 32  # steps after which processes ask each other whether a checkpoint is due, which waits for the devices
Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


class Diverged(UserError):
    """The loss or the weights are no longer numbers."""


class TrainingStep(pl.LightningModule):
    """What happens to a batch, and the history that is kept of it."""

    def __init__(self, model: nn.Module, cell: Cell, classes: int, residuals: Residuals | None = None) -> None:
        super().__init__()
        self.model, self.cell, self.classes, self.residuals = model, cell, classes, residuals
        network = model.network if isinstance(model, AnchoredModel) else model
        self.factors = optimiser.factors(network, cell.train.rates, _parts(model) if cell.train.rates else {})
        self.frozen = optimiser.freeze(network, self.factors)
        self.history: list[dict[str, float]] = []
        self.draws = Draws(cell.seed, model.generator if isinstance(model, AnchoredModel) else None)
        self._within: dict[str, Any] | None = None  # what a checkpoint within an epoch holds of it
        self._started = 0.0
        self.begun = False  # whether a checkpoint, if there is one, was taken up

    def on_train_start(self) -> None:
        """Go on within an epoch, where the checkpoint was taken there."""
        for module in self.frozen:
            module.eval()
        optimiser.lay_out(self.optimizers().optimizer)  # type: ignore[union-attr]
        if self.residuals is not None:
            self.residuals.keep()
        if self._within is not None:
            self._go_on(self._within)
        self.begun = True

    def on_train_epoch_start(self) -> None:
        """Every draw of an epoch follows from (seed, epoch), so a resumed run repeats an uninterrupted one."""
        self.draws.begin(self.current_epoch)
        if self.residuals is not None and self._mining:
            self.residuals.fit()
        self._sums = torch.zeros(3, device=self.device)  # loss, correct, images
        self._finite = torch.zeros((), device=self.device)  # steps before the loss was no number
        self._started = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch: images (B,C,H,W), labels (B,)."""
        images, labels = batch
        images, targets = self._mixed(images, labels)
        logits, far_logits = self._logits(images)
        if isinstance(self.model, AnchoredModel):
            targets = self.model.targets(targets, self.classes)
            if self.residuals is not None:
                self.residuals.observe(images, self.model.order, labels)
        loss = functional.cross_entropy(logits, targets, label_smoothing=self.cell.train.label_smoothing)
        if len(far_logits):
            loss = loss + self.cell.tail_weight * uniform_cross_entropy(far_logits)
        with torch.no_grad():
            correct = (logits.argmax(dim=1) == labels).sum()
            self._sums += torch.stack([loss.detach() * len(labels), correct, correct.new_tensor(len(labels))])
            self._finite += self._sums[0].isfinite()
        return loss

    @property
    def _mining(self) -> bool:
        """Whether the warm-up of hard Δ mining is over."""
        epochs = self.cell.train.epochs
        return self.current_epoch >= min(max(1, round(self.cell.tail.warmup * epochs)), epochs - 1)

    def _logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B,N) of a training pass, and (P,N) of tail points ``[0, 0 − t]``, once the warm-up is over."""
        if self.residuals is None or not self._mining:
            return self.model(images), images.new_zeros(0)
        assert isinstance(self.model, AnchoredModel)
        rank, world = ranks.place()  # all draw the same points, and each takes its share
        far = -self.residuals.tail(self.cell.tail.points, self.cell.tail.mass, self.draws.tail)[rank::world]
        if self.cell.tail.batch_norm == "own":
            return self.model(images), self.model.masked_pass(far)
        logits = self.model(images, far)
        return logits[: len(images)], logits[len(images) :]

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets after mixup or CutMix: probabilities (B,N) with either, labels (B,) without."""
        settings = self.cell.train
        if settings.mixup == settings.cutmix == 0:
            return images, labels
        onehot = functional.one_hot(labels, self.classes).to(images.dtype)
        return mix(images, onehot, mixup=settings.mixup, cutmix=settings.cutmix, generator=self.draws.mixing)

    def refuse_divergence(self) -> None:
        """Raise ``Diverged`` where the loss or a weight is no longer a number; to be called before those are kept."""
        epoch, learning_rate = self.current_epoch + 1, self.cell.train.learning_rate
        mend = f"lower train.learning_rate (now {learning_rate:g}) or set train.clip_norm"
        strategy, loss = self.trainer.strategy, ranks.summed(self._sums)[0].item()
        finite = all(each.isfinite().all() for each in self.state_dict().values() if each.is_floating_point())
        if not math.isfinite(loss):
            step = int(strategy.reduce(self._finite, reduce_op="min")) + 1
            told = f"the loss became {loss} in epoch {epoch}, step {step}"
        elif strategy.reduce_boolean_decision(not finite, all=False):
            told = f"weights became infinite or NaN in epoch {epoch}, step {self.trainer.global_step}"
        else:
            return
        raise Diverged(f"{self.cell.label}: {told}: {mend}")

    def close_epoch(self) -> None:
        """Add a line to the history."""
        loss, correct, images = ranks.summed(self._sums).tolist()
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
        """The history and the cell travel with the state, and within an epoch what has been drawn and summed of it.

        The state is the first process's. At the end of an epoch it is made that of all, in place, since the checkpoint
        holds the tensors already; within one, all keep theirs, so that a checkpoint changes nothing.
        """
        checkpoint["history"], checkpoint["cell"] = self.history, self.cell.digest()
        if self.trainer.is_last_batch:
            average_statistics(self.model)
            if self.residuals is not None:
                self.residuals.pool()
            return
        own = {**self.draws.state(self.device), "sums": self._sums, "finite": self._finite}
        own |= {f"buffers.{name}": each for name, each in self._own_buffers()}
        checkpoint["within"] = {
            "each": everyones(self, own),
            "fit": {} if self.residuals is None else self.residuals.fitted(),
            "batches": self._batches.state_dict(),
            "seconds": time.monotonic() - self._started,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the history back; refuse the state of another training."""
        if checkpoint.get("cell") != self.cell.digest():
            raise UserError(f"{self.cell.label}: the checkpoint is another training's: remove it to start again")
        self.history, self._within = checkpoint["history"], checkpoint.get("within")

    def _own_buffers(self) -> list[tuple[str, Tensor]]:
        """What processes that train together have each of their own: statistics, moments."""
        return [(n, each) for n, each in self.named_buffers() if each.numel()] if self.trainer.world_size > 1 else []

    @property
    def _batches(self) -> data.Batches:
        batches = self.trainer.train_dataloader
        assert isinstance(batches, data.Batches)
        return batches

    def _go_on(self, within: dict[str, Any]) -> None:
        """Take back what a checkpoint holds of the epoch that it was taken in."""
        own = own_of(self, within["each"])
        for name, each in self._own_buffers():
            each.copy_(own.pop(f"buffers.{name}"))
        self._sums, self._finite = own.pop("sums").to(self.device), own.pop("finite").to(self.device)
        self.draws.restore(own, self.device)
        if self.residuals is not None:
            self.residuals.refit(within["fit"])
        self._batches.load_state_dict(within["batches"])  # Lightning's own way is closed once it has counted the steps
        self._started = time.monotonic() - within["seconds"]


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
        disk.write_text(self.run.log_file, text.getvalue())

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


@together.shared(in_step=True)
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
            **together.trainer_options(cell.train.devices, cell.train.sync_batch_norm),
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
    batches = data.Batches(
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
        models.save(run, step.model, config)
        run.checkpoint_file.unlink(missing_ok=True)


def _fit(engine: pl.Trainer, step: TrainingStep, batches: data.Batches, run: Run, config: models.ModelConfig) -> None:
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
    if ranks.place()[0] > 0:
        return ""
    if not run.checkpoint_file.exists():
        return ", and train into another folder"
    state = disk.load_tree(run.checkpoint_file)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): each for name, each in state.items() if name[:6] == "model."})
    models.save(run.last_good, model, config)
    return (
        f"; the last good weights are kept: start from them, into another folder, with --network.checkpoint "
        f"{run.last_good.path} --anchoring.stem kept"
    )


def bind(run: Run, cell: Cell) -> None:
    """Claim a folder for a cell; ``UserError`` where it holds another one."""
    settings = json.loads(canonical(cell))
    with disk.mending(run.path, "read"):
        claimed = run.cell_file.exists()
    if claimed:
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
