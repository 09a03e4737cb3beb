"""Which detector on which training: AUROC and FPR at 95 % TPR of each, for near and far sets apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from anchored.metrics.registry import METRICS
from anchored.report.comparison import MEAN, OOD_MEANS, Summary, Variant
from anchored.report.table import Column, Table, TableCell
from anchored.report.tables import difference_note, display_name, estimate_cell, interval_note

MEASURED = ("auroc", "fpr95")


@dataclass(frozen=True)
class _Spot:
    """A cell: one detector on one training, by one metric's mean over sets of one kind."""

    score: str
    variant: Variant
    metric: str
    mean: str


def detector_tables(summary: Summary) -> Iterator[Table]:
    """Detector × training: with differences from standard training, then with those from the headline's score.

    Nothing where a study measured no detectors.
    """
    if summary.scores == summary.logit_scores:
        return
    title = f"Detector × training, {summary.trained_on}"

    def standard(spot: _Spot) -> _Spot:
        return replace(spot, variant=summary.base(spot.variant) or spot.variant)

    yield _table(summary, "detectors", title, standard)
    if summary.score in summary.scores:
        name = _name(summary.score)
        yield _table(
            summary,
            "ood_detectors",
            f"{title}, against {name}",
            lambda spot: replace(spot, score=summary.score),
            f"{name} on the same network",
        )


def _table(summary: Summary, name: str, title: str, base_of: Callable[[_Spot], _Spot], base: str = "") -> Table:
    """Rows: detectors, each on every training, with differences from what ``base_of`` gives, in words ``base``."""
    lines = [
        [_Spot(score, variant, *place) for place in _places(summary)]
        for score in summary.scores
        for variant in summary.variants
    ]
    estimates = {
        spot: summary.get(spot.variant, spot.metric, spot.mean, score=spot.score) for line in lines for spot in line
    }
    differences = summary.compare(
        {spot: (estimate, estimates[base_of(spot)]) for spot, estimate in estimates.items() if base_of(spot) != spot}
    )
    rows = [
        (
            *(TableCell(name) for name in _names(summary, line[0])),
            *(estimate_cell(summary, estimates[spot], differences.get(spot)) for spot in line),
        )
        for line in lines
    ]
    stubs = ["Detector", *["Network"] * (len(summary.architectures) > 1), "Training" if summary.trained else "Model"]
    columns = (*map(Column, stubs), *(_column(*place) for place in _places(summary)))
    note = difference_note(differences.values(), given=summary.is_against_given, base=base)
    learnt = "What a detector learns, it learns from training images; its settings are pytorch-ood's."
    caption = f"{learnt} {interval_note(summary, estimates.values())} {note}"
    return Table(name, title, columns, tuple(rows), caption, len(stubs))


def _names(summary: Summary, spot: _Spot) -> list[str]:
    """The first columns: the detector on the first training only."""
    network = [spot.variant.architecture] * (len(summary.architectures) > 1)
    training = "as given" if network and spot.variant in summary.given else spot.variant.title
    return [_name(spot.score) if spot.variant == summary.variants[0] else "", *network, training]


def _places(summary: Summary) -> list[tuple[str, str]]:
    """Metrics and the means that they are shown of: near and far ones, or of all where there are neither."""
    sets = summary.sets("auroc")
    means = [name for name in OOD_MEANS if name in sets and name != "mean-synthetic"] or [MEAN]
    return [(metric, mean) for metric in MEASURED for mean in means]


def _column(metric: str, mean: str) -> Column:
    row = METRICS[metric]
    arrow = "↑" if row.higher_is_better else "↓"
    return Column(OOD_MEANS.get(mean, "All"), arrow, group=f"{row.title}{', %' * row.percent}")


_NAMES = {
    "vim": "ViM", "knn": "KNN", "react": "ReAct", "odin": "ODIN", "ash": "ASH", "scale": "SCALE", "dice": "DICE",
    "she": "SHE", "fdbd": "fDBD", "gen": "GEN", "gmm": "GMM", "gradnorm": "GradNorm", "klmatching": "KL matching",
    "lts": "LTS", "mahalanobisodin": "Mahalanobis ODIN", "nci": "NCI", "nnguide": "NNGuide", "openmax": "OpenMax",
    "pnml": "pNML", "rmd": "RMD", "vra": "VRA", "temperaturescaling": "Temperature scaling",
    "graduncertainty": "Gradient uncertainty",
}  # fmt: skip
"""How the literature spells a detector's name."""


def _name(score: str) -> str:
    plain, colon, options = score.partition(":")
    return f"{_NAMES.get(plain, display_name(plain))}{' ' * bool(colon)}{options}"
