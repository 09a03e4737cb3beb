"""Evaluates one network under each of many references: a pass a reference over each set, kept as logits by reference.

Rows are made from them in ``reference_suites``. Legend: K references, B or M images, N classes.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from anchored.config.recipe import Cell, Recipe, canonical
from anchored.config.settings import References
from anchored.data import datasets
from anchored.errors import UserError
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.detectors import Detector
from anchored.evaluation.evaluator import EvaluationSet, Evaluator, Progress, evaluator_of
from anchored.evaluation.inference import Pass
from anchored.method.anchoring import AnchoredModel, pair
from anchored.method.folded import Folded
from anchored.method.folding import fold
from anchored.method.references import Inferred, Way, combine, nearest_reference, views_of
from anchored.models import folder as models
from anchored.models.features import penultimate_features
from anchored.store.layout import Run
from anchored.training.devices import find_device
from anchored.training.reference_images import references as chosen_references

WAYS = (
    "single", "mean", "mean_probabilities", "calibrated", "calibrated_imagenet", "nearest", "nearest_features",
    "adaptive",
)  # fmt: skip
"""Ways of inference by the names that rows have; the first is all that a standard network has."""

REPLICATES = 100
"""Behind the intervals over images, at most: every figure is made once for each way of inference."""


@dataclass(frozen=True)
class Seen:
    """What a network says of M images under K references."""

    logits: Tensor  # (K,M,N) float32
    labels: Tensor  # (M,)
    nearest: Tensor  # (M,) the place of the reference that is nearest in input space
    nearest_features: Tensor  # (M,) and in feature space, under the first reference

    def first(self, count: int) -> Tensor:
        """Logits by the first references."""
        return self.logits[:count]


class _Views:
    """Images to logits by reference, and which reference is nearest: a function as :class:`Classifier` takes it."""

    def __init__(self, model: nn.Module, references: Tensor | None, most: int) -> None:
        self.model, self.references, self.most = model.eval().to(memory_format=torch.channels_last), references, most
        self.network: nn.Module = model
        if isinstance(model, AnchoredModel):
            assert references is not None
            model.set_references(references)
            with contextlib.suppress(UserError):  # as it is it is slower, and as right
                folded = fold(model)
                self.network = folded if isinstance(folded, Folded) else model
        self.features = self._reference_features() if references is not None else None

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Inputs (B,C,H,W) on the CPU -> "logits" (B,N), their mean, and "features" (B,K·N+2): all, then the places."""
        images = images.to(next(self.model.parameters()).device)
        if self.references is None or self.features is None:
            logits = self.model(images)
            return {"logits": logits, "features": torch.cat([logits, logits.new_zeros(len(logits), 2)], dim=1)}
        views = views_of(self.network, images)
        assert isinstance(self.network, (AnchoredModel, Folded))
        with penultimate_features(self.network.network) as seen:
            logits = [views.logits()]
        logits += [views.logits() for _ in range(views.count - 1)]
        places = [
            nearest_reference(images.flatten(1), self.references[: self.most].flatten(1)),
            nearest_reference(seen[0], self.features),
        ]
        by_reference = torch.stack(logits)
        flat = [by_reference.transpose(0, 1).flatten(1), *(place[:, None].to(by_reference) for place in places)]
        return {"logits": by_reference.mean(dim=0), "features": torch.cat(flat, dim=1)}

    @torch.inference_mode()
    def features_by_reference(self, images: Tensor) -> dict[str, Tensor]:
        """Inputs (B,C,H,W) on the CPU -> "logits" (B,N), their mean, and "features" (B,K·D), penultimate."""
        assert isinstance(self.network, (AnchoredModel, Folded))
        views = views_of(self.network, images.to(next(self.model.parameters()).device))
        with penultimate_features(self.network.network) as seen:
            logits = torch.stack([views.logits() for _ in range(views.count)])
        return {"logits": logits.mean(dim=0), "features": torch.stack(seen, dim=1).flatten(1)}

    @torch.inference_mode()
    def _reference_features(self) -> Tensor:
        assert isinstance(self.model, AnchoredModel)
        assert self.references is not None
        with penultimate_features(self.model.network) as seen:
            self.model.network(pair(self.references[: self.most], self.references[:1]))
        return seen[0]


