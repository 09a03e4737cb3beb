"""The rows of a study, as estimates of each variant and differences between variants.

A variant is (architecture, protocol, α, λ, method), trained once per seed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from anchored.config.methods import method_title
from anchored.config.settings import GIVEN, PROTOCOLS
from anchored.errors import UserError
from anchored.metrics.ood_scores import SCORES
from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Difference, Estimate, compare_estimates, holm_corrected
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, rows_text

_Key = TypeVar("_Key")

MEAN = "mean"
"""The ``dataset`` or ``corruption`` of rows that are means over sets or corruptions."""


OOD_MEANS = {"mean-near": "Near", "mean-far": "Far", "mean-synthetic": "Synthetic"}
"""The ``dataset`` of rows that are means over the OOD sets of one kind -> what they are called."""


def is_mean(dataset: str) -> bool:
    """Whether rows of this ``dataset`` are means over sets."""
    return dataset == MEAN or dataset in OOD_MEANS


@dataclass(frozen=True)
class Variant:
    """One way of training one architecture."""

    architecture: str
    protocol: str
    alpha: float | None
    tail_weight: float | None
    method: str = ""  # of grid.methods; "" for the recipe as it is

    @property
    def title(self) -> str:
        """The variant's name without its architecture: ``RAM α=0.25``, ``AugMix``, ``AugMix + RAM α=0.25``; that of a
        model as it was given."""
        if self.protocol == GIVEN:
            return self.architecture
        if self.method:
            own = replace(self, method="")
            return method_title(self.method) + f" + {own.phrase}" * (self.protocol != "standard")
        if self.protocol != "ram" or self.alpha is None:
            name = {"ram": "RAM"}.get(self.protocol, self.protocol.capitalize())
        else:
            name = f"RAM α={self.alpha:g}"
        return name if self.tail_weight is None else f"{name}, λ={self.tail_weight:g}"

    @property
    def phrase(self) -> str:
        """The same in a sentence: ``standard``."""
        return self.protocol if self.protocol in ("standard", "anchored") and not self.method else self.title

    @property
    def order(self) -> tuple[int, float, float]:
        """Standard first, then anchored, then RAM by α, each by λ."""
        return (*PROTOCOLS, GIVEN).index(self.protocol), self.alpha or 0.0, self.tail_weight or 0.0


@dataclass(frozen=True)
class Measure:
    """A column of the headline table: which rows it is made from, and what it is called."""

    title: str  # in a heading
    phrase: str  # in a sentence
    metric: str
    dataset: str
    corruption: str = ""
    score: str = ""

    @property
    def arrow(self) -> str:
        """↑ where higher is better, ↓ where lower is."""
        return "↑" if METRICS[self.metric].higher_is_better else "↓"


@dataclass(frozen=True)
class Family:
    """A corrupted copy of the test set: all corruptions of one kind."""

    dataset: str  # its title: that of the training set, then -C or -C̄
    corruptions: tuple[str, ...]  # in the rows' order
    severities: tuple[int, ...]

    @property
    def kind(self) -> str:
        """What its title adds to the training set's: C or C̄."""
        return self.dataset.rpartition("-")[2]

    @property
    def suffix(self) -> str:
        """Tells the files of two families apart: nothing for C."""
        return "" if self.kind == "C" else "-c-bar"


