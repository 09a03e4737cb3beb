"""What docs/explanation/comparisons.md says: methods beside RAM and under it, by rows that are kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from claims_page import ANCHORED, FIGURES, LAMBDAS, RAM, STANDARD, Way, by_seed, how_text, interval_text, number
from scipy.special import stdtrit

from anchored.config.methods import METHODS, PLAIN, after_training, method_title
from anchored.metrics import intervals, selection
from anchored.metrics.registry import METRICS
from anchored.report.aggregate import SIGNIFICANT
from anchored.store.rows import Row

WAYS = {STANDARD: "alone", ANCHORED: "+ anchored", RAM: "+ RAM α=0.25", LAMBDAS[2]: "+ RAM α=0.25, λ=0.1"}
SHOWN = (
    "clean accuracy", "corruption accuracy", "corruption smooth ECE", "near AUROC", "far AUROC", "adaptation accuracy",
)  # fmt: skip
AIMS = ("corruption accuracy", "corruption smooth ECE", "near AUROC", "far AUROC", "adaptation accuracy")
"""Of the Pareto front."""

Contrast = tuple[str, str, Way, str]  # kind, method ("" for plain), way, figure
ALONE, GAIN, INTERACTION = "alone", "gain", "interaction"


@dataclass(frozen=True)
class Progress:
    """How far a method of a study is."""

    method: str  # as grid.methods has it
    done: int
    planned: int
    left: tuple[str, ...]  # how what is not done is called


@dataclass(frozen=True)
class Comparison:
    """A study of methods: its title and command, what is kept of it, and how far it is."""

    title: str
    command: str
    seeds: tuple[int, ...]  # of the whole study
    rows: tuple[Row, ...]
    runs: Mapping[str, Mapping[str, Any]]  # run -> how it was made
    progress: Sequence[Progress]
    costs: Mapping[str, float]  # run -> training time over that of plain standard training, of all networks it takes
    passes: Mapping[str, int]  # run -> passes an image
    timing: str = ""  # how the times were measured; "" where they were not

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Methods in the table's order, plain ("") first, then those of the recipe's own."""
        found = {row.method for row in self.rows}
        order = ["", *(name for name in METHODS if name != PLAIN)]
        return tuple([name for name in order if name in found] + sorted(found - set(order)))

    @cached_property
    def _values(self) -> dict[tuple[str, Way, str], dict[int, float]]:
        parts = {method: [row for row in self.rows if row.method == method] for method in self.methods}
        return {
            (m, way, figure): by_seed(rows, way, figure)
            for m, rows in parts.items()
            for way in WAYS
            for figure in SHOWN
        }

    def values(self, method: str, way: Way, figure: str) -> dict[int, float]:
        """Seed -> figure of one method trained one way."""
        return self._values.get((method, way, figure), {})

    def contrasts(self) -> dict[Contrast, list[float]]:
        """Each contrast, a value a seed, where all seeds have what it needs: a test looks once, not after each seed.

        ``alone``: a method against plain, both on the standard network. ``gain``: one of the other ways against the
        method alone. ``interaction``: a method's gain against the same gain of plain.
        """
        found: dict[Contrast, list[float]] = {}
        for method in self.methods:
            for figure in SHOWN:
                alone, plain = self.values(method, STANDARD, figure), self.values("", STANDARD, figure)
                if method:
                    found[ALONE, method, STANDARD, figure] = _differences(alone, plain)
                for way in list(WAYS)[1:]:
                    gain = _by_seed_difference(self.values(method, way, figure), alone)
                    found[GAIN, method, way, figure] = list(gain.values())
                    if method:
                        usual = _by_seed_difference(self.values("", way, figure), plain)
                        found[INTERACTION, method, way, figure] = _differences(gain, usual)
        return {key: values for key, values in found.items() if len(values) == len(self.seeds) > 1}

    @cached_property
    def figures(self) -> tuple[str, ...]:
        """The figures that were measured, in the order in which they are shown."""
        return tuple(f for f in SHOWN if any(self.values(method, way, f) for method in self.methods for way in WAYS))

    @property
    def aims(self) -> tuple[str, ...]:
        """Those of them that make the front."""
        return tuple(figure for figure in self.figures if figure in AIMS)

    @cached_property
    def planned(self) -> int:
        """How many contrasts the whole study has: of methods with several seeds, in figures that were measured."""
        methods = [each.method for each in self.progress if not _is_ensemble(each.method)]
        ways = len(WAYS) - 1
        return len(self.figures) * (len(methods) - 1 + ways * (2 * len(methods) - 1))

    @cached_property
    def tested(self) -> dict[Contrast, tuple[intervals.Interval, float]]:
        """Interval over seeds, not corrected, and the p-value of each contrast by one Holm correction over all that the
        whole study has: what is not there yet counts as if it were not clear."""
        values = self.contrasts()
        known = [intervals.paired_t_test(each, [0.0] * len(each)) for each in values.values()]
        p_values = intervals.holm(known + [1.0] * max(0, self.planned - len(known)))[: len(known)]
        return {key: (intervals.over_seeds(each), p) for (key, each), p in zip(values.items(), p_values, strict=True)}

    def whole(self, method: str, way: Way, figure: str) -> dict[int, float]:
        """Those values where they are of every seed, or of an ensemble; else none."""
        values = self.values(method, way, figure)
        return values if _is_ensemble(method) or values.keys() >= set(self.seeds) else {}

    @cached_property
    def best(self) -> dict[str, float]:
        """Method -> its best mean accuracy under corruption, of those that have all seeds in some way."""
        figure = "corruption accuracy"
        means = {
            method: [statistics.fmean(found.values()) for way in WAYS if (found := self.whole(method, way, figure))]
            for method in self.methods
        }
        return {method: max(found) for method, found in means.items() if found}

    @cached_property
    def front(self) -> set[tuple[str, Way]]:
        """Trainings that no other one equals in passes and every aim and beats in one of them, by means over seeds, of
        those that have all of these."""
        ways = [(method, way) for method in self.methods for way in WAYS]
        known = {key: [self.whole(*key, aim) for aim in self.aims] for key in ways}
        measured = {key: values for key, values in known.items() if all(values)}
        n = max((row.n for row in self.rows), default=0)
        errors = [
            [float(self.cost(method, way)[1] or 1)]
            + [
                selection.error(FIGURES[aim].metric, statistics.fmean(each.values()), n)
                for aim, each in zip(self.aims, values, strict=True)
            ]
            for (method, way), values in measured.items()
        ]
        return {key for key, optimal in zip(measured, selection.pareto(errors), strict=True) if optimal}

    def cost(self, method: str, way: Way) -> tuple[float | None, int | None]:
        """Training time over that of plain standard training, if it was measured, and passes an image."""
        runs = [r.run for r in self.rows if (r.method, r.protocol, r.alpha, r.tail_weight) == (method, *way)]
        return (self.costs.get(runs[0]), self.passes.get(runs[0])) if runs else (None, None)


