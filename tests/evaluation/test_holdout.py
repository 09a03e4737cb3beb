"""Choosing α on held-out training images, from the command to the report; nothing of the test is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import anchored
from anchored.cli.main import main
from anchored.config import recipe_file
from anchored.config.recipe import Recipe
from anchored.config.settings import Data, Evaluation, Grid, Validation
from anchored.data import datasets
from anchored.data.image_sets import GivenInputs, LabelledImages
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.evaluation import holdout, suites
from anchored.evaluation.evaluator import evaluator_of
from anchored.evaluation.sets import NamedSets
from anchored.report import choice, reading
from anchored.store.layout import StudyFolder
from anchored.store.rows import Row, read_rows

PICTURES = False
TITLE = "Fashion-MNIST (mini), known classes"
TOY = [
    "study", "demo-alphas", "--scale", "0.03", "--grid.seeds", "[0, 1]", "--grid.alphas", "[0.25, 0.5]",
    "--train.accelerator", "cpu", "--evaluate.bootstrap", "100", "--evaluate.corruptions", "[contrast, pixelate]",
    "--evaluate.severities", "[1, 3]", "--evaluate.ood", "[blobs]", "--evaluate.adaptation", "[digits]",
    "--validate.corruptions", "[fog, gaussian_noise, jpeg_compression]", "--validate.tolerance", "100",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """First without a choice, then with it: only what it is made on is measured anew."""
    folder = StudyFolder(tmp_path_factory.mktemp("study") / "alphas")
    assert main([*TOY, "-o", str(folder.path)]) == 0
    assert not folder.validation_file.exists()
    before = {run.name: run.weights_file.read_bytes() for run in folder.runs()}
    changed = {run.name: run.rows_file.stat().st_mtime_ns for run in folder.runs()}
    assert main([*TOY, "--choose", "alpha", "-o", str(folder.path)]) == 0
    assert {run.name: run.weights_file.read_bytes() for run in folder.runs()} == before
    assert {run.name: run.rows_file.stat().st_mtime_ns for run in folder.runs()} == changed
    return folder


def recipe_of(folder: StudyFolder) -> Recipe:
    return Recipe.parse(reading.read_summary(folder).recipe)


def images_of(settings: Data) -> LabelledImages:
    images = NamedSets(settings, datasets.input_format(settings)).open("fashion-mini-known", "validation")
    assert not isinstance(images, GivenInputs)
    return images


def test_rows_of_held_out_images(study: StudyFolder) -> None:
    rows, tested = read_rows(study.validation_file), read_rows(study.results_file)
    assert {each.run for each in rows} == {each.run for each in tested}
    assert len({each.run for each in rows}) == 8
    held_out = len(images_of(recipe_of(study).data))
    assert {each.n for each in rows if each.dataset == TITLE} == {held_out}
    assert {each.corruption for each in rows} == {"", "fog", "gaussian_noise", "jpeg_compression", "mean"}
    assert {each.corruption for each in tested} == {"", "contrast", "pixelate", "mean"}
    outside = {each.dataset for each in rows if each.metric == "auroc"}
    assert {name for name in outside if not name.startswith("mean")} == {
        "Own images as jigsaws", "Own images inverted", "Own images with shuffled pixels",
        "Own images with new phases",
    }  # fmt: skip
    assert {each.dataset for each in tested if each.metric == "auroc"} == {"Blobs", "mean", "mean-synthetic"}


def test_rows_can_be_had_again_from_the_model(study: StudyFolder) -> None:
    chosen = recipe_of(study).data
    images = images_of(chosen)
    run = study.run("small-ram-0.5-seed1")
    model, config = anchored.load(run.path), datasets.training_row(chosen)
    pixels = next(images.parts([torch.arange(len(images))]))
    with torch.no_grad():
        logits = model(to_input(pixels, config.mean, config.std))
    accuracy = 100 * float((logits.argmax(1) == images.labels).double().mean())
    (found,) = [
        each
        for each in read_rows(study.validation_file)
        if (each.run, each.metric, each.dataset) == (run.name, "accuracy", TITLE)
    ]
    assert found.value == pytest.approx(accuracy)


def mean_error(rows: list[Row], alpha: float | None, protocol: str) -> float:
    """The geometric mean of the four errors, from the rows alone."""
    own = [each for each in rows if (each.alpha, each.protocol) == (alpha, protocol) and each.severity is None]

    def mean(metric: str, **where: Any) -> float:
        found = [r.value for r in own if r.metric == metric and all(getattr(r, k) == v for k, v in where.items())]
        assert len(found) == 2  # seeds
        return sum(found) / 2

    n = next(each.n for each in own if each.dataset == f"{TITLE}-C")
    errors = [1 - mean("accuracy", corruption="mean") / 100, mean("smooth_ece", corruption="mean")]
    errors += [1 - mean("linear_probe_accuracy", dataset="mean") / 100]
    errors += [1 - mean("auroc", dataset="mean", score="energy") / 100]
    product = 1.0
    for each in errors:
        product *= max(each, 1 / (2 * n))
    return float(product**0.25)


def test_the_pick_is_made_from_these_rows(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    rows = read_rows(study.validation_file)
    (found,) = choice.find_choices(reading.read_summary(study))
    candidates = {(None, "anchored"): 0.0, (0.25, "ram"): 0.25, (0.5, "ram"): 0.5}
    errors = {alpha: mean_error(rows, *key) for key, alpha in candidates.items()}
    assert found.picked is not None
    assert (found.picked.alpha or 0.0) == min(errors, key=errors.__getitem__)
    tested = read_rows(study.results_file)
    on_test = {alpha: mean_error(tested, *key) for key, alpha in candidates.items()}
    assert found.regret == pytest.approx(on_test[found.picked.alpha or 0.0] / min(on_test.values()) - 1)
    assert main(["report", str(study.path)]) == 0
    printed = capsys.readouterr().out
    assert "(picked)" in printed
    assert (
        (study.tables / "choice.md").read_text(encoding="utf-8").startswith(f"**Choosing α: {found.name(found.picked)}")
    )
    assert '<section id="choice">' in study.report_file.read_text(encoding="utf-8")


def test_no_test_image_is_looked_at(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe_of(study)
    cell = next(iter(chosen.cells()))
    run = study.run(cell.name)
    for file in run.validation.path.rglob("*.safetensors"):
        file.unlink()
    rows, seen, real = run.validation.rows_file.read_bytes(), set[tuple[str, str]](), datasets.open_set

    def watched(name: str, split: str, *rest: Any, **more: Any) -> LabelledImages:
        seen.add((name, split))
        return real(name, split, *rest, **more)

    monkeypatch.setattr(datasets, "open_set", watched)
    suites.measure(evaluator_of(run, cell, holdout.settings_of(chosen), split="validation"))
    assert seen == {("fashion-mini-known", "validation")}  # features of digits' training images were kept
    assert run.validation.rows_file.read_bytes() == rows


def test_a_second_run_does_nothing(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    before = study.validation_file.read_bytes()
    assert main([*TOY, "--choose", "alpha", "-o", str(study.path)]) == 0
    assert "8 of 8 trainings are done already" in capsys.readouterr().out
    assert study.validation_file.read_bytes() == before


DEMO = Recipe(
    data=Data("fashion-mini-known", 0.02, validation=0.1),
    grid=Grid(networks=("small",), alphas=(0.1, 0.5), tail_weights=(0.0, 1.0)),
    evaluate=Evaluation(ood=("fashion-mini-novel", "blobs"), corruptions=("c",), adaptation=("digits",)),
    choose="alpha",
)


def test_what_is_measured_by_default() -> None:
    found = holdout.settings_of(DEMO)
    assert len(found.corruptions) == 10
    assert "sparkles" in found.corruptions
    assert found.adaptation == ("digits",)
    assert found.ood == ("jigsaw", "inverted", "scrambled", "phase")
    bar = holdout.settings_of(with_(DEMO, evaluate=Evaluation(corruptions=("c-bar",))))
    assert not {"sparkles", "lines"} & set(bar.corruptions)
    assert "caustic_refraction" in bar.corruptions  # C̄ of large images: C̄ all the same
    assert (bar.ood, bar.adaptation) == ((), ())  # what the test leaves out cannot be judged
    every = recipe_file.read_recipe("imagenet")["evaluate"]["corruptions"]
    left = holdout.settings_of(with_(DEMO, evaluate=Evaluation(corruptions=tuple(every))))
    assert left.corruptions


def with_(base: Recipe, **changes: Any) -> Recipe:
    import dataclasses

    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"validate": Validation(corruptions=("sparkles", "fog"))}, "has fog, which evaluate.corruptions measures"),
        ({"validate": Validation(ood=("jigsaw", "blobs"))}, "blobs, which shares images with blobs of evaluate.ood"),
        ({"validate": Validation(ood=("fashion-mini",))}, "shares images with fashion-mini-novel of evaluate.ood"),
        ({"validate": Validation(ood=("fashion-mini-known",))}, "shares images with fashion-mini-known of data.train"),
        ({"validate": Validation(ood=("fashion-mnist",))}, "shares images with fashion-mini-novel of evaluate.ood"),
        ({"validate": Validation(ood=("jigsaws",))}, "validate.ood has 'jigsaws': name rows of the catalog"),
        ({"validate": Validation(adaptation=("textures",))}, "has no split 'train'"),
        (
            {
                "validate": Validation(corruptions=("sparkles", "fog")),
                "evaluate": Evaluation(corruptions=("contrast",)),
            },
            "has some of C and some of C̄",
        ),
    ],
)
def test_overlaps_are_refused_before_training(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        holdout.check_holdout(with_(DEMO, **changes).check())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": Data("fashion-mini-known")},
            "choose needs held-out training images: give, say, --data.validation 0.1",
        ),
        ({"grid": Grid(alphas=(0.5,), protocols=("standard", "ram"))}, "choose is alpha, but grid.alphas"),
        ({"grid": Grid(protocols=("standard", "anchored"))}, "leaves nothing to choose from"),
        ({"grid": Grid(), "choose": "lambda"}, "choose is lambda, but grid.tail_weights"),
    ],
)
def test_what_leaves_no_choice_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        with_(DEMO, **changes).check()


def test_a_tolerance_is_a_number_of_percentage_points() -> None:
    with pytest.raises(UserError, match=r"validate\.tolerance is -1.*percentage points"):
        Recipe.parse({"validate": {"tolerance": -1}})


def test_the_command_refuses_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["study", "demo", "--data.validation", "0.0", "--choose", "alpha", "-o", str(tmp_path / "none")]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "anchored: recipe 'demo': choose needs held-out training images: give, say, --data.validation 0.1\n"
    )
    assert main([*command, "--choose", "beta"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "none").exists()
