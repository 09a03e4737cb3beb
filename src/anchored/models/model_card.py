"""The model card: what a model folder holds, how it was made and what was measured on it, for those who load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import metadata

from anchored.config.recipe import Cell, canonical
from anchored.config.settings import Evaluation
from anchored.data.catalog import registry as catalog
from anchored.metrics.registry import METRICS
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig, read_config
from anchored.store.files import read_json
from anchored.store.layout import Row, Run, read_rows

LIMITS = """\
For research on robust and calibrated classification, and as a start for other tasks. The figures hold for the sets
named above and for images prepared as described; on other data the model has to be measured again. A score of
rejection is not a guarantee that foreign images are noticed. The model knows its own classes only."""


def card(run: Run, place: str) -> str:
    """The text of ``README.md``, with the hub's front matter; ``place`` is what :func:`anchored.load` is given.

    Results are the run's own rows; where there are none the card says so.
    """
    config = read_config(run)
    rows = _headline(run) if run.rows_file.exists() else []
    sections = [
        f"---\n{_front_matter(run, config, rows)}\n---",
        f"# {run.name}",
        _summary(config),
        f"## Use\n```python\nimport anchored\n\nmodel = anchored.load({json.dumps(place)})\n"
        "logits = model(model.preprocess(images))  # images: uint8 (B,C,H,W), any size\n```\n"
        "Or as a plain file, without anchored at run time: `anchored export FOLDER model.onnx`.",
        f"## Input\n{_input(config)}",
        "## Results\n" + (_table(rows) if rows else "Not measured yet: `anchored evaluate RUN` writes them."),
        f"## How it was made\n{_making(run, config)}",
        f"## Intended use and limits\n{LIMITS}",
        f"## Licences\n{_licences(config)}",
    ]
    return "\n\n".join(sections) + "\n"


def _headline(run: Run) -> list[Row]:
    """Clean figures, means over corruptions, rejection by the headline score, adaptation."""
    score = Evaluation.score
    if run.recipe_file.exists():
        score = read_json(run.recipe_file)["evaluate"]["score"]
    return [
        row
        for row in read_rows(run.rows_file)
        if (row.corruption == "" or row.corruption.startswith("mean")) and row.score in ("", score)
    ]


def _front_matter(run: Run, config: ModelConfig, rows: list[Row]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=config.trained_on,
            dataset_name=_place(row),
            metric_type=row.metric,
            metric_name=METRICS[row.metric].title,
            metric_value=row.value,
        )
        for row in rows
    ]
    data = ModelCardData(
        library_name="anchored",
        pipeline_tag="image-classification",
        tags=["anchored", "anchored-training", config.protocol, "robustness", "calibration"],
        model_name=run.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _summary(config: ModelConfig) -> str:
    how = {
        "standard": "trained without anchoring",
        "anchored": "anchored",
        "ram": f"anchored, with reference masking (α = {config.mask_probability:g})",
    }[config.protocol]
    on = f", for {len(config.classes)} classes"
    on += f" of {catalog.title(config.trained_on)}" if config.trained_on else ""
    kept = f"{config.references} training image{'s' * (config.references != 1)}" if config.references else "none"
    references = "" if config.protocol == "standard" else f" References kept with the weights: {kept}."
    return f"{networks.get(config.network).title}, {how}{on}.{references}"


def _input(config: ModelConfig) -> str:
    mean, std = (", ".join(f"{each:.4g}" for each in values) for values in (config.mean, config.std))
    cut = "" if config.crop == 1 else f", the middle {config.crop:.4g} of the shorter side"
    return (
        f"{config.channels}×{config.size}×{config.size} (channels, height, width); {config.interpolation} resizing, "
        f"antialiased{cut}; pixels divided by 255, minus the mean ({mean}), divided by the standard deviation "
        f"({std}). `model.preprocess` does all of this."
    )


def _place(row: Row) -> str:
    severity = f", severity {row.severity}" if row.severity else ""
    under = f" ({row.corruption} over corruptions{severity})" if row.corruption else ""
    return f"{row.dataset}{under}"


def _table(rows: list[Row]) -> str:
    lines = ["| measure | on | value | 95 % interval | images |", "|---|---|---|---|---|"]
    for row in rows:
        metric = METRICS[row.metric]
        places, unit = (1, " %") if metric.percent else (4, "")
        title = f"{metric.title} ({row.score.replace('_', ' ')})" if row.score else metric.title
        value, low, high = (f"{each:.{places}f}" for each in (row.value, row.low, row.high))
        lines.append(f"| {title} | {_place(row)} | {value}{unit} | {low} to {high} | {row.n:,} |")
    lines.append("\nIntervals: bootstrap over images. One training; another seed gives other figures.")
    return "\n".join(lines)


def _making(run: Run, config: ModelConfig) -> str:
    version = f"anchored {metadata.version('anchored')}, torch {metadata.version('torch')}"
    if not run.cell_file.exists():
        return f"Converted from a plain network's weights by `anchored convert` ({version}); not trained since."
    cell = Cell.parse(read_json(run.cell_file), run.cell_file)
    settings = json.dumps(json.loads(canonical(cell)), indent=2, ensure_ascii=False)
    return f"Trained by `anchored train` ({version}) with these settings:\n```json\n{settings}\n```"


def _licences(config: ModelConfig) -> str:
    own = "The licence of these weights is for whoever shares them to choose, and to write here."
    return "\n".join([own, *_data_licence(config)])


def _data_licence(config: ModelConfig) -> Iterator[str]:
    if config.trained_on and not catalog.is_own(config.trained_on):
        row = catalog.get(config.trained_on)
        yield f"Training data, {row.title}: {row.licence} ({row.citation})."
