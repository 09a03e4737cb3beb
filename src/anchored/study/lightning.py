"""A callback of Lightning that writes the report at the end of ``trainer.test``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from torchmetrics.utilities.distributed import gather_all_tensors

from anchored.errors import UserError
from anchored.evaluation.classifier import as_tensor
from anchored.evaluation.given_outputs import check_set_name
from anchored.method import collectives
from anchored.report.result import Result
from anchored.study.evaluate import evaluate

Parts = Mapping[str, Any]
"""What a batch gives: "logits" (B,N) and "labels" (B,), which ``ood-`` sets need not have; perhaps "features" (B,D)."""


class ReportCallback(pl.Callback):
    """Collects the outputs of ``trainer.test``, of all ranks, and writes the report of them on rank 0.

    Args:
        path: of the page.
        sets: what each test loader holds, in their order: "test", "ood-NAME", "corruption-NAME-SEVERITY", as
            :mod:`anchored.evaluation.given_outputs` names sets. By default the keys, where the loaders are a
            dictionary, and "test" for one loader.
        outputs: from the module and a batch to ``Parts``; by default what ``test_step`` returns.
        options: of :func:`anchored.evaluate`: name, near, score, bootstrap, seed, folder, ...

    Attributes:
        result: what was measured, on rank 0, once the test has ended.

    Raises ``UserError`` as the test starts, for loaders that have no name, and as it ends, as ``evaluate`` does. Images
    that a ``DistributedSampler`` repeats to fill the last batches count once.

    Example:
        >>> report = ReportCallback("report.html", sets=["test", "ood-digits"])
        >>> pl.Trainer(callbacks=[report]).test(module, [test_loader, digits_loader])
    """

    def __init__(
        self,
        path: str | Path = "report.html",
        sets: Sequence[str] = (),
        outputs: Callable[[pl.LightningModule, Any], Parts] | None = None,
        **options: Any,
    ) -> None:
        self.path, self.sets, self.outputs, self.options = Path(path), tuple(sets), outputs, options
        self.result: Result | None = None
        self._names: tuple[str, ...] = ()
        self._batches: dict[str, list[dict[str, Tensor]]] = {}

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the loaders, and forget an earlier test."""
        loaders = trainer.test_dataloaders
        keys = tuple(loaders) if isinstance(loaders, Mapping) else ("test",)
        self._names, count = self.sets or keys, len(_listed(loaders))
        if len(self._names) != count or len(set(self._names)) != count:
            raise UserError(
                f"there are {count} test loaders for the sets {', '.join(self._names)}: name each, "
                "ReportCallback(sets=['test', 'ood-NAME', ...])"
            )
        for name in self._names:
            check_set_name(name)
        self._batches, self.result = {name: [] for name in self._names}, None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep a batch's outputs, on the CPU."""
        found = self.outputs(pl_module, batch) if self.outputs else outputs
        if not isinstance(found, Mapping) or "logits" not in found:
            raise UserError(
                f"test_step returns a {type(found).__name__}: return {{'logits': ..., 'labels': ...}} from it, or give "
                "ReportCallback(outputs=...), from the module and a batch to these"
            )
        kept = {name: as_tensor(found[name]) for name in ("logits", "labels", "features") if name in found}
        self._batches[self._names[dataloader_idx]].append(kept)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the ranks' outputs and write the page."""
        loaders = dict(zip(self._names, _listed(trainer.test_dataloaders), strict=True))
        sets = {name: self._joined(name, loaders[name], pl_module.device) for name in self._names}
        self._batches = {}

        options = {"name": type(pl_module).__name__, "progress": False, **self.options}

        def write() -> None:
            with collectives.alone():
                self.result = evaluate(outputs=sets, **options)
                self.result.to_html(self.path)

        collectives.from_rank_zero(write)

    def _joined(self, name: str, loader: Any, device: torch.device) -> dict[str, Tensor]:
        """One set's outputs of all ranks, in the order of its images."""
        batches = self._batches[name]
        if not batches:
            raise UserError(f"no batch of '{name}' was tested")
        return {
            part: _of_all_ranks(torch.cat([batch[part] for batch in batches]), loader, device) for part in batches[0]
        }


def _listed(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return list(loaders.values())
    return list(loaders) if isinstance(loaders, (list, tuple)) else [loaders]


def _of_all_ranks(rows: Tensor, loader: Any, device: torch.device) -> Tensor:
    """Rows (M,...) of every rank: in the data set's order and each once where a ``DistributedSampler`` dealt them."""
    if collectives.get_world_size() == 1:
        return rows
    parts = [part.cpu() for part in gather_all_tensors(rows.to(device))]
    samplers = (getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    if any(isinstance(sampler, DistributedSampler) for sampler in samplers):
        return torch.stack(parts, 1).flatten(0, 1)[: len(loader.dataset)]  # image i went to rank i % ranks
    return torch.cat(parts)
