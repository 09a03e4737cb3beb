"""The model card: what a model folder holds, how it was trained and what was measured on it."""

import json
from importlib import metadata

from anchored.config.recipe import Cell, canonical
from anchored.config.settings import Evaluation
from anchored.data.catalog import registry as catalog
from anchored.metrics.registry import METRICS
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig, read_config
from anchored.store.files import read_json
from anchored.store.layout import Run
from anchored.store.rows import Row, read_rows

LIMITS = """\
For research on robust and calibrated classification, and as a start for other tasks. The figures hold for the sets
named above and for images prepared as described; on other data the model has to be measured again. A score of
rejection is not a guarantee that out-of-distribution images are noticed. The model knows its own classes only."""


def model_card(run: Run, source: str) -> str:
    """The text of ``README.md``, with the hub's front matter; ``source`` is the argument of :func:`anchored.load`.

    Results are the run's own rows; where there are none, or they were edited, the card says that it was not measured.
    """
    config = read_config(run)
    rows = _headline(run) if run.rows_are_intact() else []
    sections = [
        f"---\n{_front_matter(run, config, rows)}\n---",
        f"# {run.name}",
        _summary(config),
        f"## Use\n```python\nimport anchored\n\nmodel = anchored.load({json.dumps(source)})\n"
        "logits = model(model.preprocess(images))  # images: uint8 (B,C,H,W), any size\n```\n"
        "Or as a plain file, without anchored at run time: `anchored export FOLDER model.onnx`.",
        f"## Input\n{_input(config)}",
        "## Results\n" + (_table(rows) if rows else "Not measured yet: `anchored evaluate RUN` writes them."),
        f"## How it was made\n{_training(run, config)}",
        f"## Intended use and limits\n{LIMITS}",
        f"## Licences\n{_licences(config)}",
    ]
    return "\n\n".join(sections) + "\n"


def _headline(run: Run) -> list[Row]:
    """Rows on clean images, means over corruptions, OOD detection by the headline score, linear probes."""
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
            dataset_name=_measured_on(row),
            metric_type=row.metric,
            metric_name=METRICS[row.metric].title,
            metric_value=row.value,
        )
        for row in rows
    ]
    data = ModelCardData(
        library_name="anchored", pipeline_tag="image-classification",
        tags=["anchored", "anchored-training", config.protocol, "robustness", "calibration"],
        model_name=run.name if results else None, eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml()


def _summary(config: ModelConfig) -> str:
    training = {
        "standard": "trained without anchoring",
        "anchored": "anchored",
        "ram": f"anchored, with reference masking (α = {config.mask_probability:g})",
    }[config.protocol]
    classes = f", for {len(config.classes)} classes"
    classes += f" of {catalog.dataset_title(config.trained_on)}" if config.trained_on else ""
    training += f" at '{config.at}'" if config.at else ""
    count = f"{config.references} training image{'s' * (config.references != 1)}" if config.references else "none"
    references = "" if config.protocol == "standard" else f" References kept with the weights: {count}."
    return f"{networks.find_network(config.network).title}, {training}{classes}.{references}"


def _input(config: ModelConfig) -> str:
    mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (config.mean, config.std))
    crop = "" if config.crop == 1 else f", the middle {config.crop:.4g} of the shorter side"
    return (
        f"{config.channels}×{config.size}×{config.size} (channels, height, width); {config.interpolation} resizing, "
        f"antialiased{crop}; pixels divided by 255, minus the mean ({mean}), divided by the standard deviation "
        f"({std}). `model.preprocess` does all of this."
    )


def _measured_on(row: Row) -> str:
    severity = f", severity {row.severity}" if row.severity else ""
    corruption = f" ({row.corruption} over corruptions{severity})" if row.corruption else ""
    return f"{row.dataset}{corruption}"


def _table(rows: list[Row]) -> str:
    lines = ["| measure | on | value | 95 % interval | images |", "|---|---|---|---|---|"]
    for row in rows:
        metric = METRICS[row.metric]
        places, unit = (1, " %") if metric.percent else (4, "")
        title = f"{metric.title} ({row.score.replace('_', ' ')})" if row.score else metric.title
        value, low, high = (f"{number:.{places}f}" for number in (row.value, row.low, row.high))
        lines.append(f"| {title} | {_measured_on(row)} | {value}{unit} | {low} to {high} | {row.n:,} |")
    lines.append("\nIntervals: bootstrap over images. One training; another seed gives other figures.")
    return "\n".join(lines)


def _training(run: Run, config: ModelConfig) -> str:
    if not run.cell_file.exists():
        if config.protocol == "standard" or config.references:
            return "How it was trained is not recorded in this folder."
        here = f"anchored {metadata.version('anchored')}, torch {metadata.version('torch')}"
        return f"Converted from a plain network's weights by `anchored convert` ({here}); not trained since."
    cell = Cell.parse(read_json(run.cell_file), run.cell_file)
    settings = json.dumps(json.loads(canonical(cell)), indent=2, ensure_ascii=False)
    return f"Trained by `anchored train`{_versions(run)} with these settings:\n```json\n{settings}\n```"


def _versions(run: Run) -> str:
    """Those that trained it, one after another, as it recorded them; nothing where that record is not here."""
    parts = run.records().get("training", [])
    told = dict.fromkeys(f"anchored {each.get('anchored', '?')}, torch {each.get('torch', '?')}" for each in parts)
    return f" ({' then '.join(told)})" if told else ""


def _licences(config: ModelConfig) -> str:
    text = "The licence of these weights is for whoever shares them to choose, and to write here."
    if config.trained_on and not catalog.is_user_data(config.trained_on):
        row = catalog.get_dataset(config.trained_on)
        text += f"\nTraining data, {row.title}: {row.licence} ({row.citation})."
    return text
