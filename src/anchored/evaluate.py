"""What is measured on a trained network: suites of sets, each one pass, and rows made from the outputs on disk.

A suite is a function from a ``Bench`` (one network, its settings, its outputs) to rows; ``SUITES`` lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from anchored import catalog, corruptions, data, disk, intervals, metrics, networks, runs
from anchored import model as models
from anchored.corruptions import CORRUPTIONS
from anchored.errors import UserError
from anchored.intervals import Interval
from anchored.predict import Outputs, Pass, passed, stored
from anchored.probe import linear_probe
from anchored.recipe import Cell, Recipe, canonical, derived_seed
from anchored.runs import Row, Run, StudyFolder
from anchored.scores import SCORES
from anchored.settings import Data, Evaluation

Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done
CLEAN = ("accuracy", "nll", "brier", "ece", "smooth_ece", "smooth_ece_old")
CORRUPTED = ("accuracy", "smooth_ece")
DETECTION = ("auroc", "fpr95", "aupr")
ADAPTED = {"accuracy": "linear_probe_accuracy", "smooth_ece": "linear_probe_ece"}  # image metric -> its name in rows
EXAMPLES = 8  # images of each kind kept for the report


@dataclass
class Bench:
    """One trained network on the bench."""

    run: Run
    cell: Cell
    settings: Evaluation
    progress: Progress
    root: Path | None = None
    passed: int = 0  # sets that were passed through the network, or read from disk
    draws: list[Tensor] = field(default_factory=list)  # replicates of the rows so far (R,Q), in their order and unit

    @cached_property
    def config(self) -> models.ModelConfig:
        """What the network takes and was trained on."""
        return models.read_config(self.run)

    @cached_property
    def model(self) -> nn.Module:
        """The network, loaded when a set has to be passed through it."""
        on_gpu = torch.cuda.is_available() and self.cell.train.accelerator in ("auto", "gpu", "cuda")
        return models.load(self.run.path, network=self.cell.network).to("cuda" if on_gpu else "cpu")

    @cached_property
    def weights(self) -> str:
        """Hash of the weights."""
        return models.weights_digest(self.run)

    @cached_property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions, families expanded."""
        return _corruptions(self.settings, self.config.size)

    @cached_property
    def sets(self) -> int:
        """How many passes there are in all."""
        settings = self.settings
        corrupted = len(self.corruptions) * len(settings.severities)
        return 2 + len(settings.ood) + corrupted + 2 * len(settings.adaptation)  # the test set is asked for twice

    def images(self, name: str, split: str) -> data.Images:
        """A set as this network takes it, shrunken like the training set."""
        return load(name, split, self.cell.data, self.root)

    def outputs(
        self, kept: str, name: str, split: str, corruption: str = "", severity: int = 0, features: bool = False
    ) -> Outputs:
        """The network's outputs on one set, from disk where they were made by these weights from this set."""
        key = [self.weights, name, split, self.cell.data.fraction, features]
        key += [own] if (own := data.content(name, self.cell.data)) else []
        archive = archive_of(name, corruption) if corruption and self.settings.corruption_source == "archive" else ""
        if corruption:
            key += [corruption, severity, archive or self.settings.seed]

        self.progress(self.passed / self.sets, f"evaluating, {kept}")
        self.passed += 1

        def change(images: Tensor, places: Tensor) -> Tensor:
            return corruptions.corrupt(images, corruption, severity, seed=self.settings.seed, indices=places)

        def begin() -> Pass:
            size, chosen = self.settings.batch_size, self.cell.data
            if archive:
                seen = data.seen_by(chosen)
                images = data.open_corrupted(archive, corruption, severity, chosen, seen, self.root, minimum=10)
                return Pass(self.model, self.config, images, size, features)
            change_ = change if corruption else None
            return Pass(self.model, self.config, self.images(name, split), size, features, change_)

        return passed(self.run, kept, json.dumps(key), begin)

    def generator(self, *purpose: str) -> torch.Generator:
        """The same draws for every network, so that networks are compared on the same resamples."""
        return torch.Generator().manual_seed(derived_seed(self.settings.seed, *purpose))

    def estimate(
        self, purpose: str, names: Sequence[str], statistic: Callable[..., Tensor], sizes: Sequence[int]
    ) -> list[Interval]:
        """Values and intervals of figures, as in ``intervals.estimate``, whose replicates are kept for comparisons.

        Each figure becomes one row, and the rows follow in this order.
        """
        self.progress(self.passed / self.sets, f"evaluating, intervals of {names[0]}")
        found, draws = intervals.estimate(statistic, names, sizes, self.generator(purpose), self.settings.bootstrap)
        self.draws.append(draws.cpu() * draws.new_tensor([_unit(name) for name in names]).cpu())
        return found

    def row(
        self,
        metric: str,
        found: Interval,
        dataset: str,
        n: int,
        *,
        severity: int | None = None,
        corruption: str = "",
        score: str = "",
    ) -> Row:
        """A row of this network."""
        value, low, high = (bound * _unit(metric) for bound in found)
        return Row(
            trained_on=catalog.title(self.cell.data.train),
            architecture=networks.get(self.cell.network).title,
            protocol=self.cell.protocol,
            alpha=self.cell.alpha if self.cell.protocol == "ram" else None,
            metric=metric,
            dataset=dataset,
            severity=severity,
            value=value,
            tail_weight=self.cell.tail_weight or None,
            seed=self.cell.seed,
            corruption=corruption,
            score=score,
            low=low,
            high=high,
            n=n,
            run=self.run.name,
        )


