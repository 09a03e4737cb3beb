"""How sure trained networks are at the points that hard Δ mining shows them, as in training and as in evaluation.

    python scripts/tail_entropy.py RUN [RUN ...]

Fits the residuals' distribution to the run's training images, draws points of its tail, and prints the mean entropy of
the answers to ``[0, 0 − t]`` in nats, once with batch norm by the statistics of 32 points, as in a pass of their own,
and once as the network is evaluated; beside it that of the training images' own answers.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

from anchored.config.recipe import Cell
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.method.anchoring import AnchoredModel
from anchored.method.hard_delta import Residuals
from anchored.metrics.ood_scores import entropy
from anchored.models import folder as models
from anchored.store import files
from anchored.store.layout import Run

IMAGES, POINTS, BATCH = 4096, 512, 32


@torch.no_grad()
def entropies(run: Run) -> tuple[float, float, float, int]:
    """At tail points as in a pass of their own, and in evaluation; at training images; and the number of classes."""
    cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
    model, config = models.load(run.path), models.read_config(run)
    assert isinstance(model, AnchoredModel)
    images = datasets.open_set(cell.data.train, "train", cell.data, datasets.input_format(cell.data))
    some = next(images.parts([torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:IMAGES]]))
    seen = to_input(some, config.mean, config.std)
    residuals = Residuals(tuple(seen.shape[1:]))
    for part in torch.split(seen, 128):
        residuals.observe(part, torch.arange(len(part)), torch.zeros(len(part), dtype=torch.int64))
    residuals.fit()
    far = -residuals.tail(POINTS, cell.tail.mass, torch.Generator().manual_seed(1))
    evaluated, clean = entropy(model.eval().masked_pass(far)), entropy(model(seen[:POINTS]))
    model.train()
    alone = torch.cat([entropy(model.masked_pass(part)) for part in torch.split(far, BATCH)])
    return float(alone.mean()), float(evaluated.mean()), float(clean.mean()), len(config.classes)


def main() -> None:
    """A line per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for path in parser.parse_args().runs:
        alone, evaluated, clean, classes = entropies(Run(path))
        told = f"tail {alone:.2f} by its own statistics, {evaluated:.2f} in evaluation; training images {clean:.2f}"
        print(f"{path.name}: {told}; at most {math.log(classes):.2f}")


if __name__ == "__main__":
    main()