@dataclass(frozen=True)
class Summary:
    """A study's rows and recipe."""

    folder: StudyFolder
    recipe: dict[str, Any]
    made: dict[str, Any]
    rows: tuple[Row, ...]
    validation: bool = False  # measured on held-out training images
    notices: tuple[str, ...] = ()  # what readers must know before they trust the rows, a sentence each

    @cached_property
    def _index(self) -> dict[tuple[object, ...], list[Row]]:
        index: dict[tuple[object, ...], list[Row]] = defaultdict(list)
        for row in self.rows:
            index[variant_of(row), row.metric, row.dataset, row.severity, row.corruption, row.score].append(row)
        return dict(index)

    def get(
        self,
        variant: Variant,
        metric: str,
        dataset: str,
        *,
        severity: int | None = None,
        corruption: str = "",
        score: str = "",
    ) -> Estimate | None:
        """The estimate, or None where there are no rows."""
        rows = self._index.get((variant, metric, dataset, severity, corruption, score))
        if not rows:
            return None
        every = self._kinds.get((variant, dataset), ()) if corruption.startswith(MEAN) else ()
        kinds = frozenset(kind for kind in every if severity in (None, kind[1]))
        return Estimate(tuple(sorted(rows, key=lambda row: row.seed)), kinds)

    @cached_property
    def _kinds(self) -> dict[tuple[Variant, str], set[tuple[str, int | None]]]:
        """The corruptions and severities of a variant's own rows on a set."""
        found: dict[tuple[Variant, str], set[tuple[str, int | None]]] = defaultdict(set)
        for row in self.rows:
            if row.corruption and not row.corruption.startswith(MEAN):
                found[variant_of(row), row.dataset].add((row.corruption, row.severity))
        return dict(found)

    def measured(self, variant: Variant, measure: Measure) -> Estimate | None:
        """The estimate in a column of the headline table."""
        return self.get(variant, measure.metric, measure.dataset, corruption=measure.corruption, score=measure.score)

    @property
    def trained_on(self) -> str:
        """Title of the training set."""
        return self.rows[0].trained_on

    @property
    def score(self) -> str:
        """OOD score of the headline."""
        return str(self.setting("evaluate", "score"))

    @property
    def title(self) -> str:
        """Title of the report."""
        return str(self.recipe.get("title") or self.recipe.get("name") or "Study")

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """All variants: architectures and methods in the rows' order, each from standard to the largest α; given models
        last."""
        found = list(dict.fromkeys(variant_of(row) for row in self.rows))
        names = list(dict.fromkeys(v.architecture for v in found))
        methods = ["", *dict.fromkeys(v.method for v in found if v.method)]

        def place(variant: Variant) -> tuple[object, ...]:
            given = variant.protocol == GIVEN
            return given, names.index(variant.architecture), methods.index(variant.method), variant.order

        return tuple(sorted(found, key=place))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods of ``grid.methods`` beside the recipe as it is."""
        return tuple(dict.fromkeys(variant.method for variant in self.variants if variant.method))

    @cached_property
    def drawn(self) -> Summary:
        """The rows that figures show: those of the recipe as it is, else of the first method, and of given models."""
        trained = {variant.method for variant in self.trained}
        method = "" if "" in trained or not trained else self.methods[0]
        rows = tuple(row for row in self.rows if row.protocol == GIVEN or row.method == method)
        return replace(self, rows=rows) if len(rows) < len(self.rows) else self

    @cached_property
    def given(self) -> tuple[Variant, ...]:
        """Models that were trained elsewhere."""
        return tuple(variant for variant in self.variants if variant.protocol == GIVEN)

    @cached_property
    def trained(self) -> tuple[Variant, ...]:
        """Networks that the study trained."""
        return tuple(variant for variant in self.variants if variant.protocol != GIVEN)

    @cached_property
    def architectures(self) -> tuple[str, ...]:
        """Titles of the networks that were trained, in the rows' order; where none was, of the first given model."""
        trained = dict.fromkeys(row.architecture for row in self.rows if row.protocol != GIVEN)
        return tuple(trained) or (self.rows[0].architecture,)

    def of(self, architecture: str) -> tuple[Variant, ...]:
        """The variants of one architecture, and beside them every given model."""
        trained = (v for v in self.variants if v.architecture == architecture and v.protocol != GIVEN)
        return (*trained, *self.given)

    def beside(self, variant: Variant) -> tuple[Variant, ...]:
        """The variants that one is shown beside: those of its architecture, of a given model of the first."""
        return self.of(self.architectures[0] if variant.protocol == GIVEN else variant.architecture)

    @property
    def epochs(self) -> tuple[int, ...]:
        """How many epochs each network of the recipe is trained for, in the recipe's order."""
        default, own = self.setting("train", "epochs"), self.setting("grid", "per_network")
        names = self.setting("grid", "networks")
        return tuple(own.get(name, {}).get("train", {}).get("epochs", default) for name in names)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of the study's trainings; where there is none, that of the given models."""
        trained = {row.seed for row in self.rows if row.protocol != GIVEN}
        return tuple(sorted(trained or {row.seed for row in self.rows}))

    @cached_property
    def families(self) -> tuple[Family, ...]:
        """The kinds of corruption measured, in the rows' order."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.corruption:
                found[row.dataset].append(row)
        return tuple(
            Family(
                dataset,
                tuple(dict.fromkeys(row.corruption for row in rows if not row.corruption.startswith(MEAN))),
                tuple(sorted({row.severity for row in rows if row.severity is not None})),
            )
            for dataset, rows in found.items()
        )

    def sets(self, metric: str) -> tuple[str, ...]:
        """Titles of the sets a metric was measured on, the means last."""
        found = list(dict.fromkeys(row.dataset for row in self.rows if row.metric == metric))
        return tuple(sorted(found, key=lambda name: [None, *OOD_MEANS, MEAN].index(name if is_mean(name) else None)))

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """OOD scores measured, the headline's first."""
        found = dict.fromkeys(row.score for row in self.rows if row.score)
        return tuple(sorted(found, key=lambda name: name != self.score))

    @cached_property
    def logit_scores(self) -> tuple[str, ...]:
        """Those that are made of the logits, which every network has."""
        return tuple(name for name in self.scores if name in SCORES)

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """The columns of the headline table that at least one variant has."""
        every = (
            *self.image_measures,
            *self._rejection(self.score.replace("_", " ")),
            Measure("Adaptation accuracy, %", "adaptation accuracy", "linear_probe_accuracy", MEAN),
        )
        return tuple(m for m in every if any(self.measured(variant, m) for variant in self.variants))

    @property
    def image_measures(self) -> tuple[Measure, ...]:
        """Those of the headline that are about images of the classes: accuracy and calibration, clean and corrupted."""
        clean = self.trained_on
        kinds = {f.dataset: f" ({f.kind})" if len(self.families) > 1 else "" for f in self.families}
        accuracies = [
            Measure(f"Corruption accuracy{kind}, %", f"accuracy under corruption{kind}", "accuracy", dataset, MEAN)
            for dataset, kind in kinds.items()
        ]
        errors = [
            Measure(f"Smooth ECE, corrupted{kind}", f"smooth ECE under corruption{kind}", "smooth_ece", dataset, MEAN)
            for dataset, kind in kinds.items()
        ]
        return (
            Measure("Clean accuracy, %", "clean accuracy", "accuracy", clean),
            *accuracies,
            Measure("Smooth ECE, clean", "smooth ECE on clean images", "smooth_ece", clean),
            *errors,
        )

    def _rejection(self, score: str) -> list[Measure]:
        """Far and near AUROC, never averaged; the mean where rows have neither (of before, or all synthetic)."""
        sets = self.sets("auroc")
        kinds = [(name, f"{kind}-OOD") for name, kind in OOD_MEANS.items() if name in sets and kind != "Synthetic"]
        places = kinds[::-1] or [(MEAN, "OOD")]  # far first: the one that figures of one AUROC take
        return [
            Measure(f"{kind} AUROC, % ({score})", f"{kind} AUROC", "auroc", name, score=self.score)
            for name, kind in places
        ]

    def base(self, variant: Variant) -> Variant | None:
        """What a variant is compared with: the standard network beside it, by the recipe as it is, or by its own method
        where there is none; else the first given model."""
        beside = self.beside(variant)
        standard = (v for v in beside if v.protocol == "standard" and v.method in ("", variant.method))
        return next(standard, next((v for v in beside if v in self.given), None))

    @property
    def is_against_given(self) -> bool:
        """Whether variants are compared with a model that was given."""
        return any(self.base(variant) in self.given for variant in self.variants)

    def method_alone(self, variant: Variant) -> Variant | None:
        """For a method with anchoring, the method on the standard network; None for others."""
        wanted = replace(variant, protocol="standard", alpha=None, tail_weight=None)
        known = variant.method and wanted in self.variants and wanted != self.base(variant)
        return wanted if known and wanted != variant else None

    def unmasked(self, variant: Variant) -> Variant | None:
        """For a RAM variant, the anchored variant without masks that is alike otherwise; None for others."""
        wanted = replace(variant, protocol="anchored", alpha=None)
        return wanted if variant.protocol == "ram" and wanted in self.variants else None

    def difference(
        self, variant: Variant, measure: Measure, base: Variant | None = None, family: tuple[Measure, ...] = ()
    ) -> Difference | None:
        """A variant against another, by default its base; None where there is nothing to compare.

        The p-value is corrected for all differences in the measures of ``family`` against the same kind of base; by
        default those of the headline, or with another OOD score those of all scores.
        """
        base = base or self.base(variant)
        if base is None or base == variant:
            return None
        kind = next((kind for kind, base_of in self._bases.items() if base_of(variant) == base), "unmasked")
        key = (kind, family or (self.measures if measure in self.measures else self._by_score))
        if key not in self._differences:
            self._differences[key] = self._tested(*key)
        return self._differences[key].get((variant, measure))

    @property
    def _bases(self) -> dict[str, Callable[[Variant], Variant | None]]:
        """The kinds of comparison, each with what it compares a variant with."""
        return {"base": self.base, "method": self.method_alone, "unmasked": self.unmasked}

    @cached_property
    def _by_score(self) -> tuple[Measure, ...]:
        return tuple(replace(m, score=score) for m in self.measures if m.score for score in self.logit_scores)

    @cached_property
    def _differences(self) -> dict[tuple[str, tuple[Measure, ...]], dict[tuple[Variant, Measure], Difference]]:
        return {}  # by kind of comparison and family; filled by ``difference``

    def _tested(self, kind: str, family: tuple[Measure, ...]) -> dict[tuple[Variant, Measure], Difference]:
        """All differences of one family and kind of comparison, corrected together."""
        pairs = [(v, base) for v in self.variants if (base := self._bases[kind](v)) and base != v]
        return self.compare(
            {(v, m): (self.measured(v, m), self.measured(base, m)) for v, base in pairs for m in family}
        )

    def compare(self, pairs: Mapping[_Key, tuple[Estimate | None, Estimate | None]]) -> dict[_Key, Difference]:
        """The differences of estimates from others that can be compared, p-values corrected for all of these."""
        found = {
            key: difference
            for key, (estimate, base) in pairs.items()
            if (difference := compare_estimates(estimate, base, self._replicates))
        }
        return holm_corrected(found)

    def _replicates(self, row: Row) -> Tensor | None:
        """The bootstrap replicates (R,) of a row, if its run's folder has those of exactly these rows."""
        name = Path(row.run).name
        if name not in self._draws:
            run, rows = self.folder.run(name), [r for r in self.rows if r.run == row.run]
            file = (run.validation if self.validation else run).replicates_file
            draws, text = files.load_tensors(file) if file.exists() else ({}, {})
            same = text.get("rows") in (None, files.text_digest(rows_text(rows)))
            found = draws.get("draws")
            fits = same and found is not None and found.dim() == 2 and len(found) == len(rows)
            self._draws[name] = (found if fits else None, {id(r): i for i, r in enumerate(rows)})
        kept, places = self._draws[name]
        return None if kept is None else kept[places[id(row)]]

    @cached_property
    def _draws(self) -> dict[str, tuple[Tensor | None, dict[int, int]]]:
        return {}

    def run_of(self, variant: Variant) -> tuple[Run, int]:
        """The run of the variant's smallest seed, and that seed: shown where a figure is of one network."""
        row = self._first_rows[variant]
        return self.folder.run(Path(row.run).name), row.seed

    @cached_property
    def _first_rows(self) -> dict[Variant, Row]:
        """The first row of each variant's smallest seed."""
        found = dict[Variant, Row]()
        for row in self.rows:
            variant = variant_of(row)
            if variant not in found or row.seed < found[variant].seed:
                found[variant] = row
        return found

    def setting(self, section: str, name: str) -> Any:
        """A setting of the study's recipe; ``UserError`` where study.json lacks it."""
        values = self.recipe.get(section)
        if not isinstance(values, dict) or name not in values:
            raise UserError(f"{self.folder.study_file} has no setting {section}.{name}: another version wrote it")
        return values[name]


def variant_of(row: Row) -> Variant:
    """The variant a row belongs to."""
    return Variant(row.architecture, row.protocol, row.alpha, row.tail_weight, row.method)
