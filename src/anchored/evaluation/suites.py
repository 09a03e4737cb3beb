"""What is measured on a trained network: suites of sets, each one pass, and rows made from the outputs on disk.

A suite is a function from an ``Evaluator`` (one classifier, its settings, its outputs) to rows; ``SUITES`` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from anchored.config.recipe import Recipe, canonical
from anchored.corruptions import registry as corruptions
from anchored.corruptions.registry import CORRUPTIONS
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.synthetic_ood import OUTLIERS
from anchored.errors import UserError
from anchored.evaluation.decisions import decisions
from anchored.evaluation.evaluator import Evaluator, archive_of, corruptions_of
from anchored.evaluation.inference import Outputs, load_or_compute
from anchored.evaluation.means import averages, corruption_grid, families, rows_by_set
from anchored.evaluation.overlap import shares_images
from anchored.evaluation.pytorch_ood_detectors import find_detector
from anchored.evaluation.sets import GivenSets, NamedSets
from anchored.method.collectives import from_rank_zero
from anchored.metrics.bounded import Figure, plain_figures
from anchored.metrics.classification import per_image
from anchored.metrics.linear_probe import linear_probe, stratified
from anchored.metrics.ood_scores import SCORES, refuse_no_energy
from anchored.metrics.registry import IMAGE_METRICS, OOD_METRICS
from anchored.metrics.weighted import WeightedMetric
from anchored.models import registry as networks
from anchored.store import files
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, rows_text

Evaluated = TypeVar("Evaluated", bound=Evaluator)
CLEAN = ("accuracy", "nll", "brier", "ece", "smooth_ece", "smooth_ece_old")
CORRUPTED = ("accuracy", "smooth_ece", "smooth_ece_old")
DETECTION = ("auroc", "fpr95", "aupr")
ADAPTED = {  # image metric -> its name in rows
    "accuracy": "linear_probe_accuracy",
    "smooth_ece": "linear_probe_ece",
    "smooth_ece_old": "linear_probe_ece_old",
}
SHIFTED = {"accuracy": "shifted_accuracy", "smooth_ece": "shifted_ece", "smooth_ece_old": "shifted_ece_old"}
EXAMPLES = 8  # images of each kind kept for the report


def clean(evaluator: Evaluator) -> Iterator[Row]:
    """Accuracy and calibration on clean images."""
    found = evaluator.outputs(evaluator.clean())
    images, n = per_image(found.logits, found.labels), len(found.labels)  # unsorted: others resample the same
    weighted = [IMAGE_METRICS[name](images) for name in CLEAN]

    def statistic(weights: Tensor) -> Tensor:
        return torch.stack([metric(weights) for metric in weighted], dim=1)

    for name, each in zip(CLEAN, evaluator.estimate("images", plain_figures(CLEAN, n), statistic, [n]), strict=True):
        yield evaluator.row(name, each, evaluator.images.title(evaluator.subject.test), n)


def corruption(evaluator: Evaluator) -> Iterator[Row]:
    """Accuracy and both smooth ECEs under each corruption and severity, and their means: C and C̄ are two sets."""
    for dataset, kinds in families(evaluator).items():
        yield from _corrupted(evaluator, dataset, kinds)


def _corrupted(evaluator: Evaluator, dataset: str, kinds: Sequence[str]) -> Iterator[Row]:
    """One set's figures on the same images, and their means over ``kinds`` ("mean") per severity and over all.

    Where all of C are measured (19, or 18 of grey images), "mean-15" is the mean without the extra ones. A mean over
    corruptions is the mean of the figures, not the figure of the pooled images.
    """
    grid = corruption_grid(evaluator, kinds)
    sets = (evaluator.outputs(evaluator.corrupted(kind, severity)) for severity, kind in grid)  # one at a time
    images = [per_image(each.logits, each.labels) for each in sets]
    n = len(images[0].correct)
    main = [kind for kind in kinds if "c15" in CORRUPTIONS[kind].families]
    averaged, shares = averages(grid, {"mean": kinds, **({"mean-15": main} if len(main) == 15 < len(kinds) else {})})
    for metric in CORRUPTED:
        weighted = [IMAGE_METRICS[metric](each) for each in images]

        def statistic(weights: Tensor, weighted: list[WeightedMetric] = weighted) -> Tensor:
            single = torch.stack([each(weights) for each in weighted], dim=1)
            return torch.cat([single, single @ shares], dim=1)

        places = [*grid, *averaged]
        figures = [Figure(metric, (n,), mean=place in averaged) for place in places]
        found = evaluator.estimate("images", figures, statistic, [n])
        for (at, kind), each in zip(places, found, strict=True):
            yield evaluator.row(metric, each, dataset, n, severity=at, corruption=kind)


def ood(evaluator: Evaluator) -> Iterator[Row]:
    """Rejection of out-of-distribution images by each score, and means over near, far, synthetic and all sets."""
    if not evaluator.settings.ood:
        return
    inside = evaluator.outputs(evaluator.clean()).logits
    refuse_no_energy(evaluator.settings.score, inside)
    outside = [evaluator.outputs(evaluator.outside(name)).logits for name in evaluator.settings.ood]
    sizes = [len(inside), *map(len, outside)]
    of_logits = ((score, [function(each) for each in (inside, *outside)]) for score, function in SCORES.items())
    for score, (inner_scores, *outer_scores) in chain(of_logits, evaluator.detector_scores()):
        for metric in DETECTION:
            weighted = [OOD_METRICS[metric](inner_scores, each) for each in outer_scores]
            yield from rows_by_set(evaluator, metric, score, weighted, sizes)


def shifted(evaluator: Evaluator) -> Iterator[Row]:
    """Accuracy and calibration on images of the same classes from elsewhere, and the means over these sets.

    Of a set that has some of the classes the others' logits are left out, as its authors do of ImageNet-R.
    """
    if not (names := evaluator.settings.shifted):
        return
    found = [_among_its_classes(evaluator.outputs(evaluator.shifted(name))) for name in names]
    yield from _rows_by_task(evaluator, SHIFTED, names, found, "shifted")


def _among_its_classes(outputs: Outputs) -> Outputs:
    """The logits of the classes that occur, labels counting through these."""
    there = torch.unique(outputs.labels)
    return Outputs(outputs.logits[:, there], torch.searchsorted(there, outputs.labels))


def adaptation(evaluator: Evaluator) -> Iterator[Row]:
    """A linear probe on the frozen penultimate features, its strength chosen on held-out training images."""
    if not evaluator.settings.adaptation:
        return
    names = evaluator.settings.adaptation
    probed = [_probed(evaluator, name) for name in names]
    yield from _rows_by_task(evaluator, ADAPTED, names, probed, "adaptation")


def _rows_by_task(
    evaluator: Evaluator, metrics: Mapping[str, str], names: Sequence[str], found: Sequence[Outputs], purpose: str
) -> Iterator[Row]:
    """Rows of some metrics of each labelled set, and of their means; ``metrics``: an image metric -> its row's name."""
    sizes = [len(each.labels) for each in found]
    titles = [evaluator.images.title(name) for name in names]
    images = [per_image(each.logits, each.labels) for each in found]
    for metric, named in metrics.items():
        weighted = [IMAGE_METRICS[metric](each) for each in images]

        def statistic(*weights: Tensor, each: list[WeightedMetric] = weighted) -> Tensor:
            return _with_mean([metric(own) for metric, own in zip(each, weights, strict=True)])

        mean = Figure(metric, (sum(sizes),), mean=True, parts=tuple(range(len(sizes))))
        figures = [*(Figure(metric, (n,)) for n in sizes), mean]
        estimates = evaluator.estimate(purpose, figures, statistic, sizes)
        for title, n, each in zip([*titles, "mean"], [*sizes, sum(sizes)], estimates, strict=True):
            yield evaluator.row(named, each, title, n)


