"""Accelerators and precisions: refused before training where the machine lacks them, loaded again where it has them."""

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.small_trainings import cell
from torch._inductor import config as inductor

import anchored
from anchored.cli.main import main
from anchored.config.settings import Data, Training
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.method.anchoring import AnchoredModel
from anchored.models.folder import read_config
from anchored.store.layout import Run
from anchored.training import machine
from anchored.training.fit import train

PLAIN = Training(epochs=1, batch_size=32, crop_padding=2, accelerator="cpu")


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_what_is_trained_in_another_precision_can_be_loaded(precision: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(run, cell(replace(PLAIN, precision=precision), network="small", tail_weight=0.0))
    model = anchored.load(run.path)
    assert {t.dtype for t in model.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert model(torch.zeros(1, 1, 28, 28)).isfinite().all()
    row = read_config(run)
    images = datasets.load_split(row.trained_on, "train")
    seen = {bytes(each.numpy()) for each in to_input(images.images, row.mean, row.std)}
    assert isinstance(model, AnchoredModel)
    assert model.references is not None
    assert {bytes(each.numpy()) for each in model.references} <= seen  # the images, not roundings of them
    (log,) = csv.DictReader(run.log_file.read_text().splitlines())
    assert float(log["learning_rate"]) == pytest.approx(PLAIN.learning_rate * PLAIN.decay**2)  # of the last step of 4


def test_images_are_counted_in_single_precision(tmp_path: Path) -> None:
    run, settings = Run(tmp_path / "run"), replace(PLAIN, precision="bf16-true", batch_size=301)
    train(run, cell(settings, network="small", tail_weight=0.0, data=Data("fashion-mini-known", 0.05)))
    (log,) = csv.DictReader(run.log_file.read_text().splitlines())
    correct = float(log["accuracy"]) / 100 * settings.batch_size
    assert correct == pytest.approx(round(correct), abs=1e-3)  # bfloat16 has no 301


@pytest.mark.parametrize(
    ("settings", "cuda", "mps", "said"),
    [
        ({"accelerator": "gpu"}, False, False, "train.accelerator is gpu"),
        ({"accelerator": "cuda"}, False, True, "train.accelerator is cuda"),
        ({"accelerator": "mps"}, True, False, "train.accelerator is mps"),
        ({"accelerator": "gpu"}, True, False, ""),
        ({"accelerator": "gpu"}, False, True, ""),
        ({"precision": "16-mixed"}, False, False, "train.precision is 16-mixed, which needs a GPU"),
        ({"precision": "16-true", "accelerator": "cpu"}, True, False, "train.precision is 16-true"),
        ({"precision": "16-mixed"}, True, False, ""),
        ({"precision": "64-true"}, False, True, "which mps does not have"),
        ({"precision": "bf16-true"}, False, False, ""),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    settings: dict[str, Any], cuda: bool, mps: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    lack = machine.lacking(Training(**settings))
    assert said in lack
    assert bool(said) == bool(lack)


def test_what_compiling_needs_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with inductor.patch({"cpp.cxx": ("/nowhere/compiler",)}):
        assert "a C++ compiler" in machine.lacking(Training(compile="default", accelerator="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "train.compile is default, for which torch needs Triton" in machine.lacking(Training(compile="default"))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--train.accelerator", "gpu"], "train.accelerator is gpu"),
        (["--train.precision", "16-mixed"], "train.precision is 16-mixed"),
        (["--train.precision", "16"], "train.precision is '16'"),
        (["--train.accelerator", "tpu"], "train.accelerator is 'tpu'"),
    ],
)
def test_it_is_said_before_training(
    option: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for verb in (["study", "demo"], ["train", "demo", "--grid.protocols", "[standard]", "--grid.seeds", "[0]"]):
        assert main([*verb, "-o", str(tmp_path / "out"), *option]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_the_memory_that_is_left_is_known_or_without_end() -> None:
    assert machine.available_memory() > 1e6
