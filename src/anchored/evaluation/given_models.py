"""The evaluation of a study's given models: those that were trained elsewhere, and outputs without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from anchored.config.recipe import GivenCell
from anchored.config.settings import GIVEN, Data, Evaluation, Given
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.given import is_numbered
from anchored.data.image_sets import GivenInputs, LabelledImages
from anchored.data.preprocessing import InputFormat
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError, first_line
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.evaluator import Evaluator, Progress, Subject
from anchored.evaluation.given_outputs import GivenOutputs, given_outputs
from anchored.evaluation.overlap import shares_images
from anchored.evaluation.sets import GivenSets, NamedSets
from anchored.models.sources import OpenedModel, open_model
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.devices import find_device

TEST = "test"
"""Name of a test set that has none of its own."""


def given_evaluator(
    run: Run,
    cell: GivenCell,
    settings: Evaluation,
    progress: Progress = lambda share, what: None,
    root: Path | None = None,
) -> Evaluator:
    """The evaluator of a given model; ``UserError`` where it cannot be opened."""
    if cell.given.outputs:
        return outputs_evaluator(run, _outputs(cell.given.outputs), settings, cell.title, cell.data.train, (), progress)
    opened = opened_model(cell.given)
    sets = NamedSets(cell.data, opened.input, root, cell.whole, opened.spellings)
    features = opened.module is not None or bool(settings.adaptation)
    load = partial(opened_classifier, opened, cell.accelerator)
    subject = Subject(cell.data.train, cell.title, GIVEN, opened.digest, load, features=features)
    return Evaluator(run, subject, sets, settings, progress)


def check_given(evaluator: Evaluator, cell: GivenCell) -> None:
    """Try a given model on one test image; ``UserError`` where it does not fit the test images, or was trained on them.

    Of a set of the catalog the test images are taken, of own images all.
    """
    if evaluator.given is None:
        test, config = cell.data.train, opened_model(cell.given).config
        trained = config.trained_on if config and catalog.is_user_data(config.trained_on) else ""
        if trained and cell.whole and catalog.is_user_data(test) and shares_images(test, trained, cell.data):
            raise UserError(
                f"{cell.given.model} was trained on images of {test}: measure it on others, or on those that its "
                "training left for the test (anchored evaluate, without --test)"
            )
        classes = datasets.dataset_row(cell.data.train, cell.data).classes
        count = logit_count(evaluator.subject.load(), evaluator.images.open(cell.data.train, "test"))
        class_names(opened_model(cell.given).classes, classes, count)


@lru_cache(maxsize=4)
def opened_model(given: Given) -> OpenedModel:
    """Open a given model, once a process."""
    return open_model(
        given.model,
        pretrained=given.pretrained,
        checkpoint=given.checkpoint,
        like=given.like,
        classes=given.classes,
        channels=given.channels,
        size=given.size,
        mean=given.mean,
        std=given.std,
        network=given.network or None,
    )


@lru_cache(maxsize=4)
def _outputs(folder: str) -> GivenOutputs:
    return given_outputs(folder)


def opened_classifier(
    opened: OpenedModel, accelerator: str = "auto", prepare: Callable[[Tensor], Tensor] | None = None
) -> Classifier:
    """The classifier of a model that was opened by its name, a module on the device that a study would take.

    ``prepare``: from images of its size, uint8, to inputs; by default the model's own.
    """
    if opened.module is not None:
        opened.module.to(find_device(accelerator))
    size = opened.input.size
    std = tuple(opened.config.std) if opened.config and prepare is None else ()
    return Classifier(opened.run, prepare or opened.preprocess, (opened.input.channels, size, size), std=std)


def logit_count(classifier: Classifier, images: LabelledImages | GivenInputs) -> int:
    """How many logits a classifier gives, by one image; ``UserError`` where it does not take it."""
    image = first_image(images).to(classifier.device)
    try:
        logits, _ = classifier.ready()(image)
    except UserError:
        raise
    except Exception as error:  # whatever the model's own code raises
        raise UserError(
            f"the model does not take the images of {images.name}, {tuple(image.shape[1:])} {image.dtype}: "
            f"{first_line(error)}"
        ) from error
    return logits.shape[1]


def first_image(images: LabelledImages | GivenInputs) -> Tensor:
    """The first image of a set, (1,C,H,W), or input (1,...)."""
    return next(iter(images.parts([torch.zeros(1, dtype=torch.int64)])))


def class_names(known: Sequence[str], test: Sequence[str], count: int) -> tuple[str, ...]:
    """Names of ``count`` logits: those known, else the test set's; numbers where its labels have no names."""
    classes = tuple(known) or (tuple(map(str, range(count))) if is_numbered(test) else tuple(test))
    if len(classes) != count:
        raise UserError(
            f"the model gives {count} logits for {len(classes)} classes: give the names of all its classes in their "
            "order (classes=[...])"
        )
    return classes


def outputs_evaluator(
    run: Run,
    outputs: GivenOutputs,
    settings: Evaluation,
    title: str,
    test: str = TEST,
    near: Sequence[str] = (),
    progress: Progress = lambda share, what: None,
) -> Evaluator:
    """The evaluator of outputs that somebody computed: all sets that are among them; ``test``: the test set's name."""
    settings = outputs.settings(settings)
    every = {
        f"{name} {kind}": tensor
        for name, found in outputs.sets.items()
        for kind, tensor in vars(found).items()
        if tensor is not None
    }
    weights = files.tensors_digest(every)
    if unknown := set(near) - set(settings.ood):
        raise UserError(f"near has '{min(unknown)}': outputs are there of {', '.join(settings.ood) or 'no ood- set'}")
    known = (*catalog.CATALOG, *OUTLIERS)
    own = [name for name in (*settings.ood, *settings.shifted, *settings.adaptation) if name not in known]
    own += filter(None, [settings.held_out])
    counts = {task: int(outputs.sets[f"features-{task}-train"].labels.max()) + 1 for task in settings.adaptation}
    own += [test] * (test not in known and not catalog.is_user_data(test))
    # What images are behind outputs is told by their labels alone: two networks' differ, and can be compared.
    images = files.tensors_digest({name: found.labels for name, found in outputs.sets.items()})
    hashes = dict.fromkeys(own, images)
    sets = GivenSets(Data(train=test), InputFormat(3, 0), near=frozenset(near), hashes=hashes, counts=counts)
    kept = outputs.sets["test"].features is not None
    subject = Subject(test, title, GIVEN, weights, _no_model, features=kept)
    return Evaluator(run, subject, sets, settings, progress, given=outputs)


def _no_model() -> Classifier:
    raise UserError("outputs were given, and no model: what is not among them cannot be measured")
