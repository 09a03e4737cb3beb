"""The references of a cell: those that are kept with its model, and those that its training draws from."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from anchored.config.recipe import Cell, derived_seed
from anchored.config.settings import Anchoring, Data
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.image_sets import ImageSet, LabelledImages
from anchored.data.preprocessing import InputFormat, to_input
from anchored.data.user_data.index import find_user_data
from anchored.errors import UserError
from anchored.method.reference_choice import choose_references
from anchored.models.folder import ModelConfig

CANDIDATES = 10_000
"""Images that a coreset is chosen from, at most; of more, as many spread evenly."""
SIDE = 32
"""Pixels a side of the images that distances of a coreset are of, at most."""


def references(
    images: LabelledImages, cell: Cell, config: ModelConfig, count: int | None = None, root: Path | None = None
) -> Tensor:
    """K references (K,C,H,W) of a cell, chosen by seed, not augmented, normalised.

    ``count``: K, by default the recipe's; more begin with the same ones. ``root``: the folder of the data sets.
    ``UserError`` where there are not as many images.
    """
    count, choice = config.references if count is None else count, cell.anchoring.reference_choice
    if choice == "own":
        images = _own(cell.anchoring, cell.data, config.view, root)
    setting = "anchoring.references" if count == config.references else "references.count"
    _check_count(count, len(images), images.name, setting)
    if choice == "own":
        return _normalised(images, torch.arange(count), config)
    generator = torch.Generator().manual_seed(derived_seed(cell.seed, "references"))
    if choice in ("herding", "k_centre"):
        candidates = torch.linspace(0, len(images) - 1, min(len(images), CANDIDATES), dtype=torch.float64).long()
        labels, points = images.labels.cpu()[candidates], _points(images, candidates)
        places = choose_references(choice, count, labels=labels, points=points, generator=generator)
        return _normalised(images, candidates[places], config)
    places = choose_references(choice, count, labels=images.labels.cpu(), generator=generator)
    return _normalised(images, places, config)


def training_references(images: LabelledImages, cell: Cell, config: ModelConfig) -> Tensor | None:
    """The images (M,C,H,W), normalised, that training draws references from; None where these are of the batch.

    ``UserError`` where there are not as many images or classes, or they do not fit into memory.
    """
    settings, generator = cell.anchoring, torch.Generator()
    generator.manual_seed(derived_seed(cell.seed, "training references"))
    if settings.training_references == "batch":
        return None
    if not isinstance(images, ImageSet):
        raise UserError(
            f"anchoring.training_references is {settings.training_references}, which needs the training images in "
            "memory: raise data.memory, or take batch"
        )
    places = torch.arange(len(images))
    if settings.training_references != "all":
        available = check_training_references(settings, len(images), len(images.classes))
        places = torch.randperm(available, generator=generator)[: settings.training_reference_count]
    if settings.training_references == "classes":
        places = torch.isin(images.labels.cpu(), places).nonzero()[:, 0]
    return _normalised(images, places, config)


def check_training_references(settings: Anchoring, images: int, classes: int) -> int:
    """How many images or classes training may draw references from; ``UserError`` where it asks for more."""
    available = classes if settings.training_references == "classes" else images
    if settings.training_references in ("images", "classes") and settings.training_reference_count > available:
        raise UserError(
            f"anchoring.training_reference_count is {settings.training_reference_count}, but there are {available} "
            f"{settings.training_references}: give fewer"
        )
    return available


def check_references(settings: Anchoring, data: Data, view: InputFormat, root: Path | None = None) -> None:
    """``UserError``, before training, where own images cannot be the references, or there are too few images."""
    if settings.reference_choice == "own":
        images = _own(settings, data, view, root)
        _check_count(settings.references, len(images), images.name)
    elif there := round(data.fraction * datasets.training_row(data, root).train):
        _check_count(settings.references, there, data.train)


def _own(settings: Anchoring, data: Data, view: InputFormat, root: Path | None) -> LabelledImages:
    """Own images: never the test images of the set that is trained on, nor those that a set names as such."""
    name, split = settings.reference_images, "train"
    try:
        if name == data.train:
            return datasets.open_set(name, "train", data, view, root)
        if catalog.is_user_data(name):
            index = find_user_data(name, data.test_share)
            if index.content == data.content:
                return datasets.open_set(data.train, "train", data, view, root)
            whole = next(part for part in ("all", "ood", "train") if part in index.splits)
            split = "train" if "train" in index.splits and not index.divided else whole
        return datasets.open_set(name, split, Data(contents=data.contents), view, root)
    except UserError as error:
        raise UserError(f"anchoring.reference_images: {error}") from error


def _check_count(count: int, there: int, name: str, setting: str = "anchoring.references") -> None:
    if count > there:
        raise UserError(f"{setting} is {count}, but {name} has {there} images to be references")


def _normalised(images: LabelledImages, places: Tensor, config: ModelConfig) -> Tensor:
    parts = [to_input(part, config.mean, config.std) for part in images.parts(torch.split(places, 512))]
    return torch.cat(parts)


def _points(images: LabelledImages, places: Tensor) -> Tensor:
    """Pixels in [0, 1] of images, (M,D) float32, reduced to ``SIDE`` a side by averaging."""
    parts = []
    for part in images.parts(torch.split(places, 512)):
        small = part.float() / 255
        if max(part.shape[2:]) > SIDE:
            small = functional.adaptive_avg_pool2d(small, SIDE)
        parts.append(small.flatten(1))
    return torch.cat(parts)
