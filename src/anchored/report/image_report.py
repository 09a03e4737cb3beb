"""Predictions of a trained network for a user's images: class, confidence, OOD score, spread; a CSV and a gallery."""

import base64
import dataclasses
import glob
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup
from PIL import Image
from torch import Tensor, nn

from anchored.config.recipe import Cell, derived_seed
from anchored.data import datasets
from anchored.data.image_sets import ImageStream
from anchored.data.image_sources import index_files, list_images
from anchored.data.preprocessing import InputFormat, to_input
from anchored.errors import UserError
from anchored.evaluation.classifier import Classifier
from anchored.method.anchoring import AnchoredModel
from anchored.metrics import ood_scores
from anchored.models import folder as models
from anchored.models.decision import UNKNOWN, Decided, Decision
from anchored.report.templates import template
from anchored.store import files
from anchored.store.layout import Run
from anchored.store.rows import csv_line
from anchored.training.devices import find_device

REFERENCES = 8  # training images used as references for the spread, where the model has only one
GALLERY = 500  # most images on the page, so that it opens quickly; the CSV has every image
THUMBNAIL = 160  # longer side of a thumbnail, pixels


@dataclass(frozen=True)
class Prediction:
    """One network's prediction for one image; a line of ``predictions.csv``. Fields are empty where unknown."""

    file: str
    label: str = ""  # the predicted class
    confidence: float | None = None  # probability of that class, in [0, 1]; calibrated where there is a decision
    energy: float | None = None  # OOD score, nats; higher = more out-of-distribution
    percentile: float | None = None  # share of the run's test images with a lower energy, per cent
    spread: float | None = None  # standard deviation of the class's probability over references
    decision: str = ""  # the class, or "unknown"
    p_value: float | None = None  # share of held-out images with such an OOD score or a higher one, in (0, 1]
    set: str = ""  # the classes of its prediction set, with "; " between them
    problem: str = ""  # why the image could not be read


@dataclass(frozen=True)
class PredictionReport:
    """What ``predict_images`` wrote, and which images could not be read."""

    table: Path
    page: Path
    predictions: tuple[Prediction, ...]

    @property
    def problems(self) -> tuple[Prediction, ...]:
        """The images that could not be read."""
        return tuple(prediction for prediction in self.predictions if prediction.problem)


def predict_images(
    run: Run,
    wanted: Sequence[str],
    folder: Path,
    *,
    batch_size: int = 64,
    progress: Callable[[float, str], None] = lambda share, what: None,
    root: Path | None = None,
    network: str | None = None,
) -> PredictionReport:
    """Write ``predictions.csv`` and ``gallery.html`` for the images ``wanted``: files, folders, patterns.

    ``predictions.json`` beside them says of which run and images: predictions of others stay, as does a folder that
    holds files and not this one.

    Images are preprocessed as in training. The spread of an image is the standard deviation, over
    references, of the probability of its class: over the model's own K references, or over 8 training images where K
    is 1; a standard network has none. A run that was calibrated decides too. ``network``: see :func:`anchored.load`.
    Raises ``UserError`` where no image is found or none can be read, the decision is for other weights, or the folder
    is another's.
    """
    paths = find_images(wanted)
    request = folder / "predictions.json"  # what was asked for: it marks the folder as one of predictions
    files.refuse_foreign_folder(request, "predictions")
    named = [_printed(files.expand_home(name).absolute()) for name in wanted]
    asked = {"run": _printed(run.path.absolute()), "asked": named}
    _refuse_others(request, asked)
    model, config = models.load(run.path, network=network), models.read_config(run)
    model, rule = model.to(find_device()), models.read_decision(run) if run.decision_file.exists() else None
    test_energies = _test_energies(run)
    single_reference, spread_note = _single_reference_models(run, model, root)
    index = index_files(paths)
    view = InputFormat(config.channels, config.size, config.crop, config.interpolation)
    everything = torch.arange(len(paths))
    stream = ImageStream("images", index, config.classes, view, everything)
    predictions: list[Prediction] = []
    batches = torch.split(everything, batch_size)
    for places, (images, problems) in zip(batches, stream.attempts(batches), strict=True):
        images = images.to(next(model.parameters()).device)
        predicted = _predictions(model, single_reference, config, images, test_energies, rule)
        for place, prediction in zip(places.tolist(), predicted, strict=True):
            if problem := problems.get(place - int(places[0]), ""):
                prediction = Prediction("", problem=problem)
            predictions.append(dataclasses.replace(prediction, file=_printed(paths[place])))
        progress(len(predictions) / len(paths), f"{len(predictions):,} of {len(paths):,} images")
    read = [(i, prediction) for i, prediction in enumerate(predictions) if not prediction.problem]
    if not read:
        raise UserError(f"none of the {len(paths)} images can be read; the first: {predictions[0].problem}")
    report = PredictionReport(folder / "predictions.csv", folder / "gallery.html", tuple(predictions))
    read.sort(key=lambda pair: (-(pair[1].energy or 0.0), pair[0]))
    cards = [(prediction, _thumbnail(index.decode(i))) for i, prediction in read[:GALLERY]]
    files.write_json(request, {**asked, "weights": models.weights_digest(run), "images": len(paths)})
    files.remove_unfinished(folder, recursive=False)
    files.write_text(report.table, _csv(predictions))
    notes, title = list(_notes(run, config, test_energies, spread_note)), f"{len(read):,} images seen by {run.name}"
    notes += [] if rule is None else _promises(rule, [each for _, each in read])
    files.write_text(report.page, render_gallery(title, notes, cards, report.problems, len(read)))
    return report


