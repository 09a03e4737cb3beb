"""The detectors of pytorch-ood, by the names of their classes or as a caller made them.

Which outputs one reads, and how it is made, follows from its class, so that every detector of theirs is one here.
Nothing of the library is imported before one is asked for.
Kirchheim, Filax and Ortmeier 2022, https://github.com/kkirchheim/pytorch-ood
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.errors import UserError
from anchored.evaluation.detectors import Detector, MeasuredNetwork, features_of, own_detector, parameters
from anchored.evaluation.inference import Outputs
from anchored.method.networks import logits_of
from anchored.metrics.ood_scores import SCORES
from anchored.models.features import network_behind, penultimate_features

Reads = Literal["logits", "features", "feature_maps", "images"]
"""What a detector scores, in the words of its methods ``predict_...`` and ``fit_...``; images by ``predict``."""

PARTS = ("model", "encoder", "backbone")
"""Arguments that are networks, or parts of them that come first; none where it reads outputs."""

NOT_BY_NAME = {
    "rankfeat": "takes the largest part out of whole feature maps, which are not kept",
    "mcd": "draws dropout at random",
    "multimahalanobis": "reads several layers",
}
"""Detectors that could be made from their class alone, and would say nothing -> why."""


def find_detector(name: str) -> Detector:
    """The detector called ``name``: a class of pytorch-ood in small letters, with arguments of it ("knn:k=200").

    ``UserError`` for another name, arguments that it does not have or that it lacks, or where pytorch-ood is not
    installed.
    """
    plain, _, text = name.partition(":")
    if plain in SCORES:
        raise UserError(f"evaluate.detectors has {plain}, a score of the logits, which is measured in any case")
    classes = _classes()
    if plain not in classes:
        there = [each for each, kind in classes.items() if each not in NOT_BY_NAME and not _lacks(kind)]
        raise UserError(f"evaluate.detectors has '{plain}': there are {', '.join(there)}")
    kind, made = classes[plain], "make it yourself, and give it in Python (anchored.evaluate, detectors)"
    if plain in NOT_BY_NAME:
        raise UserError(f"evaluate.detectors has {plain}, which {NOT_BY_NAME[plain]}: {made}")
    options = dict(_options(name, kind, text))
    if missing := _lacks(kind, options):
        raise UserError(f"evaluate.detectors has {plain}, which needs {' and '.join(missing)}: {made}")
    reads = _reads(kind)
    fits = bool(kind.requires_fit)
    features = reads in ("features", "feature_maps") or (fits and reads == "images")

    def make(network: MeasuredNetwork) -> _Scorer:
        device = network.load().device if reads == "images" else torch.device("cpu")
        return _Scorer(_made(kind, options, network), reads, device)

    return Detector(name, make, reads == "images", features, fits)


def given_detector(name: str, detector: Any, version: str) -> Detector:
    """A detector that a caller gave: one of pytorch-ood's or with its methods, or any callable.

    Where its network is None (``KNN(None)``), a copy of it is fitted on the outputs of training images and reads
    outputs; one that has a network of its own was fitted by the caller, and gets images. ``UserError`` as in
    :func:`anchored.evaluation.detectors.own_detector`.
    """
    if isinstance(detector, type) or not (hasattr(detector, "predict") and hasattr(detector, "requires_fit")):
        return own_detector(name, detector, version)
    if name in SCORES:
        raise UserError(f"a detector is called '{name}', as a score of the logits, which is measured too: rename it")
    own = any(getattr(detector, part, None) is not None for part in PARTS)
    reads: Reads = "images" if own else _reads(detector)
    fits = bool(detector.requires_fit) and reads != "images"
    features = reads in ("features", "feature_maps")
    return Detector(
        name,
        lambda _: _Scorer(copy.deepcopy(detector) if fits else detector, reads),
        reads == "images",
        features,
        fits,
        version,
    )


def _classes() -> dict[str, Any]:
    """Every detector of pytorch-ood by its name in small letters; ``UserError`` where it is not installed."""
    try:
        from pytorch_ood import detector as library
    except ImportError as error:
        raise UserError("evaluate.detectors needs pytorch-ood: pip install 'anchored[ood]'") from error
    found = {name.lower(): getattr(library, name) for name in sorted(library.__all__, key=str.lower)}
    return {name: each for name, each in found.items() if isinstance(each, type)}


def _reads(detector: Any) -> Reads:
    known: tuple[Reads, ...] = ("logits", "features", "feature_maps")
    return next((each for each in known if hasattr(detector, f"predict_{each}")), "images")


def _lacks(kind: type, options: Iterable[str] = ()) -> list[str]:
    """Arguments of a detector that nobody has given and we have not."""
    known = {*PARTS, "head", "w", "b", "d", "p", *options}
    return [each for each in _required(kind) if each not in known]


def _required(kind: type) -> list[str]:
    """Names of the arguments that have no default."""
    found = inspect.signature(kind).parameters
    return [name for name in parameters(kind) if found[name].default is inspect.Parameter.empty]


def _options(name: str, kind: type, text: str) -> Iterator[tuple[str, Any]]:
    """``k=200,normalize=false`` as arguments; ``UserError`` for those that the detector does not have."""
    plain = [each for each in parameters(kind) if each not in (*PARTS, "head", "w", "b")]
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in plain:
            raise UserError(f"evaluate.detectors has '{name}': there are {', '.join(plain)} to give, as in KEY=VALUE")
        try:
            yield key, json.loads(value)
        except ValueError:
            yield key, value


def _made(kind: Any, options: dict[str, Any], network: MeasuredNetwork) -> Any:
    """A detector of a network that it reads the outputs of, or that it scores images through."""
    needed, arguments = set(_required(kind)), dict[str, Any](dict.fromkeys(PARTS), p=0.9)  # DICE: a tenth is kept
    if _reads(kind) == "images":
        logits = _Logits(network.module())
        arguments |= {"model": logits, "encoder": _Features(logits), "norm_std": list(network.load().std) or None}
    if needed & {"head", "w", "b", "d"}:
        head = network.head()
        width = head.in_features
        # ViM's authors keep 1,000 dimensions of 2,048 and more, 512 of 768 and more; pytorch-ood half of fewer.
        dimension = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
        whole = nn.Sequential(nn.Flatten(1), head) if _reads(kind) == "feature_maps" else head
        arguments |= {"head": whole, "w": head.weight, "b": head.bias, "d": dimension}
    taken = {name: value for name, value in arguments.items() if name in needed or name == "norm_std"}
    return kind(**{name: value for name, value in (taken | options).items() if name in parameters(kind)})


class _Scorer:
    """A detector of pytorch-ood."""

    def __init__(self, detector: Any, reads: Reads, device: torch.device | None = None) -> None:
        self.detector, self.reads = detector, reads
        self.device = device  # where it scores

    def fit(self, training: Outputs) -> None:
        name = "features" if self.reads == "images" else self.reads
        learnt, labels = _read(training, name).to(self.device), training.labels.to(self.device)
        getattr(self.detector, f"fit_{name}")(learnt, labels)

    def score(self, outputs: Outputs) -> Tensor:
        found: Tensor = getattr(self.detector, f"predict_{self.reads}")(_read(outputs, self.reads))
        return found.detach()

    def predict(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.detector.predict(inputs)
        return found.detach()


def _read(outputs: Outputs, name: str) -> Tensor:
    """Logits (M,N), features (M,D), or these as maps of one place (M,D,1,1)."""
    if name == "logits":
        return outputs.logits
    features = features_of(outputs)
    return features[:, :, None, None] if name == "feature_maps" else features


class _Logits(nn.Module):
    """A network as one that gives a tensor of logits (B,N)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return logits_of(self.network(inputs))


class _Features(nn.Module):
    """The penultimate features (B,D) of a network, the mean over its references, through which gradients flow."""

    def __init__(self, logits: _Logits) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, inputs: Tensor) -> Tensor:
        with penultimate_features(network_behind(self.logits.network), detached=False) as seen:
            self.logits(inputs)
        return torch.stack(seen).mean(dim=0)
