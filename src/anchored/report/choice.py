"""Choosing α or λ on held-out images, and how far the pick is from the best on test: sentences, tables, a figure."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from matplotlib.axes import Axes

from anchored.config.methods import method_title
from anchored.metrics import selection
from anchored.report.aggregate import Difference, Estimate, compare_estimates
from anchored.report.comparison import Measure, Summary, Variant, is_mean
from anchored.report.radar import measured_aims
from anchored.report.reading import validation_of
from anchored.report.style import Picture, error_bars, legend, panel_grid, variant_style
from anchored.report.sweeps import point_hint
from anchored.report.table import Column, Table, TableCell
from anchored.report.tables import and_list, estimate_cell, format_value, interval_note, number_list

RULE = "the least geometric mean of the errors (1 − accuracy, 1 − AUROC, smooth ECE)"


@dataclass(frozen=True)
class Half:
    """The candidates' results on held-out training images, or those on test images, seed by seed."""

    summary: Summary
    aims: tuple[Measure, ...]
    clean: Measure

    def estimates(self, variant: Variant) -> list[Estimate | None]:
        """The estimate of every aim, and clean accuracy last."""
        return [self.summary.measured(variant, measure) for measure in (*self.aims, self.clean)]

    def seeds(self, variant: Variant) -> set[int]:
        """Seeds that have all of them."""
        return set.intersection(*(set(e.seeds) if e and not e.mixed else set[int]() for e in self.estimates(variant)))

    def values(self, variant: Variant, seeds: Sequence[int]) -> list[float]:
        """Means over the seeds, in rows' units, clean accuracy last."""
        estimates = [estimate for estimate in self.estimates(variant) if estimate is not None]
        return [math.fsum(row.value for row in e.rows if row.seed in seeds) / len(seeds) for e in estimates]

    def errors(self, variant: Variant, seeds: Sequence[int]) -> list[float]:
        """The aims as errors."""
        sizes = [estimate.rows[0].n for estimate in self.estimates(variant) if estimate is not None]
        values = zip(self.aims, self.values(variant, seeds), sizes, strict=False)  # clean accuracy is no aim
        return [selection.error(aim.metric, value, n) for aim, value, n in values]


@dataclass(frozen=True)
class Choice:
    """One choice: candidates of one architecture that differ in α alone, or in λ alone."""

    knob: str  # alpha or lambda
    held_out: Half
    test: Half
    candidates: tuple[Variant, ...]
    standard: Variant | None
    seeds: tuple[int, ...]
    tolerance: float

    @property
    def halves(self) -> tuple[Half, Half]:
        """Held-out training images, then test images."""
        return self.held_out, self.test

    def pick(self, half: Half, seeds: Sequence[int]) -> Variant | None:
        """The candidate that the rule picks from one half's results of some seeds."""
        errors = [half.errors(variant, seeds) for variant in self.candidates]
        clean = [half.values(variant, seeds)[-1] for variant in self.candidates]
        least = half.values(self.standard, seeds)[-1] - self.tolerance if self.standard else -math.inf
        place = selection.pick(errors, clean, least)
        return None if place is None else self.candidates[place]

    @cached_property
    def picked(self) -> Variant | None:
        """The candidate picked, on held-out images alone."""
        return self.pick(self.held_out, self.seeds)

    @cached_property
    def best(self) -> Variant:
        """The candidate with the least mean error on test, unknown when choosing."""
        return min(self.candidates, key=lambda variant: self.mean_error(self.test, variant))

    @property
    def shown(self) -> tuple[Variant, ...]:
        """Standard, then the candidates."""
        return (*([self.standard] if self.standard else []), *self.candidates)

    @cached_property
    def front(self) -> dict[Variant, bool]:
        """Whether each variant is on the Pareto front of the held-out images."""
        optimal = selection.pareto([self.held_out.errors(variant, self.seeds) for variant in self.shown])
        return dict(zip(self.shown, optimal, strict=True))

    def mean_error(self, half: Half, variant: Variant) -> float:
        """Geometric mean of the aims' errors."""
        return selection.mean_error(half.errors(variant, self.seeds))

    @property
    def regret(self) -> float:
        """How far the pick's mean error is above the best's on test, as a fraction."""
        assert self.picked is not None
        errors = [self.test.errors(variant, self.seeds) for variant in self.candidates]
        return selection.regret(errors, self.candidates.index(self.picked))

    def name(self, variant: Variant) -> str:
        """A candidate by the value that is chosen: ``α = 0.25``."""
        if variant.protocol == "standard":
            return "standard"
        value = variant.alpha if self.knob == "alpha" else variant.tail_weight
        return f"{'α' if self.knob == 'alpha' else 'λ'} = {value or 0:g}"


