"""How time and memory grow with images, classes, references, corruptions and trainings.

    python benchmarks/growth.py [--out growth.json] [--picture growth.png] [--tiny]

Every point is a process of its own with one thread, which does the work once on a little and once for the figures:
processor seconds, and the most memory that it had, less what it had before. The exponent is the slope of log time on
log size over the upper half of the sizes: 1 is linear, less is better. Sets whose images are streamed, and sizes of
ImageNet, are in ``memory.py``.
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import options_of

from anchored import anchor, fold
from anchored.corruptions.registry import corrupt, expand
from anchored.data.image_sets import ImageSet
from anchored.evaluation.classifier import Classifier
from anchored.evaluation.inference import Pass
from anchored.metrics import classification, intervals
from anchored.metrics.linear_probe import linear_probe
from anchored.metrics.ood_scores import SCORES
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig
from anchored.report import page
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import read_rows, write_rows
from anchored.study.provenance import provenance

ROWS = Path(__file__).parents[1] / "leaderboard" / "demo-seeds"


def _images(count: int, classes: int = 10) -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 1, 28, 28), generator=draw, dtype=torch.uint8)
    return ImageSet("random", pixels, torch.arange(count) % classes, tuple(map(str, range(classes))))


def evaluated(count: int, corruptions: int = 1) -> None:
    """The demo's network over so many images, under so many corruptions; figures with their intervals."""
    images, half = _images(count), (0.5,)
    network = networks.build_network("small", channels=1, classes=10, seed=0).eval()
    config = ModelConfig("n", "standard", 0.0, 1, 28, half, half, images.classes, "random", 0)
    for name in expand(["c"], 28, 28)[:corruptions]:

        def change(batch: torch.Tensor, places: torch.Tensor, name: str = name) -> torch.Tensor:
            return corrupt(batch, name, 3, seed=0, indices=places)

        work = Pass(Classifier.of(network, config), images, 500, change=change)
        logits = torch.cat([found.logits for found in work.run(work.batches())])
        names = ["accuracy", "smooth_ece", "nll"]
        intervals.image_intervals(logits, images.labels, names, torch.Generator().manual_seed(0))


def scored(classes: int) -> None:
    """All scores and metrics of 5,000 images of so many classes."""
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5000, classes, generator=draw), torch.arange(5000) % classes
    classification.per_image(logits, labels)
    for score in SCORES.values():
        score(logits)


def probed(classes: int) -> None:
    """A linear probe of 5,000 images, 64 features, one strength."""
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(5000, 64, generator=draw), torch.arange(5000) % classes
    linear_probe(features, labels, features[:100], classes, draw, (1e-2,))


@torch.inference_mode()
def referred(references: int, folded: bool) -> None:
    """200 images against so many references, ResNet-8."""
    draw = torch.Generator().manual_seed(0)
    model = anchor(networks.build_network("small", channels=1, classes=10, seed=0)).eval()
    model.set_references(torch.randn(references, 1, 28, 28, generator=draw))
    images = torch.randn(200, 1, 28, 28, generator=draw)
    for part in torch.split(images, 50):
        (fold(model) if folded else model)(part)


