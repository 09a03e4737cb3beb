"""Decisions of a trained run, or of any classifier, from its outputs on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anchored.config.recipe import Cell
from anchored.config.settings import Data, Evaluation
from anchored.data import datasets
from anchored.data.given import relabelled
from anchored.data.image_sets import GivenInputs, ImageSet, LabelledImages
from anchored.data.preprocessing import InputFormat
from anchored.errors import UserError
from anchored.evaluation import overlap
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.given_sets import SetOpener
from anchored.evaluation.inference import Outputs, Pass, compute_outputs
from anchored.models import folder as models
from anchored.models.decision import Decision, fit_decision
from anchored.store import files
from anchored.store.layout import Run
from anchored.study.evaluate import given_classifier, modes_kept, open_named, weights_hash
from anchored.training.devices import find_device


def calibrate(
    model: Any,
    images: Any,
    labels: Any = None,
    *,
    false_alarms: float = 0.05,
    coverage: float = 0.9,
    error: float | None = None,
    confidence: float = 0.95,
    score: str = "energy",
    sets: str = "lac",
    by_class: bool = False,
    seed: int = 0,
    classes: Sequence[str] = (),
    preprocess: Callable[[Tensor], Tensor] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    size: int = 0,
    arrays: Literal["torch", "numpy"] | None = None,
    batch_size: int = Evaluation.batch_size,
    version: str = "",
) -> Decision:
    """The decision rule of any classifier, fitted on images that it was neither trained nor tested on.

    Args:
        model: as in :func:`anchored.evaluate`, as are ``classes`` and all that follows it.
        images: held-out images, with ``labels``; or a labelled set in any form that ``evaluate`` takes as ``test``.
        labels: numbers of their classes (N,).
        false_alarms, coverage, error, confidence, score, sets, by_class, seed: see
            :func:`anchored.models.decision.fit_decision`.

    Raises:
        UserError: images that do not fit, or too few of them: the line says how many are needed.

    Example:
        >>> decision = anchored.calibrate(model, images, labels, false_alarms=0.05)
        >>> decision.decide(model(inputs)).names
    """
    takes = given_classifier(model, preprocess, (mean, std), arrays)
    opener = SetOpener(images if labels is None else (images, labels), InputFormat(3, size) if size else None)
    opened, names = open_named(takes, model, opener, classes)
    with modes_kept(model):
        found = _outputs(takes, relabelled(opened, names), batch_size)
    return fit_decision(
        found.logits, found.labels, classes=names, weights=weights_hash(model, version), images=opener.name,
        false_alarms=false_alarms, coverage=coverage, error=error, confidence=confidence, score=score, sets=sets,
        by_class=by_class, seed=seed,
    )  # fmt: skip


def calibrate_run(
    run: Run, images: str = "", *, network: str | None = None, root: Path | None = None, **options: Any
) -> Decision:
    """Fit the decision of a trained run or converted model, and write it into its folder.

    Args:
        run: its folder.
        images: name of a labelled set (a row of the catalog, class folders, a .csv, an .npz, hf:NAME) that it was
            neither trained nor tested on; by default the share of its training images that was held out.
        network: see :func:`anchored.load`.
        root: folder of the data sets.
        options: of :func:`anchored.models.decision.fit_decision`.

    Raises:
        UserError: no images were held out and none are given, they are test images, or too few.
    """
    config = models.read_config(run)
    cell = Cell.parse(files.read_json(run.cell_file), run.cell_file) if run.cell_file.exists() else None
    held_out, notes = _given(run, images, cell, config, root) if images else (_held_out(run, cell, root), ())
    model = models.load(run.path, network=network).to(find_device())
    found = _outputs(Classifier.of(model, config), held_out, Evaluation.batch_size)
    what = images or f"{held_out.name}, the held-out share of its training images"
    weights = models.weights_digest(run)
    rule = fit_decision(found.logits, found.labels, classes=config.classes, weights=weights, images=what, **options)
    rule = replace(rule, notes=(*rule.notes, *notes))
    rule.save(run.decision_file)
    return rule


def _outputs(classifier: Classifier, images: LabelledImages | GivenInputs, batch_size: int) -> Outputs:
    return compute_outputs(Pass(classifier, images, batch_size))


def _held_out(run: Run, cell: Cell | None, root: Path | None) -> LabelledImages:
    """The training images that the run did not see; ``UserError`` where it saw all, or nobody knows."""
    if cell is None or not cell.data.validation:
        what = "is a converted model" if cell is None else "was trained on all training images (data.validation is 0)"
        raise UserError(
            f"{run.path} {what}, so that none is held out: give labelled images that it was neither trained nor tested "
            "on with --images, or train with, say, --data.validation 0.1"
        )
    return datasets.open_set(cell.data.train, "validation", cell.data, datasets.input_format(cell.data), root)


def _given(
    run: Run, name: str, cell: Cell | None, config: models.ModelConfig, root: Path | None
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Images by name, their labels as the network's, and what could not be looked at; ``UserError`` for seen images."""
    trained_on = Data(train=config.trained_on) if cell is None and config.trained_on else cell and cell.data
    if trained_on and overlap.shares_images(name, trained_on.train, trained_on):
        raise UserError(
            f"{name} shares images with {trained_on.train}, which {run.name} was trained and tested on: a promise "
            "needs images that it has not seen; leave --images out to take the held-out share"
        )
    images = relabelled(datasets.open_set(name, "all", Data(), config.view, root), config.classes)
    if len(images) == 0:
        raise UserError(f"{name} has no images")
    notes = _refuse_seen(images, trained_on, config.view, root) if trained_on else ()
    return images, notes


def _refuse_seen(images: LabelledImages, data: Data, view: InputFormat, root: Path | None) -> tuple[str, ...]:
    """Refuse pixels that are those of a training or test image, where all are in memory; else say what was not seen."""
    for split in ("test", "train"):
        try:
            whole = 1.0 if split == "test" else data.fraction
            seen = datasets.open_set(data.train, split, replace(data, content="", fraction=whole), view, root)
        except UserError:
            return (f"The {split} images of {data.train} are not on this machine, and were not compared with these",)
        if not isinstance(seen, ImageSet) or not isinstance(images, ImageSet):
            return ("The images are too many to be compared with those that it was trained and tested on",)
        known = set(map(_bytes, seen.images))
        both = [place for place, image in enumerate(images.images) if _bytes(image) in known]
        if both:
            raise UserError(
                f"{len(both):,} of the {len(images):,} images of {images.name} are {split} images of {data.train} (the "
                f"first is number {both[0]}): a promise needs images that the network was neither trained nor tested on"
            )
    return ()


def _bytes(image: Tensor) -> bytes:
    return image.to(torch.uint8).cpu().contiguous().numpy().tobytes()
