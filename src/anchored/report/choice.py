"""Which α or λ held-out training images choose, and how far that is from the best on test: words and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from anchored.metrics import selection
from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Change, Estimate, compare
from anchored.report.comparison import Measure, Summary, Variant, validation_of
from anchored.report.narrative import listed
from anchored.report.radar import aims_of
from anchored.report.tables import Cell, Column, Table, basis, counted, estimate_cell

RULE = "the least geometric mean of the errors (1 − accuracy, 1 − AUROC, smooth ECE)"


@dataclass(frozen=True)
class Half:
    """What one half, held-out training images or test images, says of the candidates, seed by seed."""

    summary: Summary
    aims: tuple[Measure, ...]
    clean: Measure

    def estimates(self, variant: Variant) -> list[Estimate | None]:
        """The figure of every aim, and clean accuracy last."""
        return [self.summary.measured(variant, measure) for measure in (*self.aims, self.clean)]

    def seeds(self, variant: Variant) -> set[int]:
        """Seeds that have all of them."""
        found = self.estimates(variant)
        return set.intersection(*(set(each.seeds) if each and not each.mixed else set[int]() for each in found))

    def values(self, variant: Variant, seeds: Sequence[int]) -> list[float]:
        """Means over the seeds, in rows' units, clean accuracy last."""
        found = [each for each in self.estimates(variant) if each is not None]
        return [math.fsum(r.value for r in each.rows if r.seed in seeds) / len(seeds) for each in found]

    def errors(self, variant: Variant, seeds: Sequence[int]) -> list[float]:
        """The aims as errors."""
        sizes = [each.rows[0].n for each in self.estimates(variant) if each is not None]
        found = zip(self.aims, self.values(variant, seeds), sizes, strict=False)  # clean accuracy is no aim
        return [selection.error(aim.metric, value, n) for aim, value, n in found]


@dataclass(frozen=True)
class Choice:
    """One choice: the candidates of one architecture, alike but for the knob."""

    knob: str  # alpha or lambda
    held_out: Half
    test: Half
    candidates: tuple[Variant, ...]
    standard: Variant | None
    seeds: tuple[int, ...]
    tolerance: float

    def pick(self, half: Half, seeds: Sequence[int]) -> Variant | None:
        """The candidate that the rule picks by one half's figures of some seeds."""
        errors = [half.errors(each, seeds) for each in self.candidates]
        clean = [half.values(each, seeds)[-1] for each in self.candidates]
        least = half.values(self.standard, seeds)[-1] - self.tolerance if self.standard else -math.inf
        place = selection.pick(errors, clean, least)
        return None if place is None else self.candidates[place]

    @cached_property
    def picked(self) -> Variant | None:
        """The choice, made on held-out images alone."""
        return self.pick(self.held_out, self.seeds)

    @cached_property
    def best(self) -> Variant:
        """The candidate with the least mean error on test, which nobody can know beforehand."""
        return min(self.candidates, key=lambda each: self.mean_error(self.test, each))

    @property
    def shown(self) -> tuple[Variant, ...]:
        """Standard, then the candidates."""
        return (*([self.standard] if self.standard else []), *self.candidates)

    @cached_property
    def front(self) -> dict[Variant, bool]:
        """Whether each is on the Pareto front of the held-out images' figures."""
        found = selection.pareto([self.held_out.errors(each, self.seeds) for each in self.shown])
        return dict(zip(self.shown, found, strict=True))

    def mean_error(self, half: Half, variant: Variant) -> float:
        """Geometric mean of the aims' errors."""
        return selection.mean_error(half.errors(variant, self.seeds))

    @property
    def regret(self) -> float:
        """How far the pick's mean error is above the best's on test, as a fraction."""
        assert self.picked is not None
        place = self.candidates.index(self.picked)
        return selection.regret([self.test.errors(each, self.seeds) for each in self.candidates], place)

    def name(self, variant: Variant) -> str:
        """A candidate by its knob's value: ``α = 0.25``."""
        if variant.protocol == "standard":
            return "standard"
        value = variant.alpha if self.knob == "alpha" else variant.tail_weight
        return f"{'α' if self.knob == 'alpha' else 'λ'} = {value or 0:g}"