def _with_mean(figures: list[Tensor]) -> Tensor:
    """Q figures (R,) each -> (R, Q + 1), the last one their mean."""
    return torch.stack([*figures, torch.stack(figures).mean(dim=0)], dim=1)


def _probed(evaluator: Evaluator, name: str) -> Outputs:
    """What a probe says of a task's test images; in validation of a fifth of its training images, held out."""
    images, classes = evaluator.images, evaluator.images.classes(name)
    fitted = evaluator.outputs(evaluator.task(name, "train"))
    if evaluator.split == "test":
        measured = evaluator.outputs(evaluator.task(name, "test"))
    else:
        kept, held = stratified(fitted.labels, classes, evaluator.generator("held out", name))
        fitted, measured = _some(fitted, kept), _some(fitted, held)

    def compute() -> Outputs:
        generator = evaluator.generator("probe", name)
        probe = linear_probe(_features(fitted), fitted.labels, _features(measured), classes, generator)
        return Outputs(probe.logits.float(), measured.labels)

    key = [evaluator.subject.weights, name, images.data.fraction, evaluator.settings.seed]
    key += [content] if (content := images.content(name)) else []
    return load_or_compute(evaluator.folder, f"probe-{images.file_name(name)}", json.dumps(key), compute)


def _features(outputs: Outputs) -> Tensor:
    assert outputs.features is not None
    return outputs.features


