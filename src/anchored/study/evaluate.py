"""Measuring any classifier, from Python: as a study's networks are measured, with the same rows and the same report."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.config.recipe import Recipe
from anchored.config.settings import GIVEN, Evaluation, Given, Grid, Pixels
from anchored.config.validation import parse
from anchored.data.given import relabelled
from anchored.data.image_sets import GivenInputs, LabelledImages
from anchored.data.preprocessing import InputFormat, to_input
from anchored.errors import UserError
from anchored.evaluation import suites
from anchored.evaluation.classifier import Classifier, as_tensor
from anchored.evaluation.detectors import Detector
from anchored.evaluation.evaluator import Evaluator, Subject
from anchored.evaluation.given_models import class_names, first_image, logit_count, opened_classifier, outputs_evaluator
from anchored.evaluation.given_outputs import given_outputs
from anchored.evaluation.given_sets import SetOpener
from anchored.evaluation.maite import given_model
from anchored.evaluation.pytorch_ood_detectors import find_detector, given_detector
from anchored.metrics.ood_scores import SCORES
from anchored.models.sources import OpenedModel, open_model, state_digest
from anchored.report.result import Result
from anchored.store import files
from anchored.store.layout import IN_PYTHON, Run, StudyFolder, first_difference
from anchored.store.rows import read_rows, rows_text
from anchored.store.terminal import PlainConsole, progress_bar
from anchored.study import jobs, provenance, study


def evaluate(
    model: Any = None,
    test: Any = None,
    *,
    checkpoint: str | Path = "",
    outputs: str | Path | Mapping[str, Any] | None = None,
    ood: Mapping[str, Any] | Sequence[str] = (),
    near: Sequence[str] = (),
    shifted: Mapping[str, Any] | Sequence[str] = (),
    detectors: Mapping[str, Any] | Sequence[str] = (),
    train: Any = None,
    corruptions: str | Sequence[str] = "c",
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    adaptation: Mapping[str, Any] | Sequence[str] = (),
    held_out: Any = None,
    false_alarms: float = Evaluation.false_alarms,
    coverage: float = Evaluation.coverage,
    error: float = Evaluation.error,
    name: str = "",
    classes: Sequence[str] = (),
    preprocess: Callable[[Tensor], Tensor] | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    size: int = 0,
    arrays: Literal["torch", "numpy"] | None = None,
    batch_size: int = Evaluation.batch_size,
    score: str = Evaluation.score,
    bootstrap: int = Evaluation.bootstrap,
    seed: int = Evaluation.seed,
    folder: str | Path | None = None,
    version: str = "",
    progress: bool = True,
) -> Result:
    """Measure a classifier: accuracy, calibration, corruptions, rejection of other data, adaptation; with intervals.

    The passes, rows and report are those of a study. A module is measured on the device that it is on, in evaluation
    mode; one that is opened by its name, on the device that a study would take.

    Args:
        model: a ``torch.nn.Module``, or a callable on batches, which get NumPy arrays unless ``arrays`` is "torch", and
            give logits (B,N), or ``{"logits": ..., "features": ...}``; or the name of a model: a folder, ``hub:...``,
            ``timm:...``, ``torchvision:...``, an .onnx file (:func:`anchored.models.sources.open_model`); or MAITE's,
            whose probabilities, if it gives them, become their logarithm.
        test: the labelled test images: a name (catalog, folder, .csv, .npz, hf:...), (images, labels), a data set or
            DataLoader; see :func:`anchored.data.given.given_set`. Raw images, which corruptions need, are uint8 or
            levels of 255 divided by it; other floats go to the model as they are, and so must all other sets. What is
            given in Python is read into memory whole; large sets of names are not.
        checkpoint: weights of a named model, a file of any usual kind; without, those that come with the name.
        outputs: in place of a model and images: a folder of logits, labels and features, or arrays by set; see
            :mod:`anchored.evaluation.given_outputs`.
        ood: title -> out-of-distribution images, as ``test`` (labels do not count); or names of the catalog.
        near: which of them are near; the catalog's are as it says, others far.
        shifted: title -> labelled images of the same classes from elsewhere, as ``test``; or names. Of a set that has
            some of the classes the others' logits are left out.
        detectors: names of pytorch-ood's ("vim", "knn:k=200"), or title -> a detector: an object of pytorch-ood's, or
            a callable whose parameters are called ``logits``, ``features`` or ``images`` (what the model takes), which
            gives scores (B,), higher = more out-of-distribution, and perhaps has a method ``fit``.
        train: labelled training images, as ``test``, which detectors are fitted on; by default the catalog's own.
        corruptions: names of corruptions, or families: c, c15, c-bar; empty for none.
        severities: of 1 to 5.
        adaptation: title -> (train, test) of another task, each as ``test``, for a linear probe; or catalog names.
        held_out: labelled images, as ``test``, that the model was neither trained nor tested on: decisions are fitted
            on them, and measured on all other sets. Without, they are not measured.
        false_alarms, coverage, error: what decisions promise; see :func:`anchored.models.decision.fit_decision`.
        name: what the model is called in rows and tables; by default its class's name.
        classes: names of the logits in their order; by default ``model.classes``, else those of ``test``. Sets that
            name theirs otherwise ordered are brought into this order by name, ImageNet's also by WordNet ids.
        preprocess: from raw images (B,C,H,W) uint8 to inputs; by default ``model.preprocess``, else each channel
            ``(image / 255 − mean) / std``.
        mean: per channel, of images in [0, 1]; by default 0.
        std: likewise; by default 1.
        size: height and width of the images that the model takes, pixels; by default those of ``test``.
        arrays: what a callable takes.
        batch_size: images a pass; up to rounding no result depends on it.
        score: OOD score of the headline; all are measured.
        bootstrap: replicates behind every interval over images.
        seed: of corruptions, bootstraps and probe splits.
        folder: where outputs, rows and report are kept: a second call computes only what is not there. By default a
            temporary one.
        version: says which weights a callable has, and which detectors were given; outputs in ``folder`` are used again
            only where it is equal.
        progress: show a progress bar on a terminal.

    Raises:
        UserError: one line, before anything is written, for data or a model that do not fit together.

    Example:
        >>> result = anchored.evaluate(model, (images, labels), ood={"noise": noise}, corruptions="c15")
        >>> result.to_html("report.html")
    """
    kinds, ood, near, shifted, adaptation = map(_several, (corruptions, ood, near, shifted, adaptation))
    asked = {"corruptions": tuple(kinds), "severities": tuple(severities), "score": score, "batch_size": batch_size}
    asked |= {"false_alarms": false_alarms, "coverage": coverage, "error": error}
    own = own_detectors(detectors, version)
    asked["detectors"] = tuple(detectors)
    settings: Evaluation = parse(Evaluation, {**asked, "bootstrap": bootstrap, "seed": seed}, "evaluate")
    if score not in SCORES:
        raise UserError(f"score is '{score}': there are {', '.join(SCORES)}")
    if outputs is None and (model is None or test is None):
        raise UserError("evaluate takes a model and its test images, or outputs")
    known = [own.get(each) or find_detector(each) for each in settings.detectors]
    if outputs is not None:
        evaluator = outputs_evaluator(Run(Path()), given_outputs(outputs), settings, name or "outputs", near=near)
    else:
        takes, model, view = open_given(given_model(model, test), checkpoint, preprocess, (mean, std), size, arrays)
        opener = SetOpener(test, view)
        images, named = open_labelled(takes, model, opener, classes)
        opener.keep_test(images)
        if any(each.needs_fit for each in known):
            opener.keep_training(train)
        settings = opener.with_shifted(opener.with_sets(settings, ood, adaptation), shifted)
        settings = opener.with_held_out(settings, held_out)
        opener.refuse_mixed(settings, normalised=bool(preprocess or len(mean) or len(std)))
        if unknown := set(near) - set(settings.ood):
            raise UserError(f"near has '{min(unknown)}', which ood does not name")
        title = name or str(getattr(model, "title", "") or getattr(model, "__name__", type(model).__name__))
        order = files.text_digest("\0".join(named))  # of the logits: streamed labels are in no hash of images
        weights = f"{weights_hash(model, version)}{_inputs_hash(takes, images)}{order}"
        subject = Subject(opener.name, title, GIVEN, weights, lambda: takes, features=bool(settings.adaptation))
        evaluator = Evaluator(Run(Path()), subject, opener.sets(near), settings)
    evaluator.own_detectors = own
    with modes_kept(model):
        return _measured(evaluator, folder, progress)


def _several(names: Any) -> Any:
    """Several of what may be one name, or nothing at all."""
    return () if names is None else (names,) if isinstance(names, (str, Path)) else names


def own_detectors(detectors: Mapping[str, Any] | Sequence[str], version: str) -> dict[str, Detector]:
    """The detectors that a caller gave as such; names are found later."""
    if isinstance(detectors, str):
        raise UserError(f"detectors is '{detectors}': give a list of names, or title -> detector")
    if not isinstance(detectors, Mapping):
        return {}
    told = version or f"unknown {secrets.token_hex(8)}"
    return {str(name): given_detector(str(name), each, told) for name, each in detectors.items()}


# --- What is measured ---------------------------------------------------------------------------------------------


def open_given(
    model: Any,
    checkpoint: str | Path,
    preprocess: Callable[[Tensor], Tensor] | None,
    normalisation: tuple[Sequence[float], Sequence[float]],
    size: int,
    arrays: Literal["torch", "numpy"] | None,
) -> tuple[Classifier, Any, InputFormat | None]:
    """What is called, the model itself or what was opened by its name, and its input where that is known.

    ``UserError`` where it can be neither called nor opened.
    """
    parse(Pixels, size, name="size")
    single = any(isinstance(each, (int, float)) for each in normalisation)
    if single or min(normalisation[1], default=1.0) <= 0:
        raise UserError(f"mean and std are {normalisation}: give a number for each channel, of std above 0")
    if isinstance(model, (str, Path)):
        mean, std = normalisation
        library = ":" in str(model) and not Path(model).exists()
        opened = open_model(
            model, pretrained=library and not checkpoint, checkpoint=checkpoint, size=size, mean=mean, std=std
        )
        return opened_classifier(opened, prepare=preprocess), opened, opened.input
    if not callable(model):
        raise UserError(f"the model is a {type(model).__name__}: give a torch.nn.Module, or a callable on batches")
    prepare = preprocess or getattr(model, "preprocess", None) or _Normalised(*map(tuple, normalisation))
    taken = arrays or ("torch" if isinstance(model, nn.Module) else "numpy")
    takes = Classifier(model, prepare, arrays=taken, std=getattr(prepare, "std", ()))
    return takes, model, InputFormat(3, size) if size else None


def open_labelled(
    takes: Classifier, model: Any, opener: SetOpener, classes: Sequence[str]
) -> tuple[LabelledImages | GivenInputs, tuple[str, ...]]:
    """The labelled images of an opener, labels being places of logits, and the names of the logits.

    One image is passed through the model.
    """
    images = opener.open_test()
    with modes_kept(model):
        count = logit_count(takes, images)
    names = class_names(tuple(classes or getattr(model, "classes", ())), images.classes, count)
    spelt = model.spellings if isinstance(model, OpenedModel) and names == model.classes else names
    return relabelled(images, spelt), names


@dataclass(frozen=True)
class _Normalised:
    """Raw images to inputs, ``(image / 255 − mean) / std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Tensor) -> Tensor:
        channels = images.shape[1]
        return to_input(images, self.mean or (0.0,) * channels, self.std or (1.0,) * channels)


