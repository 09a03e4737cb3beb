"""Decisions in the report: what was promised, what came of it and where that ends, and what temperature does."""

from collections.abc import Iterator, Sequence

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, OOD_MEANS, Family, Measure, Summary
from anchored.report.figures import architecture_suffix, axis_title, plot_severities
from anchored.report.style import NEUTRAL, WIDTH, Picture, blank_figure, legend
from anchored.report.table import Column, Table
from anchored.report.tables import (
    NamedRow,
    and_list,
    display_name,
    format_value,
    interval_note,
    measure_table,
    metric_heading,
    named_table,
    network_names,
    set_columns,
)
from anchored.store import files
from anchored.store.layout import HELD_OUT

PROMISED = {"false_alarm_rate": "false_alarms", "set_coverage": "coverage", "accepted_error": "error"}
"""Metric -> the setting of ``evaluate`` that promises its value, for images like the held-out ones."""
BY_SEVERITY = ("false_alarm_rate", "set_coverage", "set_size", "accepted", "accepted_error")


def promised(summary: Summary, metric: str) -> float | None:
    """What was promised, in percent; None where nothing was."""
    return round(100 * float(summary.setting("evaluate", PROMISED[metric])), 6) if metric in PROMISED else None


# --- Tables -------------------------------------------------------------------------------------------------------


def _clean_and_corrupted(summary: Summary, *metrics: str) -> list[Measure]:
    found = list[Measure]()
    for metric in metrics:
        title, unit = METRICS[metric].title, ", %" * METRICS[metric].percent
        found.append(Measure(f"{title}, clean{unit}", f"{title} on clean images", metric, summary.trained_on))
        for family in summary.families:
            kind = f" ({family.kind})" if len(summary.families) > 1 else ""
            name = f"{title}, corrupted{kind}{unit}"
            found.append(Measure(name, f"{title} under corruption{kind}", metric, family.dataset, MEAN))
    return found


def _outside(summary: Summary, metric: str) -> list[Measure]:
    sets = [name for name in OOD_MEANS if name in summary.sets(metric)]
    return [
        Measure(f"{METRICS[metric].title}, {OOD_MEANS[name].lower()}, %", "", metric, name, score=summary.score)
        for name in sets
    ]


def decision_measures(summary: Summary) -> dict[str, tuple[Measure, ...]]:
    """Table -> its columns, those that some variant has; all of them are one family of tests."""
    tables = {
        "alarms": [*_clean_and_corrupted(summary, "false_alarm_rate"), *_outside(summary, "detection_rate")],
        "sets": _clean_and_corrupted(summary, "set_coverage", "set_size"),
        "abstention": _clean_and_corrupted(summary, "accepted", "accepted_error"),
        "ranking": [
            *_clean_and_corrupted(summary, "aurc", "augrc", "misclassification_auroc"),
            *_outside(summary, "scod_aurc"),
        ],
        "temperature": _clean_and_corrupted(summary, "smooth_ece", "smooth_ece_scaled"),
    }
    tables["temperature"] += [
        m for m in _clean_and_corrupted(summary, "nll", "nll_scaled", "aurc", "aurc_scaled") if not m.corruption
    ]
    measured = {
        name: tuple(m for m in listed if any(summary.measured(v, m) for v in summary.variants))
        for name, listed in tables.items()
    }
    if not any(m.metric.endswith("_scaled") for m in measured["temperature"]):
        measured["temperature"] = ()
    return {name: listed for name, listed in measured.items() if listed}


TITLES = {
    "alarms": "Unknown by score: false alarms, and what is detected",
    "sets": "Prediction sets",
    "abstention": "Abstention: images that are given a class, and errors among them",
    "ranking": "Confidence tells right from wrong answers",
    "temperature": "Before and after temperature",
}


def decision_tables(summary: Summary) -> Iterator[Table]:
    """All tables on decisions that the study has rows for."""
    tables = decision_measures(summary)
    family = tuple(dict.fromkeys(m for listed in tables.values() for m in listed))
    for name, measures in tables.items():
        caption = ["Scaled: after the temperature."] * (name == "temperature")
        caption += [
            f"Promised for images like the held-out ones: {METRICS[metric].title.lower()} "
            f"{'at least' if metric == 'set_coverage' else 'at most'} {value:g} %."
            for metric in dict.fromkeys(m.metric for m in measures)
            if (value := promised(summary, metric)) is not None
        ]
        yield measure_table(summary, f"decisions_{name}", TITLES[name], measures, family, " ".join(caption))
    for corrupted in summary.families:
        if summary.sets("set_coverage") and corrupted.severities:
            yield _by_severity(summary, corrupted)
    for metric in ("detection_rate", "scod_aurc"):
        if summary.sets(metric):
            yield _by_set(summary, metric)


def _by_severity(summary: Summary, family: Family) -> Table:
    rows = list[NamedRow]()
    for metric in BY_SEVERITY:
        value = promised(summary, metric)
        level = "–" if value is None else f"{value:g}"
        for v in summary.variants:
            if clean := summary.get(v, metric, summary.trained_on):
                names = [*network_names(summary, v.architecture, v.title), metric_heading(metric), level]
                places = [
                    summary.get(v, metric, family.dataset, severity=s, corruption=MEAN) for s in family.severities
                ]
                rows.append((names, [[each] for each in (clean, *places)]))
    columns = [Column("Clean"), *(Column(f"Sev. {severity}") for severity in family.severities)]
    name, title = f"decisions_severity{family.suffix.replace('-', '_')}", f"Decisions by severity, {family.dataset}"
    stubs = [*network_names(summary, "Network", "Training"), "Figure", "Promised"]
    caption = (f"Mean over {len(family.corruptions)} corruptions.", "")
    return named_table(summary, name, title, stubs, columns, rows, caption)