def reported(cells: int) -> None:
    """The report of a study of so many trainings: the leaderboard's rows over and over under other seeds, those under
    corruption for each corruption and severity, as a study has them."""
    rows = read_rows(ROWS / "results.csv")
    swept = product([row for row in rows if row.corruption], expand(["c"], 28, 28), range(1, 6))
    rows += [replace(row, corruption=name, severity=severity) for row, name, severity in swept]
    some = {row.run for row in rows}
    with tempfile.TemporaryDirectory() as place:
        folder = StudyFolder(Path(place))
        (Path(place) / "study.json").write_bytes((ROWS / "study.json").read_bytes())
        copies = range(max(1, cells // len(some)))
        seeds = max(row.seed for row in rows) + 1
        write_rows(
            folder.results_file,
            [replace(row, seed=row.seed + seeds * n, run=f"{row.run}-{n}") for n in copies for row in rows],
        )
        page.write(folder)


AXES: dict[str, tuple[Callable[[int], None], list[int]]] = {
    "images, evaluation": (evaluated, [500, 1000, 2000, 4000, 8000, 16_000]),
    "corruptions, evaluation": (partial(evaluated, 500), [1, 2, 4, 8, 16]),
    "classes, scores and metrics": (scored, [10, 30, 100, 300, 1000, 3000]),
    "classes, linear probe": (probed, [4, 8, 16, 32, 64, 128]),
    "K references, passes": (partial(referred, folded=False), [1, 2, 4, 8, 16, 32]),
    "K references, folded": (partial(referred, folded=True), [1, 2, 4, 8, 16, 32]),
    "trainings, report": (reported, [20, 40, 80, 160, 320]),
}


def _measure(axis: str, size: int, found: Any) -> None:
    torch.set_num_threads(1)
    work, sizes = AXES[axis]
    work(sizes[0])
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    work(size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found.put((time.process_time() - began, (peak - before) / (1 << 10 if sys.platform != "darwin" else 1 << 20)))


def point(axis: str, size: int) -> dict[str, float]:
    """Seconds, and MiB beyond what the smallest size needs, of one size."""
    context = multiprocessing.get_context("spawn")
    found = context.SimpleQueue()
    process = context.Process(target=_measure, args=(axis, size, found))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{axis}, {size}: ended with exit status {process.exitcode}")
    spent, memory = found.get()
    return {"size": size, "seconds": spent, "MiB": memory}


def exponent(points: list[dict[str, float]]) -> float:
    """Slope of log seconds on log size, by least squares over the upper half."""
    upper = points[len(points) // 2 :] if len(points) > 3 else points
    x, y = ([math.log(each[name]) for each in upper] for name in ("size", "seconds"))
    middle, level = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def draw(kept: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Time and memory of each axis, against sizes relative to the smallest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, name, what in zip(figure.subplots(1, 2), ("seconds", "MiB"), ("Time", "Memory"), strict=True):
        for axis, points in kept.items():
            sizes = [each["size"] / points[0]["size"] for each in points]
            base = points[0]["seconds"] if name == "seconds" else 1
            axes.plot(sizes, [each[name] / base for each in points], marker="o", markersize=3, label=axis)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("size ÷ the smallest")
        axes.set_title(f"{what} {'÷ that of the smallest' if name == 'seconds' else 'beyond the smallest, MiB'}")
        if name == "seconds":
            ends = [1, max(points[-1]["size"] / points[0]["size"] for points in kept.values())]
            axes.plot(ends, ends, color="grey", linestyle=":", label="linear")
            axes.set_yscale("log", base=2)
            axes.legend(fontsize=7, frameon=False)
    with files.atomic_writer(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def main(words: list[str] | None = None) -> None:
    parser = options_of(__doc__)
    parser.add_argument("--out", type=Path, default=Path("growth.json"), help="file of the figures (%(default)s)")
    parser.add_argument("--picture", type=Path, help="file of a picture of them")
    parser.add_argument("--tiny", action="store_true", help="two sizes each, to see that it runs")
    chosen = parser.parse_args(words)
    kept: dict[str, list[dict[str, float]]] = {}
    table = Table("", "sizes", "seconds", "exponent", "MiB beyond the smallest")
    for axis, (_, sizes) in AXES.items():
        kept[axis] = [point(axis, size) for size in (sizes[:2] if chosen.tiny else sizes)]
        spent, memory = (", ".join(f"{each[name]:.3g}" for each in kept[axis]) for name in ("seconds", "MiB"))
        table.add_row(
            axis, ", ".join(f"{each['size']:,}" for each in kept[axis]), spent, f"{exponent(kept[axis]):.2f}", memory
        )
    files.write_json(chosen.out, {"made": provenance(), "points": kept})
    if chosen.picture:
        draw(kept, chosen.picture)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
