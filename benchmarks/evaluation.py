"""Evaluation under corruption: what a sweep takes beyond the network's forward passes.

    python benchmarks/evaluation.py [--turns 2]

The demo's test set, network and batch size, all 19 C corruptions at severities 1, 3 and 5. Each figure is a ratio of
two things timed in turn in one process (A B A B ...); the median is printed with the least and the greatest turn.
Peers: the same forward passes alone, and corrupting all images before the passes. Time is taken on the wall, so run it
on an idle machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

import torch
from timing import median_and_range, options_of, seconds
from torch import Tensor

from anchored import anchor
from anchored.config.settings import Data, Evaluation
from anchored.corruptions import registry as corruptions
from anchored.data import datasets
from anchored.data.image_sets import ImageSet
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Pass
from anchored.method.anchoring import AnchoredModel
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig

NAME = "fashion-mini-known"
SEVERITIES = (1, 3, 5)


def model_and_config() -> tuple[AnchoredModel, ModelConfig]:
    """The demo's anchored network, untrained, with one reference."""
    row = datasets.dataset_row(NAME, Data())
    model = anchor(networks.build_network("small", channels=row.channels, classes=len(row.classes), seed=0))
    model.references = torch.zeros(1, row.channels, row.size, row.size)
    config = ModelConfig(
        "small", "anchored", 0.0, row.channels, row.size, row.mean, row.std, row.classes, NAME, references=1
    )
    return model.eval(), config


def changed(name: str, severity: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda images, places: corruptions.corrupt(images, name, severity, seed=0, indices=places)


def swept(work: Callable[[str, int], object], names: tuple[str, ...]) -> float:
    """Seconds of ``work`` over a grid of corruptions and severities."""
    return seconds(lambda: [work(name, severity) for name in names for severity in SEVERITIES])


def main() -> None:
    options = options_of(__doc__, turns=2).parse_args()
    model, config = model_and_config()
    images, batch = datasets.load_split(NAME, "test"), Evaluation().batch_size
    names = corruptions.expand(["c"], config.size, config.size)

    def run(name: str, severity: int, corrupted: bool) -> None:
        work = Pass(Classifier.of(model, config), images, batch, change=changed(name, severity) if corrupted else None)
        list(work.run(work.batches()))

    def serial(name: str, severity: int) -> None:
        indices = torch.arange(len(images))
        whole = torch.cat([changed(name, severity)(images.images[part], part) for part in torch.split(indices, batch)])
        work = Pass(Classifier.of(model, config), ImageSet(NAME, whole, images.labels, images.classes), batch)
        list(work.run(work.batches()))

    works: dict[str, Callable[[str, int], object]] = {
        "forward passes": partial(run, corrupted=False),
        "sweep": partial(run, corrupted=True),
        "corrupted first": serial,
        "corruptions alone": lambda name, severity: changed(name, severity)(images.images, torch.arange(len(images))),
    }
    for work in works.values():  # uncounted: tables are made, memory is asked for
        swept(work, names[::6])
    times: dict[str, list[float]] = {title: [] for title in works}
    for _ in range(options.turns):
        for title, work in works.items():
            times[title].append(swept(work, names))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(names)} × {len(SEVERITIES)} passes")
    for title in list(works)[1:]:
        ratio = median_and_range(a / b for a, b in zip(times[title], times["forward passes"], strict=True))
        print(f"{title} ÷ forward passes: {ratio}  ({options.turns} turns, {statistics.median(times[title]):.1f} s)")


if __name__ == "__main__":
    main()
