"""A study that measures over many references: its rows against the model itself, and what stays as it was."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

import anchored
from anchored.config.recipe import Cell, Recipe
from anchored.config.settings import Anchoring, Data, Evaluation, Grid, References, Training
from anchored.data import datasets
from anchored.errors import UserError
from anchored.evaluation.over_references import WAYS, ReferencesEvaluator, references_evaluator
from anchored.evaluation.reference_suites import ESTIMATES
from anchored.method.anchoring import AnchoredModel, pair
from anchored.metrics.agreement import mean_spread, pair_agreement
from anchored.metrics.detection import auroc
from anchored.metrics.linear_probe import STRENGTHS, linear_probe
from anchored.store import files
from anchored.store.layout import Run, StudyFolder
from anchored.store.rows import Row, read_rows
from anchored.study import cost
from anchored.study.study import study

PICTURES = True
RECIPE = Recipe(
    name="tiny",
    data=Data("fashion-mini-known", 0.05, validation=0.2),
    grid=Grid(networks=("small",), protocols=("standard", "ram"), seeds=(0,)),
    anchoring=Anchoring(reference_choice="class_balanced", stem="fresh"),
    train=Training(epochs=2, batch_size=32, learning_rate=0.05, schedule="one_cycle", accelerator="cpu"),
    evaluate=Evaluation(
        ood=("digits",),
        corruptions=("contrast", "checkerboard_cutout"),
        severities=(1, 3),
        adaptation=("digits",),
        bootstrap=100,
    ),
    references=References(count=6, most=4, draws=3, images=12, severities=(3,)),
)
DATA = RECIPE.data
TITLE = "Fashion-MNIST (mini), known classes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    path = tmp_path_factory.mktemp("study")
    study(replace(RECIPE, references=References()), path, Console(quiet=True))
    return StudyFolder(path)


@pytest.fixture(scope="module")
def before(folder: StudyFolder) -> bytes:
    return folder.results_file.read_bytes()


@pytest.fixture(scope="module")
def rows(folder: StudyFolder, before: bytes) -> list[Row]:
    assert not folder.references_file.exists()
    study(RECIPE, folder.path, Console(quiet=True))  # the networks are trained already
    return read_rows(folder.references_file)


def value(rows: list[Row], metric: str, score: str, dataset: str = TITLE, corruption: str = "") -> float:
    (found,) = [
        row.value
        for row in rows
        if (row.metric, row.score, row.dataset, row.corruption) == (metric, score, dataset, corruption)
        and row.protocol == "ram"
        and row.severity is None
    ]
    return found


def evaluator(folder: StudyFolder, name: str = "small-ram-0.25-seed0") -> ReferencesEvaluator:
    run = folder.run(name)
    return references_evaluator(run, Cell.parse(files.read_json(run.cell_file), run.cell_file), RECIPE)


def model_and_references(folder: StudyFolder) -> tuple[AnchoredModel, torch.Tensor]:
    made = evaluator(folder)
    model = anchored.load(made.run.path)
    references = made.classifier.function.references  # type: ignore[attr-defined]
    assert isinstance(model, AnchoredModel)
    return model, references


def test_measuring_over_references_changes_no_other_result(folder: StudyFolder, before: bytes, rows: list[Row]) -> None:
    assert rows
    assert folder.results_file.read_bytes() == before
    times = folder.references_file.stat().st_mtime_ns, folder.run("small-ram-0.25-seed0").references.rows_file.stat()
    study(RECIPE, folder.path, Console(quiet=True))  # nothing is measured again
    assert folder.run("small-ram-0.25-seed0").references.rows_file.stat().st_mtime_ns == times[1].st_mtime_ns


def test_its_own_reference_comes_first_and_gives_the_studys_own_figures(folder: StudyFolder, rows: list[Row]) -> None:
    model, references = model_and_references(folder)
    assert model.references is not None
    assert torch.equal(references[:1], model.references)
    assert len(references) == 6
    measured = [row for row in read_rows(folder.results_file) if row.protocol == "ram" and row.dataset == TITLE]
    for metric in ("accuracy", "smooth_ece"):
        (own,) = [row.value for row in measured if row.metric == metric]
        assert value(rows, metric, "single") == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_what_infer_gives(folder: StudyFolder, rows: list[Row], way: str) -> None:
    model, references = model_and_references(folder)
    images = datasets.open_set(DATA.train, "test", DATA, datasets.input_format(DATA), minimum=10)
    inputs = model.preprocess(images.images)  # type: ignore[operator, union-attr]
    kind = way.removesuffix("_imagenet").removesuffix("_features")
    options = {"form": "imagenet"} if way.endswith("imagenet") else {}
    if way.endswith("features"):
        options = {"features": lambda pairs: penultimate(model, pairs)}  # type: ignore[dict-item]
    answer = anchored.infer(model, inputs, kind, references=references[:4], **options)  # type: ignore[arg-type]
    found = answer.logits.argmax(dim=1) == images.labels
    assert value(rows, "accuracy", way) == pytest.approx(100 * found.double().mean().item(), abs=1e-6)
    assert value(rows, "passes", way) == pytest.approx(answer.used.double().mean().item())


def penultimate(model: AnchoredModel, pairs: torch.Tensor) -> torch.Tensor:
    from anchored.models.features import penultimate_features

    with penultimate_features(model.network) as seen:
        model.network(pairs)
    return seen[0]


def test_some_images_are_corrupted_as_they_are_among_all(folder: StudyFolder, rows: list[Row]) -> None:
    made = evaluator(folder)
    seen = made.seen(made.corrupted("contrast", 3))
    whole, _ = files.load_tensors(made.run.outputs_file("corruption-contrast-3"))
    places = torch.linspace(0, len(whole["labels"]) - 1, 12, dtype=torch.float64).long()
    assert seen.logits.shape[:2] == (6, 12)
    assert torch.equal(seen.labels, whole["labels"][places])
    torch.testing.assert_close(seen.logits[0], whole["logits"][places], rtol=1e-3, atol=1e-4)


def test_scores_over_references_and_accuracy_without_labels(folder: StudyFolder, rows: list[Row]) -> None:
    made = evaluator(folder)
    clean, digits = made.seen(made.clean()), made.seen(made.outside("digits"))
    expected = 100 * auroc(mean_spread(clean.first(4)), mean_spread(digits.first(4)))
    assert value(rows, "auroc", "spread", "MNIST digits") == pytest.approx(expected)
    assert value(rows, "estimated_accuracy", "agreement") == pytest.approx(
        100 * pair_agreement(clean.logits).mean().item()
    )
    shown = {row.score for row in rows if row.metric == "estimated_accuracy" and row.protocol == "ram"}
    assert shown == set(ESTIMATES)
    own = [row for row in rows if (row.protocol, row.corruption) == ("ram", "contrast")]
    (true,) = [row.value for row in own if (row.metric, row.score) == ("accuracy", "all")]
    for name in ESTIMATES:
        (guess,) = [row.value for row in own if (row.metric, row.score) == ("estimated_accuracy", name)]
        error = value(rows, "accuracy_error", name, f"{TITLE}-C", "mean")
        assert error == pytest.approx(abs(guess - true))


def test_c_and_c_bar_are_two_sets(folder: StudyFolder, rows: list[Row]) -> None:
    made = evaluator(folder)
    for dataset, corruption in ((f"{TITLE}-C", "contrast"), (f"{TITLE}-C̄", "checkerboard_cutout")):
        seen = made.seen(made.corrupted(corruption, 3))
        own, mean = ((each.argmax(dim=-1) == seen.labels).double() for each in (seen.logits[0], seen.logits.mean(0)))
        assert value(rows, "accuracy", "single", dataset, "mean") == pytest.approx(100 * own.mean().item())
        assert {row.corruption for row in rows if row.dataset == dataset} == {corruption, "mean"}
        assert value(rows, "accuracy", "draw-1-0", dataset, "mean") == pytest.approx(100 * own.mean().item())
        (all_of_them,) = [
            row.value
            for row in rows
            if (row.protocol, row.dataset, row.corruption, row.score) == ("ram", dataset, corruption, "all")
        ]
        assert all_of_them == pytest.approx(100 * mean.mean().item())
    header = (folder.tables / "references_ways.md").read_text()
    assert "Corruption accuracy (C), %" in header
    assert "Corruption accuracy (C̄), %" in header
    assert "Mean error under corruption (C̄), points" in (folder.tables / "references_label_free.md").read_text()


def test_the_training_set_can_be_a_task(folder: StudyFolder, rows: list[Row], tmp_path: Path) -> None:
    run = folder.run("small-ram-0.25-seed0")
    copy = Run(shutil.copytree(run.path, tmp_path / run.path.name, ignore=shutil.ignore_patterns("references")))
    recipe = replace(RECIPE, evaluate=replace(RECIPE.evaluate, adaptation=(DATA.train,)))
    made = references_evaluator(copy, Cell.parse(files.read_json(run.cell_file), run.cell_file), recipe)
    made.save_outputs()
    seen, (features, labels) = made.seen(made.clean()), made.features(DATA.train, "test")
    assert seen.logits.shape == (6, len(labels), 7)
    assert torch.equal(seen.labels, labels)
    assert features.shape[:2] == (6, len(labels))
    assert features.shape[2] > 7


def test_draws_of_one_reference_are_each_in_turn(folder: StudyFolder, rows: list[Row]) -> None:
    made = evaluator(folder)
    clean = made.seen(made.clean())
    for i in range(3):
        right = (clean.logits[i].argmax(dim=1) == clean.labels).double().mean().item()
        assert value(rows, "accuracy", f"draw-1-{i}") == pytest.approx(100 * right)
    sizes = {row.score.split("-")[1] for row in rows if row.score.startswith("draw-")}
    assert sizes == {"1", "2", "5"}


def test_draws_of_one_reference_adapt_by_features_under_it(folder: StudyFolder, rows: list[Row]) -> None:
    model, references = model_and_references(folder)
    features: dict[tuple[str, int], torch.Tensor] = {}
    labels: dict[str, torch.Tensor] = {}
    for split in ("train", "test"):
        images = datasets.open_set("digits", split, DATA, datasets.input_format(DATA), minimum=10)
        inputs, labels[split] = model.preprocess(images.images), images.labels  # type: ignore[operator, union-attr]
        for i in range(2):
            with torch.no_grad():
                features[split, i] = penultimate(model, pair(inputs, references[i : i + 1]))
    strengths: tuple[float, ...] = STRENGTHS
    for i in range(2):
        draws = evaluator(folder).generator("probe", "digits")
        train, test = features["train", i], features["test", i]
        probe = linear_probe(train, labels["train"], test, 10, draws, strengths)
        strengths = (probe.strength,)  # chosen once
        right = 100 * (probe.logits.argmax(dim=1) == labels["test"]).double().mean().item()
        found = value(rows, "linear_probe_accuracy", f"draw-1-{i}", "mean")
        assert found == pytest.approx(right, abs=100.1 / len(labels["test"]))  # folded features differ in rounding


@pytest.mark.parametrize("protocol", ["standard", "ram-0.25"])
def test_doctor_counts_these_passes(folder: StudyFolder, rows: list[Row], protocol: str) -> None:
    made = evaluator(folder, f"small-{protocol}-seed0")
    passes = made.count * sum(len(made.outputs(images).labels) for images in made.sets())
    kept = [files.load_tensors(file)[0] for file in made.folder.outputs_file("test").parent.glob("*.safetensors")]
    size = sum(tensor.nbytes for tensors in kept for tensor in tensors.values())
    counted, weighed = cost._over_references(RECIPE, protocol.partition("-")[0], width=64)
    assert counted == pytest.approx(passes, rel=0.02)
    assert weighed == pytest.approx(size, rel=0.02)


def test_a_standard_network_has_one_pass(rows: list[Row]) -> None:
    own = [row for row in rows if row.protocol == "standard"]
    assert {row.score for row in own if row.metric == "passes"} == {"single"}
    assert {row.score for row in own if row.metric == "estimated_accuracy"} == {"confidence", "confidence_threshold"}


def test_the_report_shows_references(folder: StudyFolder, rows: list[Row]) -> None:
    page = folder.report_file.read_text()
    for part in ("references-images", "references-sensitivity", "references-label_free", "class balanced, K = 1"):
        assert part in page
    ways = (folder.tables / "references_ways.md").read_text()
    assert "nearest, feature space" in ways
    assert "adaptive" in ways
    assert "Adaptation accuracy" in (folder.tables / "references_sensitivity.tex").read_text()
    assert (folder.tables / "references_frontier.md").exists()


def test_what_cannot_be_measured_is_refused() -> None:
    for section, words in (
        ({"count": 1}, r"references\.count is 1"),
        ({"count": 5}, r"references\.most is 10"),
        ({"count": 5, "most": 1}, r"references\.most is 1, of references\.count 5: give 2 to as many"),
        ({"count": 20, "images": 3}, r"references\.images is 3"),
    ):
        with pytest.raises(UserError, match=words):
            Recipe.parse({"references": section})
