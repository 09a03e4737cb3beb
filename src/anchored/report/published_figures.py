"""Figures that others published, beside a study's: of the same training set, network and metric, never as ours.

``published.csv`` holds 399 figures of other methods as their sources print them, under our names and with what is
stated on how they were made (scripts/build_published.py). Figures are facts: no text of a paper is copied, and every
one names its source. Its column ``not_joined`` says why a figure is no figure of ours.
"""

from __future__ import annotations

import csv
import functools
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from string import ascii_uppercase

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Family, Summary, Variant
from anchored.report.narrative import epochs_text
from anchored.report.paper import trial_note
from anchored.report.table import MISSING, Column, Table, TableCell
from anchored.report.tables import (
    and_list,
    display_name,
    estimate_cell,
    format_value,
    interval_note,
    metric_heading,
    number_list,
)

LIBRARY_NAMES = {("ImageNet", "ResNet-50"): "resnet50"}
"""Training set and network -> timm's and torchvision's name for it, with or without a tag of weights."""

WITHOUT_EXTRA = "mean-15"
"""The ``corruption`` of rows that are means without the four extra corruptions: what most others average."""

ECE, SMOOTH_ECE = "ece", "smooth_ece"


@dataclass(frozen=True)
class Place:
    """What a figure is measured on: a set, or the mean over several."""

    dataset: str  # a set's title; of a mean, what it is called
    sets: tuple[str, ...] = ()  # titles of a mean's sets


@dataclass(frozen=True)
class PublishedFigure:
    """One published figure."""

    trained_on: str
    architecture: str
    method: str
    metric: str
    place: Place
    score: str  # the detector of an AUROC, else ""
    printed: str
    deviation: str  # the standard deviation printed with it, or ""
    seeds: str  # how many trainings are behind it; "" where that is not stated
    conditions: tuple[str, ...]
    source: str
    not_joined: str  # why it stands beside no figure of ours; "" where it can

    def is_of(self, trained_on: str, architecture: str) -> bool:
        """Whether it is of that training set and network."""
        library = LIBRARY_NAMES.get((self.trained_on, self.architecture))
        same = architecture == self.architecture or architecture.partition(".")[0] == library
        return not self.not_joined and trained_on == self.trained_on and same


@functools.cache
def published_figures() -> tuple[PublishedFigure, ...]:
    """The figures of other methods, in the order of their sources."""
    text = (resources.files("anchored") / "report" / "published.csv").read_text(encoding="utf-8")
    return tuple(
        PublishedFigure(
            trained_on=row["trained_on"],
            architecture=row["architecture"],
            method=row["method"],
            metric=row["metric"],
            place=Place(row["dataset"], tuple(filter(None, row["sets"].split("; ")))),
            score=row["score"],
            printed=row["value"],
            deviation=row["sd"],
            seeds=row["seeds"],
            conditions=tuple(filter(None, row["conditions"].split("; "))),
            source=row["source"],
            not_joined=row["not_joined"],
        )
        for row in csv.DictReader(io.StringIO(text))
    )


def published_tables(summary: Summary) -> Iterator[Table]:
    """A table for each network and metric that the study and others have figures of."""
    for architecture in summary.architectures:
        known = [figure for figure in published_figures() if figure.is_of(summary.trained_on, architecture)]
        for metric in dict.fromkeys(figure.metric for figure in known):
            beside = _Beside(summary, architecture, metric, tuple(f for f in known if f.metric == metric))
            if beside.shown:
                yield beside.table()


# --- This study's side ------------------------------------------------------------------------------------------------


def estimate_here(summary: Summary, variant: Variant, metric: str, place: Place, score: str) -> Estimate | None:
    """This study's estimate of what a published figure is of; None where it was not measured."""
    if place.sets:
        return _mean_over(summary, variant, metric, place, score)
    if score:
        return summary.get(variant, metric, place.dataset, score=score)
    corruption = "" if place.dataset == summary.trained_on else _averaged(summary, place.dataset)
    return summary.get(variant, metric, place.dataset, corruption=corruption)


def _averaged(summary: Summary, dataset: str) -> str:
    """Which mean over corruptions stands beside others': that of the 15 common ones, where a study has more."""
    extra = any(row.corruption == WITHOUT_EXTRA for row in summary.rows if row.dataset == dataset)
    return WITHOUT_EXTRA if extra else MEAN


