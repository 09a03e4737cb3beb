"""Detectors of out-of-distribution images beside the scores of the logits: what is asked of any, and a caller's own.

A detector reads the outputs that are kept of every set (logits, penultimate features) where it can, and images through
the network where it must. Whatever it learns, it learns from training images. Behind an anchored network stand the mean
logits and features over its references. Scores are float64, higher = more out-of-distribution. Those by name are in
``pytorch_ood_detectors``.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchored.errors import UserError, first_line, is_out_of_memory
from anchored.evaluation.classifier import Classifier, as_tensor
from anchored.evaluation.inference import Outputs
from anchored.metrics.ood_scores import SCORES
from anchored.models.features import find_head

ARGUMENTS = ("images", "logits", "features")
"""Names of the parameters of a caller's function: inputs as the network takes them (B,C,H,W), (B,N), (B,D)."""

_BLOCK = 1 << 24
"""Numbers that a detector makes of a block of images at once, about: images × classes × features, or × training images
(64 MiB)."""

_SAME = 1e-3
"""How far logits may be from what the head makes of the features, as a share of the largest one."""


class Scorer(Protocol):
    """A detector made for one network."""

    def fit(self, training: Outputs) -> None:
        """Learn from the outputs of training images."""

    def score(self, outputs: Outputs) -> Any:
        """Scores of B images, any array of B numbers, from their outputs."""

    def predict(self, inputs: Tensor) -> Any:
        """The same from inputs (B,C,H,W) as the network takes them."""


@dataclass(frozen=True)
class MeasuredNetwork:
    """What a detector is made from: the network, loaded where it is needed, and its outputs on test images."""

    load: Callable[[], Classifier]
    outputs: Outputs

    def module(self) -> nn.Module:
        """The network; ``UserError`` where it is not a module."""
        function = self.load().ready().function
        if not isinstance(function, nn.Module):
            raise UserError("it works on the network itself: give that as a torch module")
        return function

    def head(self) -> nn.Linear:
        """A copy of the head on the CPU; ``UserError`` where it does not give the logits from the features."""
        head, logits, features = find_head(self.module()), self.outputs.logits[:256], self.outputs.features
        if head is not None and features is not None and head.weight.shape == (logits.shape[1], features.shape[1]):
            wrong = (functional.linear(features[:256], head.weight, head.bias) - logits).abs().max()
            if bool(wrong <= _SAME * max(1.0, float(logits.abs().max()))):
                return head
        raise UserError("it needs a linear last layer that gives the logits from the penultimate features")


