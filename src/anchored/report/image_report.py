"""A user's images through a trained network: class, confidence, OOD score and spread, as a CSV and a gallery."""

from __future__ import annotations

import csv
import dataclasses
import glob
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from anchored.config.recipe import Cell, derived_seed
from anchored.data import datasets
from anchored.data.batches import to_input
from anchored.data.streaming import ImageStream, View
from anchored.data.user_data import index as own
from anchored.data.user_data.sources import listed
from anchored.errors import UserError
from anchored.evaluation.inference import forward
from anchored.method.anchoring import AnchoredModel
from anchored.metrics import ood_scores
from anchored.models import folder as models
from anchored.report.gallery import Prediction, render
from anchored.store import files
from anchored.store.layout import Run

REFERENCES = 8
"""Training images that give the spread of a model whose own reference is one."""

GALLERY = 500
"""Cards on the page at most, so that a browser stays quick; the CSV has every image."""

THUMBNAIL = 160
"""Longer side of a thumbnail, pixels."""


@dataclass(frozen=True)
class Written:
    """What ``predict`` wrote, and what it could not read."""

    table: Path
    page: Path
    predictions: tuple[Prediction, ...]

    @property
    def problems(self) -> tuple[Prediction, ...]:
        """The images that could not be read."""
        return tuple(each for each in self.predictions if each.problem)


def predict(
    run: Run,
    wanted: Sequence[str],
    folder: Path,
    *,
    batch_size: int = 64,
    progress: Callable[[float, str], None] = lambda share, what: None,
    root: Path | None = None,
) -> Written:
    """Write ``predictions.csv`` and ``gallery.html`` about the images ``wanted``: files, folders, patterns.

    Images are shown to the network as its training images were. The spread of an image is the standard deviation, over
    references, of the probability of its class: over the model's own K references, or over 8 training images where K
    is 1; a standard network has none. Raises ``UserError`` where nothing is found or nothing can be read.
    """
    paths = find(wanted)
    model, config = models.load(run.path), models.read_config(run)
    if torch.cuda.is_available():
        model = model.cuda()
    inside = _test_energies(run)
    spreading, how = _spreading(run, model, root)
    index = own.of_files(paths)
    seen = View(config.channels, config.size, config.crop, config.interpolation)
    everything, labels = torch.arange(len(paths)), torch.from_numpy(index.labels)
    stream = ImageStream("images", index, config.classes, seen, everything, labels)
    predictions: list[Prediction] = []
    batches = torch.split(everything, batch_size)
    for places, (images, problems) in zip(batches, stream.attempts(batches), strict=True):
        found = _rated(model, spreading, config, images.to(next(model.parameters()).device), inside)
        for place, said in zip(places.tolist(), found, strict=True):
            problem = problems.get(place - int(places[0]), "")
            blank = Prediction("", problem=problem)
            predictions.append(dataclasses.replace(blank if problem else said, file=_shown(paths[place])))
        progress(len(predictions) / len(paths), f"{len(predictions):,} of {len(paths):,} images")
    read = [(number, each) for number, each in enumerate(predictions) if not each.problem]
    if not read:
        raise UserError(f"none of the {len(paths)} images can be read; the first: {predictions[0].problem}")
    made = Written(folder / "predictions.csv", folder / "gallery.html", tuple(predictions))
    read.sort(key=lambda pair: (-(pair[1].energy or 0.0), pair[0]))
    cards = [(each, _thumbnail(index.decode(number))) for number, each in read[:GALLERY]]
    files.write_text(made.table, _table(predictions))
    notes = list(_notes(run, config, inside, how))
    files.write_text(
        made.page, render(f"{len(read):,} images seen by {run.name}", notes, cards, made.problems, len(read))
    )
    return made


def find(wanted: Sequence[str]) -> list[Path]:
    """Return the image files that are named: files as they are, all images below folders, matches of patterns."""
    found: dict[Path, None] = {}
    for name in wanted:
        path = Path(name).expanduser()
        if path.is_dir():
            some = [path / each for each in listed(path)]
        elif path.exists():
            some = [path]
        else:
            some = [Path(each) for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file()]  # noqa: PTH207
        if not some:
            raise UserError(f"{name}: {'no images in this folder' if path.is_dir() else 'there is no such file'}")
        found.update(dict.fromkeys(some))
    return list(found)


