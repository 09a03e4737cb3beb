"""One pass over a set: logits, features and labels, written once and read ever after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchored import data, networks, runs
from anchored.anchoring import AnchoredModel
from anchored.errors import UserError
from anchored.model import ModelConfig
from anchored.runs import Run


@dataclass(frozen=True)
class Outputs:
    """What a network said about a set of M images."""

    logits: Tensor  # (M,N) float32
    labels: Tensor  # (M,) int64
    features: Tensor | None = None  # (M,D) float32, penultimate; the mean over the K references


@torch.inference_mode()
def predict(
    model: nn.Module, config: ModelConfig, images: Tensor, labels: Tensor, *, batch_size: int, features: bool
) -> Outputs:
    """Run a model over uint8 images (M,C,H,W) on the model's device; results on the CPU, in the order given.

    Raises ``UserError`` for images of another size or channel count, or logits that are not finite.
    """
    wanted = (config.channels, config.size, config.size)
    if tuple(images.shape[1:]) != wanted:
        shapes = ["×".join(map(str, shape)) for shape in (images.shape[1:], wanted)]
        raise UserError(f"images are {shapes[0]}, the network takes {shapes[1]} (channels×height×width): convert them")
    device = next(model.parameters()).device
    network = model.network if isinstance(model, AnchoredModel) else model
    model = model.eval().to(memory_format=torch.channels_last)
    logits, kept = [], []
    for chunk in torch.split(images, batch_size):
        with networks.features_of(network) as seen:
            inputs = data.to_input(chunk.to(device), config.mean, config.std)
            logits.append(model(inputs.contiguous(memory_format=torch.channels_last)).float().cpu())
        if features:
            kept.append(torch.stack(seen).mean(dim=0).float().cpu())
    result = torch.cat(logits)
    if not torch.isfinite(result).all():
        raise UserError("the network's logits are not finite: its weights are damaged or its training diverged")
    return Outputs(result, labels.cpu(), torch.cat(kept) if features else None)


def stored(run: Run, name: str, key: str, compute: Callable[[], Outputs]) -> Outputs:
    """The outputs kept under ``name`` where they were made from ``key`` (weights, set, corruption); else make them."""
    path = run.outputs_file(name)
    if path.exists():
        tensors, metadata = runs.load_tensors(path)
        if metadata.get("key") == key:
            return Outputs(tensors["logits"], tensors["labels"], tensors.get("features"))
    outputs = compute()
    tensors = {"logits": outputs.logits, "labels": outputs.labels}
    if outputs.features is not None:
        tensors["features"] = outputs.features
    runs.save_tensors(path, tensors, {"key": key})
    return outputs