def _unit(metric: str) -> float:
    """What fractions are multiplied with in rows."""
    return 100.0 if metrics.METRICS[metric].percent else 1.0


def clean(bench: Bench) -> Iterator[Row]:
    """Accuracy and calibration on the test set."""
    test = bench.outputs("test", bench.cell.data.train, "test", features=True)
    images, n = metrics.per_image(test.logits, test.labels), len(test.labels)  # unsorted: others resample the same ones
    weighted = [metrics.IMAGE_METRICS[name](images) for name in CLEAN]

    def statistic(weights: Tensor) -> Tensor:
        return torch.stack([metric(weights) for metric in weighted], dim=1)

    for name, found in zip(CLEAN, bench.estimate("images", CLEAN, statistic, [n]), strict=True):
        yield bench.row(name, found, catalog.title(bench.cell.data.train), n)


def corruption(bench: Bench) -> Iterator[Row]:
    """Accuracy and smooth ECE under each corruption and severity, and their means: C and C̄ are two sets."""
    for family, sign in (("c", "C"), ("c-bar", "C̄")):
        kinds = [name for name in bench.corruptions if family in CORRUPTIONS[name].families]
        if kinds and bench.settings.severities:
            yield from _corrupted(bench, f"{catalog.title(bench.cell.data.train)}-{sign}", kinds)


def _corrupted(bench: Bench, dataset: str, kinds: Sequence[str]) -> Iterator[Row]:
    """One set's figures on the same images, and their means over ``kinds`` ("mean") per severity and over all.

    Where all 19 of C are measured, "mean-15" is the mean without the four extra ones. A mean over corruptions is the
    mean of the figures, not the figure of the pooled images.
    """
    severities = bench.settings.severities
    grid = [(severity, kind) for severity in severities for kind in kinds]
    train = bench.cell.data.train
    outputs = [bench.outputs(f"corruption-{kind}-{severity}", train, "test", kind, severity) for severity, kind in grid]
    images, n = [metrics.per_image(each.logits, each.labels) for each in outputs], len(outputs[0].labels)
    main = [kind for kind in kinds if "c15" in CORRUPTIONS[kind].families]
    means = {"mean": kinds, **({"mean-15": main} if len(main) == 15 < len(kinds) else {})}
    averaged = [(severity, name) for name in means for severity in (*severities, None)]
    shares = torch.zeros(len(grid), len(averaged), dtype=torch.float64)
    for column, (severity, name) in enumerate(averaged):
        chosen = [i for i, (at, kind) in enumerate(grid) if severity in (at, None) and kind in means[name]]
        shares[chosen, column] = 1 / len(chosen)
    for metric in CORRUPTED:
        weighted = [metrics.IMAGE_METRICS[metric](each) for each in images]

        def statistic(weights: Tensor, weighted: list[metrics.WeightedMetric] = weighted) -> Tensor:
            single = torch.stack([each(weights) for each in weighted], dim=1)
            return torch.cat([single, single @ shares], dim=1)

        places = [*grid, *averaged]
        found = bench.estimate("images", [metric] * len(places), statistic, [n])
        for (at, kind), each in zip(places, found, strict=True):
            yield bench.row(metric, each, dataset, n, severity=at, corruption=kind)