def _mean_over(summary: Summary, variant: Variant, metric: str, place: Place, score: str) -> Estimate | None:
    """The mean over a published mean's sets, if all were measured with the same seeds; one seed has no interval."""
    found = [summary.get(variant, metric, name, score=score) for name in place.sets]
    estimates = [estimate for estimate in found if estimate is not None]
    if len(estimates) < len(found) or len({estimate.seeds for estimate in estimates}) > 1:
        return None
    rows = []
    for same_seed in zip(*(estimate.rows for estimate in estimates), strict=True):
        value = math.fsum(row.value for row in same_seed) / len(same_seed)
        n = sum(row.n for row in same_seed)
        rows.append(replace(same_seed[0], dataset=place.dataset, value=value, low=math.nan, high=math.nan, n=n))
    return Estimate(tuple(rows))


def _cell_here(summary: Summary, estimate: Estimate | None) -> TableCell:
    if estimate is not None and len(estimate.rows) == 1 and math.isnan(estimate.interval.low):
        return TableCell(format_value(estimate.rows[0].metric, estimate.value))
    return estimate_cell(summary, estimate)


# --- A table ----------------------------------------------------------------------------------------------------------

ENDS = ("Trainings", "Notes", "Source")
"""The last columns."""

Spot = tuple[str, Place]  # a column of values: the metric and what it is measured on