def render_gallery(
    title: str, notes: list[str], cards: list[tuple[Prediction, str]], problems: Sequence[Prediction], total: int
) -> str:
    """The page as HTML; ``total`` is the number of images, including those without a card."""
    script = (resources.files("anchored.report") / "gallery.js").read_text(encoding="utf-8")
    return template("gallery.html.jinja").render(
        title=title, notes=notes, cards=cards, problems=problems, total=total,
        classes=sorted({prediction.label for prediction, _ in cards}),
        script=Markup(script),  # our own file
        # The browser runs this script and no other.
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _printed(path: Path) -> str:
    """A path as text that can be written as UTF-8."""
    return os.fsencode(path).decode("utf-8", "replace")


def _refuse_others(request: Path, asked: dict[str, Any]) -> None:
    """``UserError`` where the folder holds predictions of another run or of other images."""
    there = files.read_json(request) if request.exists() else asked
    there = there if isinstance(there, dict) else {}
    if there.get("run") != asked["run"]:
        raise UserError(f"{request.parent} holds predictions of {there.get('run')}: choose another folder with -o")
    if there.get("asked") != asked["asked"]:
        raise UserError(f"{request.parent} holds predictions of other images: choose another folder with -o")


def find_images(wanted: Sequence[str]) -> list[Path]:
    """The image files that are named: files as they are, all images below folders, matches of patterns."""
    images: dict[Path, None] = {}
    for name in wanted:
        path = files.expand_home(name)
        if path.is_dir():
            matches = [path / file for file in list_images(path)]
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True)) if Path(match).is_file()]  # noqa: PTH207
        if not matches:
            raise UserError(f"{name}: {'no images in this folder' if path.is_dir() else 'there is no such file'}")
        images.update(dict.fromkeys(matches))
    return list(images)


def _predictions(
    model: nn.Module,
    single_reference: Sequence[AnchoredModel],
    config: models.ModelConfig,
    images: Tensor,
    test_energies: Tensor | None,
    rule: Decision | None,
) -> Iterator[Prediction]:
    """The predictions for images (B,C,H,W), without file names; ``test_energies`` (M,) are sorted."""
    logits, _ = Classifier.of(model, config)(images)
    decided = logits
    confidence, label = logits.double().softmax(1).max(1)
    energy = ood_scores.energy(logits)
    percentile = spread = None
    if test_energies is not None:
        percentile = 100 * torch.searchsorted(test_energies, energy).double() / len(test_energies)
    if single_reference:
        logits_of = (Classifier.of(one, config)(images)[0] for one in single_reference)
        probabilities = torch.stack([logits.double().softmax(1) for logits in logits_of])  # (K,B,N)
        spread = probabilities[:, torch.arange(len(label)), label].std(dim=0, correction=0)
    numbers = [[None] * len(images) if t is None else t.tolist() for t in (confidence, energy, percentile, spread)]
    made = [
        Prediction("", config.classes[i], *values)
        for i, values in zip(label.tolist(), zip(*numbers, strict=True), strict=True)
    ]
    yield from made if rule is None else map(_decided, made, _rows(rule.decide(decided)))


