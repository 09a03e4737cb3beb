"""Summary -> tables: one structure that the page, Markdown, LaTeX and the terminal all render."""

import math
from collections.abc import Iterable, Iterator, Sequence

from anchored.config.methods import method_title
from anchored.config.settings import GIVEN
from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Difference, Estimate
from anchored.report.comparison import MEAN, OOD_MEANS, Family, Measure, Summary, Variant
from anchored.report.table import MISSING, PAIR_SEPARATOR, Column, Table, TableCell, Tone


def format_value(metric: str, value: float, decimals: int | None = None, sign: str = "") -> str:
    """A value with a true minus sign: percentages with one decimal, others with three, unless ``decimals`` is given."""
    return f"{value:{sign}.{decimals or (1 if METRICS[metric].percent else 3)}f}".replace("-", "−")


def display_name(name: str) -> str:
    """A name for people: ``jpeg_compression`` -> ``JPEG compression``."""
    words = name.replace("_", " ").replace("-", " ")
    return words.replace("jpeg", "JPEG") if words.startswith("jpeg") else words[:1].upper() + words[1:]


def metric_heading(metric: str) -> str:
    """A metric with its unit and which way is better: ``Accuracy, % ↑``."""
    row = METRICS[metric]
    return f"{row.title}{', %' * row.percent} {'↑' if row.higher_is_better else '↓'}"


def relative_text(difference: Difference) -> str:
    """``+3.1 %``; the difference itself where the base is zero."""
    share = difference.relative
    text = f"{100 * share:+.1f} %" if share is not None else f"{difference.after - difference.before:+.3f}"
    return text.replace("-", "−")


def number_list(values: Sequence[int], noun: str) -> str:
    """``seeds 0, 1 and 2``, ``seed 0``, or ``10 seeds``."""
    nouns = noun[:-1] + "ies" if noun.endswith("y") else f"{noun}s"
    if len(values) == 1:
        return f"{noun} {values[0]}"
    if len(values) > 8:
        return f"{len(values)} {nouns}"
    return f"{nouns} {and_list([str(value) for value in values])}"


