"""References in the report: their images, and the figures of a study that measured over many of them."""

import math
from collections.abc import Iterator, Sequence

import torch
from matplotlib.axes import Axes
from torch import Tensor

from anchored.metrics.registry import METRICS
from anchored.report.aggregate import Estimate
from anchored.report.comparison import MEAN, Measure, Summary, Variant, variant_of
from anchored.report.diagnostics import image_grid
from anchored.report.reading import references_of
from anchored.report.style import Picture, legend, panel_grid, variant_style
from anchored.report.table import Column, Table, TableCell
from anchored.report.tables import estimate_cell, format_value, interval_note, metric_heading
from anchored.store import files
from anchored.store.rows import Row

THUMBNAILS = 10
"""References of each network that are shown, at most."""
WAYS = {
    "single": "single reference",
    "mean": "mean of logits",
    "mean_probabilities": "mean of probabilities",
    "calibrated": "calibrated, ÷ (1 + eᶜ)",
    "calibrated_imagenet": "calibrated, ÷ c",
    "nearest": "nearest, input space",
    "nearest_features": "nearest, feature space",
    "adaptive": "adaptive",
}
ESTIMATES = {
    "agreement": "agreement of two references",
    "agreement_threshold": "agreement above a threshold",
    "confidence": "mean confidence",
    "confidence_threshold": "confidence above a threshold",
}
SCORES = {"mean": "of the mean", "spread": "spread", "disagreement": "disagreement"}


def reference_pictures(summary: Summary) -> Iterator[Picture]:
    """The references of the networks, and figures over many references, where there are rows of these."""
    if picture := thumbnails(summary):
        yield picture
    if (over := references_of(summary)) is not None:
        yield from filter(None, (sensitivity_figure(over), label_free_figure(over)))


def reference_tables(summary: Summary) -> Iterator[Table]:
    """Tables over many references, where there are rows of these."""
    if (over := references_of(summary)) is not None:
        yield ways_table(over)
        yield from filter(None, (scores_table(over), frontier_table(over), label_free_table(over)))
        yield from filter(None, [sensitivity_table(over)])


def thumbnails(summary: Summary) -> Picture | None:
    """The references kept with each anchored network (of its smallest seed); None where no weights are there."""
    rows = []
    for variant in summary.trained:
        run, seed = summary.run_of(variant)
        if variant.protocol == "standard" or not (run.weights_file.is_file() and run.model_file.is_file()):
            continue
        kept, config = files.load_tensor(run.weights_file, "references"), files.read_json(run.model_file)
        if kept is None:
            continue
        choice = str(config.get("reference_choice", "random")).replace("_", " ")
        rows.append((f"{variant.title}, seed {seed}: {choice}, K = {len(kept)}", _pixels(kept[:THUMBNAILS], config)))
    if not rows:
        return None
    caption = (
        "The references that are kept with each network: training images (or own ones), and how they were chosen. "
        f"At most {THUMBNAILS} of each."
    )
    return image_grid("references-images", rows, [], caption)