def _shown(path: Path) -> str:
    """The path as text that can be written, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "replace")


def _rated(
    model: nn.Module,
    spreading: Sequence[AnchoredModel],
    config: models.ModelConfig,
    images: Tensor,
    inside: Tensor | None,
) -> Iterator[Prediction]:
    """What is said of each image (B,C,H,W), without its name."""
    logits, _ = forward(model, config, images)
    confidence, label = logits.double().softmax(1).max(1)
    energy = ood_scores.energy(logits)
    rank = None if inside is None else 100 * torch.searchsorted(inside, energy).double() / len(inside)
    spread = None
    if spreading:
        each = torch.stack([forward(one, config, images)[0].double().softmax(1) for one in spreading])  # (K,B,N)
        spread = each[:, torch.arange(len(label)), label].std(dim=0, correction=0)
    for i in range(len(images)):
        yield Prediction(
            "",
            config.classes[int(label[i])],
            float(confidence[i]),
            float(energy[i]),
            None if rank is None else float(rank[i]),
            None if spread is None else float(spread[i]),
        )


def _spreading(run: Run, model: nn.Module, root: Path | None) -> tuple[list[AnchoredModel], str]:
    """The same network with one reference each, and in words which references these are."""
    if not isinstance(model, AnchoredModel) or model.references is None:
        return [], "A standard network has no references, so there is no spread."
    references, what = model.references, f"the model's {len(model.references)} references"
    if len(references) == 1:
        try:
            cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
            references = _drawn(cell, models.read_config(run), root).to(references.device)
        except UserError as error:
            return [], f"The model has one reference, and other training images cannot be had: no spread ({error})."
        what = f"{len(references)} training images as references (the model itself has one)"
    networks = [AnchoredModel(model.network).eval() for _ in references]
    for network, reference in zip(networks, references, strict=True):
        network.set_references(reference[None])
    return networks, f"Spread: standard deviation of the class's probability over {what}."


def _drawn(cell: Cell, config: models.ModelConfig, root: Path | None) -> Tensor:
    """Training images (8,C,H,W), drawn by the training's seed, normalised."""
    images = datasets.open_set(cell.data.train, "train", cell.data, datasets.seen_by(cell.data), root)
    generator = torch.Generator().manual_seed(derived_seed(cell.seed, "spread"))
    chosen = torch.randperm(len(images), generator=generator)[:REFERENCES]
    return to_input(next(images.parts([chosen])), config.mean, config.std)


def _test_energies(run: Run) -> Tensor | None:
    """The energies of the run's test images, in order; None where these weights were not evaluated."""
    path = run.outputs_file("test")
    if not path.exists():
        return None
    tensors, metadata = files.load_tensors(path)
    try:
        same = json.loads(metadata["key"])[0] == models.weights_digest(run)
    except (KeyError, ValueError, IndexError, TypeError):
        same = False
    return ood_scores.energy(tensors["logits"]).sort().values if same else None


def _notes(run: Run, config: models.ModelConfig, inside: Tensor | None, how: str) -> Iterator[str]:
    yield (
        f"Trained on {config.trained_on} ({len(config.classes)} classes), sorted by energy: the most foreign first. "
        "Energy is minus the log-sum-exp of the logits; higher is more foreign."
    )
    if inside is None:
        yield f"No percentiles: the test images of {run.name} were not evaluated (anchored evaluate {run.path})."
    else:
        yield f"Percentile: the share of the run's {len(inside):,} test images with a lower energy."
    yield how
    yield (
        f"Images of another size: shorter side to {int(config.size / config.crop)} pixels ({config.interpolation}), "
        f"then the middle {config.size} × {config.size}."
    )


def _table(predictions: Sequence[Prediction]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [field.name for field in dataclasses.fields(Prediction)]
    writer.writerow(["class" if name == "label" else name for name in columns])
    writer.writerows(dataclasses.astuple(each) for each in predictions)
    return text.getvalue()


def _thumbnail(image: Image.Image) -> bytes:
    """The image at 160 pixels or less, as JPEG."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()
