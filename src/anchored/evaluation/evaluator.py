"""Evaluates one classifier: its outputs on sets, computed once and kept, and rows made from them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anchored.config.recipe import Cell, derived_seed
from anchored.config.settings import Evaluation
from anchored.corruptions import registry as corruptions
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.preprocessing import InputFormat
from anchored.data.synthetic_ood import OUTLIERS, make_ood
from anchored.errors import UserError, is_out_of_memory
from anchored.evaluation import inference
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.detectors import Detector, MeasuredNetwork, ReadyDetector, ScoringClassifier
from anchored.evaluation.given_outputs import GivenOutputs
from anchored.evaluation.inference import Outputs, Pass
from anchored.evaluation.overlap import check_outliers
from anchored.evaluation.pytorch_ood_detectors import find_detector
from anchored.evaluation.sets import NamedSets
from anchored.metrics import intervals
from anchored.metrics.bounded import Figure
from anchored.metrics.intervals import Interval
from anchored.metrics.registry import METRICS
from anchored.models import folder as models
from anchored.models import registry as networks
from anchored.store.layout import HELD_OUT, Run
from anchored.store.rows import Row
from anchored.training.devices import find_device
from anchored.training.machine import available_memory

COPIES = 3
"""How often the replicates are in memory at once: as they were drawn, in one piece, and sorted or kept."""

Split = Literal["test", "validation"]
Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


@dataclass(frozen=True)
class EvaluationSet:
    """One set of images that a network is evaluated on: one pass, one file of outputs."""

    file: str  # name of the outputs on disk
    name: str  # row of the catalog, or own images
    split: str
    corruption: str = ""
    severity: int = 0
    features: bool = False  # whether penultimate features are kept too
    outlier: str = ""  # how the images are made out-of-distribution, if they are


@dataclass(frozen=True)
class Subject:
    """What is evaluated: how its rows are headed, on which set, and how its outputs are had."""

    test: str  # name of the set that it is measured on
    architecture: str
    protocol: str
    weights: str  # hash of its weights, which outputs on disk are bound to
    load: Callable[[], Classifier]  # called when a set has to be passed through it
    alpha: float | None = None
    tail_weight: float | None = None
    seed: int = 0
    features: bool = True  # whether its penultimate features are kept though no probe needs them
    held_out: bool = False  # whether a share of the training images was kept from it
    method: str = ""  # of grid.methods


@dataclass
class Evaluator:
    """Evaluates one classifier: keeps its outputs on each set, and makes rows from them."""

    run: Run
    subject: Subject
    images: NamedSets
    settings: Evaluation
    progress: Progress = lambda share, what: None
    split: Split = "test"  # images of the training set that it is measured on
    given: GivenOutputs | None = None  # outputs that somebody computed, in place of passes
    draws: list[Tensor] = field(default_factory=list)  # replicates of the rows so far (R,Q), in their order and unit
    own_detectors: Mapping[str, Detector] = field(default_factory=dict)  # that a caller gave, by name

    @cached_property
    def classifier(self) -> Classifier:
        """The network, loaded when a set has to be passed through it."""
        return self.subject.load()

    @property
    def folder(self) -> Run:
        """The folder of what is measured."""
        return self.run if self.split == "test" else self.run.validation

    @cached_property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions, families expanded."""
        return corruptions_of(self.settings, self.images.view)

    @cached_property
    def detectors(self) -> tuple[Detector, ...]:
        """Detectors that are measured beside the scores of the logits."""
        return tuple(self.own_detectors.get(name) or find_detector(name) for name in self.settings.detectors)

    @cached_property
    def _detect_by_features(self) -> bool:
        return any(each.needs_features for each in self.detectors)

    def clean(self) -> EvaluationSet:
        """The training set's images that are measured."""
        features = self.subject.features or bool(self.settings.adaptation) or self._detect_by_features
        return EvaluationSet(self.split, self.subject.test, self.split, features=features)

    def training(self) -> EvaluationSet:
        """The images that the network was trained on, which detectors are fitted on."""
        return EvaluationSet("train", self.subject.test, "train", features=self._detect_by_features)

    def held_out(self) -> EvaluationSet | None:
        """The images that decisions are fitted on; None where there are none, or they are what is measured."""
        if self.split != "test":
            return None
        if name := self.settings.held_out:
            return EvaluationSet(HELD_OUT, name, "all")
        return EvaluationSet(HELD_OUT, self.subject.test, "validation") if self.subject.held_out else None

    def corrupted(self, corruption: str, severity: int) -> EvaluationSet:
        """The same images under a corruption."""
        file = f"corruption-{corruption}-{severity}"
        return EvaluationSet(file, self.subject.test, self.split, corruption, severity)

    def outside(self, name: str) -> EvaluationSet:
        """An out-of-distribution set, or the same images made into such."""
        features = self._detect_by_features
        if name in OUTLIERS:
            return EvaluationSet(f"ood-{name}", self.subject.test, self.split, features=features, outlier=name)
        return EvaluationSet(f"ood-{self.images.file_name(name)}", name, "ood", features=features)

    def shifted(self, name: str) -> EvaluationSet:
        """Images of the training set's classes from elsewhere."""
        return EvaluationSet(f"shifted-{self.images.file_name(name)}", name, "all")

    def task(self, name: str, split: Literal["train", "test"]) -> EvaluationSet:
        """Images of another task, for a linear probe on their features."""
        return EvaluationSet(f"features-{self.images.file_name(name)}-{split}", name, split, features=True)

    def sets(self) -> list[EvaluationSet]:
        """All sets, each one pass. In validation a probe is tested on a part of its task's training images."""
        settings = self.settings
        splits: tuple[Literal["train", "test"], ...] = ("train", "test") if self.split == "test" else ("train",)
        return [
            *([self.training()] if any(each.needs_fit for each in self.detectors) else []),
            self.clean(),
            *filter(None, [self.held_out()]),
            *(self.corrupted(name, severity) for severity in settings.severities for name in self.corruptions),
            *map(self.outside, settings.ood),
            *map(self.shifted, settings.shifted),
            *(self.task(name, split) for name in settings.adaptation for split in splits),
        ]

    def made_also(self) -> dict[str, Any]:
        """What the rows were made from beside the weights, the evaluation's settings and the images."""
        return {}

    def save_outputs(self) -> None:
        """Pass all sets through the network, shared by all ranks; outputs that are there are not computed again."""
        sets = self.sets()
        for number, images in enumerate(sets):
            self.run.refuse_removed()
            self.progress(number / len(sets), f"evaluating, {images.file}")
            self._save(images)
        for detector in self.detectors:
            if detector.through_network:
                self._save_scores(detector)

    def _save(self, images: EvaluationSet) -> None:
        if self.given is not None:
            inference.load_or_compute(*self._kept_as(images), partial(self._given, images.file))
        else:
            inference.save_outputs(*self._kept_as(images), partial(self._pass, images))

    def _given(self, name: str) -> Outputs:
        assert self.given is not None
        if name not in self.given.sets:
            raise UserError(f"outputs of '{name}' are missing: detectors are fitted on those of training images")
        return self.given.sets[name]

    def _save_scores(self, detector: Detector) -> None:
        """Pass the clean and the out-of-distribution images through a detector that scores images, likewise."""
        ready: list[ReadyDetector] = []  # made for the first set that is not there

        def begin(images: EvaluationSet) -> Pass:
            ready.extend([self._ready(detector)] * (not ready))
            classifier = ScoringClassifier.of_detector(self.classifier, ready[0])
            return replace(self._pass(images), classifier=classifier, features=False)

        for images in self._detected():
            self.progress(1.0, f"evaluating, {detector.name} of {images.file}")
            inference.save_outputs(*self._kept_as(images, detector), partial(begin, images))

    def _detected(self) -> list[EvaluationSet]:
        return [self.clean(), *map(self.outside, self.settings.ood)]

    def _ready(self, detector: Detector) -> ReadyDetector:
        """A detector made for this network, and fitted on its training images if it learns."""
        network = MeasuredNetwork(lambda: self.classifier, self.outputs(self.clean()))
        return detector.ready(network, self.outputs(self.training()) if detector.needs_fit else None)

    def detector_scores(self) -> Iterator[tuple[str, list[Tensor]]]:
        """Each detector's name, and its scores (M,) of the clean images and of each out-of-distribution set."""
        for detector in self.detectors:
            self.progress(1.0, f"evaluating, detector {detector.name}")
            if detector.through_network:
                kept = [inference.load_outputs(*self._kept_as(images, detector)) for images in self._detected()]
                yield detector.name, [each.logits[:, 0] for each in kept if each is not None]
            else:
                ready = self._ready(detector)
                yield (
                    detector.name,
                    [ready.scores(self.outputs(images), images.file) for images in self._detected()],
                )

    def outputs(self, images: EvaluationSet) -> Outputs:
        """The network's outputs on a set, which ``save_outputs`` keeps."""
        outputs = inference.load_outputs(*self._kept_as(images))
        assert outputs is not None
        return outputs

    def _kept_as(self, images: EvaluationSet, detector: Detector | None = None) -> tuple[Run, str, str]:
        """Folder, name and key of a set's outputs: by the key's weights, images and changes they are known again.

        Those of a detector are its scores.
        """
        key = [self.subject.weights, images.name, images.split, self.images.data.fraction, images.features]
        key += [content] if (content := self.images.content(images.name)) else []
        if images.corruption:
            key += [images.corruption, images.severity, self._archive(images) or self.settings.seed]
        key += [images.outlier, self.settings.seed] if images.outlier else []
        key += [self.settings.detector_images] if images == self.training() and self.settings.detector_images else []
        file = images.file
        if detector is not None:
            file = f"detector-{detector.file}-{images.file}"
            key += [detector.name, detector.version]
            if detector.needs_fit:
                key += [self.settings.detector_images, self.images.content(self.subject.test)]
        # What a probe learns from is the same whichever images the network is measured on.
        return self.run if images.split == "train" else self.folder, file, json.dumps(key)

    def _pass(self, images: EvaluationSet) -> Pass:
        """The pass over one set, its images changed, or read from an archive of corrupted ones."""
        size, seed = self.settings.batch_size, self.settings.seed

        def change(pixels: Tensor, places: Tensor) -> Tensor:
            if pixels.dtype != torch.uint8:
                raise UserError(
                    f"{images.name} is given as floats, which cannot be corrupted: give the images before they are "
                    "normalised, uint8 or in [0, 1], and how they are normalised (mean, std, or preprocess)"
                )
            if images.outlier:
                return make_ood(pixels, images.outlier, seed=seed, indices=places)
            return corruptions.corrupt(pixels, images.corruption, images.severity, seed=seed, indices=places)

        if archive := self._archive(images):
            stored = self.images.open_corrupted(archive, images.corruption, images.severity)
            return Pass(self.classifier, stored, size, images.features)
        changed = change if images.corruption or images.outlier else None
        opened, most = self.images.open(images.name, images.split), self.settings.detector_images
        if images == self.training() and 0 < most < len(opened):
            opened = opened.take(torch.linspace(0, len(opened) - 1, most, dtype=torch.float64).round().long())
        return Pass(self.classifier, opened, size, images.features, changed)

    def _archive(self, images: EvaluationSet) -> str:
        """The published set of corrupted images that is read, if one is to be."""
        read = images.corruption and self.settings.corruption_source == "archive"
        return archive_of(images.name, images.corruption) if read else ""

    def generator(self, *purpose: str) -> torch.Generator:
        """The same draws for every network, so that networks are compared on the same resamples."""
        return torch.Generator().manual_seed(derived_seed(self.settings.seed, *purpose))

    def estimate(
        self, purpose: str, figures: Sequence[Figure], statistic: Callable[..., Tensor], sizes: Sequence[int]
    ) -> list[Interval]:
        """Values and intervals of figures, as in ``intervals.estimate``, whose replicates are kept for comparisons.

        Each figure becomes one row, and the rows follow in this order. ``UserError`` where memory cannot hold them.
        """
        count, what = self.settings.bootstrap, f"evaluating, intervals of {figures[0].metric}"
        self.progress(1.0, what)
        if COPIES * 8 * count * len(figures) > available_memory():
            raise UserError(_too_many(count))
        began = time.monotonic()

        def tell(share: float) -> None:
            left = int((time.monotonic() - began) * (1 / share - 1))
            self.progress(1.0, f"{what}: {share:.0%} of {count:,} resamples, {left // 60} min {left % 60:02d} s left")

        try:
            found, draws = intervals.estimate(statistic, figures, sizes, self.generator(purpose), count, progress=tell)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(_too_many(count)) from error
        self.draws.append(draws.cpu() * draws.new_tensor([_unit(figure.metric) for figure in figures]).cpu())
        return found

    def row(
        self,
        metric: str,
        found: Interval,
        dataset: str,
        n: int,
        *,
        severity: int | None = None,
        corruption: str = "",
        score: str = "",
    ) -> Row:
        """A row of this network."""
        value, low, high = (bound * _unit(metric) for bound in found)
        return Row(
            trained_on=self.images.title(self.subject.test),
            architecture=self.subject.architecture,
            protocol=self.subject.protocol,
            alpha=self.subject.alpha,
            metric=metric,
            dataset=dataset,
            severity=severity,
            value=value,
            tail_weight=self.subject.tail_weight,
            seed=self.subject.seed,
            corruption=corruption,
            score=score,
            low=low,
            high=high,
            n=n,
            run=self.run.name,
            method=self.subject.method,
        )