def _is_ensemble(method: str) -> bool:
    return after_training(method)[0] == "ensemble"


def _by_seed_difference(after: Mapping[int, float], before: Mapping[int, float]) -> dict[int, float]:
    return {seed: after[seed] - before[seed] for seed in sorted(after.keys() & before.keys())}


def _differences(after: Mapping[int, float], before: Mapping[int, float]) -> list[float]:
    return list(_by_seed_difference(after, before).values())


INTRODUCTION = """\
# RAM beside what people use, and on top of it

Made by `python scripts/comparisons.py runs/comparisons`: everything but the words is computed from the rows in
`docs/comparisons/`. What each method is, and how it meets anchoring: [methods](../how-to/methods.md). All trainings of
a study have the same seeds, images and number of steps. Contrasts are taken seed by seed; intervals are 95 %, Student's
t over seeds, not corrected; **bold** where p < 0.05 after one correction (Holm) over every contrast that the whole
study has, those that are not run yet included: each method alone against plain training, what anchoring, RAM and RAM
with hard Δ mining add to each, and whether they add another amount than they add to plain training. Not bold is no
evidence of no difference. A deep ensemble is one of all seeds: it has a value and no test."""


def page(studies: Mapping[str, Comparison]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## How far it is", "\n".join(_state(studies))]
    for key, study in studies.items():
        parts += [f"## {study.title}"]
        if not study.rows:
            parts += [f"Nothing of it has been run yet: `{study.command}`."]
            continue
        parts += [
            *_left(study),
            *_power(study),
            *_answer(study),
            *_picture(key, study),
            "\n".join(_table(study)),
            *_ensembles(study),
            *_contrasts(study),
            *_made(study),
        ]
    return "\n\n".join(parts) + "\n"


def picture_name(key: str) -> str:
    """The file of a study's picture, in docs/assets."""
    return f"comparisons-{key}.png"


def _state(studies: Mapping[str, Comparison]) -> Iterator[str]:
    """A line a study: what is run, what is not."""
    yield "| study | done | methods that are whole | begun | not run yet |"
    yield "|---|---|---|---|---|"
    for key, study in studies.items():
        done, planned = (sum(getattr(each, name) for each in study.progress) for name in ("done", "planned"))
        kinds: dict[str, list[str]] = {"whole": [], "begun": [], "none": []}
        for each in study.progress:
            kind = "whole" if each.done == each.planned else "begun" if each.done else "none"
            counted = f" ({each.done} of {each.planned})" if kind == "begun" else ""
            kinds[kind].append(method_title(each.method) + counted)
        yield f"| `{key}` | {done} of {planned} | {' | '.join(', '.join(names) or '–' for names in kinds.values())} |"


def _left(study: Comparison) -> Iterator[str]:
    """That figures below are of a part, where they are."""
    done, planned = (sum(getattr(each, name) for each in study.progress) for name in ("done", "planned"))
    if done < planned:
        yield (
            f"**Not whole: {done} of {planned} are done.** Means are over the seeds that a training has, which need "
            "not be those of another; contrasts are taken where all seeds are there."
        )


def _power(study: Comparison) -> Iterator[str]:
    """What the correction asks of so few seeds."""
    seeds = len(study.seeds)
    if study.tested:
        # Student's t at which the least p-value of the family is 0.05 after correction, over √n
        least = float(stdtrit(seeds - 1, 1 - SIGNIFICANT / 2 / study.planned)) / math.sqrt(seeds)
        yield (
            f"A family of {study.planned} contrasts asks much of {seeds} seeds: the clearest contrast is bold only "
            f"where its mean is {least:.1f} times the standard deviation of its seeds, so that most of what is real "
            "will not be. The intervals, which are not corrected, say how large each may be."
        )


def _picture(key: str, study: Comparison) -> Iterator[str]:
    """The study's picture, and how to read it, where something is drawn."""
    if study.best:
        yield (
            "![Clean accuracy, corruption accuracy and its smooth ECE of each method, alone and with masking]"
            f"(../assets/{picture_name(key)})"
        )
        yield (
            "Means, with 95 % intervals over seeds (an ensemble has one value); methods by their best corruption "
            "accuracy."
        )


def _answer(study: Comparison) -> Iterator[str]:
    """In words: to how many methods each way clearly adds, and from how many it takes."""
    lines = []
    for way, name in list(WAYS.items())[1:]:
        undecided = list[str]()
        for figure in study.aims:
            found = {
                m: study.tested[GAIN, m, way, figure] for m in study.methods if (GAIN, m, way, figure) in study.tested
            }
            if found:
                better, worse = (
                    [m for m, (gain, p) in found.items() if p < SIGNIFICANT and _is_better(gain.value, figure) == good]
                    for good in (True, False)
                )
                left = f"undecided on {len(found) - len(better) - len(worse)} of {len(found)}"
                if better or worse:
                    lines.append(
                        f"- {name[2:]}, {figure}: better on {_names(better)}; worse on {_names(worse)}; {left}."
                    )
                else:
                    undecided.append(figure)
        if undecided:
            lines.append(f"- {name[2:]}, undecided on every method: {', '.join(undecided)}.")
    if lines:
        yield "\n".join(lines)


def _is_better(change: float, figure: str) -> bool:
    return (change > 0) == METRICS[FIGURES[figure].metric].higher_is_better


def _names(methods: Sequence[str]) -> str:
    return ", ".join(_title(method) for method in methods) or "none"


def _title(method: str) -> str:
    return method_title(method or PLAIN)


def _table(study: Comparison) -> Iterator[str]:
    """Every method and way: means over seeds, half the interval, cost, front."""
    yield f"| method | way | {' | '.join(study.figures)} | training time | passes | front |"
    yield "|---" * (5 + len(study.figures)) + "|"
    for method in study.methods:
        for way, name in WAYS.items():
            cells = []
            for figure in study.figures:
                values = list(study.values(method, way, figure).values())
                text = number(statistics.fmean(values), figure, False) if values else "–"
                if len(values) > 1:
                    interval = intervals.over_seeds(values)
                    text += f" ± {number(interval.high - interval.value, figure, False)}"
                test = study.tested.get((ALONE, method, way, figure))
                cells.append(f"**{text}**" if test and test[1] < SIGNIFICANT else text)
            if all(cell == "–" for cell in cells):
                continue
            cost, passes = study.cost(method, way)
            cells += [f"{cost:.2f}" if cost else "–", str(passes or "–")]
            cells.append("yes" if (method, way) in study.front else "")
            yield f"| {_title(method)} | {name} | {' | '.join(cells)} |"


def gains(study: Comparison) -> str:
    """What RAM with hard Δ mining adds to each method under corruption, and what it costs, of methods that have all
    seeds: the README's table."""
    way, figure, clean = LAMBDAS[2], "corruption accuracy", "clean accuracy"
    lines = [
        "| | corruption accuracy alone, % | with RAM and hard Δ mining | adds | to clean accuracy | training time |",
        "|---|---|---|---|---|---|",
    ]
    for method in study.methods:
        if (GAIN, method, way, figure) not in study.tested:
            continue
        if after_training(method)[0] == "temperature":
            continue  # which changes no class
        both = [study.values(method, each, figure) for each in (STANDARD, way)]
        alone, masked = (number(statistics.fmean(each.values()), figure, False) for each in both)
        added, price = (interval_text(study.tested[GAIN, method, way, name][0], name) for name in (figure, clean))
        costs = [study.cost(method, each)[0] for each in (STANDARD, way)]
        times = " → ".join(f"{cost:.1f}" for cost in costs if cost) or "–"
        lines.append(f"| {_title(method)} | {alone} | {masked} | {added} | {price} | {times} |")
    return "\n".join(lines) + "\n"


_CONTRASTS = {
    GAIN: (
        "### What they add",
        "The figure with anchoring, RAM or RAM and hard Δ mining, less that of the method alone.",
    ),
    INTERACTION: (
        "### Whether they add as much as they add to plain training",
        "The same gain, less that on plain training: below 0 in accuracy and AUROC, the method has some of it.",
    ),
}


def _contrasts(study: Comparison) -> Iterator[str]:
    """The tables of contrasts that the study has."""
    for kind, words in _CONTRASTS.items():
        if any(key[0] == kind for key in study.tested):
            yield from words
            yield "\n".join(_contrast_table(study, kind))


def _contrast_table(study: Comparison, kind: str) -> Iterator[str]:
    yield f"| method | way | {' | '.join(study.figures)} |"
    yield "|---" * (2 + len(study.figures)) + "|"
    for method in study.methods:
        for way, name in list(WAYS.items())[1:]:
            tests = [study.tested.get((kind, method, way, figure)) for figure in study.figures]
            if any(tests):
                cells = (_contrast_cell(test, figure) for test, figure in zip(tests, study.figures, strict=True))
                yield f"| {_title(method)} | {name} | {' | '.join(cells)} |"


def _contrast_cell(test: tuple[intervals.Interval, float] | None, figure: str) -> str:
    if test is None or math.isnan(test[0].value):
        return "–"
    text = interval_text(test[0], figure)
    return f"**{text}**" if test[1] < SIGNIFICANT else text


def _ensembles(study: Comparison) -> Iterator[str]:
    """An ensemble against the mean of the networks that it is made of."""
    lines = []
    for method in filter(_is_ensemble, study.methods):
        of = after_training(method)[1]
        for way, name in WAYS.items():
            cells = []
            for figure in study.figures:
                made, single = study.values(method, way, figure), study.values("" if of == PLAIN else of, way, figure)
                mean = statistics.fmean(single.values()) if single else math.nan
                differences = [value - mean for value in made.values()]
                cells.append(number(statistics.fmean(differences), figure, True) if made and single else "–")
            if any(cell != "–" for cell in cells):
                lines.append(f"| {_title(method)} | {name} | {' | '.join(cells)} |")
    if lines:
        heading = [f"| ensemble | way | {' | '.join(study.figures)} |", "|---" * (2 + len(study.figures)) + "|"]
        yield "Ensembles, less the mean of the networks that they are made of (one of each, so that nothing is tested):"
        yield "\n".join([*heading, *lines])


def _made(study: Comparison) -> Iterator[str]:
    """How it was made."""
    counted = how_text((study.runs.get(run, {}) for run in sorted({row.run for row in study.rows})), "runs")
    timed = (
        f"Training time is that of a step over plain standard training's, the median of rounds of a method's kinds and "
        f"plain's one after another, times the networks that are trained ({study.timing})."
        if study.timing
        else "Training times have not been measured yet (`--cost`)."
    )
    yield (
        f"`{study.command}`, piece by piece. {counted}. In bold in the first table: a method alone that differs from "
        f"plain. {timed} Passes are through a network, an image. Front: no other training of "
        f"all seeds has as few passes, is as good in all of {', '.join(study.aims)}, and better in one of these, by "
        f"means. {study.planned} contrasts are corrected for."
    )