def of(summary: Summary) -> Iterator[Choice]:
    """The choices that a study has figures for: one for each architecture and value of the other knob."""
    validation = validation_of(summary)
    if validation is None:
        return
    halves = _halves(validation, summary)
    if halves is None:
        return
    for group in _groups(summary):
        standard = summary.standard(group[0])
        shown = [*group, *([standard] if standard else [])]
        seeds = set.intersection(*(half.seeds(variant) for half in halves for variant in shown))
        if seeds:
            tolerance = float(summary.setting("validate", "tolerance"))
            knob = str(summary.recipe["choose"])
            yield Choice(knob, *halves, tuple(group), standard, tuple(sorted(seeds)), tolerance)


def _groups(summary: Summary) -> Iterator[list[Variant]]:
    """Candidates that differ in the knob alone, two or more; anchored is α = 0."""
    knob, found = summary.recipe["choose"], dict[tuple[object, ...], list[Variant]]()
    for variant in summary.variants:
        if variant.protocol == "ram" or (variant.protocol == "anchored" and knob == "alpha"):
            other = variant.tail_weight if knob == "alpha" else variant.alpha
            found.setdefault((variant.architecture, other), []).append(variant)
    yield from (group for group in found.values() if len(group) > 1)


def _halves(validation: Summary, test: Summary) -> tuple[Half, Half] | None:
    """The aims that both measured."""
    aims = [{(m.metric, m.corruption): m for _, m in aims_of(each)} for each in (validation, test)]
    both = [key for key in aims[1] if key in aims[0]]
    clean = [[m for m in each.measures if (m.metric, m.corruption) == ("accuracy", "")] for each in (validation, test)]
    if not both or not all(clean):
        return None
    first, second = (tuple(each[key] for key in both) for each in aims)
    return Half(validation, first, clean[0][0]), Half(test, second, clean[1][0])


# --- Words ------------------------------------------------------------------------------------------------------------


def sentences(choice: Choice) -> Iterator[str]:
    """What is picked, how sure that is, and what it turned out to be worth."""
    where = f"{choice.candidates[0].architecture}. " * (len(choice.test.summary.architectures) > 1)
    picked = choice.picked
    if picked is None:
        assert choice.standard is not None  # without it nothing is too dear
        clean = {each: choice.held_out.values(each, choice.seeds)[-1] for each in choice.shown}
        nearest = max(choice.candidates, key=lambda each: clean[each])
        yield (
            f"{where}Nothing is picked: every candidate loses more than {_points(choice)} of clean accuracy "
            f"against standard on held-out images; the least, {clean[choice.standard] - clean[nearest]:.1f}, is lost "
            f"with {choice.name(nearest)}. How much may be lost is validate.tolerance."
        )
        return
    alone = [choice.pick(choice.held_out, [seed]) for seed in choice.seeds]
    agreeing = f", as {sum(each == picked for each in alone)} of {len(alone)} seeds alone do" * (len(alone) > 1)
    yield f"{where}Held-out training images pick {choice.name(picked)}{agreeing}."
    if choice.standard and choice.mean_error(choice.held_out, choice.standard) <= choice.mean_error(
        choice.held_out, picked
    ):
        yield "By the same mean of errors on held-out images standard is no worse."
    if picked == choice.best:
        yield "On test it has the least mean error of all candidates as well: its regret is 0."
    else:
        over = f"{100 * choice.regret:.1f} %"
        yield f"On test {choice.name(choice.best)} has the least mean error: the pick's is {over} above it."


def _points(choice: Choice) -> str:
    return f"{choice.tolerance:g} point{'s' * (choice.tolerance != 1)}"


def conditions(choice: Choice) -> str:
    """How the choice was made: the rule, and what it was made on."""
    summary = choice.held_out.summary
    corrupted = [family for family in summary.families if family.corruptions]
    measured = [f"{len(each.corruptions)} corruptions ({each.kind})" for each in corrupted]
    if outside := [name for name in summary.sets("auroc") if name != "mean"]:
        measured.append(f"outliers: {listed(outside)}")
    if adapted := [name for name in summary.sets("linear_probe_accuracy") if name != "mean"]:
        measured.append(f"probes measured on a fifth of the training images of {listed(adapted)}")
    guard = f"of the candidates that lose no more than {_points(choice)} of clean accuracy against standard, "
    return (
        f"Rule: {guard * (choice.standard is not None)}{RULE}. Front: no other training here is as good in every aim "
        f"and better in one, by means over seeds. Held-out: {summary.rows[0].n:,} training images that no network was "
        f"trained on{''.join(f'; {each}' for each in measured)}. The test has none of these corruptions and outliers."
    )


