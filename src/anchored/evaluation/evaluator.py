"""One trained network on the bench: its outputs on sets, passed once and kept, and rows made from them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchored.config.recipe import Cell, Recipe, derived_seed
from anchored.config.settings import Data, Evaluation
from anchored.corruptions import registry as corruptions
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.image_sets import LabelledImages
from anchored.data.synthetic_ood import OUTLIERS, make_ood
from anchored.errors import UserError
from anchored.evaluation import inference
from anchored.evaluation.inference import Outputs, Pass
from anchored.metrics import intervals
from anchored.metrics.intervals import Interval
from anchored.metrics.registry import METRICS
from anchored.models import folder as models
from anchored.models import registry as networks
from anchored.store.layout import Run
from anchored.store.rows import Row
from anchored.training import distributed

Split = Literal["test", "validation"]
Progress = Callable[[float, str], None]  # share done in [0, 1], and what is being done


@dataclass
class Bench:
    """One trained network on the bench."""

    run: Run
    cell: Cell
    settings: Evaluation
    progress: Progress
    root: Path | None = None
    split: Split = "test"  # images of the training set that it is measured on
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

    @property
    def kept(self) -> Run:
        """The folder of what is measured."""
        return self.run if self.split == "test" else self.run.validation

    @cached_property
    def weights(self) -> str:
        """Hash of the weights."""
        return models.weights_digest(self.run)

    @cached_property
    def corruptions(self) -> tuple[str, ...]:
        """Names of the corruptions, families expanded."""
        return corruptions_of(self.settings, self.config.size)

    @cached_property
    def sets(self) -> int:
        """How many passes there are in all."""
        settings = self.settings
        corrupted = len(self.corruptions) * len(settings.severities)
        return 2 + len(settings.ood) + corrupted + 2 * len(settings.adaptation)  # the clean images are asked for twice

    def images(self, name: str, split: str) -> LabelledImages:
        """A set as this network takes it, shrunken like the training set."""
        return load(name, split, self.cell.data, self.root)

    def title(self, name: str) -> str:
        """How a set that is measured is called in rows."""
        return OUTLIERS[name].title if name in OUTLIERS else catalog.dataset_title(name)

    def own(self, corruption: str = "", severity: int = 0, features: bool = False) -> Outputs:
        """The network's outputs on the training set's images that it is measured on, clean or corrupted."""
        kept = f"corruption-{corruption}-{severity}" if corruption else self.split
        return self.outputs(kept, self.cell.data.train, self.split, corruption, severity, features)

    def outside(self, name: str) -> Outputs:
        """The network's outputs on an out-of-distribution set, or on its own images made into such."""
        if name in OUTLIERS:
            return self.outputs(f"ood-{name}", self.cell.data.train, self.split, outlier=name)
        return self.outputs(f"ood-{catalog.dataset_file_name(name)}", name, "ood")

    def outputs(
        self,
        kept: str,
        name: str,
        split: str,
        corruption: str = "",
        severity: int = 0,
        features: bool = False,
        outlier: str = "",
    ) -> Outputs:
        """The network's outputs on one set, from disk where they were made by these weights from this set."""
        key = [self.weights, name, split, self.cell.data.fraction, features]
        key += [own] if (own := datasets.content_hash(name, self.cell.data)) else []
        if corruption:
            key += [corruption, severity, self._archive(name, corruption) or self.settings.seed]
        key += [outlier, self.settings.seed] if outlier else []

        self.progress(self.passed / self.sets, f"evaluating, {kept}")
        self.passed += 1
        # What a probe learns from is the same whichever images the network is measured on.
        run, made_from = self.run if split == "train" else self.kept, json.dumps(key)
        found = inference.kept(run, kept, made_from)
        if found is None:
            asked: dict[str, Any] = {"name": name, "split": split, "corruption": corruption, "severity": severity}
            asked |= {"features": features, "outlier": outlier}
            made = _share(self, whose=self._identity, folder=str(run.path), kept=kept, key=made_from, asked=asked)
            found = inference.joined(run, kept, made_from, made)
        return found

    def work(self, name: str, split: str, corruption: str, severity: int, features: bool, outlier: str) -> Pass:
        """The pass over one set, its images changed, or taken from an archive of corrupted ones."""
        size, chosen, seed = self.settings.batch_size, self.cell.data, self.settings.seed

        def change(images: Tensor, places: Tensor) -> Tensor:
            if outlier:
                return make_ood(images, outlier, seed=seed, indices=places)
            return corruptions.corrupt(images, corruption, severity, seed=seed, indices=places)

        if archive := self._archive(name, corruption):
            seen = datasets.input_format(chosen)
            images = datasets.open_corrupted(archive, corruption, severity, chosen, seen, self.root, minimum=10)
            return Pass(self.model, self.config, images, size, features)
        changed = change if corruption or outlier else None
        return Pass(self.model, self.config, self.images(name, split), size, features, changed)

    def _archive(self, name: str, corruption: str) -> str:
        """The published set of corrupted images that is read, if one is to be."""
        return archive_of(name, corruption) if corruption and self.settings.corruption_source == "archive" else ""

    @cached_property
    def _identity(self) -> str:
        """All that another process needs to make passes of this bench, as text."""
        root = None if self.root is None else str(self.root)
        cell, settings = dataclasses.asdict(self.cell), dataclasses.asdict(self.settings)
        return json.dumps([str(self.run.path), cell, settings, root, self.weights])

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
            trained_on=catalog.dataset_title(self.cell.data.train),
            architecture=networks.find_network(self.cell.network).title,
            protocol=self.cell.protocol,
            alpha=self.cell.mask_probability if self.cell.protocol == "ram" else None,
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


@distributed.shared(in_step=False)
def _share(
    bench: Bench | None = None, *, whose: str, folder: str, kept: str, key: str, asked: dict[str, Any]
) -> tuple[str, int]:
    """What each process does of a pass; see ``predict.share``."""
    bench = _helping(whose) if bench is None else bench
    return inference.share(Run(Path(folder)), kept, key, bench.work(**asked))


@lru_cache(maxsize=1)
def _helping(whose: str) -> Bench:
    """The bench of a process that shares in another's passes: it loads each network once."""
    path, cell, settings, root, _ = json.loads(whose)
    chosen = Recipe.parse({"evaluate": settings}).evaluate
    return Bench(Run(Path(path)), Cell.parse(cell, path), chosen, lambda share, what: None, root and Path(root))


def _unit(metric: str) -> float:
    """What fractions are multiplied with in rows."""
    return 100.0 if METRICS[metric].percent else 1.0


def corruptions_of(settings: Evaluation, size: int) -> tuple[str, ...]:
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


def load(name: str, split: str, settings: Data, root: Path | None = None) -> LabelledImages:
    """A set as the study's networks see it, shrunken as the recipe says (at least ten images of a class remain)."""
    return datasets.open_set(name, split, settings, datasets.input_format(settings), root, minimum=10)