def _corruptions(settings: Evaluation, size: int) -> tuple[str, ...]:
    """Names of the corruptions of a recipe, its families expanded for the network's input size."""
    return corruptions.expand(settings.corruptions, size, size)


def archive_of(train: str, corruption: str) -> str:
    """The catalog's archive of a set's corrupted test images; ``UserError`` where none is published."""
    for row in catalog.CATALOG.values():
        if row.clean == train and corruption in row.corruptions:
            return row.name
    raise UserError(
        f"evaluate.corruption_source is archive, but no archive of {train} under {corruption} is in the catalog: take "
        "generated"
    )


def ood(bench: Bench) -> Iterator[Row]:
    """Rejection of out-of-distribution images by each score, and the mean over sets."""
    if not bench.settings.ood:
        return
    inside = bench.outputs("test", bench.cell.data.train, "test", features=True).logits
    outside = [bench.outputs(f"ood-{catalog.file_name(name)}", name, "ood").logits for name in bench.settings.ood]
    sizes = [len(inside), *map(len, outside)]
    titles = [catalog.title(name) for name in bench.settings.ood]
    for score, function in SCORES.items():
        for metric in DETECTION:
            weighted = [metrics.OOD_METRICS[metric](function(inside), function(each)) for each in outside]

            def statistic(inner: Tensor, *outer: Tensor, each: list[metrics.WeightedOODMetric] = weighted) -> Tensor:
                return _with_mean([metric(inner, own) for metric, own in zip(each, outer, strict=True)])

            found = bench.estimate("ood", [metric] * (len(outside) + 1), statistic, sizes)
            for title, n, each in zip([*titles, "mean"], [*sizes[1:], sum(sizes[1:])], found, strict=True):
                yield bench.row(metric, each, title, sizes[0] + n, score=score)


def adaptation(bench: Bench) -> Iterator[Row]:
    """A linear probe on the frozen penultimate features, its strength chosen on held-out training images."""
    if not bench.settings.adaptation:
        return
    probed = [_probed(bench, name) for name in bench.settings.adaptation]
    sizes = [len(each.labels) for each in probed]
    titles = [catalog.title(name) for name in bench.settings.adaptation]
    images = [metrics.per_image(each.logits, each.labels) for each in probed]
    for metric, named in ADAPTED.items():
        weighted = [metrics.IMAGE_METRICS[metric](each) for each in images]

        def statistic(*weights: Tensor, each: list[metrics.WeightedMetric] = weighted) -> Tensor:
            return _with_mean([metric(own) for metric, own in zip(each, weights, strict=True)])

        found = bench.estimate("adaptation", [metric] * (len(probed) + 1), statistic, sizes)
        for title, n, each in zip([*titles, "mean"], [*sizes, sum(sizes)], found, strict=True):
            yield bench.row(named, each, title, n)


def _with_mean(figures: list[Tensor]) -> Tensor:
    """Q figures (R,) each -> (R, Q + 1), the last one their mean."""
    return torch.stack([*figures, torch.stack(figures).mean(dim=0)], dim=1)


def _probed(bench: Bench, name: str) -> Outputs:
    file = catalog.file_name(name)
    train = bench.outputs(f"features-{file}-train", name, "train", features=True)
    test = bench.outputs(f"features-{file}-test", name, "test", features=True)
    inner, outer = train.features, test.features
    assert inner is not None
    assert outer is not None

    def compute() -> Outputs:
        classes = len(data.row(name, bench.cell.data).classes)
        probe = linear_probe(inner, train.labels, outer, classes, bench.generator("probe", name))
        return Outputs(probe.logits.float(), test.labels)

    key = [bench.weights, name, bench.cell.data.fraction, bench.settings.seed]
    key += [own] if (own := data.content(name, bench.cell.data)) else []
    return stored(bench.run, f"probe-{file}", json.dumps(key), compute)


SUITES: tuple[Callable[[Bench], Iterator[Row]], ...] = (clean, corruption, ood, adaptation)


def evaluate(
    run: Run, cell: Cell, settings: Evaluation, progress: Progress = lambda share, what: None, root: Path | None = None
) -> list[Row]:
    """Measure a trained run, and keep its rows. Outputs that are there already are not computed again."""
    bench = Bench(run, cell, settings, progress, root)
    rows = [row for suite in SUITES for row in suite(bench)]
    draws = torch.cat(bench.draws, dim=1).T.float()
    assert len(draws) == len(rows)
    disk.save_tensors(run.replicates_file, {"draws": draws})
    runs.write_rows(run.rows_file, rows)
    disk.write_json(run.evaluation_file, _made_from(run, cell, settings))
    return rows