def find_choices(summary: Summary) -> Iterator[Choice]:
    """The choices that a study has rows for: one for each architecture and value of the other parameter."""
    validation = validation_of(summary)
    halves = _halves(validation, summary) if validation else None
    if halves is None:
        return
    for group in _groups(summary):
        base = summary.base(group[0])
        standard = base if base and base.protocol == "standard" else None  # a given model was not measured to choose
        shown = [*group, *([standard] if standard else [])]
        seeds = set.intersection(*(half.seeds(variant) for half in halves for variant in shown))
        if seeds:
            tolerance = float(summary.setting("validate", "tolerance"))
            knob = str(summary.recipe["choose"])
            yield Choice(knob, *halves, tuple(group), standard, tuple(sorted(seeds)), tolerance)


def _groups(summary: Summary) -> Iterator[list[Variant]]:
    """Two or more candidates that differ in the parameter alone; anchored is α = 0."""
    knob, groups = summary.recipe["choose"], dict[tuple[object, ...], list[Variant]]()
    for variant in summary.variants:
        if variant.protocol == "ram" or (variant.protocol == "anchored" and knob == "alpha"):
            other = variant.tail_weight if knob == "alpha" else variant.alpha
            groups.setdefault((variant.architecture, variant.method, other), []).append(variant)
    yield from (group for group in groups.values() if len(group) > 1)


def _halves(validation: Summary, test: Summary) -> tuple[Half, Half] | None:
    """The aims that both measured."""
    summaries = (validation, test)
    aims = [{(m.metric, m.corruption): m for _, m in measured_aims(summary)} for summary in summaries]
    common = [key for key in aims[1] if key in aims[0]]
    clean = [[m for m in s.measures if (m.metric, m.corruption) == ("accuracy", "")] for s in summaries]
    if not common or not all(clean):
        return None
    held_out, tested = (
        Half(summary, tuple(measures[key] for key in common), accuracy)
        for summary, measures, (accuracy, *_) in zip(summaries, aims, clean, strict=True)
    )
    return held_out, tested


def sentences(choice: Choice) -> Iterator[str]:
    """What is picked, whether single seeds agree, and how it does on test."""
    where = f"{choice.candidates[0].architecture}. " * (len(choice.test.summary.architectures) > 1)
    picked = choice.picked
    if picked is None:
        assert choice.standard is not None  # without it every candidate is allowed
        clean = {variant: choice.held_out.values(variant, choice.seeds)[-1] for variant in choice.shown}
        nearest = max(choice.candidates, key=lambda variant: clean[variant])
        yield (
            f"{where}Nothing is picked: every candidate loses more than {_points(choice)} of clean accuracy "
            f"against standard on held-out images; the least, {clean[choice.standard] - clean[nearest]:.1f}, is lost "
            f"with {choice.name(nearest)}. How much may be lost is validate.tolerance."
        )
        return
    alone = [choice.pick(choice.held_out, [seed]) for seed in choice.seeds]
    agreeing = f", as {sum(pick == picked for pick in alone)} of {len(alone)} seeds alone do" * (len(alone) > 1)
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
    """The rule, and the images that it was applied to."""
    summary = choice.held_out.summary
    measured = [f"{len(f.corruptions)} corruptions ({f.kind})" for f in summary.families if f.corruptions]
    if outside := [name for name in summary.sets("auroc") if not is_mean(name)]:
        measured.append(f"outliers: {and_list(outside)}")
    if adapted := [name for name in summary.sets("linear_probe_accuracy") if not is_mean(name)]:
        measured.append(f"probes measured on a fifth of the training images of {and_list(adapted)}")
    guard = f"of the candidates that lose no more than {_points(choice)} of clean accuracy against standard, "
    return (
        f"Rule: {guard * (choice.standard is not None)}{RULE}. Front: no other training here is as good in every aim "
        f"and better in one, by means over seeds. Held-out: {summary.rows[0].n:,} training images that no network was "
        f"trained on{''.join(f'; {text}' for text in measured)}. The test has none of these corruptions and outliers."
    )