def _too_many(count: int) -> str:
    return f"evaluate.bootstrap is {count:,}: so many resamples do not fit into this machine's memory: ask for fewer"


def _unit(metric: str) -> float:
    """What fractions are multiplied with in rows."""
    return 100.0 if METRICS[metric].percent else 1.0


def corruptions_of(settings: Evaluation, seen: InputFormat) -> tuple[str, ...]:
    """Names of the corruptions of a recipe, its families expanded for the network's input.

    Archives hold colour images, which were corrupted before a network sees them in grey.
    """
    channels = 3 if settings.corruption_source == "archive" else seen.channels
    return corruptions.expand(settings.corruptions, seen.size, seen.size, channels)


def archive_of(train: str, corruption: str) -> str:
    """The catalog's archive of a set's corrupted test images; ``UserError`` where none is published."""
    for row in catalog.CATALOG.values():
        if row.clean == train and corruption in row.corruptions:
            return row.name
    raise UserError(
        f"evaluate.corruption_source is archive, but no archive of {train} under {corruption} is in the catalog: take "
        "generated"
    )


def evaluator_of(
    run: Run,
    cell: Cell,
    settings: Evaluation,
    progress: Progress = lambda share, what: None,
    root: Path | None = None,
    split: Split = "test",
) -> Evaluator:
    """The evaluator of a trained run. ``UserError`` where outliers that it was trained on are to be measured."""
    check_outliers(cell.train.outliers, settings, cell.data)

    def load() -> Classifier:
        model = models.load(run.path, network=cell.network).to(find_device(cell.train.accelerator))
        return Classifier.of(model, models.read_config(run))

    subject = Subject(
        cell.data.train,
        networks.find_network(cell.network).title,
        cell.protocol,
        models.weights_digest(run),
        load,
        cell.mask_probability if cell.protocol == "ram" else None,
        cell.tail_weight or None,
        cell.seed,
        held_out=cell.data.validation > 0,
        method=cell.method,
    )
    sets = NamedSets(cell.data, datasets.input_format(cell.data), root)
    return Evaluator(run, subject, sets, settings, progress, split)