def _some(outputs: Outputs, places: Tensor) -> Outputs:
    return Outputs(outputs.logits[places], outputs.labels[places], _features(outputs)[places])


SUITES: tuple[Callable[[Evaluator], Iterator[Row]], ...] = (clean, corruption, ood, shifted, adaptation, decisions)


def measure(evaluator: Evaluated, suites: Iterable[Callable[[Evaluated], Iterator[Row]]] = SUITES) -> list[Row]:
    """Measure a classifier, on every rank, and keep its rows. Outputs that are there are not computed again."""
    evaluator.save_outputs()
    return from_rank_zero(lambda: _rows(evaluator, suites))


def _rows(evaluator: Evaluated, suites: Iterable[Callable[[Evaluated], Iterator[Row]]]) -> list[Row]:
    """Rows and replicates of all suites, from the outputs on disk."""
    rows = [row for suite in suites for row in suite(evaluator)]
    draws, folder = torch.cat(evaluator.draws, dim=1).T.float(), evaluator.folder
    assert len(draws) == len(rows)
    evaluator.run.refuse_removed()
    text = rows_text(rows)
    made = _made_from(evaluator) | {"rows": files.text_digest(text)}
    # All three name the rows by their hash: whatever a kill leaves of two measurements is known and measured again.
    files.save_tensors(folder.replicates_file, {"draws": draws}, {"rows": made["rows"]})
    files.write_text(folder.rows_file, text)
    files.write_json(folder.evaluation_file, made)
    return rows


def is_evaluated(evaluator: Evaluator) -> bool:
    """Whether the rows were made from these weights with these settings, and from the same own images.

    Rows that are not those that were written, since they were edited or replaced in part, do not count.
    """
    kept = evaluator.folder
    if not all(file.exists() for file in (kept.rows_file, kept.replicates_file, kept.evaluation_file)):
        return False
    rows = files.digest(files.read_bytes(kept.rows_file))
    if files.tensors_metadata(kept.replicates_file).get("rows") != rows:
        return False
    return bool(files.read_json(kept.evaluation_file) == _made_from(evaluator) | {"rows": rows})


def _made_from(evaluator: Evaluator) -> dict[str, Any]:
    settings, images = evaluator.settings, evaluator.images
    asked = json.loads(canonical(settings))
    for name in () if settings.detectors else ("detectors", "detector_images"):
        del asked[name]  # without detectors, measured as before there were any
    names = [evaluator.subject.test, *settings.ood, *settings.adaptation, *filter(None, [settings.held_out])]
    names += settings.shifted
    names = [name for name in names if name not in OUTLIERS]
    own = {name: content for name in names if (content := images.content(name))}
    made = {"weights": evaluator.subject.weights, "settings": asked}
    made |= {"own": own} if own else {}
    made |= {"near": sorted(images.near)} if isinstance(images, GivenSets) and images.near else {}
    versions = {name: each.version for name, each in evaluator.own_detectors.items()}
    return made | ({"detectors": versions} if versions else {}) | evaluator.made_also()


def check_networks(recipe: Recipe) -> None:
    """Refuse networks that there are none of: to train, or with settings that would never be used.

    Of the latter those of libraries are let pass, which need not be installed for a study of others.
    """
    for name in (*recipe.grid.networks, *(name for name in recipe.grid.per_network if ":" not in name)):
        networks.find_network(name)


