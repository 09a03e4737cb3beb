"""Optimizer, schedule, weight averaging."""

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from anchored.config.settings import Training
from anchored.method.anchoring import average_statistics
from anchored.training.checkpoints import gather_tensors, take_own


def optimizer(network: nn.Module, settings: Training, of: Mapping[str, float]) -> torch.optim.Optimizer:
    """SGD or AdamW over the parts that are not frozen, one group for each factor (kept in the group), and one for those
    of its parameters that do not decay."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = settings.decay_vectors or parameter.dim() > 1
            groups.setdefault((of[name], decays), []).append(parameter)
    parts = [
        {"params": parameters, "lr": settings.learning_rate * factor, "factor": factor}
        | ({} if decays else {"weight_decay": 0.0})
        for (factor, decays), parameters in groups.items()
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parts, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parts, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )  # fmt: skip


def schedule_factor(settings: Training, done: float) -> float:
    """The learning rate's factor after the share ``done`` of training.

    ``steps``: times ``decay`` after each milestone. ``cosine``: (1 + cos πt)/2, where t goes from 0 to 1 after warm-up,
    towards ``last_rate``.
    Both rise straight from ``warmup_start`` over the share ``warmup``. ``one_cycle``: straight up over the first fifth,
    straight to zero.
    """
    if settings.schedule == "one_cycle":
        return min(1.0, max(done, 0.01) / 0.2, (1 - done) / 0.8)
    if done < settings.warmup:
        return settings.warmup_start + (1 - settings.warmup_start) * done / settings.warmup
    if settings.schedule == "cosine":
        left = (1 + math.cos(math.pi * (done - settings.warmup) / (1 - settings.warmup))) / 2
        return settings.last_rate + (1 - settings.last_rate) * left
    return settings.decay ** sum(done >= milestone for milestone in settings.milestones)


@torch.no_grad()
def restore_memory_format(optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer's state, such as momentum, the memory format of its parameters, which files do not keep. Sums
    over another memory format round differently, so that a resumed training would end on other weights."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class WeightAverage(WeightAveraging):
    """Moving average of weights and buffers, ``average ← decay · average + (1 − decay) · weights`` after each step. In
    warm-up it follows the weights. At the end of training it takes their place.

    Of several processes each has averages of its own batch norm statistics, which an epoch's end makes one.
    """

    def __init__(self, decay: float, warmup: float) -> None:
        self.average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(multi_avg_fn=self.average)
        self.warmup = warmup

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *rest: Any) -> None:
        """Copy in warm-up and after the first step, else average. torch's own way reads a count on the device, which
        waits for it at every step."""
        step, averaged = trainer.global_step, self._average_model
        if step <= self._latest_update_step:
            return
        assert averaged is not None
        copied = step <= max(1, self.warmup * trainer.estimated_stepping_batches)
        by_type: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for own, now in zip(_state(averaged.module), _state(module), strict=True):
            owns, nows = by_type.setdefault(own.dtype, ([], []))
            owns.append(own)
            nows.append(now)
        for owns, nows in by_type.values():
            if copied:
                torch._foreach_copy_(owns, nows)
            else:
                self.average(owns, nows, None)
        self._latest_update_step = step

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Take the weights' place also where the checkpoint was the last step's: then there is no ``on_train_end``."""
        self._copy_average_to_current(module)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the averages: at the end of an epoch the mean of all processes' statistics, within one those of each."""
        assert self._average_model is not None
        if trainer.is_last_batch:
            average_statistics(self._average_model)
        elif trainer.world_size > 1:
            checkpoint["average_buffers"] = gather_tensors(module, self._buffers())
        super().on_save_checkpoint(trainer, module, checkpoint)

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: pl.Trainer, module: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the averages."""
        super().on_load_checkpoint(trainer, module, checkpoint)
        if "average_buffers" in checkpoint:
            own = take_own(module, checkpoint["average_buffers"])
            for name, each in self._buffers().items():
                each.copy_(own[name])

    def _buffers(self) -> dict[str, torch.Tensor]:
        assert self._average_model is not None
        network = self._average_model.module.get_submodule("model")
        return {name: each for name, each in network.named_buffers() if each.numel()}


def _state(module: nn.Module) -> list[torch.Tensor]:
    """Weights and buffers, without their history."""
    return [each.detach() for each in (*module.parameters(), *module.buffers())]


def averaging_callbacks(settings: Training) -> list[pl.Callback]:
    """The callback that averages weights, where the settings ask for it; it goes before those that save them."""
    return [WeightAverage(settings.average, settings.warmup)] if settings.average else []