def _pixels(references: Tensor, config: dict[str, object]) -> Tensor:
    """Normalised images (K,C,H,W) as uint8."""
    mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("mean", "std"))
    return ((references * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


# --- Tables ---------------------------------------------------------------------------------------------------------


def _measures(summary: Summary) -> list[Measure]:
    """The headline's figures, whose score is the way of inference."""
    every = [
        *summary.image_measures,
        Measure("Far-OOD AUROC, %", "", "auroc", "mean-far"),
        Measure("Near-OOD AUROC, %", "", "auroc", "mean-near"),
    ]
    return [m for m in every if any(_get(summary, v, m, "single") for v in summary.variants)]


def _drawn_measures(summary: Summary) -> list[Measure]:
    """The headline's figures that were measured for each draw of references."""
    adapted = Measure("Adaptation accuracy, %", "", "linear_probe_accuracy", MEAN)
    drawn = {(row.metric, row.dataset) for row in summary.rows if row.score.startswith("draw-")}
    return [measure for measure in (*_measures(summary), adapted) if (measure.metric, measure.dataset) in drawn]


def _get(summary: Summary, variant: Variant, measure: Measure, score: str) -> Estimate | None:
    return summary.get(variant, measure.metric, measure.dataset, corruption=measure.corruption, score=score)


def _table(
    summary: Summary,
    name: str,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[tuple[Sequence[str], Sequence[Estimate | None]]],
    caption: str,
) -> Table:
    """Rows of estimates, the first two columns their names; those without any estimate are left out."""
    rows = [row for row in rows if any(row[1])]
    note = interval_note(summary, [estimate for _, cells in rows for estimate in cells])
    body = tuple((*map(TableCell, names), *(estimate_cell(summary, e) for e in cells)) for names, cells in rows)
    return Table(name, title, tuple(columns), body, f"{note} {caption}", 2)


def _name(summary: Summary, variant: Variant) -> str:
    several = len(summary.architectures) > 1
    return f"{variant.architecture}, {variant.title}" if several else variant.title


def ways_table(summary: Summary) -> Table:
    """Accuracy, calibration, rejection and passes of each way of inference."""
    measures, clean = _measures(summary), summary.trained_on
    columns = [Column("Training"), Column("Inference"), *(Column(m.title, m.arrow) for m in measures)]
    columns += [Column("Passes an image", "↓"), Column("Same class as the mean, %", "↑")]
    rows = [
        (
            (_name(summary, variant), "one pass" if variant.protocol == "standard" else name),
            [
                *(_get(summary, variant, measure, way) for measure in measures),
                *(summary.get(variant, metric, clean, score=way) for metric in ("passes", "same_class")),
            ],
        )
        for variant in summary.variants
        for way, name in WAYS.items()
    ]
    asked = summary.recipe.get("references", {})
    caption = (
        f"K = {asked.get('most')} references; single: the first. c: mean over classes of the spread over references. "
        "AUROC by the headline's score; the mean of probabilities has no energy. Passes and same class: clean images."
    )
    return _table(summary, "references_ways", "Ways of inference over references", columns, rows, caption)


def scores_table(summary: Summary) -> Table | None:
    """AUROC of the scores that only references give, beside the headline's."""
    sets = [name for name in summary.sets("auroc") if name != MEAN]
    rows = [
        ((_name(summary, v), summary.score.replace("_", " ") + " " + title if score == "mean" else title),
         [summary.get(v, "auroc", name, score=score) for name in sets])
        for v in summary.variants if v.protocol != "standard" for score, title in SCORES.items()
    ]  # fmt: skip
    if not any(estimate for _, cells in rows for estimate in cells):
        return None
    columns = [Column("Training"), Column("Score"), *(Column(name, group=metric_heading("auroc")) for name in sets)]
    caption = "Spread: the mean over classes; disagreement: the Jensen-Shannon divergence of the references' answers."
    return _table(summary, "references_scores", "Rejection by what references say", columns, rows, caption)


def frontier_table(summary: Summary) -> Table | None:
    """Adaptive inference along the confidence of its test."""
    clean = summary.trained_on
    names = list(dict.fromkeys(row.score for row in summary.rows if row.score.startswith("adaptive-")))
    rows = [
        ((_name(summary, v), name.partition("-")[2]),
         [summary.get(v, metric, clean, score=name) for metric in ("passes", "same_class")])
        for v in summary.variants for name in names
    ]  # fmt: skip
    if not names:
        return None
    columns = [
        Column("Training"),
        Column("Confidence"),
        Column("Passes an image", "↓"),
        Column("Same class as the mean, %", "↑"),
    ]
    caption = f"Of K = {summary.recipe['references'].get('most')} references, on clean test images."
    title = "Adaptive inference: passes against unchanged classes"
    return _table(summary, "references_frontier", title, columns, rows, caption)


def label_free_table(summary: Summary) -> Table | None:
    """How far estimates of accuracy without labels are off, over all corruptions of each kind."""
    families = summary.families
    rows = [
        ((_name(summary, v), title),
         [*(summary.get(v, "accuracy_error", each.dataset, corruption=MEAN, score=estimate) for each in families),
          summary.get(v, "estimated_accuracy", summary.trained_on, score=estimate)])
        for v in summary.variants for estimate, title in ESTIMATES.items()
    ]  # fmt: skip
    if not any(estimate for _, cells in rows for estimate in cells):
        return None
    columns = [
        Column("Training"),
        Column("Estimate"),
        *(
            Column(f"Mean error under corruption{f' ({each.kind})' * (len(families) > 1)}, points", "↓")
            for each in families
        ),
        Column("Estimate on clean images, %"),
    ]
    count = summary.recipe["references"].get("count")
    caption = (
        f"Error: |estimated − true accuracy|, mean over corruptions and severities. Agreement over k = {count} "
        "references; thresholds are fitted on held-out training images."
    )
    return _table(summary, "references_label_free", "Accuracy without labels", columns, rows, caption)


def sensitivity_table(summary: Summary) -> Table | None:
    """The spread of each figure of the headline over draws of references, beside that over seeds."""
    measures, body = _drawn_measures(summary), []
    for variant in summary.variants:
        for size in _sizes(summary, variant):
            cells = [_spread_cell(summary, variant, measure, size) for measure in measures]
            body.append((TableCell(_name(summary, variant)), TableCell(str(size)), *cells))
    if not body:
        return None
    columns = (Column("Training"), Column("K"), *(Column(m.title) for m in measures))
    caption = (
        "Standard deviation over draws of K references of one network, mean over seeds; below it, in the same place as "
        "an interval, the standard deviation over seeds at one draw (the first). Draws of many references overlap."
    )
    return Table("references_sensitivity", "How much the draw of references matters", columns, tuple(body), caption, 2)


def _sizes(summary: Summary, variant: Variant) -> list[int]:
    names = (row.score for row in _rows_of(summary, variant) if row.score.startswith("draw-"))
    return sorted({int(name.split("-")[1]) for name in names})


def _rows_of(summary: Summary, variant: Variant) -> Iterator[Row]:
    return (row for row in summary.rows if variant_of(row) == variant)


def _draws(summary: Summary, variant: Variant, measure: Measure, size: int) -> dict[int, list[float]]:
    """Seed -> the measure for each draw."""
    found: dict[int, list[float]] = {}
    for row in _rows_of(summary, variant):
        place = (row.metric, row.dataset, row.corruption)
        if place == (measure.metric, measure.dataset, measure.corruption) and row.score.startswith(f"draw-{size}-"):
            found.setdefault(row.seed, []).append(row.value)
    return found


def _spread_cell(summary: Summary, variant: Variant, measure: Measure, size: int) -> TableCell:
    by_seed = _draws(summary, variant, measure, size)
    within = [_deviation(values) for values in by_seed.values() if len(values) > 1]
    seeds = [values[0] for values in by_seed.values()]
    percent = METRICS[measure.metric].percent
    decimals = 2 if percent else 4
    shown = format_value(measure.metric, math.fsum(within) / len(within), decimals) if within else "—"
    over = f"seeds {format_value(measure.metric, _deviation(seeds), decimals)}" if len(seeds) > 1 else ""
    return TableCell(shown, over)


def _deviation(values: Sequence[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).std())


# --- Figures --------------------------------------------------------------------------------------------------------


def sensitivity_figure(summary: Summary) -> Picture | None:
    """Each figure of the headline for each draw of K references, for several K."""
    variants = [variant for variant in summary.variants if _sizes(summary, variant)]
    if not variants:
        return None
    measures, sizes = _drawn_measures(summary), sorted({size for v in variants for size in _sizes(summary, v)})
    figure, panels = panel_grid(len(measures), 2.6)
    for axes, measure in zip(panels, measures, strict=True):
        for number, variant in enumerate(variants):
            _dots(axes, summary, variant, measure, sizes, (number - (len(variants) - 1) / 2) * 0.5 / len(variants))
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set(title=f"{measure.title} {measure.arrow}", xlabel="References K")
    legend(figure, panels[0])
    seeds = len(summary.seeds)
    caption = (
        f"Each point: one network with one draw of K references ({summary.recipe['references'].get('draws')} draws; "
        f"{seeds} seeds, whose spread is part of what is seen). Bars: the mean."
    )
    alt = f"{len(measures)} dot plots of the headline's figures against the number of references."
    return Picture("references-sensitivity", figure, alt, caption)


def _dots(axes: Axes, summary: Summary, variant: Variant, measure: Measure, sizes: Sequence[int], shift: float) -> None:
    style = variant_style(summary, variant)
    for place, size in enumerate(sizes):
        values = [value for each in _draws(summary, variant, measure, size).values() for value in each]
        if not values:
            continue
        label = _name(summary, variant) if place == 0 else None
        at = [place + shift] * len(values)
        axes.plot(at, values, marker=".", linestyle="", color=style.color, alpha=0.45, markersize=4, label=label)
        mean = math.fsum(values) / len(values)
        axes.plot([place + shift - 0.1, place + shift + 0.1], [mean, mean], color=style.color, linewidth=1.6)


def label_free_figure(summary: Summary) -> Picture | None:
    """Estimated against true accuracy: a point for each network, corruption and severity."""
    rows = [row for row in summary.rows if row.corruption and row.severity is not None]
    true = {_place(row): row.value for row in rows if row.metric == "accuracy"}
    shown = [name for name in ESTIMATES if any(r.metric == "estimated_accuracy" and r.score == name for r in rows)]
    if not shown or not true:
        return None
    figure, panels = panel_grid(len(shown), 3.0)
    for axes, estimate in zip(panels, shown, strict=True):
        for variant in summary.variants:
            style, own = variant_style(summary, variant), set(map(id, _rows_of(summary, variant)))
            points = [
                (true[_place(row)], row.value)
                for row in rows
                if id(row) in own and row.metric == "estimated_accuracy" and row.score == estimate
            ]
            label = _name(summary, variant)
            axes.plot(
                [x for x, _ in points], [y for _, y in points], linestyle="", marker=style.marker, color=style.color,
                alpha=0.5, markersize=3.5, label=label,
            )  # fmt: skip
        low = min(true.values())
        axes.plot([low, 100], [low, 100], color="#666666", linewidth=1)
        axes.set(title=ESTIMATES[estimate].capitalize(), xlabel="True accuracy, %", ylabel="Estimated, %")
    legend(figure, panels[0])
    sizes = sorted({row.n for row in rows})
    caption = (
        f"Accuracy estimated without labels against true accuracy: a point for each network, corruption and severity "
        f"(n = {', '.join(map(str, sizes))} images each, {len(summary.seeds)} seeds). On the line it is right."
    )
    alt = "Scatter plots of estimated against true accuracy under corruption."
    return Picture("references-label_free", figure, alt, caption)


def _place(row: Row) -> tuple[object, ...]:
    return row.run, row.corruption, row.severity