def choice_tables(choices: Sequence[Choice]) -> Iterator[Table]:
    """For each choice: its candidates on both halves, and the regret of its pick in each aim."""
    for number, choice in enumerate(choices):
        suffix = f"_{number}" if number else ""
        yield _candidates(choice, f"choice{suffix}")
        if choice.picked is not None:
            yield _regrets(choice, f"choice_regret{suffix}")


def _candidates(choice: Choice, name: str) -> Table:
    columns, rows, measured = [Column("Training"), Column("Front")], [], list[Estimate | None]()
    for half, group in zip(choice.halves, ("On held-out training images", "On test"), strict=True):
        columns += [Column(m.title, m.arrow, group) for m in (*half.aims, half.clean)]
        columns.append(Column("Mean error", "↓", group))
    for variant in choice.shown:
        cells = [
            TableCell(variant.title + " (picked)" * (variant == choice.picked)),
            TableCell("yes" if choice.front[variant] else "no"),
        ]
        for half in choice.halves:
            estimates = half.estimates(variant)
            measured += estimates
            cells += [estimate_cell(half.summary, estimate) for estimate in estimates]
            cells.append(TableCell(f"{choice.mean_error(half, variant):.3f}"))
        rows.append(tuple(cells))
    caption = f"{' '.join(sentences(choice))} {conditions(choice)} {interval_note(choice.test.summary, measured)}"
    picked = "nothing is" if choice.picked is None else f"{choice.name(choice.picked)} is"
    return Table(name, f"{_title(choice)}: {picked} picked", tuple(columns), tuple(rows), caption, 2)


def _title(choice: Choice) -> str:
    sign = {"alpha": "α", "lambda": "λ"}[choice.knob]
    first = choice.candidates[0]
    other = first.tail_weight if choice.knob == "alpha" else first.alpha
    at = f" at {'λ' if choice.knob == 'alpha' else 'α'} = {other:g}" if other else ""
    network = f", {first.architecture}" if len(choice.test.summary.architectures) > 1 else ""
    method = f", {method_title(first.method)}" if first.method else ""
    return f"Choosing {sign}{at}{network}{method}"


def _regrets(choice: Choice, name: str) -> Table:
    assert choice.picked is not None
    rows = list[tuple[TableCell, ...]]()
    summary = choice.test.summary
    for i, aim in enumerate(choice.test.aims):
        errors = {variant: choice.test.errors(variant, choice.seeds)[i] for variant in choice.candidates}
        best = min(errors, key=lambda variant: (errors[variant], variant != choice.picked))
        picked, least = (summary.measured(variant, aim) for variant in (choice.picked, best))
        regret = "0" if best == choice.picked else _regret_text(aim, compare_estimates(picked, least))
        cells = (estimate_cell(summary, estimate) for estimate in (picked, least))
        rows.append((TableCell(f"{aim.title} {aim.arrow}"), *cells, TableCell(choice.name(best)), TableCell(regret)))
    means = (choice.mean_error(choice.test, variant) for variant in (choice.picked, choice.best))
    overall = (
        TableCell(choice.name(choice.best)),
        TableCell(f"{100 * choice.regret:+.1f} %" if choice.regret else "0"),
    )
    rows.append((TableCell("Mean error ↓"), *(TableCell(f"{mean:.3f}") for mean in means), *overall))
    columns = (Column("On test"), Column("Picked"), Column("Best"), Column("which is"), Column("Regret"))
    caption = "The best in each row was found on the test images, which flatters it: the regret is an upper estimate."
    if len(choice.seeds) > 1:
        caption += f" Intervals of differences: Student's t over {number_list(choice.seeds, 'seed')}, not corrected."
    return Table(name, f"{_title(choice)}: the regret of {choice.name(choice.picked)}", columns, tuple(rows), caption)


