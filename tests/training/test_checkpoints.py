"""Training that is broken off at any step ends on the same weights; what goes wrong is one line, and loses nothing."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from fixtures.small_trainings import EVERYTHING, cell, same_weights

import anchored
from anchored.config.recipe import Cell
from anchored.config.settings import Tail
from anchored.errors import UserError, is_out_of_memory
from anchored.method.hard_delta import Residuals
from anchored.store import files
from anchored.store.layout import Run
from anchored.training import fit as train
from anchored.training.optimiser import averaging_callbacks

STEPS = 4  # of an epoch


class Break(pl.Callback):
    """Breaks off before a step, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def broken_off(run: Run, settings: Cell, step: int) -> None:
    keeper = train.CheckpointCallback(run, lambda share, what: None, settings.train.checkpoint_minutes)
    with pytest.raises(KeyboardInterrupt):
        train.train(run, settings, callbacks=[*averaging_callbacks(settings.train), keeper, Break(step)])


def log(run: Run) -> list[dict[str, str]]:
    """The training's log without its times."""
    with run.log_file.open() as lines:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(lines)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("whole"))
    train.train(run, cell())
    return run


@pytest.mark.parametrize("steps", [[1], [2, 5, 6, 7, 11], [3, 4, 8, 9], [10]], ids=str)
def test_broken_off_at_any_step(whole: Run, tmp_path: Path, steps: list[int]) -> None:
    run = Run(tmp_path / "run")
    for step in steps:
        broken_off(run, cell(), step)
    train.train(run, cell())
    assert same_weights(run, whole)
    assert log(run) == log(whole)


def test_how_often_the_state_is_kept_changes_nothing(whole: Run, tmp_path: Path) -> None:
    run, rarely = Run(tmp_path / "run"), cell(replace(EVERYTHING, checkpoint_minutes=10.0))
    broken_off(run, rarely, 6)
    assert files.load_tree(run.checkpoint_file)["global_step"] == STEPS  # the end of the first epoch
    train.train(run, rarely)
    assert same_weights(run, whole)


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_without_anchoring_and_from_memory(precision: Any, tmp_path: Path) -> None:
    plain = replace(EVERYTHING, crop="padded", policy="none", average=0.0, mixup=0.0, precision=precision)
    settings = cell(plain, protocol="standard", mask_probability=0.0, tail_weight=0.0)
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    train.train(one, settings)
    for step in (2, 7):
        broken_off(other, settings, step)
    train.train(other, settings)
    assert same_weights(one, other)


def test_a_low_rank_fit_of_residuals_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Residuals.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "full_up_to", 1)
    one, other, settings = Run(tmp_path / "one"), Run(tmp_path / "other"), cell(tail=Tail(points=4, warmup=0.3, rank=8))
    train.train(one, settings)
    broken_off(other, settings, 6)
    fit = files.load_tree(other.checkpoint_file)["within"]["fit"]
    assert fit.keys() == {"means", "shares", "directions", "diagonal"}
    train.train(other, settings)
    assert same_weights(one, other)


class Poison(pl.Callback):
    """Makes a weight NaN before the seventh step."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 6:
            with torch.no_grad():
                next(module.parameters()).fill_(float("nan"))


def test_divergence_names_its_step_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    keeper = train.CheckpointCallback(run, lambda share, what: None, 0)
    with pytest.raises(UserError, match=r"the loss became nan in epoch 2, step 3: lower train\.learning_rate") as said:
        train.train(run, cell(replace(EVERYTHING, average=0.0)), callbacks=[keeper, Poison()])
    assert f"--network.checkpoint {run.last_good.path} --anchoring.stem kept" in str(said.value)
    assert not run.weights_file.exists()
    kept = files.load_tree(run.checkpoint_file)
    assert kept["global_step"] == 6
    weights, _ = files.load_tensors(run.last_good.weights_file)
    assert torch.equal(weights["network.head.weight"], kept["state_dict"]["model.network.head.weight"])


def test_the_last_good_weights_start_another_training(tmp_path: Path) -> None:
    run, again = Run(tmp_path / "run"), Run(tmp_path / "again")
    settings = cell(replace(EVERYTHING, average=0.0), network="small", tail_weight=0.0)
    with pytest.raises(UserError, match="the last good weights are kept"):
        train.train(run, settings, callbacks=[train.CheckpointCallback(run, lambda share, what: None, 0), Poison()])
    start = replace(settings.start, checkpoint=str(run.last_good.path))
    slower = replace(settings.train, learning_rate=0.01, epochs=1)
    train.train(again, replace(settings, start=start, train=slower, anchoring=replace(settings.anchoring, stem="kept")))
    assert anchored.load(again.path).classes


def test_divergence_before_any_state_was_kept(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    hot = replace(EVERYTHING, learning_rate=1e30, warmup=0.0, checkpoint_minutes=10.0, average=0.0)
    with pytest.raises(UserError, match=r"in epoch 1, step \d: .*, and train into another folder$"):
        train.train(run, cell(hot, network="small", tail_weight=0.0))
    assert not run.checkpoint_file.exists()


class Hungry(pl.Callback):
    """Asks for more memory than there is."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        torch.empty(1 << 58, dtype=torch.uint8)


def test_memory_that_runs_out_in_training_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"memory ran out: lower train\.batch_size \(now 32\)"):
        train.train(Run(tmp_path / "run"), cell(), callbacks=[Hungry()])


def test_what_memory_that_ran_out_looks_like() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 58, dtype=torch.uint8)
    for error in (raised.value, MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda tree: tree["state_dict"].pop("model.network.head.bias"),
        lambda tree: tree["state_dict"].update({"model.network.head.bias": torch.zeros(3)}),
        lambda tree: tree.pop("optimizer_states"),
        lambda tree: tree["within"]["each"].pop("masks"),
        lambda tree: tree["within"]["each"].update(mixing=torch.zeros(1, 512, dtype=torch.uint8)),
        lambda tree: tree.update(loops=3),
    ],
)
def test_a_checkpoint_of_something_else_is_one_line(tmp_path: Path, damage: Any) -> None:
    run = Run(tmp_path / "run")
    broken_off(run, cell(), 2)
    tree = files.load_tree(run.checkpoint_file)
    damage(tree)
    files.save_tree(run.checkpoint_file, tree)
    with pytest.raises(UserError, match="is not a checkpoint of this training: train into another folder"):
        train.train(run, cell())


def test_an_average_takes_the_weights_place_though_no_step_was_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the last checkpoint, before the model was saved."""
    made = cell(tail_weight=0.0)
    assert made.train.average
    whole, run = Run(tmp_path / "whole"), Run(tmp_path / "run")
    train.train(whole, made)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_save_model", killed)
        with pytest.raises(KeyboardInterrupt):
            train.train(run, made)
    assert files.load_tree(run.checkpoint_file)["epoch"] == made.train.epochs - 1
    train.train(run, made)
    assert same_weights(run, whole)