@dataclass
class ReferencesEvaluator(Evaluator):
    """Evaluates one trained network under each of many references."""

    asked: References = field(default_factory=References)
    count: int = 1  # K; 1 of a standard network, which has no references
    content: str = ""  # hash of own images that are references

    @property
    def folder(self) -> Run:
        """The folder of what is measured."""
        return self.run.references

    @property
    def most(self) -> int:
        """K of the ways of inference."""
        return min(self.asked.most, self.count)

    @property
    def ways(self) -> tuple[str, ...]:
        """Names of the ways of inference; of a standard network the one pass."""
        return WAYS if self.count > 1 else WAYS[:1]

    def sets(self) -> list[EvaluationSet]:
        """All sets, each one pass a reference."""
        return [
            self.clean(),
            *([self.held()] if self.subject.held_out else []),
            *(self.corrupted(name, severity) for severity in self.asked.severities for name in self.corruptions),
            *map(self.outside, self.settings.ood),
            *(self.task(name, split) for name in self.tasks for split in ("train", "test")),
        ]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks whose features are kept by reference."""
        return self.settings.adaptation if self.count > 1 else ()

    def clean(self) -> EvaluationSet:
        """The test images."""
        return EvaluationSet("test", self.subject.test, "test", features=True)

    def held(self) -> EvaluationSet:
        """Held-out training images."""
        return EvaluationSet("validation", self.subject.test, "validation", features=True)

    def corrupted(self, corruption: str, severity: int) -> EvaluationSet:
        """Test images under a corruption."""
        return replace(super().corrupted(corruption, severity), features=True)

    def outside(self, name: str) -> EvaluationSet:
        """Out-of-distribution images."""
        return replace(super().outside(name), features=True)

    def seen(self, images: EvaluationSet) -> Seen:
        """What the network said of a set."""
        outputs = self.outputs(images)
        assert outputs.features is not None
        logits, nearest = outputs.features[:, :-2], outputs.features[:, -2:].long()
        by_reference = logits.reshape(len(logits), self.count, -1).transpose(0, 1)
        return Seen(by_reference, outputs.labels, *nearest.unbind(1))

    def features(self, name: str, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """The penultimate features (K,M,D) float32 of a task's images under each reference, and their labels (M,)."""
        outputs = self.outputs(self.task(name, split))
        assert outputs.features is not None
        by_reference = outputs.features.reshape(len(outputs.labels), self.count, -1)
        return by_reference.transpose(0, 1), outputs.labels

    def made_also(self) -> dict[str, Any]:
        """What the rows were made from beside the weights, the evaluation's settings and the images."""
        return {"references": json.loads(canonical(self.asked)), "own_references": self.content}

    def _kept_as(self, images: EvaluationSet, detector: Detector | None = None) -> tuple[Run, str, str]:
        _, name, key = super()._kept_as(images, detector)
        return self.folder, name, f"{key}, {self.count} references, {self.most}, {self.asked.images} {self.content}"

    def _pass(self, images: EvaluationSet) -> Pass:
        """The pass over one set, or over some of its images, each changed as it is among all."""
        whole = super()._pass(images)
        if images.file.startswith("features-"):
            views = self.classifier.function
            assert isinstance(views, _Views)
            return replace(whole, classifier=replace(self.classifier, function=views.features_by_reference))
        few = self.asked.images if images.corruption or images.split == "ood" or images.outlier else 0
        if not 0 < few < len(whole.images):
            return whole
        places = torch.linspace(0, len(whole.images) - 1, few, dtype=torch.float64).long()
        change = whole.change
        moved = None if change is None else lambda pixels, at: change(pixels, places.to(at.device)[at])
        return replace(whole, images=whole.images.take(places), change=moved)

    @cached_property
    def answers(self) -> dict[tuple[EvaluationSet, str], Inferred]:
        """The answers of each way of inference, as they are asked for."""
        return {}

    def answer(self, images: EvaluationSet, way: str) -> Inferred:
        """The answers of a way of inference to a set."""
        if (images, way) not in self.answers:
            seen = self.seen(images)
            own: dict[str, dict[str, Any]] = {
                "calibrated_imagenet": {"form": "imagenet"},
                "nearest": {"nearest": seen.nearest},
                "nearest_features": {"nearest": seen.nearest_features},
                "adaptive": {"confidence": self.asked.confidence},
            }
            kind = next(each for each in get_args(Way) if way in (each, f"{each}_imagenet", f"{each}_features"))
            answer = combine(seen.first(self.most), kind, **own.get(way, {}))
            if way == "nearest_features":
                answer = replace(answer, used=answer.used + 1)  # the pass whose features are compared
            self.answers[images, way] = answer
        return self.answers[images, way]


def references_evaluator(
    run: Run, cell: Cell, recipe: Recipe, progress: Progress = lambda share, what: None, root: Path | None = None
) -> ReferencesEvaluator:
    """The evaluator of a trained run over as many references as the recipe says."""
    asked, base = recipe.references, evaluator_of(run, cell, recipe.evaluate, progress, root)
    anchored = cell.protocol != "standard"

    def load() -> Classifier:
        model = models.load(run.path, network=cell.network).to(find_device(cell.train.accelerator))
        config, references = models.read_config(run), None
        if isinstance(model, AnchoredModel):
            references = _references(model, cell, config, asked.count, root)
        function = _Views(model, references, asked.most)
        prepare = Classifier.of(model, config).prepare
        return Classifier(function, prepare, (config.channels, config.size, config.size), arrays="torch")

    own, replicates = cell.anchoring.reference_images, min(recipe.evaluate.bootstrap, REPLICATES)
    settings = replace(recipe.evaluate, bootstrap=replicates)
    return ReferencesEvaluator(
        run, replace(base.subject, load=load), base.images, settings, progress,
        asked=asked, count=asked.count if anchored else 1,
        content=datasets.content_hash(own, cell.data) if own and anchored else "",
    )  # fmt: skip


def _references(model: AnchoredModel, cell: Cell, config: models.ModelConfig, count: int, root: Path | None) -> Tensor:
    """The model's own references, then those that its choice would take next: (K,C,H,W) on its device."""
    images = datasets.open_set(cell.data.train, "train", cell.data, config.view, root)
    further = chosen_references(images, cell, config, count, root)
    assert model.references is not None
    own = model.references[:count]
    return torch.cat([own, further.to(own)[len(own) :]])