def check_recipe(recipe: Recipe, root: Path | None = None) -> Recipe:
    """Refuse, before anything is trained, what could not be evaluated: unknown names, missing or unfit data.

    Returns the recipe, bound to the content of the user's images that it trains with.
    """
    fitted = any(find_detector(name).needs_fit for name in recipe.evaluate.detectors)
    if not recipe.grid.networks and all(given.outputs for given in recipe.grid.given.values()):
        return recipe  # what is measured is in the files
    used = (recipe.anchoring.reference_images, *recipe.outliers)
    recipe = with_groups_expanded(replace(recipe, data=datasets.with_content_hash(recipe.data, used)))
    settings, learned = recipe.evaluate, bool(recipe.grid.networks)  # else all models were trained elsewhere
    row = datasets.training_row(recipe.data, root) if learned else datasets.dataset_row(recipe.data.train, recipe.data)
    check_networks(recipe)
    if settings.score not in SCORES:
        raise UserError(f"evaluate.score is '{settings.score}': there are {', '.join(SCORES)}")
    for name in settings.ood:
        if name not in OUTLIERS and shares_images(name, row.name, recipe.data):
            raise UserError(f"evaluate.ood has {name}, which shares images with {row.name}: name images of other kinds")
    for name in settings.adaptation:
        datasets.learnable_row(name, recipe.data, "evaluate.adaptation has")
    needed = [(name, "ood") for name in settings.ood]
    needed += [(name, split) for name in settings.adaptation for split in ("train", "test")]
    needed += [(name, "all") for name in settings.shifted]
    if held_out := settings.held_out:
        if shares_images(held_out, row.name, recipe.data):
            raise UserError(
                f"evaluate.held_out is {held_out}, which shares images with {row.name}: decisions are fitted on images "
                "that are neither trained nor tested on"
            )
        needed.append((held_out, "all"))
    first = [(row.name, "train"), (row.name, "test")] if learned else [(row.name, "all")]
    if fitted and not learned:
        datasets.refuse_undivided(row.name, recipe.data)
        first += [(row.name, "train")]
    for name, split in [*first, *needed]:
        datasets.check_readable(name, split, recipe.data, root)
    for names in (settings.ood, settings.shifted, settings.adaptation):
        titles = [catalog.dataset_title(name) for name in names]
        if len(set(titles)) < len(titles):
            twice = next(title for title in titles if titles.count(title) > 1)
            raise UserError(f"two sets of one suite are called '{twice}' in the report: rename a folder or file")
    seen = datasets.input_format(recipe.data)
    for name in settings.shifted:
        NamedSets(recipe.data, seen, root).open(name, "all")  # its classes are the training set's
    probe = torch.zeros(1, seen.channels, seen.size, seen.size, dtype=torch.uint8)
    for name in corruptions_of(settings, seen):
        for severity in settings.severities[:1] if settings.corruption_source == "archive" else ():
            datasets.open_corrupted(archive_of(row.name, name), name, severity, recipe.data, seen, root, minimum=10)
        for severity in settings.severities if settings.corruption_source == "generated" else ():
            corruptions.corrupt(probe, name, severity, seed=0)
    return recipe


def with_groups_expanded(recipe: Recipe) -> Recipe:
    """The recipe, the sets of a group ("openood-cifar10") in place of its name."""
    return replace(recipe, evaluate=replace(recipe.evaluate, ood=catalog.expand_groups(recipe.evaluate.ood)))


def save_examples(folder: StudyFolder, evaluator: Evaluator) -> None:
    """Keep a few images of every kind for the report: clean, corrupted at each severity, out-of-distribution.

    Sets that are no images (inputs that somebody prepared) are left out; of outputs without a model there are none.
    """
    if evaluator.given is not None:
        return
    images, settings, test = evaluator.images, evaluator.settings, evaluator.subject.test
    spread, clean = _some_images(images, test, "test")
    examples = {"clean": clean}
    for name in evaluator.corruptions:
        parts = [_example(evaluator, name, severity, clean[:1], spread[:1]) for severity in settings.severities]
        examples[f"corruption/{name}"] = torch.cat(parts)
    for name in settings.ood:
        if name not in OUTLIERS:
            examples[f"ood/{name}"] = _some_images(images, name, "ood")[1]
    shown = {name: pixels for name, pixels in examples.items() if pixels.dtype == torch.uint8}
    files.save_tensors(folder.examples_file, shown)


def _some_images(images: NamedSets, name: str, split: str) -> tuple[Tensor, Tensor]:
    """The places of a few images of a set, and the images."""
    found = images.open(name, split)
    spread = torch.linspace(0, len(found) - 1, EXAMPLES).long()
    return spread, next(iter(found.parts([spread])))


def _example(evaluator: Evaluator, corruption: str, severity: int, clean: Tensor, place: Tensor) -> Tensor:
    """One test image (1,C,H,W) under a corruption: ``clean`` corrupted, or the archive's at its place."""
    settings = evaluator.settings
    if settings.corruption_source == "generated":
        return corruptions.corrupt(clean, corruption, severity, seed=settings.seed, indices=place)
    archive = archive_of(evaluator.subject.test, corruption)
    return next(evaluator.images.open_corrupted(archive, corruption, severity).parts([place]))