def _by_set(summary: Summary, metric: str) -> Table:
    sets, scores = summary.sets(metric), list(dict.fromkeys(r.score for r in summary.rows if r.metric == metric))
    rows = [
        (
            [*network_names(summary, v.architecture, v.title), display_name(score)],
            [[summary.get(v, metric, name, score=score)] for name in sets],
        )
        for v in summary.variants
        for score in scores
    ]
    columns = set_columns(sets, metric_heading(metric))
    stubs = [*network_names(summary, "Network", "Training"), "Score"]
    caption = "Test images and those of each set weigh one half each." * (metric == "scod_aurc")
    return named_table(summary, f"decisions_{metric}", metric_heading(metric), stubs, columns, rows, (caption, ""))


# --- Sentences ----------------------------------------------------------------------------------------------------


def decision_text(summary: Summary) -> Iterator[str]:
    """What was promised, on what, where it ends, and by how much it fails there."""
    if not summary.sets("aurc"):
        return
    fitted = [v for v in summary.variants if summary.get(v, "set_coverage", summary.trained_on)]
    if not fitted:
        yield (
            "Thresholds, prediction sets and abstention were not measured: they are fitted on labelled images that no "
            "network was trained or tested on (train with data.validation: 0.1, or name some in evaluate.held_out), "
            "and there were none, or too few."
        )
        return
    left_out = [" ".join(network_names(summary, v.architecture, v.title)) for v in summary.variants if v not in fitted]
    others = and_list(left_out)
    but = f" but {others}" if others else ""
    run, _ = summary.run_of(fitted[0])
    kept = run.outputs_file(HELD_OUT)
    count = f"{len(files.load_tensors(kept)[0]['labels']):,} " if kept.exists() else ""
    yield (
        f"For each network{but} a threshold of the {summary.score.replace('_', ' ')} score, prediction sets, a "
        f"threshold of confidence and a temperature were fitted on {count}held-out images, none of which it was "
        "trained or tested on; intervals here are over the images that the fitted rule met, not over held-out images."
    )
    yield (
        "What is promised holds for images that are exchangeable with the held-out ones, as the clean test images are, "
        "and for no others. Corrupted images are not, and there:"
    )
    for metric in PROMISED:
        yield from _kept_promise(summary, metric)
    if others:
        yield f"There were no such images for {others}, or too few."
    if not all(summary.get(v, "accepted", summary.trained_on) for v in fitted):
        yield "Where nothing is said of abstention, its error could not be shown with the held-out images."


def _kept_promise(summary: Summary, metric: str) -> Iterator[str]:
    value, title = promised(summary, metric), METRICS[metric].title
    clean = [e for v in summary.variants if (e := summary.get(v, metric, summary.trained_on))]
    if value is None or not clean:
        return
    said = [f"{_range(clean)} on clean images"]
    for family in summary.families:
        for severity in (family.severities[0], family.severities[-1]) if family.severities else ():
            place = {"severity": severity, "corruption": MEAN}
            found = [e for v in summary.variants if (e := summary.get(v, metric, family.dataset, **place))]  # type: ignore[arg-type]
            if found:
                said.append(f"{_range(found)} at severity {severity} of {family.kind}")
    most = "at least" if metric == "set_coverage" else "at most"
    yield f"{title}, {most} {value:g} % promised: {and_list(said)}."


def _range(estimates: Sequence[Estimate]) -> str:
    values = [format_value(e.rows[0].metric, e.value) for e in estimates if not e.mixed]
    ends = (min(values, key=float), max(values, key=float)) if values else ("—", "—")
    return f"{ends[0]} %" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} %"


# --- Figures ------------------------------------------------------------------------------------------------------


def promise_figure(summary: Summary, family: Family, architecture: str) -> Picture | None:
    """What was promised (dashed) and what is realised over severity; None without rows."""
    shown = [m for m in BY_SEVERITY if any(summary.get(v, m, summary.trained_on) for v in summary.of(architecture))]
    shown = [m for m in shown if m != "set_size"]
    if not shown or not family.severities:
        return None
    figure = blank_figure(WIDTH, 3.1)
    panels, plotted = figure.subplots(1, len(shown), squeeze=False)[0], list[Estimate | None]()
    for axes, metric in zip(panels, shown, strict=True):
        plotted += plot_severities(axes, summary, family, architecture, metric, MEAN, clean="0")
        if (value := promised(summary, metric)) is not None:
            axes.axhline(value, color=NEUTRAL, linestyle="--", linewidth=1.2)
        axes.set(xlabel="Severity (0: clean)", ylabel=axis_title(metric), title=METRICS[metric].title)
    legend(figure, panels[0])
    caption = (
        f"{architecture} on {family.dataset}, mean over {len(family.corruptions)} corruptions. Dashed: what is "
        f"promised for images like the held-out ones, which corrupted ones are not. "
        f"{interval_note(summary, plotted, 'bands')}"
    )
    alt = f"Line charts of {architecture} over severity: {and_list([METRICS[m].title.lower() for m in shown])}."
    return Picture(f"promises{family.suffix}{architecture_suffix(summary, architecture)}", figure, alt, caption)


def promise_figures(summary: Summary) -> Iterator[Picture]:
    """What was promised and what came of it, of every architecture and corrupted set."""
    for architecture in summary.architectures:
        for family in summary.families:
            if picture := promise_figure(summary, family, architecture):
                yield picture