def weights_hash(model: Any, version: str) -> str:
    """Hash of a module's weights, or what the caller says of a callable; never the same where nothing is said."""
    if isinstance(model, (nn.Module, OpenedModel)):
        return f"{state_digest(model) if isinstance(model, nn.Module) else model.digest}{version}"
    return f"version {version}" if version else f"unknown {secrets.token_hex(8)}"


def _inputs_hash(takes: Classifier, images: LabelledImages | GivenInputs) -> str:
    """Hash of what raw images become before the model, by one of noise; "" where images are inputs as they are."""
    first = first_image(images)
    if first.dtype != torch.uint8:
        return ""
    noise = torch.randint(0, 256, first.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return files.tensors_digest({"inputs": as_tensor(takes.prepare(noise.to(takes.device)))})


# --- The folder ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def modes_kept(model: Any) -> Iterator[None]:
    """Leave every part of a module in training mode that was, and its weights in their order in memory."""
    module = model if isinstance(model, nn.Module) else nn.Module()
    training = [part for part in module.modules() if part.training]
    rowwise = [each for each in module.parameters() if each.dim() == 4 and each.is_contiguous()]
    try:
        yield
    finally:
        for part in training:
            part.training = True
        for each in rowwise:
            each.data = each.data.contiguous()


def _claimed(folder: str | Path | None, recipe: Recipe) -> StudyFolder:
    """The folder that was asked for, or a temporary one; ``UserError`` where it holds other files or another study."""
    kept = StudyFolder(Path(tempfile.mkdtemp(prefix="anchored-") if folder is None else folder))
    study.claim_folder(kept, recipe)
    return kept


@contextlib.contextmanager
def _removed_on_error(place: Path, temporary: bool) -> Iterator[None]:
    """Leave no temporary folder behind that nobody is told of."""
    try:
        yield
    except BaseException:
        if temporary:
            shutil.rmtree(place, ignore_errors=True)
        raise


@contextlib.contextmanager
def _held(run: Run) -> Iterator[None]:
    """Hold a run's lock, swept; ``UserError`` where another process works on it, or it holds other files."""
    with jobs.run_locked(run) as mine:
        if not mine:
            raise UserError(f"another process works on {run.path}: wait for it, or choose another folder")
        run.refuse_foreign()
        jobs.sweep(run)
        yield


def _grid(titles: Iterable[str]) -> Grid:
    """The grid of a study of models that Python gave."""
    return Grid(networks=(), given={title: Given(model=IN_PYTHON) for title in titles})


def _measured(evaluator: Evaluator, folder: str | Path | None, progress: bool) -> Result:
    """Measure in a folder, unless that was done, and write its rows; ``UserError`` before anything is written."""
    evaluator.sets()  # unknown corruptions are refused here
    subject, data = evaluator.subject, evaluator.images.data
    recipe = Recipe(name="evaluation", data=data, grid=_grid([subject.architecture]), evaluate=evaluator.settings)
    kept = _claimed(folder, recipe)
    evaluator.run = run = kept.run("given")
    with (
        _removed_on_error(kept.path, folder is None),
        _held(run),
        progress_bar(PlainConsole(stderr=True), transient=True) as bar,
    ):
        files.write_json(run.cell_file, {"given": subject.architecture, "weights": subject.weights})
        task = bar.add_task("evaluating", total=1.0, visible=progress)
        evaluator.progress = lambda share, what: bar.update(task, completed=share, description=what)
        if not suites.is_evaluated(evaluator):
            provenance.record(run, "evaluating")
            suites.measure(evaluator)
        with study.finishing(kept, recipe):
            suites.save_examples(kept, evaluator)
            study.write_results(kept, recipe, [run])
    return Result(kept.path, temporary=folder is None)


def compare(results: Sequence[Result] | Mapping[str, Result], folder: str | Path | None = None) -> Result:
    """Put results of the same test images side by side, the first one being what the others are compared with.

    Differences are tested by the paired bootstrap on shared resamples, corrected over all that are shown.

    Args:
        results: of :func:`evaluate`; in a mapping by title.
        folder: where the rows, outputs and report are kept; by default a temporary one.

    Raises:
        UserError: fewer than two, one title twice, or results of other images or other settings.
    """
    named = dict(results) if isinstance(results, Mapping) else {_architecture(each): each for each in results}
    if len(named) < 2 or len(named) < len(results):
        raise UserError("compare takes two results or more, each with a title of its own (evaluate(..., name=...))")
    records = {title: _record(result) for title, result in named.items()}
    first, *others = records
    for other in others:
        if difference := first_difference(records[first], records[other]):
            raise UserError(f"'{other}' was measured on other images or otherwise than '{first}' ({difference})")
    source = StudyFolder(named[first].folder)
    recipe = Recipe.parse(files.read_json(source.study_file)["recipe"], source.study_file)
    recipe = replace(recipe, grid=Recipe(grid=_grid(named)).check().grid)
    kept, runs = _claimed(folder, recipe), []
    for title, cell in zip(named, recipe.jobs(), strict=True):
        runs.append(kept.run(cell.name))
        with _held(runs[-1]):
            _copy_run(StudyFolder(named[title].folder).runs()[0], runs[-1], title)
    with study.finishing(kept, recipe):
        if source.examples_file.exists():
            files.copy_file(source.examples_file, kept.examples_file)
        study.write_results(kept, recipe, runs)
    return Result(kept.path, temporary=folder is None)


def _copy_run(source: Run, target: Run, title: str) -> None:
    """Copy a run whose model is called otherwise there; what names its rows by their hash is written anew."""
    files.copy_file(source.cell_file, target.cell_file)  # first of all: with it the folder is ours
    files.copy_folder(source.path, target.path)
    text = rows_text(replace(row, architecture=title, run=target.name) for row in read_rows(source.rows_file))
    record = {**files.read_json(source.evaluation_file), "rows": files.text_digest(text)}
    draws, _ = files.load_tensors(source.replicates_file)
    files.save_tensors(target.replicates_file, draws, {"rows": record["rows"]})
    files.write_text(target.rows_file, text)
    files.write_json(target.evaluation_file, record)


def _architecture(result: Result) -> str:
    return str(result.rows[0]["architecture"])


def _record(result: Result) -> dict[str, Any]:
    """Settings and images of a result."""
    runs = StudyFolder(result.folder).runs()
    if len(runs) != 1:
        raise UserError(f"{result.folder} has {len(runs)} networks: compare takes results of one each")
    record = files.read_json(runs[0].evaluation_file)
    written = files.tensors_metadata(runs[0].replicates_file).get("rows")
    if not runs[0].rows_are_intact() or written != record.get("rows"):
        raise UserError(f"{runs[0].rows_file} is not as it was written (edited, or a kill): evaluate that model again")
    return {key: record.get(key) for key in ("settings", "own", "near")}
