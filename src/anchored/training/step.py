"""The training step: mixing, anchoring, loss, and what a checkpoint keeps of them."""

import math
import time
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

from anchored.config.recipe import Cell
from anchored.data.batches import Batches
from anchored.errors import UserError
from anchored.method import collectives
from anchored.method.anchoring import AnchoredModel, average_statistics, frozen_statistics
from anchored.method.hard_delta import Residuals, uniform_cross_entropy
from anchored.models.features import network_behind
from anchored.training import optimiser, rates
from anchored.training.checkpoints import Generators, gather_tensors, take_own
from anchored.training.losses import jensen_shannon, normalised_logits
from anchored.training.mixup import mix
from anchored.training.preconditions import Diverged
from anchored.training.sharpness import moved_uphill


class TrainingStep(pl.LightningModule):
    """The training step of a cell as a LightningModule.

    ``history``: loss, accuracy, learning rate and seconds of each epoch; ``begun``: whether a checkpoint, if there is
    one, was restored.
    """

    def __init__(self, model: nn.Module, cell: Cell, classes: int, residuals: Residuals | None = None) -> None:
        super().__init__()
        self.model, self.cell, self.classes, self.residuals = model, cell, classes, residuals
        parts = rates.named_parts(model) if cell.train.rates else {}
        self.factors = rates.rate_factors(network_behind(model), cell.train.rates, parts)
        rates.freeze(network_behind(model), self.factors)
        self.history: list[dict[str, float]] = []
        self.generators = Generators(cell.seed, model.generator if isinstance(model, AnchoredModel) else None)
        self._mid_epoch: dict[str, Any] | None = None  # of a checkpoint within an epoch
        self._started = 0.0
        self._uphill = False  # within SAM's second pass
        self.begun = False

    def on_train_start(self) -> None:
        """Continue within an epoch, where the checkpoint was taken there."""
        rates.hold(network_behind(self.model), self.factors)
        optimiser.restore_memory_format(self.optimizers().optimizer)  # type: ignore[union-attr]
        if self.residuals is not None:
            self.residuals.keep()
        if self._mid_epoch is not None:
            self._resume_mid_epoch(self._mid_epoch)
        self.begun = True

    def on_train_epoch_start(self) -> None:
        """Every draw of an epoch follows from (seed, epoch), so a resumed run repeats an uninterrupted one."""
        self.generators.begin(self.current_epoch)
        if self.residuals is not None and self._mining:
            self.residuals.fit()
        self._sums = torch.zeros(3, device=self.device)  # loss, correct, images
        self._finite = torch.zeros((), device=self.device)  # steps with a finite loss
        self._started = time.monotonic()

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One batch: images (B,C,H,W), of ``train.consistency`` and ``train.outliers`` further ones, labels (B,)."""
        images, labels = batch
        images, targets = self._mixed(images, labels)
        logits, far_logits = self._logits(images, len(labels))
        if isinstance(self.model, AnchoredModel):
            parts = [self.model.targets(part, self.classes) for part in torch.split(targets, len(labels))]
            targets = torch.cat(parts) if len(parts) > 1 else parts[0]
            if self.residuals is not None and not self._uphill:
                self.residuals.observe(images[: len(labels)], self.model.order, labels)
        loss = self._loss(logits, targets, far_logits, len(labels))
        if self._uphill:
            return loss
        with torch.no_grad():
            correct = (logits[: len(labels)].argmax(dim=1) == labels).sum()
            whole = loss.detach().float() * len(labels)  # 16 bits end at 65,504, or skip whole numbers
            self._sums += torch.stack([whole, correct, correct.new_full((), len(labels))])
            self._finite += self._sums[0].isfinite()
        return loss

    def _loss(self, logits: Tensor, targets: Tensor, far_logits: Tensor, batch: int) -> Tensor:
        """The loss, of the logits (T,N) that have targets (T) or (T,N), of views, of outliers (B,N), of tail points."""
        settings = self.cell.train
        if settings.logit_norm:
            logits, far_logits = (normalised_logits(each, settings.logit_norm) for each in (logits, far_logits))
        labelled = logits[: len(targets)]
        loss = functional.cross_entropy(labelled, targets, label_smoothing=settings.label_smoothing)
        if settings.consistency:
            loss = loss + settings.consistency * jensen_shannon(logits[: 3 * batch].view(3, batch, -1))
        if settings.outliers:
            loss = loss + settings.outlier_weight * uniform_cross_entropy(logits[-batch:])
        if len(far_logits):
            loss = loss + self.cell.tail_weight * uniform_cross_entropy(far_logits)
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """With ``train.sam`` the gradient is that of a second pass, at weights uphill, with all draws of the first."""
        if not self.cell.train.sam:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        before = self.generators.state(self.device)
        optimizer_closure()
        after = self.generators.state(self.device)
        trained = [each for each in self.model.parameters() if each.requires_grad]
        with moved_uphill(trained, self.cell.train.sam), frozen_statistics(self.model):
            self.generators.restore(before, self.device)
            self._uphill = True
            loss = optimizer_closure()
            self._uphill = False
        self.generators.restore(after, self.device)
        super().optimizer_step(epoch, batch_idx, optimizer, lambda: loss)

    @property
    def _mining(self) -> bool:
        """Whether the warm-up of hard Δ mining is over: whole epochs, or steps where there is but one epoch."""
        epochs, share = self.cell.train.epochs, self.cell.tail.warmup
        if epochs == 1:
            return self.trainer.global_step >= max(1, round(share * self.trainer.num_training_batches))
        return self.current_epoch >= min(max(1, round(share * epochs)), epochs - 1)

    def _logits(self, images: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Logits (B...,N) of a training pass, and (P,N) of tail points ``[0, 0 − t]``, once the warm-up is over.

        Further images than the ``batch`` have its references and masks, one after another.
        """
        if not isinstance(self.model, AnchoredModel):
            return self.model(images), images.new_zeros(0)
        own = batch if len(images) > batch else None
        if self.residuals is None or not self._mining:
            return self.model(images, own=own), images.new_zeros(0)
        if self.residuals.normal is None:
            self.residuals.fit()
        points = self.residuals.tail(self.cell.tail.points, self.cell.tail.mass, self.generators.tail)
        own_points = points[collectives.get_rank() :: collectives.get_world_size()]  # all ranks draw the same ones
        far = -own_points.to(images)
        if self.cell.tail.batch_norm == "own":
            return self.model(images, own=own), self.model.masked_pass(far)
        logits = self.model(images, far, own)
        return logits[: len(images)], logits[len(images) :]

    def _mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and targets after mixup, CutMix or RegMixup: probabilities (B,N) or (2B,N) with one, labels without.

        Images beyond the batch stay as they are, at the end.
        """
        settings, batch = self.cell.train, len(labels)
        if settings.mixup == settings.cutmix == settings.regmixup == 0:
            return images, labels
        own, others = images[:batch], images[batch:]
        onehot = functional.one_hot(labels, self.classes).to(images.dtype)
        mixup = settings.mixup or settings.regmixup
        mixed, targets = mix(
            own, onehot, mixup=mixup, cutmix=settings.cutmix, generator=self.generators.mixing, repeats=settings.repeats
        )
        if settings.regmixup:
            mixed, targets = torch.cat([own, mixed]), torch.cat([onehot, targets])
        return torch.cat([mixed, others]) if len(others) else mixed, targets

    def refuse_divergence(self) -> None:
        """Raise ``Diverged``, on all ranks, if the loss or a weight is not finite; called before a checkpoint."""
        epoch, learning_rate = self.current_epoch + 1, self.cell.train.learning_rate
        hint = f"lower train.learning_rate (now {learning_rate:g}) or set train.clip_norm"
        strategy, loss = self.trainer.strategy, collectives.all_reduce(self._sums)[0].item()
        values = [value for value in self.state_dict().values() if value.is_floating_point()]
        finite = bool(torch.stack([value.isfinite().all() for value in values]).all())
        if not math.isfinite(loss):
            step = int(strategy.reduce(self._finite, reduce_op="min")) + 1
            problem = f"the loss became {loss} in epoch {epoch}, step {step}"
        elif strategy.reduce_boolean_decision(not finite, all=False):
            problem = f"weights became infinite or NaN in epoch {epoch}, step {self.trainer.global_step}"
        else:
            return
        raise Diverged(f"{self.cell.label}: {problem}: {hint}")

    def close_epoch(self) -> None:
        """Add a line to the history."""
        loss, correct, images = collectives.all_reduce(self._sums).tolist()
        settings, last = self.cell.train, (self.trainer.global_step - 1) / self.trainer.estimated_stepping_batches
        self.history.append(
            {
                "epoch": self.current_epoch + 1,
                "loss": loss / images,
                "accuracy": 100 * correct / images,
                "learning_rate": settings.learning_rate * optimiser.schedule_factor(settings, last),
                "seconds": time.monotonic() - self._started,
            }
        )
        self.log_dict({"loss": loss / images, "accuracy": 100 * correct / images})  # for any logger of Lightning

    def configure_optimizers(self) -> Any:
        """The recipe's optimiser and schedule, stepped once a batch."""
        settings = self.cell.train
        optimizer = optimiser.optimizer(network_behind(self.model), settings, self.factors)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: optimiser.schedule_factor(settings, step / steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the history, the cell and, within an epoch, the state of generators and sums.

        The state is rank 0's. At the end of an epoch statistics are averaged over the ranks, in place, since the
        checkpoint holds the tensors already; within one, those of each rank are kept, so that a checkpoint changes
        nothing.
        """
        checkpoint["history"], checkpoint["cell"] = self.history, self.cell.digest()
        if self.trainer.is_last_batch:
            average_statistics(self.model)
            if self.residuals is not None:
                self.residuals.pool()
            return
        own = {**self.generators.state(self.device), "sums": self._sums, "finite": self._finite}
        own |= {f"buffers.{name}": each for name, each in self._own_buffers()}
        checkpoint["within"] = {
            "each": gather_tensors(self, own), "fit": {} if self.residuals is None else self.residuals.fitted(),
            "batches": self._batches.state_dict(), "seconds": time.monotonic() - self._started,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the history; refuse the state of another training."""
        if checkpoint.get("cell") != self.cell.digest():
            raise UserError(f"{self.cell.label}: the checkpoint is another training's: train into another folder")
        self.history, self._mid_epoch = checkpoint["history"], checkpoint.get("within")

    def _own_buffers(self) -> list[tuple[str, Tensor]]:
        """Buffers that differ between ranks: batch norm statistics, moments of residuals."""
        return [(n, each) for n, each in self.named_buffers() if each.numel()] if self.trainer.world_size > 1 else []

    @property
    def _batches(self) -> Batches:
        batches = self.trainer.train_dataloader
        assert isinstance(batches, Batches)
        return batches

    def _resume_mid_epoch(self, within: dict[str, Any]) -> None:
        """Restore what a checkpoint holds of the epoch that it was taken in."""
        own = take_own(self, within["each"])
        for name, each in self._own_buffers():
            each.copy_(own.pop(f"buffers.{name}"))
        self._sums, self._finite = own.pop("sums").to(self.device), own.pop("finite").to(self.device)
        self.generators.restore(own, self.device)
        if self.residuals is not None:
            self.residuals.refit(within["fit"])
        self._batches.load_state_dict(within["batches"])  # Lightning's own way is closed once it has counted the steps
        self._started = time.monotonic() - within["seconds"]
