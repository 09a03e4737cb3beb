"""What is checked around a training, by all who run one: without Lightning, which takes longer to import than torch."""

import json
from pathlib import Path
from typing import Any

from anchored.config.recipe import Cell, Recipe, canonical
from anchored.config.settings import Training
from anchored.data import datasets
from anchored.errors import UserError
from anchored.models import folder as models
from anchored.models import registry as networks
from anchored.models.initialisation import model_config
from anchored.store.layout import Run
from anchored.training.rates import freeze, named_parts, rate_factors
from anchored.training.reference_images import check_references, check_training_references


class Diverged(UserError):
    """The loss or the weights are no longer numbers: raised on all ranks alike."""


def claim_run(run: Run, cell: Cell) -> bool:
    """Claim a folder for a cell; whether the cell is trained. ``UserError`` where it holds another one, or no cell."""

    def as_now(found: Any) -> Any:
        return json.loads(canonical(Cell.parse(found, run.cell_file)))

    run.claim(json.loads(canonical(cell)), as_now, "training", "choose another folder")
    return run.weights_file.exists()


def check_trainings(recipe: Recipe, root: Path | None = None) -> None:
    """``UserError``, before anything is trained, where a network, its parts or its references are not as a cell says,
    or there are too few images.

    ``recipe``: one that ``suites.check_recipe`` has taken; ``root``: the folder of the data sets.
    """
    cells, data = list(recipe.cells()), recipe.data
    if cells:
        images = datasets.open_counted(data, root)
        for cell in cells:
            check_batch_size(data.train, len(images), cell.train)
        if any(cell.protocol != "standard" for cell in cells):
            check_training_references(recipe.anchoring, len(images), len(images.classes))
            check_references(recipe.anchoring, data, datasets.input_format(data), root)
    kinds = {repr((each.network, each.start, each.train.dropout, each.train.rates)): each for each in cells}
    for cell in kinds.values():
        start, dropout = cell.start, cell.train.dropout
        networks.check_network(cell.network, width=start.width, pretrained=start.pretrained, dropout=dropout)
        if cell.train.rates:
            plain = models.build_plain_network(model_config(cell), allow_import=True)
            freeze(plain, rate_factors(plain, cell.train.rates, named_parts(plain)))


def check_batch_size(name: str, images: int, train: Training) -> None:
    """``UserError`` where a set has fewer training images than a step takes."""
    if images < train.batch_size:
        raise UserError(
            f"{name} gives {images} training images, fewer than train.batch_size {train.batch_size}: lower the batch "
            "size or raise data.fraction"
        )
