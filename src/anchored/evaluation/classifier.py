"""A classifier as evaluation sees it: images as they are in files to logits and penultimate features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.data.given import to_tensor
from anchored.data.preprocessing import to_input
from anchored.errors import UserError, first_line
from anchored.method.networks import logits_of
from anchored.models.features import network_behind, penultimate_features
from anchored.models.folder import ModelConfig

_SUM = 1e-3  # rows of numbers in [0, 1] that sum to one this nearly are probabilities


@dataclass(frozen=True)
class Classifier:
    """A function of batches: a module, or any callable on torch tensors or NumPy arrays.

    Raw images (B,C,H,W) uint8 of the ``shape`` (C,H,W), if one is asked for, pass through ``prepare`` first; inputs of
    another dtype are taken as they are. The function returns logits (B,N), an object with ``.logits``, or a mapping of
    "logits" and perhaps "features" (B,D); a module's features are found without.
    """

    function: Callable[[Any], Any]
    prepare: Callable[[Tensor], Tensor]
    shape: tuple[int, int, int] | None = None
    arrays: Literal["torch", "numpy"] = "torch"
    std: tuple[float, ...] = ()  # per channel, what inputs were divided by; empty where that is not known

    @staticmethod
    def of(model: nn.Module, config: ModelConfig) -> Classifier:
        """A model of ours."""
        prepare = partial(to_input, mean=config.mean, std=config.std)
        return Classifier(model, prepare, (config.channels, config.size, config.size), std=tuple(config.std))

    @property
    def device(self) -> torch.device:
        """Where inputs go: where the module's weights are."""
        found = next(self.function.parameters(), None) if isinstance(self.function, nn.Module) else None
        return torch.device("cpu") if found is None else found.device

    def ready(self) -> Classifier:
        """In evaluation mode, in the memory format that is fastest; returns itself."""
        if isinstance(self.function, nn.Module):
            self.function.eval()
            if all(each.dim() < 5 for each in self.function.parameters()):  # the format is of images
                self.function.to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()  # inference mode would follow what a module keeps of a pass into its training
    def __call__(self, images: Tensor, features: bool = False) -> tuple[Tensor, Tensor | None]:
        """Logits (B,N) float32, and penultimate features (B,D) float32 if asked for, on the CPU.

        Raises ``UserError`` for images of another shape, and for what are no finite logits.
        """
        inputs = self._in_precision(self._inputs(images))
        if isinstance(self.function, nn.Module):
            if features:
                with penultimate_features(network_behind(self.function)) as seen:
                    outputs = self.function(inputs)
                # Reference by reference, in one pass over the network or several.
                by_reference = torch.cat(seen).view(-1, len(images), seen[0].shape[1])
                return self._logits(outputs, len(images)), by_reference.mean(dim=0).float().cpu()
            return self._logits(self.function(inputs), len(images)), None
        outputs = self.function(inputs.cpu().numpy() if self.arrays == "numpy" else inputs)
        found = outputs.get("features") if isinstance(outputs, Mapping) else None
        if features and found is None:
            raise UserError(
                "the model gives no features, which linear probes and detectors read: return {'logits': ..., "
                "'features': ...} from it, or leave adaptation and these detectors out"
            )
        return self._logits(outputs, len(images)), None if found is None or not features else as_tensor(found)

    def _inputs(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        if self.shape is not None and tuple(images.shape[1:]) != self.shape:
            shapes = ["×".join(map(str, shape)) for shape in (images.shape[1:], self.shape)]
            raise UserError(
                f"images are {shapes[0]}, the network takes {shapes[1]} (channels×height×width): convert them"
            )
        inputs = self.prepare(images)
        return inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs

    def _in_precision(self, inputs: Tensor) -> Tensor:
        """Inputs of floats in the precision of the module's weights."""
        weights = self.function.parameters() if isinstance(self.function, nn.Module) else ()
        dtype = next((each.dtype for each in weights if each.is_floating_point()), inputs.dtype)
        return inputs.to(dtype) if inputs.is_floating_point() else inputs

    def _logits(self, outputs: Any, count: int) -> Tensor:
        if isinstance(outputs, Mapping) and "logits" in outputs:
            outputs = outputs["logits"]
        try:
            logits = as_tensor(logits_of(outputs) if isinstance(self.function, nn.Module) else outputs).float()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the model gives no array of logits: {first_line(error)}") from error
        if logits.dim() != 2 or len(logits) != count or logits.shape[1] < 2:
            raise UserError(f"the model gives {tuple(logits.shape)} for {count} images: logits are ({count}, classes)")
        return refuse_non_logits(logits, "the network's logits")


def as_tensor(values: Any) -> Tensor:
    """Return any framework's array of numbers as a tensor, float32 unless they are whole, on the CPU."""
    found = to_tensor(values)
    return found.float() if found.is_floating_point() else found


def are_probabilities(outputs: Tensor) -> bool:
    """Say whether outputs (M,N) are probabilities: numbers in [0, 1] that sum to one in each row."""
    return len(outputs) > 0 and bool((outputs >= 0).all()) and bool(((outputs.sum(1) - 1).abs() < _SUM).all())


def refuse_non_logits(logits: Tensor, what: str) -> Tensor:
    """Return logits (M,N) float32; ``UserError`` where they are not finite, or probabilities."""
    if not torch.isfinite(logits).all():
        row = int((~torch.isfinite(logits)).any(1).nonzero()[0])
        raise UserError(
            f"{what} are not finite (row {row}): its weights are damaged, its training diverged, or they are not logits"
        )
    if are_probabilities(logits):
        raise UserError(f"{what} are probabilities (each row sums to one): give logits, or the logarithm of these")
    return logits