def is_evaluated(run: Run, cell: Cell, settings: Evaluation) -> bool:
    """Whether the run's rows were made from its weights with these settings, and from the same own images."""
    if not (run.rows_file.exists() and run.evaluation_file.exists() and run.weights_file.exists()):
        return False
    return bool(disk.read_json(run.evaluation_file) == _made_from(run, cell, settings))


def _made_from(run: Run, cell: Cell, settings: Evaluation) -> dict[str, object]:
    names = (cell.data.train, *settings.ood, *settings.adaptation)
    own = {name: data.content(name, cell.data) for name in names if catalog.is_own(name)}
    made = {"weights": models.weights_digest(run), "settings": json.loads(canonical(settings))}
    return {**made, "own": own} if own else made


def load(name: str, split: str, settings: Data, root: Path | None = None) -> data.Images:
    """A set as the study's networks see it, shrunken as the recipe says (at least ten images of a class remain)."""
    return data.open_set(name, split, settings, data.seen_by(settings), root, minimum=10)


def check(recipe: Recipe, root: Path | None = None) -> Recipe:
    """Refuse, before anything is trained, what could not be evaluated: unknown names, missing or unfit data.

    Returns the recipe, bound to the content of its own training images.
    """
    recipe = replace(recipe, data=data.bound(recipe.data))
    row, settings = data.describe(recipe.data, root), recipe.evaluate
    for name in recipe.grid.networks:
        networks.get(name)
    if settings.score not in SCORES:
        raise UserError(f"evaluate.score is '{settings.score}': there are {', '.join(SCORES)}")
    for name in settings.adaptation:
        data.learnable(name, recipe.data, "evaluate.adaptation has")
    needed = [(name, "ood") for name in settings.ood]
    needed += [(name, split) for name in settings.adaptation for split in ("train", "test")]
    for name, split in [(row.name, "train"), (row.name, "test"), *needed]:
        data.look(name, split, recipe.data, root)
    for names in (settings.ood, settings.adaptation):
        titles = [catalog.title(name) for name in names]
        if len(set(titles)) < len(titles):
            twice = next(title for title in titles if titles.count(title) > 1)
            raise UserError(f"two sets of one suite are called '{twice}' in the report: rename a folder or file")
    seen = data.seen_by(recipe.data)
    probe = torch.zeros(1, seen.channels, seen.size, seen.size, dtype=torch.uint8)
    for name in _corruptions(settings, seen.size):
        for severity in settings.severities[:1] if settings.corruption_source == "archive" else ():
            data.open_corrupted(archive_of(row.name, name), name, severity, recipe.data, seen, root, minimum=10)
        for severity in settings.severities if settings.corruption_source == "generated" else ():
            corruptions.corrupt(probe, name, severity, seed=0)
    return recipe


def _example(recipe: Recipe, corruption: str, severity: int, clean: Tensor, place: Tensor, root: Path | None) -> Tensor:
    """One test image (1,C,H,W) under a corruption: ``clean`` corrupted, or the archive's at its place."""
    settings, seen = recipe.evaluate, data.seen_by(recipe.data)
    if settings.corruption_source == "generated":
        return corruptions.corrupt(clean, corruption, severity, seed=settings.seed, indices=place)
    archive = archive_of(recipe.data.train, corruption)
    images = data.open_corrupted(archive, corruption, severity, recipe.data, seen, root, minimum=10)
    return next(images.parts([place]))


def save_examples(folder: StudyFolder, recipe: Recipe, root: Path | None = None) -> None:
    """Keep a few images of every kind for the report: clean, corrupted at each severity, out-of-distribution."""
    settings = recipe.evaluate

    def some(name: str, split: str) -> tuple[Tensor, Tensor]:
        images = load(name, split, recipe.data, root)
        spread = torch.linspace(0, len(images) - 1, EXAMPLES).long()
        return next(images.parts([spread])), spread

    clean, spread = some(recipe.data.train, "test")
    examples = {"clean": clean}
    for name in _corruptions(settings, clean.shape[-1]):
        examples[f"corruption/{name}"] = torch.cat(
            [_example(recipe, name, severity, clean[:1], spread[:1], root) for severity in settings.severities]
        )
    for name in settings.ood:
        examples[f"ood/{name}"] = some(name, "ood")[0]
    disk.save_tensors(folder.examples_file, examples)
