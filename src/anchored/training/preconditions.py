"""What is checked around a training, by all who run one: without Lightning, which takes longer to import than torch."""

import json
from typing import Any

from anchored.config.recipe import Cell, canonical
from anchored.config.settings import Training
from anchored.errors import UserError
from anchored.store.layout import Run


class Diverged(UserError):
    """The loss or the weights are no longer numbers: raised on all ranks alike."""


def claim_run(run: Run, cell: Cell) -> bool:
    """Claim a folder for a cell; whether the cell is trained. ``UserError`` where it holds another one, or no cell."""

    def as_now(found: Any) -> Any:
        return json.loads(canonical(Cell.parse(found, run.cell_file)))

    run.claim(json.loads(canonical(cell)), as_now, "training", "choose another folder")
    return run.weights_file.exists()


def check_batch_size(name: str, images: int, train: Training) -> None:
    """``UserError`` where a set has fewer training images than a step takes."""
    if images < train.batch_size:
        raise UserError(
            f"{name} gives {images} training images, fewer than train.batch_size {train.batch_size}: lower the batch "
            "size or raise data.fraction"
        )
