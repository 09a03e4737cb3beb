"""Decisions of a trained run, or of any classifier, from its outputs on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from anchored.config.recipe import Cell
from anchored.config.settings import Data, Evaluation
from anchored.data import datasets
from anchored.data.catalog.names import resolve_name
from anchored.data.given import relabelled
from anchored.data.image_sets import GivenInputs, ImageSet, LabelledImages
from anchored.data.preprocessing import InputFormat
from anchored.errors import UserError
from anchored.evaluation import overlap
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.given_sets import SetOpener
from anchored.evaluation.inference import Outputs, Pass, compute_outputs
from anchored.evaluation.maite import given_model
from anchored.models import folder as models
from anchored.models.decision import Decision, fit_decision
from anchored.models.sources import OpenedModel
from anchored.store import files
from anchored.store.layout import Run
from anchored.study.evaluate import modes_kept, open_given, open_labelled, weights_hash
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
    checkpoint: str | Path = "",
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
        model: as in :func:`anchored.evaluate`, also by its name, as are ``checkpoint`` and all that follows it. A rule
            for a run's or model's folder may be saved there as ``decision.json``.
        images: held-out images, with ``labels``; or a labelled set in any form that ``evaluate`` takes as ``test``.
        labels: numbers of their classes (N,).
        false_alarms, coverage, error, confidence, score, sets, by_class, seed: see
            :func:`anchored.models.decision.fit_decision`.

    Raises:
        UserError: images that do not fit, that a model opened by its name was trained or tested on, or too few of
            them: the line says how many are needed.

    Example:
        >>> decision = anchored.calibrate(model, images, labels, false_alarms=0.05)
        >>> decision.decide(model(inputs)).names
    """
    given = given_model(model, images)
    takes, model, view = open_given(given, checkpoint, preprocess, (mean, std), size, arrays)
    opener = SetOpener(images if labels is None else (images, labels), view)
    config = model.config if isinstance(model, OpenedModel) else None
    seen = None if config is None else _seen_data(Run(Path(given)), config)
    if seen and isinstance(opener.test, (str, Path)):
        _refuse_seen_set(opener.name, model.title, seen)
    held_out, names = open_labelled(takes, model, opener, classes)
    notes = _refuse_seen_images(held_out, seen, config.view) if seen and config else ()
    with modes_kept(model):
        found = _outputs(takes, held_out, batch_size)
    rule = fit_decision(
        found.logits, found.labels, classes=names, weights=weights_hash(model, version), images=opener.name,
        false_alarms=false_alarms, coverage=coverage, error=error, confidence=confidence, score=score, sets=sets,
        by_class=by_class, seed=seed,
    )  # fmt: skip
    return replace(rule, notes=(*rule.notes, *notes))


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
    images = resolve_name(images) if images else ""
    config = models.read_config(run)
    held_out, notes = _given(run, images, config, root) if images else (_held_out(run, root), ())
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


def _cell(run: Run) -> Cell | None:
    """What a run was trained by; None for a model that was converted, or is no folder."""
    return Cell.parse(files.read_json(run.cell_file), run.cell_file) if run.cell_file.exists() else None


def _held_out(run: Run, root: Path | None) -> LabelledImages:
    """The training images that the run did not see; ``UserError`` where it saw all, or nobody knows."""
    cell = _cell(run)
    if cell is None or not cell.data.validation:
        what = "is a converted model" if cell is None else "was trained on all training images (data.validation is 0)"
        raise UserError(
            f"{run.path} {what}, so that none is held out: give labelled images that it was neither trained nor tested "
            "on with --images, or train with, say, --data.validation 0.1"
        )
    return datasets.open_set(cell.data.train, "validation", cell.data, datasets.input_format(cell.data), root)


def _given(
    run: Run, name: str, config: models.ModelConfig, root: Path | None
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Images by name, their labels as the network's, and what could not be looked at; ``UserError`` for seen images."""
    seen = _seen_data(run, config)
    if seen:
        _refuse_seen_set(name, run.name, seen)
    images = relabelled(datasets.open_set(name, "all", Data(), config.view, root), config.classes)
    if len(images) == 0:
        raise UserError(f"{name} has no images")
    return images, _refuse_seen_images(images, seen, config.view, root) if seen else ()


def _seen_data(run: Run, config: models.ModelConfig) -> Data | None:
    """The data that a network was trained and tested on, as far as its folder or ``model.json`` says."""
    cell = _cell(run)
    if cell is None:
        return Data(train=config.trained_on) if config.trained_on else None
    return cell.data


def _refuse_seen_set(name: str, network: str, data: Data) -> None:
    """``UserError`` for the name of a set that shares images with those that a network was trained and tested on."""
    if overlap.shares_images(name, data.train, data):
        raise UserError(
            f"{name} shares images with {data.train}, which {network} was trained and tested on: a promise needs "
            "images that it has not seen, such as the held-out share, which anchored calibrate takes without --images"
        )


def _refuse_seen_images(
    images: LabelledImages | GivenInputs, data: Data, view: InputFormat, root: Path | None = None
) -> tuple[str, ...]:
    """Refuse pixels that are those of a training or test image, where all are in memory; else say what was not seen."""
    for split in ("test", "train"):
        try:
            whole = 1.0 if split == "test" else data.fraction
            seen = datasets.open_set(data.train, split, replace(data, content="", fraction=whole), view, root)
        except UserError:
            return (f"The {split} images of {data.train} are not on this machine, and were not compared with these",)
        if not isinstance(seen, ImageSet) or not isinstance(images, ImageSet):
            return ("The images are too many, or no pixels, to be compared with those that it was trained on",)
        if both := overlap.places_in_both(images.images, seen.images):
            raise UserError(
                f"{len(both):,} of the {len(images):,} images of {images.name} are {split} images of {data.train} (the "
                f"first is number {both[0]}): a promise needs images that the network was neither trained nor tested on"
            )
    return ()
