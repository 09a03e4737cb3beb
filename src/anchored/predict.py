"""One pass over a set: logits, features and labels, written once and read ever after.

Large outputs go to disk in parts while the pass goes on: memory stays flat, a killed pass goes on after its last part,
and several processes (``torch.distributed``) share a set, each writing the parts of its own batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from anchored import data, networks, runs
from anchored.anchoring import AnchoredModel
from anchored.errors import UserError
from anchored.model import ModelConfig
from anchored.runs import Run

PART = 1 << 26
"""Bytes of outputs that are kept in memory before they go to disk."""

Item = TypeVar("Item")
Change = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W) uint8 and their places in the set (B,), to such images


@dataclass(frozen=True)
class Outputs:
    """What a network said about a set of M images."""

    logits: Tensor  # (M,N) float32
    labels: Tensor  # (M,) int64
    features: Tensor | None = None  # (M,D) float32, penultimate; the mean over the K references


@dataclass(frozen=True)
class Pass:
    """What is to be done: ``images``, changed (corrupted) a batch at a time, through ``model``.

    The result does not depend on where the images are, or on who shares the batches.
    """

    model: nn.Module
    config: ModelConfig
    images: data.Images
    batch_size: int
    features: bool = False
    change: Change | None = None

    def batches(self) -> Sequence[Tensor]:
        """The places (B,) of each batch's images."""
        return torch.split(torch.arange(len(self.images)), self.batch_size)

    def run(self, batches: Sequence[Tensor]) -> Iterator[Outputs]:
        """The outputs of each batch, on the CPU; the next batch is read and changed meanwhile.

        Raises ``UserError`` for images of another size or channel count, or logits that are not finite.
        """
        device = next(self.model.parameters()).device
        labels = self.images.labels.cpu()
        model = self.model.eval().to(memory_format=torch.channels_last)
        for places, images in ahead(self._prepared(batches, device)):
            logits, features = forward(model, self.config, images, self.features)
            yield Outputs(logits, labels[places], features)

    def _prepared(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The places and the images of each batch, changed, on the device."""
        for places, images in zip(batches, self.images.parts(batches), strict=True):
            images = images.to(device)
            yield places, images if self.change is None else self.change(images, places.to(device))


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Give what an iterator gives, the next item being made by a thread meanwhile: one item waits, never more."""
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # it is not the end


@torch.inference_mode()
def forward(
    model: nn.Module, config: ModelConfig, images: Tensor, features: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Logits (B,N) of uint8 images (B,C,H,W), and penultimate features (B,D) if asked for, on the CPU."""
    wanted = (config.channels, config.size, config.size)
    if tuple(images.shape[1:]) != wanted:
        shapes = ["×".join(map(str, shape)) for shape in (images.shape[1:], wanted)]
        raise UserError(f"images are {shapes[0]}, the network takes {shapes[1]} (channels×height×width): convert them")
    network = model.network if isinstance(model, AnchoredModel) else model
    inputs = data.to_input(images, config.mean, config.std).contiguous(memory_format=torch.channels_last)
    with networks.features_of(network) as seen:
        logits = model(inputs).float().cpu()
    if not torch.isfinite(logits).all():
        raise UserError("the network's logits are not finite: its weights are damaged or its training diverged")
    return logits, torch.stack(seen).mean(dim=0).float().cpu() if features else None


def predict(work: Pass) -> Outputs:
    """Do a whole pass in memory: outputs in the order of the images."""
    return _joined(list(work.run(work.batches())))


def passed(run: Run, name: str, key: str, begin: Callable[[], Pass]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key`` (weights, set, corruption); else make them."""
    kept = _kept(run, name, key)
    if kept is not None:
        return kept
    work = begin()
    rank, world = _place()
    batches = work.batches()
    share = batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]  # whole batches: the same sums
    part_key = f"{key}, {work.batch_size} a batch, {world} processes"
    parts = _parts(run, name, part_key)
    left = list(share)
    while left and int(left[0][0]) in parts:  # what a killed pass left behind
        after = int(left[0][0]) + parts[int(left[0][0])]
        left = [batch for batch in left if int(batch[0]) >= after]
    waiting: list[Outputs] = []
    for outputs in work.run(tuple(left)):
        waiting.append(outputs)
        if sum(map(_bytes, waiting)) >= PART:
            _write(run, name, part_key, left, waiting)
    if world == 1 and not parts and len(waiting) == len(batches):
        return stored(run, name, key, lambda: _joined(waiting))
    if waiting:
        _write(run, name, part_key, left, waiting)
    return _gathered(run, name, key, part_key, len(work.images))


def _place() -> tuple[int, int]:
    """This process's rank and the number of processes that share a pass."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _write(run: Run, name: str, key: str, left: list[Tensor], waiting: list[Outputs]) -> None:
    """Write a part, of the first of the batches that are left; take it off both lists."""
    runs.save_tensors(run.part_file(name, int(left[0][0])), _tensors(_joined(waiting)), {"key": key})
    del left[: len(waiting)]
    waiting.clear()


def _parts(run: Run, name: str, key: str) -> dict[int, int]:
    """The parts that were made from ``key``: first image, number of images."""
    found = {}
    for start, file in run.part_files(name).items():
        tensors, metadata = runs.load_tensors(file)
        if metadata.get("key") == key:
            found[start] = len(tensors["labels"])
    return found


def _gathered(run: Run, name: str, key: str, part_key: str, images: int) -> Outputs:
    """Wait for all processes, make one file of the parts, and read it."""
    rank, world = _place()
    if world > 1:
        distributed.barrier()
    if rank == 0:
        parts, starts, start = _parts(run, name, part_key), list[int](), 0
        while start < images:
            starts.append(start)
            start += parts[start]
        runs.join_tensors(run.outputs_file(name), [run.part_file(name, each) for each in starts], {"key": key})
        run.remove_parts(name)
    if world > 1:
        distributed.barrier()
    kept = _kept(run, name, key)
    assert kept is not None
    return kept


def stored(run: Run, name: str, key: str, compute: Callable[[], Outputs]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key``; else compute and keep them."""
    kept = _kept(run, name, key)
    if kept is not None:
        return kept
    outputs = compute()
    runs.save_tensors(run.outputs_file(name), _tensors(outputs), {"key": key})
    return outputs


def _kept(run: Run, name: str, key: str) -> Outputs | None:
    """What is on disk under ``name``, if it was made from ``key``."""
    path = run.outputs_file(name)
    if not path.exists():
        return None
    tensors, metadata = runs.load_tensors(path)
    return (
        Outputs(tensors["logits"], tensors["labels"], tensors.get("features")) if metadata.get("key") == key else None
    )


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    features = {} if outputs.features is None else {"features": outputs.features}
    return {"logits": outputs.logits, "labels": outputs.labels, **features}


def _joined(parts: Sequence[Outputs]) -> Outputs:
    features = [part.features for part in parts if part.features is not None]
    logits, labels = torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts])
    return Outputs(logits, labels, torch.cat(features) if features else None)


def _bytes(outputs: Outputs) -> int:
    return sum(tensor.nbytes for tensor in _tensors(outputs).values())