def _rows(found: Decided) -> Iterator[tuple[str, float, float, list[str]]]:
    """Of each image: the class or "unknown", its calibrated confidence, the p-value, the classes of its set."""
    columns = found.names, found.confidence.tolist(), found.p_value.tolist(), found.set_names
    return zip(*columns, strict=True)


def _decided(prediction: Prediction, row: tuple[str, float, float, list[str]]) -> Prediction:
    decision, confidence, p_value, names = row
    return dataclasses.replace(
        prediction, decision=decision, confidence=confidence, p_value=p_value, set="; ".join(names)
    )


def _promises(rule: Decision, decided: Sequence[Prediction]) -> list[str]:
    """What the decisions promise, and of which images they do not."""
    unknown = sum(each.decision == UNKNOWN for each in decided)
    return [
        f"{unknown:,} of {len(decided):,} images are unknown. The decision was fitted on {rule.images}, and promises, "
        "for images that come as those did, the figures that follow. Of other images it promises nothing.",
        *str(rule).split("\n"),
    ]


def _single_reference_models(run: Run, model: nn.Module, root: Path | None) -> tuple[list[AnchoredModel], str]:
    """The same network with one reference each, and a note on which references these are."""
    if not isinstance(model, AnchoredModel) or model.references is None:
        return [], "A standard network has no references, so there is no spread."
    references, what = model.references, f"the model's {len(model.references)} references"
    if len(references) == 1:
        try:
            cell = Cell.parse(files.read_json(run.cell_file), run.cell_file)
            references = _drawn_references(cell, models.read_config(run), root).to(references.device)
        except UserError as error:
            return [], f"The model has one reference, and other training images cannot be had: no spread ({error})."
        what = f"{len(references)} training images as references (the model itself has one)"
    networks = [model.with_references(reference[None]) for reference in references]
    return networks, f"Spread: standard deviation of the class's probability over {what}."


def _drawn_references(cell: Cell, config: models.ModelConfig, root: Path | None) -> Tensor:
    """Normalised training images (8,C,H,W), drawn with the training's seed."""
    images = datasets.open_set(cell.data.train, "train", cell.data, datasets.input_format(cell.data), root)
    generator = torch.Generator().manual_seed(derived_seed(cell.seed, "spread"))
    chosen = torch.randperm(len(images), generator=generator)[:REFERENCES]
    return to_input(next(images.parts([chosen])), config.mean, config.std)


def _test_energies(run: Run) -> Tensor | None:
    """Sorted energies (M,) of the run's test images; None where these weights were not evaluated."""
    path = run.outputs_file("test")
    if not path.exists():
        return None
    tensors, metadata = files.load_tensors(path)
    try:
        same = json.loads(metadata["key"])[0] == models.weights_digest(run)
    except (KeyError, ValueError, IndexError, TypeError):
        same = False
    return ood_scores.energy(tensors["logits"]).sort().values if same else None


def _notes(run: Run, config: models.ModelConfig, test_energies: Tensor | None, spread_note: str) -> Iterator[str]:
    yield (
        f"Trained on {config.trained_on} ({len(config.classes)} classes), sorted by energy, highest first. Energy is "
        "minus the log-sum-exp of the logits; higher is more out-of-distribution."
    )
    if test_energies is None:
        yield f"No percentiles: the test images of {run.name} were not evaluated (anchored evaluate {run.path})."
    else:
        yield f"Percentile: the share of the run's {len(test_energies):,} test images with a lower energy."
    yield spread_note
    yield (
        f"Images of another size: shorter side to {config.view.shorter_side} pixels ({config.interpolation}), "
        f"then the middle {config.size} × {config.size}."
    )


def _csv(predictions: Sequence[Prediction]) -> str:
    """The predictions as CSV."""
    columns = [field.name for field in dataclasses.fields(Prediction)]
    names = ["class" if name == "label" else name for name in columns]
    return "".join(csv_line(cells) for cells in (names, *map(dataclasses.astuple, predictions)))


def _thumbnail(image: Image.Image) -> str:
    """The image at 160 pixels or less, as JPEG in base 64."""
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return base64.b64encode(content.getvalue()).decode()
