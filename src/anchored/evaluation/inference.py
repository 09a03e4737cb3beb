"""One pass over a set: logits, features and labels, written once and read ever after.

Large outputs go to disk in parts while the pass goes on: memory stays flat, a killed pass goes on after its last part,
and several processes (``torch.distributed``) share a set, each writing the parts of its own batches, which the first of
them then joins.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchored.data.image_sets import LabelledImages, ahead
from anchored.data.preprocessing import to_input
from anchored.errors import UserError, is_out_of_memory
from anchored.method import collectives
from anchored.method.anchoring import AnchoredModel
from anchored.models.features import penultimate_features
from anchored.models.folder import ModelConfig
from anchored.store import files
from anchored.store.layout import Run

PART = 1 << 26
"""Bytes of outputs that are kept in memory before they go to disk."""

ON_CPU = 128
"""Images of a forward pass on a CPU, at most: with more, each takes longer."""

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
    images: LabelledImages
    batch_size: int
    features: bool = False
    change: Change | None = None

    def batches(self) -> Sequence[Tensor]:
        """The places (B,) of each batch's images."""
        return torch.split(torch.arange(len(self.images)), self.batch_size)

    def run(self, batches: Sequence[Tensor]) -> Iterator[Outputs]:
        """The outputs of each batch, on the CPU; beside a GPU the next batch is read and changed meanwhile.

        Raises ``UserError`` for images of another size or channel count, or logits that are not finite.
        """
        device = next(self.model.parameters()).device
        labels = self.images.labels.cpu()
        model = self.model.eval().to(memory_format=torch.channels_last)
        most, prepared = self.batch_size, self._prepared(batches, device)
        if device.type == "cpu":
            most = min(most, ON_CPU)
        else:  # on a CPU the network needs all cores, and both together take longer
            prepared = ahead(prepared)
        for places, images in prepared:
            (logits, features), most = fitting(model, self.config, images, self.features, most)
            yield Outputs(logits, labels[places], features)

    def _prepared(self, batches: Sequence[Tensor], device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The places and the images of each batch, changed, on the device."""
        for places, images in zip(batches, self.images.parts(batches), strict=True):
            images = images.to(device)
            yield places, images if self.change is None else self.change(images, places.to(device))


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
    inputs = to_input(images, config.mean, config.std).contiguous(memory_format=torch.channels_last)
    with penultimate_features(network) as seen:
        logits = model(inputs).float().cpu()
    if not torch.isfinite(logits).all():
        raise UserError("the network's logits are not finite: its weights are damaged or its training diverged")
    return logits, torch.stack(seen).mean(dim=0).float().cpu() if features else None


def fitting(
    model: nn.Module, config: ModelConfig, images: Tensor, features: bool, most: int
) -> tuple[tuple[Tensor, Tensor | None], int]:
    """``forward`` by at most ``most`` images at once, half as many each time that memory runs out; and the last most.

    Every image's outputs are its own, so they are the same up to rounding. ``UserError`` where one image is too much.
    """
    while True:
        try:
            parts = [forward(model, config, part, features) for part in torch.split(images, most)]
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
    seen = [part for _, part in parts if part is not None]
    return (torch.cat([logits for logits, _ in parts]), torch.cat(seen) if seen else None), most


def predict(work: Pass) -> Outputs:
    """Do a whole pass in memory: outputs in the order of the images."""
    whole = _Waiting(len(work.images))
    for outputs in work.run(work.batches()):
        whole.add(outputs)
    return whole.take()


def passed(run: Run, name: str, key: str, begin: Callable[[], Pass]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key`` (weights, set, corruption); else make them."""
    found = kept(run, name, key)
    return joined(run, name, key, share(run, name, key, begin())) if found is None else found


def share(run: Run, name: str, key: str, work: Pass) -> tuple[str, int]:
    """Do this process's share of a pass, its outputs in parts on disk; what the parts were made from, and all images.

    Alone, a pass of little output is kept at once.
    """
    rank, world = collectives.place()
    batches = work.batches()
    mine = batches[len(batches) * rank // world : len(batches) * (rank + 1) // world]  # whole batches: the same sums
    part_key = f"{key}, {work.batch_size} a batch, {world} processes"
    parts = _parts(run, name, part_key)
    left = list(mine)
    while left and int(left[0][0]) in parts:  # what a killed pass left behind
        after = int(left[0][0]) + parts[int(left[0][0])]
        left = [batch for batch in left if int(batch[0]) >= after]
    waiting = _Waiting(sum(map(len, left)), PART)
    start = int(left[0][0]) if left else 0
    for outputs in work.run(tuple(left)):
        waiting.add(outputs)
        if waiting.bytes >= PART:
            start += _write(run, name, part_key, start, waiting)
    if world == 1 and waiting.rows == len(work.images):
        stored(run, name, key, waiting.take)
    elif waiting.rows:
        _write(run, name, part_key, start, waiting)
    return part_key, len(work.images)


def joined(run: Run, name: str, key: str, made: tuple[str, int]) -> Outputs:
    """The outputs whose parts every process has written, as one file, in the order of the images."""
    found, (part_key, images) = kept(run, name, key), made
    if found is None:
        parts, starts, start = _parts(run, name, part_key), list[int](), 0
        while start < images:
            starts.append(start)
            start += parts[start]
        files.join_tensors(run.outputs_file(name), [run.part_file(name, each) for each in starts], {"key": key})
        found = kept(run, name, key)
    run.remove_parts(name)
    assert found is not None
    return found


class _Waiting:
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
        """Give what waits, in a view that the next ``add`` overwrites."""
        found = {name: tensor[: self.rows] for name, tensor in self._tensors.items()}
        self.rows = self.bytes = 0
        return Outputs(found["logits"], found["labels"], found.get("features"))


def _write(run: Run, name: str, key: str, start: int, waiting: _Waiting) -> int:
    """Write what waits as a part that begins with image ``start``; give the number of its images."""
    rows = waiting.rows
    files.save_tensors(run.part_file(name, start), _tensors(waiting.take()), {"key": key})
    return rows


def _parts(run: Run, name: str, key: str) -> dict[int, int]:
    """The parts that were made from ``key``: first image, number of images."""
    found = {}
    for start, file in run.part_files(name).items():
        tensors, metadata = files.load_tensors(file)
        if metadata.get("key") == key:
            found[start] = len(tensors["labels"])
    return found


def stored(run: Run, name: str, key: str, compute: Callable[[], Outputs]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key``; else compute and keep them."""
    found = kept(run, name, key)
    if found is not None:
        return found
    outputs = compute()
    files.save_tensors(run.outputs_file(name), _tensors(outputs), {"key": key})
    return outputs


def kept(run: Run, name: str, key: str) -> Outputs | None:
    """What is on disk under ``name``, if it was made from ``key``."""
    path = run.outputs_file(name)
    if not path.exists():
        return None
    tensors, metadata = files.load_tensors(path)
    return (
        Outputs(tensors["logits"], tensors["labels"], tensors.get("features")) if metadata.get("key") == key else None
    )


def _tensors(outputs: Outputs) -> dict[str, Tensor]:
    features = {} if outputs.features is None else {"features": outputs.features}
    return {"logits": outputs.logits, "labels": outputs.labels, **features}