def _regret_text(aim: Measure, difference: Difference | None) -> str:
    if difference is None:
        return "—"
    ends = () if math.isnan(difference.low) else (difference.low, difference.high)
    change, *bounds = (format_value(aim.metric, v, sign="+") for v in (difference.after - difference.before, *ends))
    return f"{change} [{', '.join(bounds)}]" if bounds else change


def choice_figure(choice: Choice, number: int = 0) -> Picture:
    """One panel per aim and one for the mean error; filled: on the Pareto front, ringed: picked."""
    aims = list(zip(choice.held_out.aims, choice.test.aims, strict=True))
    figure, panels = panel_grid(len(aims) + 1, 3.0, extra=0.9)
    held_out, test = choice.held_out.summary, choice.test.summary
    plotted = list[Estimate | None]()
    hints: dict[str, str] = {}
    for k, variant in enumerate(choice.shown):
        for i, (axes, (held_out_aim, test_aim)) in enumerate(zip(panels, aims, strict=False)):
            x, y = held_out.measured(variant, held_out_aim), test.measured(variant, test_aim)
            assert x is not None
            assert y is not None
            gid, color = f"choice-{number}-{i}-{k}", variant_style(test, variant).color
            axes.errorbar(
                [x.value], [y.value], xerr=error_bars([x]), yerr=error_bars([y]), color=color, fmt="none",
                elinewidth=1, capsize=2,
            )  # fmt: skip
            _plot_point(axes, choice, variant, x.value, y.value, gid)
            texts = point_hint(held_out, variant, x), point_hint(test, variant, y).partition(": ")[2]
            hints[gid] = f"held-out: {texts[0]}; test: {texts[1]}"
            axes.set(title=f"{test_aim.title} {test_aim.arrow}")
        (across, up), gid = (
            (choice.mean_error(half, variant) for half in choice.halves),
            f"choice-{number}-{len(aims)}-{k}",
        )
        _plot_point(panels[-1], choice, variant, across, up, gid)
        hints[gid] = f"{variant.title}: mean error {across:.3f} held-out, {up:.3f} on test"
        plotted += [estimate for half in choice.halves for estimate in half.estimates(variant)]
    panels[-1].set(title="Geometric mean of the errors ↓")
    for axes in panels:
        axes.set(xlabel="Held-out training images", ylabel="Test")
        axes.locator_params(nbins=5)
    legend(figure, panels[0])
    architecture = choice.candidates[0].architecture
    caption = (
        f"{architecture}: each training on test images against the same on held-out training images, which alone "
        "decide the choice. Filled: on the Pareto front of the held-out images; hollow: not; ringed: picked. The two "
        "differ in their corruptions and outliers, so compare the order of the points, not their distance from the "
        f"diagonal. {interval_note(test, plotted, 'bars')}"
    )
    picked = "none" if choice.picked is None else choice.name(choice.picked)
    alt = f"Scatter plots of test against held-out figures of {architecture}, a point per training; picked: {picked}."
    return Picture(f"choice{f'-{number}' if number else ''}", figure, alt, caption, hints=hints)


def _plot_point(axes: Axes, choice: Choice, variant: Variant, x: float, y: float, gid: str) -> None:
    style, picked = variant_style(choice.test.summary, variant), variant == choice.picked
    if picked:
        axes.plot([x], [y], marker="o", markersize=15, markerfacecolor="none", color=style.color, linestyle="")
    fill = style.color if choice.front[variant] else "white"
    label = f"{variant.title}{' (picked)' * picked}"
    axes.plot([x], [y], markersize=7, markerfacecolor=fill, gid=gid, label=label, zorder=4, **style.point())