@dataclass(frozen=True)
class Detector:
    """A detector that is asked for, by its name in rows."""

    name: str
    make: Callable[[MeasuredNetwork], Scorer]
    through_network: bool  # whether it scores images, not outputs
    needs_features: bool  # whether it reads penultimate features
    needs_fit: bool
    version: str = ""  # tells two detectors of one name apart, where a caller gave them

    @property
    def file(self) -> str:
        """Its name as part of a file's."""
        return re.sub(r"[^A-Za-z0-9_.=-]+", "-", self.name).strip("-").lower()

    def ready(self, network: MeasuredNetwork, training: Outputs | None) -> ReadyDetector:
        """The detector made for a network and fitted on its outputs of training images, where it learns from them."""
        with self.telling("cannot be made for this network"):
            scorer = self.make(network)
        if self.needs_fit:
            assert training is not None
            with self.telling(f"cannot be fitted on {len(training.labels):,} training images"):
                scorer.fit(training)
        width = network.outputs.logits.shape[1]
        width *= 1 if network.outputs.features is None else network.outputs.features.shape[1]
        return ReadyDetector(self, scorer, max(1, _BLOCK // max(width, len(training.labels) if training else 0)))

    @contextmanager
    def telling(self, problem: str) -> Iterator[None]:
        """Say whatever it raises in one line."""
        try:
            yield
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise UserError(f"detector '{self.name}' {problem}: {first_line(error)}") from error


@dataclass(frozen=True)
class ReadyDetector:
    """A detector that can score."""

    detector: Detector
    scorer: Scorer
    rows: int  # images at once

    def scores(self, outputs: Outputs, what: str) -> Tensor:
        """Scores (M,) float64 of the set ``what`` by its outputs; ``UserError`` unless all are finite numbers."""
        with self.detector.telling(f"cannot score {what}"), torch.no_grad():
            return torch.cat([self._checked(self.scorer.score(part), part) for part in _blocks(outputs, self.rows)])

    def predict(self, inputs: Tensor) -> Tensor:
        """The same (B,) on the CPU of inputs (B,C,H,W)."""
        with self.detector.telling("cannot score images"):
            return self._checked(self.scorer.predict(inputs), inputs)

    def _checked(self, scores: Any, images: Outputs | Tensor) -> Tensor:
        count = len(images) if isinstance(images, Tensor) else len(images.labels)
        found = as_tensor(scores).double().flatten()
        if len(found) != count:
            raise UserError(f"it gives {len(found)} scores for {count} images")
        if not bool(torch.isfinite(found).all()):
            raise UserError(
                f"it gives {float(found[~torch.isfinite(found)][0])}: leave it out, or change its arguments"
            )
        return found


def _blocks(outputs: Outputs, rows: int) -> Iterator[Outputs]:
    for start in range(0, len(outputs.labels), rows):
        part = slice(start, start + rows)
        features = None if outputs.features is None else outputs.features[part]
        yield Outputs(outputs.logits[part], outputs.labels[part], features)


@dataclass(frozen=True)
class ScoringClassifier(Classifier):
    """Gives a detector's scores (B,1) float64 in place of logits, with gradients, so that a pass computes them."""

    ready_detector: ReadyDetector | None = None

    def __call__(self, images: Tensor, features: bool = False) -> tuple[Tensor, Tensor | None]:
        """Scores of raw images (B,C,H,W) uint8, or of inputs."""
        assert self.ready_detector is not None
        with torch.inference_mode(False), torch.enable_grad():
            return self.ready_detector.predict(self._inputs(images))[:, None], None

    @staticmethod
    def of_detector(classifier: Classifier, detector: ReadyDetector) -> ScoringClassifier:
        """What takes the same images as a classifier."""
        same = (classifier.function, classifier.prepare, classifier.shape, classifier.arrays, classifier.std)
        return ScoringClassifier(*same, detector)


def features_of(outputs: Outputs) -> Tensor:
    """Penultimate features (M,D); ``UserError`` where none are kept."""
    if outputs.features is None:
        raise UserError("it reads penultimate features, which these outputs lack")
    return outputs.features


def parameters(function: Any) -> list[str]:
    """Names of the parameters of a class or a callable, ``self`` and ``*args`` aside."""
    if isinstance(function, nn.Module):
        function = function.forward
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = inspect.signature(function).parameters.values()
    return [each.name for each in found if each.kind in kinds and each.name != "self"]


# --- A caller's own -----------------------------------------------------------------------------------------------


def own_detector(name: str, function: Any, version: str) -> Detector:
    """A detector from a callable whose parameters are named by what it is to get, out of ``ARGUMENTS``.

    It may have a method ``fit``, whose parameters are among ``logits``, ``features`` and ``labels``; a copy of it is
    fitted. ``UserError`` for other names of parameters, or images beside outputs.
    """
    if name in SCORES:
        raise UserError(f"a detector is called '{name}', as a score of the logits, which is measured too: rename it")
    if isinstance(function, type) or not callable(function):
        raise UserError(f"detector '{name}' is {function!r}: give an object that can be called")
    names, learnt = parameters(function), parameters(function.fit) if hasattr(function, "fit") else []
    for asked, known in ((names, ARGUMENTS), (learnt, (*ARGUMENTS[1:], "labels"))):
        if other := [each for each in asked if each not in known]:
            raise UserError(f"detector '{name}' takes {other[0]}: name its parameters out of {', '.join(known)}")
    if not names:
        raise UserError(f"detector '{name}' takes nothing: name its parameters out of {', '.join(ARGUMENTS)}")
    if "images" in names and len(names) > 1:
        raise UserError(f"detector '{name}' takes images and outputs: one or the other")
    features = "features" in (*names, *learnt)
    return Detector(name, lambda _: _Own(function), "images" in names, features, bool(learnt), version)


class _Own:
    """A caller's function, and the copy of it that is fitted."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def fit(self, training: Outputs) -> None:
        self.function = copy.deepcopy(self.function)
        self.function.fit(**_named(parameters(self.function.fit), training))

    def score(self, outputs: Outputs) -> Any:
        return self.function(**_named(parameters(self.function), outputs))

    def predict(self, inputs: Tensor) -> Any:
        return self.function(images=inputs)


def _named(names: list[str], outputs: Outputs) -> dict[str, Tensor]:
    """Outputs by the names of parameters."""
    return {name: features_of(outputs) if name == "features" else getattr(outputs, name) for name in names}