# --- Tables -----------------------------------------------------------------------------------------------------------


def tables(choices: Sequence[Choice]) -> Iterator[Table]:
    """What both halves say of each choice's candidates, and the regret of its pick in each aim."""
    for place, choice in enumerate(choices):
        suffix = f"_{place}" if place else ""
        yield _candidates(choice, f"choice{suffix}")
        if choice.picked is not None:
            yield _regrets(choice, f"choice_regret{suffix}")


def _candidates(choice: Choice, name: str) -> Table:
    columns, rows, found = [Column("Training"), Column("Front")], [], list[Estimate | None]()
    for half, group in ((choice.held_out, "On held-out training images"), (choice.test, "On test")):
        columns += [Column(m.title, m.arrow, group) for m in (*half.aims, half.clean)]
        columns.append(Column("Mean error", "↓", group))
    for variant in choice.shown:
        cells = [
            Cell(variant.title + " (picked)" * (variant == choice.picked)),
            Cell("yes" if choice.front[variant] else "no"),
        ]
        for half in (choice.held_out, choice.test):
            estimates = half.estimates(variant)
            found += estimates
            cells += [estimate_cell(half.summary, each) for each in estimates]
            cells.append(Cell(f"{choice.mean_error(half, variant):.3f}"))
        rows.append(tuple(cells))
    caption = f"{' '.join(sentences(choice))} {conditions(choice)} {basis(choice.test.summary, found)}"
    picked = "nothing is" if choice.picked is None else f"{choice.name(choice.picked)} is"
    return Table(name, f"{_title(choice)}: {picked} picked", tuple(columns), tuple(rows), caption, 2)


def _title(choice: Choice) -> str:
    sign = {"alpha": "α", "lambda": "λ"}[choice.knob]
    first = choice.candidates[0]
    other = first.tail_weight if choice.knob == "alpha" else first.alpha
    at = f" at {'λ' if choice.knob == 'alpha' else 'α'} = {other:g}" if other else ""
    network = f", {first.architecture}" if len(choice.test.summary.architectures) > 1 else ""
    return f"Choosing {sign}{at}{network}"


def _regrets(choice: Choice, name: str) -> Table:
    """The pick against the best candidate in each aim on test."""
    assert choice.picked is not None
    rows = list[tuple[Cell, ...]]()
    for place, aim in enumerate(choice.test.aims):
        figures = {each: choice.test.errors(each, choice.seeds)[place] for each in choice.candidates}
        best = min(figures, key=lambda each: (figures[each], each != choice.picked))
        mine, other = (choice.test.summary.measured(each, aim) for each in (choice.picked, best))
        lost = "0" if best == choice.picked else _lost(aim, compare(mine, other))
        cells = (estimate_cell(choice.test.summary, each) for each in (mine, other))
        rows.append((Cell(f"{aim.title} {aim.arrow}"), *cells, Cell(choice.name(best)), Cell(lost)))
    means = (choice.mean_error(choice.test, each) for each in (choice.picked, choice.best))
    overall = (Cell(choice.name(choice.best)), Cell(f"{100 * choice.regret:+.1f} %" if choice.regret else "0"))
    rows.append((Cell("Mean error ↓"), *(Cell(f"{mean:.3f}") for mean in means), *overall))
    columns = (Column("On test"), Column("Picked"), Column("Best"), Column("which is"), Column("Regret"))
    caption = "The best in each row is known from the test alone, which flatters it: the regret is an upper estimate."
    if len(choice.seeds) > 1:
        caption += f" Intervals of differences: Student's t over {counted(choice.seeds, 'seed')}, not corrected."
    return Table(name, f"{_title(choice)}: the regret of {choice.name(choice.picked)}", columns, tuple(rows), caption)


def _lost(aim: Measure, change: Change | None) -> str:
    """A difference and its interval, in the figure's unit."""
    if change is None:
        return "—"
    digits = 1 if METRICS[aim.metric].percent else 3
    known = () if math.isnan(change.low) else (change.low, change.high)
    bounds = ", ".join(f"{bound:+.{digits}f}" for bound in known)
    return f"{change.after - change.before:+.{digits}f}{f' [{bounds}]' * bool(bounds)}".replace("-", "−")