def and_list(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def sample_sizes(estimates: Iterable[Estimate | None]) -> str:
    """``n = 2,000``, or the range where the estimates differ in it."""
    sizes = sorted({row.n for estimate in estimates if estimate is not None for row in estimate.rows}) or [0]
    return f"n = {sizes[0]:,}" if len(sizes) == 1 else f"n = {sizes[0]:,} to {sizes[-1]:,}"


def interval_note(summary: Summary, estimates: Iterable[Estimate | None], drawn: str = "") -> str:
    """What the intervals (in a figure: what is ``drawn``) are, over which images and seeds, and what the marks mean."""
    measured = [estimate for estimate in estimates if estimate is not None]
    parts = []
    if any(len(estimate.seeds) == 1 for estimate in measured):
        name = f"{drawn} are" if drawn else "a–b is"
        parts.append(f"{name} the 95 % bootstrap interval over test images of one trained network")
    if any(len(estimate.seeds) > 1 for estimate in measured):
        name = f"{drawn} are" if drawn else "± is half"
        parts.append(f"{name} the 95 % Student-t interval over seeds, around their mean")
    text = f"{sample_sizes(measured)} test images; {number_list(summary.seeds, 'seed')}; {'; '.join(parts)}."
    partial = sorted({e.seeds for e in measured if e.seeds != summary.seeds and not e.mixed})
    if partial:
        text += f" † only {' or '.join(number_list(seeds, 'seed') for seeds in partial)}."
    if any(estimate.mixed for estimate in measured):
        text += " ‡ not averaged: its seeds were measured on different numbers of images."
    kinds = {(e.rows[0].dataset, e.rows[0].severity): e.kinds for e in measured}
    if any(e.kinds != kinds[e.rows[0].dataset, e.rows[0].severity] for e in measured):
        text += " Networks were measured under different corruptions: their means are not compared."
    return text


def difference_note(differences: Iterable[Difference | None], *, given: bool = False, base: str = "") -> str:
    """What the differences in a table are (``base``: from what), and how a clear one is told from an unclear one."""
    compared = [difference for difference in differences if difference is not None]
    if not compared:
        return f"There is {'nothing' if given else 'no standard network'} to compare with."
    tested = [difference for difference in compared if not math.isnan(difference.p)]
    tests = ["paired t-test over seeds"] * any(d.seeds > 1 for d in tested)
    tests += ["paired bootstrap over the same test images"] * any(d.seeds == 1 for d in tested)
    rule = f"p ≥ 0.05, {' or '.join(tests)}, corrected for {len(tested)} comparisons (Holm)"
    if not tested:
        rule = "the two intervals over images overlap"
    base = base or ("the first model that was given" if given else "the standard network of the same architecture")
    return f"Changes are relative to {base}; ≈ no clear difference ({rule})."


def estimate_cell(
    summary: Summary, estimate: Estimate | None, difference: Difference | None = None, decimals: int | None = None
) -> TableCell:
    """An estimate with its interval, its mark (†: not all seeds, ‡: numbers of images differ) and its difference."""
    if estimate is None:
        return MISSING
    if estimate.mixed:
        return TableCell("—‡")
    metric, (value, low, high) = estimate.rows[0].metric, estimate.interval
    interval = f"{format_value(metric, low)}–{format_value(metric, high)}"
    if len(estimate.seeds) > 1:
        interval = f"± {format_value(metric, high - value)}"
    mark = "" if estimate.seeds == summary.seeds else "†"
    return TableCell(f"{format_value(metric, value, decimals)}{mark}", interval, *_change(difference))


def _change(difference: Difference | None) -> tuple[str, Tone]:
    if difference is None:
        return "", ""
    if not difference.clear:
        return f"≈ {relative_text(difference)}", "unclear"
    arrow = "▲" if difference.after > difference.before else "▼"
    return f"{arrow} {relative_text(difference)}", "better" if difference.better else "worse"


def pair_cells(cells: Sequence[TableCell]) -> TableCell:
    """Two values in one cell: ``76.2 / 0.074``; a single cell stays as it is."""
    if len(cells) == 1 or all(cell == MISSING for cell in cells):
        return cells[0]
    intervals = [cell.interval for cell in cells]
    interval = PAIR_SEPARATOR.join(i or "—" for i in intervals) if any(intervals) else ""
    return TableCell(PAIR_SEPARATOR.join(cell.text for cell in cells), interval)


NamedRow = tuple[Sequence[str], Sequence[Sequence[Estimate | None]]]
"""A row before it is formatted: its names, then the one or two estimates of each cell."""


def named_table(
    summary: Summary,
    name: str,
    title: str,
    stubs: Sequence[str],
    columns: Sequence[Column],
    rows: Sequence[NamedRow],
    caption: tuple[str, str] = ("", ""),
) -> Table:
    """Format the rows; ``caption`` is what stands before and after the note on intervals."""
    note = interval_note(summary, [estimate for _, cells in rows for pair in cells for estimate in pair])
    body = tuple(
        (*map(TableCell, names), *(pair_cells([estimate_cell(summary, e) for e in pair]) for pair in cells))
        for names, cells in rows
    )
    text = " ".join(filter(None, (caption[0], note, caption[1])))
    return Table(name, title, (*map(Column, stubs), *columns), body, text, len(stubs))


def network_names(summary: Summary, network: str, training: str) -> list[str]:
    """The first columns: the network where there are several, and how it was trained."""
    if len(summary.architectures) > 1:
        return [network, "as given" if training == network else training]
    return ["Model" if training == "Training" and not summary.trained else training]


def _setting_names(summary: Summary, variant: Variant | None = None) -> list[str]:
    """The paper's first columns, and λ where the study has it: their headings, or one variant's entries."""
    if not summary.trained:
        return ["Model" if variant is None else variant.title]
    tails = int(any(v.tail_weight is not None for v in summary.variants))
    if variant is None:
        method = ["Method"] * bool(summary.methods)
        return ["Architecture", *method, "Anchoring?", "Reference masking?", "α", *["λ"] * tails]
    masked = variant.protocol == "ram"
    alpha = f"{variant.alpha:g}" if masked and variant.alpha is not None else "–"
    tail = "–" if variant.tail_weight is None else f"{variant.tail_weight:g}"
    anchored = {"standard": "No", GIVEN: "–"}.get(variant.protocol, "Yes")
    masks = "–" if variant in summary.given else "Yes" if masked else "No"
    method = [method_title(variant.method) if variant.method else "–"] * bool(summary.methods)
    return [variant.architecture, *method, anchored, masks, alpha, *[tail] * tails]


def set_columns(sets: Sequence[str], group: str) -> list[Column]:
    """A column for each set or mean over sets, under one heading."""
    means = {MEAN: "Mean", **{name: f"Mean, {kind.lower()}" for name, kind in OOD_MEANS.items()}}
    return [Column(means.get(name, name), group=group) for name in sets]


def headline_table(summary: Summary) -> Table:
    """Rows: variants. Columns: the headline's measures, each with its interval and its difference from standard."""
    return measure_table(summary, "headline", "Accuracy, calibration, rejection and adaptation", summary.measures)


def measure_table(
    summary: Summary,
    name: str,
    title: str,
    measures: Sequence[Measure],
    family: tuple[Measure, ...] = (),
    caption: str = "",
) -> Table:
    """Rows: variants. Columns: measures, with intervals and differences from standard, corrected within ``family``."""
    keys = [[(variant, measure) for measure in measures] for variant in summary.variants]
    estimates = {key: summary.measured(*key) for row in keys for key in row}
    differences = {key: summary.difference(*key, family=family) for key in estimates}
    rows = tuple(
        (
            *map(TableCell, network_names(summary, row[0][0].architecture, row[0][0].title)),
            *(estimate_cell(summary, estimates[key], differences[key]) for key in row),
        )
        for row in keys
    )
    stubs = network_names(summary, "Network", "Training")
    columns = (*map(Column, stubs), *(Column(measure.title, measure.arrow) for measure in measures))
    tested = [summary.difference(v, m, family=family) for v in summary.variants for m in family or measures]
    several = bool(summary.given) and not summary.is_against_given and len(summary.architectures) > 1
    base = f"the standard network of the same architecture, for given models of {summary.architectures[0]}"
    note = difference_note(tested, given=summary.is_against_given, base=base * several)
    text = " ".join(filter(None, (caption, interval_note(summary, estimates.values()), note)))
    return Table(name, title, columns, rows, text, len(stubs))


CLEAN = ("accuracy", "smooth_ece", "smooth_ece_old", "ece", "brier", "nll")


def clean_table(summary: Summary) -> Table:
    """Every metric on the clean test set."""
    dataset = summary.trained_on
    metrics = [metric for metric in CLEAN if any(summary.get(v, metric, dataset) for v in summary.variants)]
    columns = [Column(*metric_heading(metric).rsplit(" ", 1)) for metric in metrics]
    rows = [
        (network_names(summary, v.architecture, v.title), [[summary.get(v, metric, dataset)] for metric in metrics])
        for v in summary.variants
    ]
    title = f"All figures on the clean test images of {dataset}"
    return named_table(summary, "clean", title, network_names(summary, "Network", "Training"), columns, rows)


ESTIMATORS = {"smooth_ece": "1.0.3", "smooth_ece_old": "1.0 (the paper's)"}
"""Smooth ECE -> the version of relplot whose it is."""


def severity_table(summary: Summary, family: Family, metric: str) -> Table:
    """Mean over corruptions at each severity, in the layout of the paper's table 7. Where the four extra corruptions
    were measured as well, the mean over the 15 common ones stands beside it."""
    measured = {row.corruption for row in summary.rows if row.dataset == family.dataset}
    means = {MEAN: f"{len(family.corruptions)} corruptions", "mean-15": "15 of them"}
    places = [(mean, severity) for mean in means if mean in measured for severity in family.severities]
    columns = [Column(f"Sev. {level}", group=f"{metric_heading(metric)}, {means[mean]}") for mean, level in places]
    rows = [
        (
            _setting_names(summary, v),
            [[summary.get(v, metric, family.dataset, severity=level, corruption=mean)] for mean, level in places],
        )
        for v in summary.variants
    ]
    name = f"severity_{metric}{family.suffix.replace('-', '_')}"
    title = f"{METRICS[metric].title} on {family.dataset}, by severity"
    extra = "15 of them: without the four extra ones." * (len(places) > len(family.severities))
    estimator = f" Smooth ECE as relplot {ESTIMATORS[metric]}." if metric in ESTIMATORS else ""
    caption = (f"Mean over {len(family.corruptions)} corruptions.{estimator}", extra)
    return named_table(summary, name, title, _setting_names(summary), columns, rows, caption)


def ood_table(summary: Summary) -> Table:
    """AUROC by the headline's score, one column per set, in the layout of the paper's table 6."""
    sets, score = summary.sets("auroc"), summary.score
    columns = set_columns(sets, f"OOD rejection (AUROC, % ↑), score: {score.replace('_', ' ')}")
    rows = [
        (_setting_names(summary, v), [[summary.get(v, "auroc", name, score=score)] for name in sets])
        for v in summary.variants
    ]
    caption = (f"Test images of {summary.trained_on} against each set; n counts both.", "")
    return named_table(summary, "ood", "Rejection of other data", _setting_names(summary), columns, rows, caption)


def ood_scores_table(summary: Summary, metric: str) -> Table:
    """Every OOD score of every variant, by one detection metric."""
    sets, title = summary.sets(metric), metric_heading(metric)
    rows = [
        (
            [*network_names(summary, v.architecture, v.title), display_name(score)],
            [[summary.get(v, metric, name, score=score)] for name in sets],
        )
        for v in summary.variants
        for score in summary.scores
    ]
    stubs = [*network_names(summary, "Network", "Training"), "Score"]
    return named_table(summary, f"ood_{metric}", title, stubs, set_columns(sets, title), rows)


ADAPTATION = ("linear_probe_accuracy", "linear_probe_ece")
SHIFTED = ("shifted_accuracy", "shifted_ece")


def adaptation_table(summary: Summary) -> Table:
    """Linear probes: accuracy / smooth ECE, in the layout of the lower half of the paper's table 8."""
    return _pairs_by_set(summary, "adaptation", ADAPTATION, "Adaptation", "A linear classifier on frozen features.")


def shifted_table(summary: Summary) -> Table:
    """Accuracy / smooth ECE on images of the same classes from elsewhere."""
    text = "The same classes in images from elsewhere; of a set with some of them, these alone can be predicted."
    return _pairs_by_set(summary, "shifted", SHIFTED, "Shifted images", text)


def _pairs_by_set(summary: Summary, name: str, metrics: tuple[str, str], title: str, caption: str) -> Table:
    """A column for each set, with an accuracy and a smooth ECE."""
    sets = summary.sets(metrics[0])
    columns = set_columns(sets, f"{title} (accuracy, % ↑ / smooth ECE ↓)")
    rows = [
        (_setting_names(summary, v), [[summary.get(v, metric, each) for metric in metrics] for each in sets])
        for v in summary.variants
    ]
    return named_table(summary, name, title, _setting_names(summary), columns, rows, (caption, ""))


def result_tables(summary: Summary) -> Iterator[Table]:
    """All tables that the study has rows for."""
    yield headline_table(summary)
    yield clean_table(summary)
    for family in summary.families:
        measured = {row.metric for row in summary.rows if row.dataset == family.dataset and row.severity}
        yield from (severity_table(summary, family, m) for m in ("accuracy", *ESTIMATORS) if m in measured)
    if summary.sets("auroc"):
        yield ood_table(summary)
        yield from (ood_scores_table(summary, m) for m in ("auroc", "fpr95", "aupr") if summary.sets(m))
    if summary.sets(SHIFTED[0]):
        yield shifted_table(summary)
    if summary.sets(ADAPTATION[0]):
        yield adaptation_table(summary)
