"""One pass over a set: its logits, features and labels, computed once, kept on disk.

Large outputs are written in parts during the pass: memory stays flat, a killed pass continues after its last part, and
several ranks (``torch.distributed``) share a set, each writing the parts of its own batches, which rank 0 joins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anchored.data.image_sets import GivenInputs, LabelledImages, ahead
from anchored.errors import UserError, is_out_of_memory
from anchored.evaluation.classifier import Classifier
from anchored.method import collectives
from anchored.method.devices import to_device
from anchored.store import files
from anchored.store.layout import Run

PART = 1 << 26
"""Bytes of outputs that are kept in memory before they go to disk."""

CPU_BATCH = 128
"""Images of a forward pass on a CPU, at most: with more, each takes longer."""

Change = Callable[[Tensor, Tensor], Tensor]  # images (B,C,H,W) uint8 and their places in the set (B,), to such images


@dataclass(frozen=True)
class Outputs:
    """A network's outputs on a set of M images."""

    logits: Tensor  # (M,N) float32
    labels: Tensor  # (M,) int64
    features: Tensor | None = None  # (M,D) float32, penultimate; the mean over the K references


@dataclass(frozen=True)
class Pass:
    """A pass of ``images``, changed (corrupted) a batch at a time, through a classifier.

    The outputs do not depend on where the images are stored, or on how many ranks share the batches.
    """

    classifier: Classifier
    images: LabelledImages | GivenInputs
    batch_size: int
    features: bool = False
    change: Change | None = None

    def batches(self) -> Sequence[Tensor]:
        """The indices (B,) of each batch's images."""
        return torch.split(torch.arange(len(self.images)), self.batch_size)

    def run(self, batches: Sequence[Tensor]) -> Iterator[Outputs]:
        """The outputs of each batch, on the CPU; beside a GPU the next batch is read and changed meanwhile.

        Raises ``UserError`` for images of another size or channel count, or logits that are not finite.
        """
        classifier, labels = self.classifier.ready(), self.images.labels.cpu()
        device = classifier.device
        most, prepared = self.batch_size, self._prepared(batches, device)
        if device.type == "cpu":
            most = min(most, CPU_BATCH)
        else:  # on a CPU the network needs all cores, and both together take longer
            prepared = ahead(prepared)
        for places, images in prepared:
            (logits, features), most = forward_in_parts(classifier, images, self.features, most)
            yield Outputs(logits, labels[places], features)

    def _prepared(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The indices and the images of each batch, changed, on the device."""
        changed_on = device if device.type == "cuda" else torch.device("cpu")  # MPS lacks float64
        for places, images in zip(batches, self.images.parts(batches), strict=True):
            images = to_device(images, changed_on)
            changed = images if self.change is None else self.change(images, to_device(places, changed_on))
            yield places, changed.to(device)


def forward_in_parts(
    classifier: Classifier, images: Tensor, features: bool, most: int
) -> tuple[tuple[Tensor, Tensor | None], int]:
    """Outputs by at most ``most`` images at once, halved each time that memory runs out; and the last ``most``.

    An image's outputs do not depend on its batch, up to rounding. ``UserError`` where one image is too much.
    """
    while True:
        try:
            parts = [classifier(part, features) for part in torch.split(images, most)]
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if (tried := min(most, len(images))) == 1:
                raise UserError("memory runs out on a single image: evaluate on another machine or device") from error
        most = (tried + 1) // 2
        logging.getLogger(__name__).warning("memory ran out: %d images at once instead of %d", most, tried)
        if images.device.type == "cuda":
            torch.cuda.empty_cache()
    penultimate = [part for _, part in parts if part is not None]
    return (torch.cat([logits for logits, _ in parts]), torch.cat(penultimate) if penultimate else None), most


def compute_outputs(forward_pass: Pass) -> Outputs:
    """The outputs of a whole pass in memory, in the order of the images."""
    buffer = _Buffer(len(forward_pass.images))
    for outputs in forward_pass.run(forward_pass.batches()):
        buffer.add(outputs)
    return buffer.take()


def save_outputs(run: Run, name: str, key: str, begin: Callable[[], Pass]) -> None:
    """Keep the outputs of a pass under ``name``, unless they are there, made from ``key`` (weights, set, corruption).

    Every rank calls it, takes a block of whole batches, which makes the sums those of one process, and writes its
    outputs in parts. A single process writes a pass of little output at once.
    """
    if collectives.from_rank_zero(lambda: is_saved(run, name, key)):
        return
    forward_pass, rank, world = begin(), collectives.get_rank(), collectives.get_world_size()
    batches = forward_pass.batches()
    part_key = f"{key}, {forward_pass.batch_size} a batch, {world} processes"
    left = list(batches[len(batches) * rank // world : len(batches) * (rank + 1) // world])
    parts = _parts(run, name, part_key)
    while left and int(left[0][0]) in parts:  # written by a pass that was killed
        after = int(left[0][0]) + parts[int(left[0][0])]
        left = [batch for batch in left if int(batch[0]) >= after]
    buffer, start = _Buffer(sum(map(len, left)), PART), int(left[0][0]) if left else 0
    for outputs in forward_pass.run(tuple(left)):
        buffer.add(outputs)
        if buffer.bytes >= PART:
            start += _write_part(run, name, part_key, start, buffer)
    if world == 1 and buffer.rows == len(forward_pass.images):
        _save(run.outputs_file(name), buffer.take(), key)
        return
    if buffer.rows:
        _write_part(run, name, part_key, start, buffer)
    collectives.barrier()
    if rank == 0:
        _join_parts(run, name, key, _parts(run, name, part_key), len(forward_pass.images))


def _join_parts(run: Run, name: str, key: str, parts: dict[int, int], images: int) -> None:
    """Make one file of the parts of all ranks, in the order of the images, and remove the parts."""
    starts, start = list[int](), 0
    while start < images:
        starts.append(start)
        start += parts[start]
    files.join_tensors(run.outputs_file(name), [run.part_file(name, each) for each in starts], {"key": key})
    run.remove_parts(name)


class _Buffer:
    """Outputs that are not on disk yet, copied into one tensor each.

    Kept as they come, as many small tensors between freed large ones, they make malloc's heap grow by a batch of
    inputs a step (glibc's aligned allocations do not fit into holes that are a little smaller).
    """

    def __init__(self, images: int, limit: float = math.inf) -> None:
        self.images, self.limit = images, limit  # room for so many, or for the batch that exceeds so many bytes
        self.rows = self.bytes = 0
        self._tensors: dict[str, Tensor] = {}

    def add(self, outputs: Outputs) -> None:
        """Copy the outputs of a batch."""
        new, count = _tensors(outputs), len(outputs.labels)
        size = sum(tensor.nbytes for tensor in new.values())
        for name, tensor in new.items():
            if name not in self._tensors:
                room = min(self.images, (self.limit // size + 1) * count)
                self._tensors[name] = tensor.new_empty(int(room), *tensor.shape[1:])
            self._tensors[name][self.rows : self.rows + count] = tensor
        self.rows, self.bytes = self.rows + count, self.bytes + size

    def take(self) -> Outputs:
        """Empty the buffer: its outputs, as views that the next ``add`` overwrites."""
        filled = {name: tensor[: self.rows] for name, tensor in self._tensors.items()}
        self.rows = self.bytes = 0
        return Outputs(filled["logits"], filled["labels"], filled.get("features"))


def _write_part(run: Run, name: str, key: str, start: int, buffer: _Buffer) -> int:
    """Write the buffer as a part that begins with image ``start``; the number of its images."""
    rows = buffer.rows
    _save(run.part_file(name, start), buffer.take(), key)
    return rows


def _parts(run: Run, name: str, key: str) -> dict[int, int]:
    """The parts that were made from ``key``: first image, number of images."""
    return {
        start: len(tensors["labels"])
        for start, file in run.part_files(name).items()
        for tensors, metadata in (files.load_tensors(file),)
        if metadata.get("key") == key
    }


def load_or_compute(run: Run, name: str, key: str, compute: Callable[[], Outputs]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key``; else compute and keep them."""
    outputs = load_outputs(run, name, key)
    if outputs is None:
        outputs = compute()
        _save(run.outputs_file(name), outputs, key)
    return outputs


def is_saved(run: Run, name: str, key: str) -> bool:
    """Whether the outputs kept under ``name`` are there, and were made from ``key``."""
    path = run.outputs_file(name)
    return path.exists() and files.tensors_metadata(path).get("key") == key


def load_outputs(run: Run, name: str, key: str) -> Outputs | None:
    """The outputs kept under ``name``, if they were made from ``key``."""
    if not is_saved(run, name, key):
        return None
    tensors, _ = files.load_tensors(run.outputs_file(name))
    return Outputs(tensors["logits"], tensors["labels"], tensors.get("features"))


def _save(path: Path, outputs: Outputs, key: str) -> None:
    files.save_tensors(path, _tensors(outputs), {"key": key})


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    features = {} if outputs.features is None else {"features": outputs.features}
    return {"logits": outputs.logits, "labels": outputs.labels, **features}