@dataclass(frozen=True)
class _Beside:
    """One network's figures by one metric, here and published."""

    summary: Summary
    architecture: str
    metric: str
    figures: tuple[PublishedFigure, ...]

    @property
    def scores(self) -> tuple[str, ...]:
        """This study's scores that others print figures by, and the headline's; ("",) for other metrics than AUROC."""
        if self.metric != "auroc":
            return ("",)
        theirs = {figure.score for figure in self.figures}
        return tuple(each for each in self.summary.scores if each in theirs or each == self.summary.score)

    def here(self, spot: Spot) -> list[Estimate | None]:
        """This study's estimates in a column, by variant and score."""
        variants = self.summary.of(self.architecture)
        return [estimate_here(self.summary, variant, *spot, score) for variant in variants for score in self.scores]

    @cached_property
    def spots(self) -> tuple[Spot, ...]:
        """The columns: what both sides have figures of.

        Beside binned ECE the smooth one has columns, which nobody else prints, under its own name.
        """
        metrics = (ECE, SMOOTH_ECE) if self.metric == ECE else (self.metric,)
        places = dict.fromkeys(figure.place for figure in self.figures)
        both = [place for place in places if any(any(self.here((metric, place))) for metric in metrics)]
        return tuple((metric, place) for metric in metrics for place in both)

    @cached_property
    def shown(self) -> tuple[PublishedFigure, ...]:
        """The published figures that have a column."""
        places = {place for _, place in self.spots}
        return tuple(figure for figure in self.figures if figure.place in places)

    def table(self) -> Table:
        columns = [self.here(spot) for spot in self.spots]
        scored = self.metric == "auroc"
        heads = ["", "Training", *["Score"] * scored]
        rows = [*self._rows_here(columns), *self._published_rows()]
        return Table(
            name=f"published_{''.join(filter(str.isalnum, self.architecture.lower()))}_{self.metric}",
            title=f"{METRICS[self.metric].title} beside published figures: {self.architecture}, {self._trained_on}",
            columns=(*map(Column, heads), *map(self._column, self.spots), *map(Column, ENDS)),
            rows=tuple(row if scored else (*row[:2], *row[3:]) for row in rows),
            caption=self._caption([estimate for column in columns for estimate in column]),
            stubs=len(heads),
        )

    @property
    def _trained_on(self) -> str:
        return self.summary.trained_on

    def _rows_here(self, columns: Sequence[Sequence[Estimate | None]]) -> Iterator[tuple[TableCell, ...]]:
        names = [(v.title, score) for v in self.summary.of(self.architecture) for score in self.scores]
        for (training, score), *estimates in zip(names, *columns, strict=True):
            seeds = max(len(estimate.seeds) if estimate else 0 for estimate in estimates)
            cells = (_cell_here(self.summary, estimate) for estimate in estimates)
            names_of_row = map(TableCell, ("here", training, display_name(score)))
            yield (*names_of_row, *cells, *map(TableCell, (str(seeds), "", "this study")))

    def _published_rows(self) -> Iterator[tuple[TableCell, ...]]:
        for line in _lines(self.shown):
            first = next(iter(line.values()))
            cells = (_printed(line.get(place)) if metric == self.metric else MISSING for metric, place in self.spots)
            notes = sorted({self._notes[each] for figure in line.values() for each in figure.conditions})
            names_of_row = map(TableCell, ("published", first.method, display_name(first.score)))
            ends = (first.seeds or "not stated", ", ".join(map(str, notes)), self._sources[first.source])
            yield (*names_of_row, *cells, *map(TableCell, ends))

    @cached_property
    def _notes(self) -> dict[str, int]:
        every = dict.fromkeys(each for figure in self.shown for each in figure.conditions)
        return {each: number for number, each in enumerate(every, start=1)}

    @cached_property
    def _sources(self) -> dict[str, str]:
        return dict(zip(dict.fromkeys(figure.source for figure in self.shown), ascii_uppercase, strict=False))

    def _column(self, spot: Spot) -> Column:
        metric, place = spot
        bins = ", 15 bins" if metric == ECE else ""
        return Column(place.dataset, group=f"{metric_heading(metric)}{bins}")

    def _caption(self, estimates: Sequence[Estimate | None]) -> str:
        parts = [
            "Here: this study's networks. Published: figures of networks that others trained and measured, as their "
            "sources print them; nothing is tested against them. — not measured here, or not printed there.",
            *self._of_places(),
            f"This study: {epochs_text(self.summary)}; {interval_note(self.summary, estimates)}",
            *filter(None, [trial_note(self.summary, "published figures")]),
        ]
        if left := len(self.figures) - len(self.shown):
            parts.append(f"Left out: {left} published figures on sets that were not measured here.")
        notes = "; ".join(f"{number} {note}" for note, number in self._notes.items())
        sources = "; ".join(f"{letter} {source}" for source, letter in self._sources.items())
        return " ".join([*parts, f"Notes: {notes}." if notes else "", f"Sources: {sources}."])

    def _of_places(self) -> Iterator[str]:
        """What a reader must know of the columns: what was averaged, and which ECE it is."""
        places = dict.fromkeys(place for _, place in self.spots)
        for family in self.summary.families:
            if any(place.dataset == family.dataset for place in places):
                yield f"{family.dataset} here: {averaged_here(self.summary, family)}."
        yield from (f"{place.dataset}: {and_list(place.sets)}." for place in places if place.sets)
        if self.metric == "auroc":
            yield "Sets are joined by name; others may have taken other images of one."
        if any(place.sets for place in places):
            yield "A mean over sets has no interval here where there is one seed."
        if self.metric == ECE:
            yield (
                "Binned ECE and smooth ECE are different measures: a figure of one says nothing on one of the other. "
                "ECE of corrupted images is a mean of the corruptions' ECEs."
            )


def averaged_here(summary: Summary, family: Family) -> str:
    """How a study's figure on a corrupted set was averaged: ``mean over 15 corruptions, severities 1 to 5``."""
    count = 15 if _averaged(summary, family.dataset) == WITHOUT_EXTRA else len(family.corruptions)
    levels = family.severities
    named = "severities 1 to 5" if levels == (1, 2, 3, 4, 5) else number_list(levels, "severity")
    return f"mean over {count} corruptions, {named}"


def _printed(figure: PublishedFigure | None) -> TableCell:
    if figure is None:
        return MISSING
    return TableCell(figure.printed, f"s.d. {figure.deviation}" if figure.deviation else "")


def _lines(figures: Sequence[PublishedFigure]) -> Iterator[dict[Place, PublishedFigure]]:
    """Figures of one network of a source in one line: those of the same method, in their order, a place once."""
    lines: dict[tuple[str, ...], list[dict[Place, PublishedFigure]]] = {}
    for figure in figures:
        key = (figure.method, figure.score, figure.source, figure.seeds)
        of_key = lines.setdefault(key, [{}])
        if figure.place in of_key[-1]:
            of_key.append({})
        of_key[-1][figure.place] = figure
    yield from (line for of_key in lines.values() for line in of_key)
