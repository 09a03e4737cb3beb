"""Training: reproducible, resumable to the same weights, protocols comparable, refusals in one line."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn import functional

import anchored
from anchored.config.recipe import Cell, canonical
from anchored.config.settings import Anchoring, Data, Protocol, Tail, Training
from anchored.data import datasets
from anchored.data.batches import Batches
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder
from anchored.models import registry as networks
from anchored.models.initialisation import model_config
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.checkpoints import TensorCheckpoints
from anchored.training.fit import CheckpointCallback, train
from anchored.training.optimiser import averaging_callbacks

TINY = Training(epochs=3, batch_size=32, learning_rate=0.05, schedule="one_cycle", crop_padding=2, accelerator="cpu")


def cell(protocol: Protocol = "ram", **changes: Any) -> Cell:
    anchoring = Anchoring(references=2)
    alpha, images = 0.4 if protocol == "ram" else 0.0, Data("fashion-mini-known", 0.02)
    made = Cell("small", protocol, alpha, 0.0, 0, images, anchoring, Tail(), TINY)
    return replace(made, **changes)


def weights(run: Run) -> dict[str, Tensor]:
    return files.load_tensors(run.weights_file)[0]


class Stop(pl.Callback):
    """Breaks off in the middle of the second epoch, as a kill would."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_step % 4 == 2:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("runs") / "ram")
    train(run, cell())
    return run


def test_same_seed_same_weights_and_another_seed_others(trained: Run, tmp_path: Path) -> None:
    again, other = Run(tmp_path / "again"), Run(tmp_path / "other")
    train(again, cell())
    train(other, cell(seed=1))
    expected = weights(trained)
    assert all(torch.equal(value, expected[name]) for name, value in weights(again).items())
    assert not torch.equal(weights(other)["network.head.weight"], expected["network.head.weight"])


@pytest.mark.parametrize(("tail_weight", "tail"), [(0.0, Tail()), (0.5, Tail()), (0.5, Tail(batch_norm="own"))])
def test_interrupted_training_ends_on_the_same_weights(
    trained: Run, tmp_path: Path, tail_weight: float, tail: Tail
) -> None:
    run, whole = Run(tmp_path / "run"), trained
    settings = cell(tail_weight=tail_weight, tail=tail)
    if tail_weight:  # the residuals' moments are part of the state
        whole = Run(tmp_path / "whole")
        train(whole, settings)
        assert not torch.equal(weights(whole)["network.head.weight"], weights(trained)["network.head.weight"])
    callbacks = [CheckpointCallback(run, lambda share, what: None), Stop()]
    with pytest.raises(RuntimeError, match="killed"):
        train(run, settings, callbacks=callbacks, plugins=[TensorCheckpoints()])
    assert run.checkpoint_file.exists()
    assert not run.weights_file.exists()
    train(run, settings)
    expected = weights(whole)
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
    assert not run.checkpoint_file.exists()
    with run.log_file.open() as lines:
        assert [row["epoch"] for row in csv.DictReader(lines)] == ["1", "2", "3"]


class StopLate(pl.Callback):
    """Breaks off before the last but one step."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == trainer.num_training_batches - 2:
            raise RuntimeError("killed")


def test_hard_delta_mining_within_a_single_epoch(tmp_path: Path) -> None:
    once = replace(TINY, epochs=1, batch_size=16, checkpoint_minutes=0.0)
    runs = {name: Run(tmp_path / name) for name in ("without", "with", "killed")}
    settings = cell(tail_weight=0.5, train=once)
    train(runs["without"], cell(train=once))
    train(runs["with"], settings)
    callbacks = [CheckpointCallback(runs["killed"], lambda share, what: None, minutes=0.0), StopLate()]
    with pytest.raises(RuntimeError, match="killed"):
        train(runs["killed"], settings, callbacks=callbacks, plugins=[TensorCheckpoints()])
    train(runs["killed"], settings)
    found = {name: weights(run)["network.head.weight"] for name, run in runs.items()}
    assert torch.equal(found["killed"], found["with"])
    assert not torch.equal(found["without"], found["with"])


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    run, other = Run(tmp_path / "run"), Run(tmp_path / "other")
    with pytest.raises(RuntimeError, match="killed"):
        train(
            other,
            cell(seed=1),
            callbacks=[CheckpointCallback(other, lambda share, what: None), Stop()],
            plugins=[TensorCheckpoints()],
        )
    run.path.mkdir()
    files.write_json(run.cell_file, json.loads(canonical(cell())))
    run.checkpoint_file.write_bytes(other.checkpoint_file.read_bytes())
    with pytest.raises(UserError, match="the checkpoint is another training's"):
        train(run, cell())
    run.checkpoint_file.write_bytes(other.checkpoint_file.read_bytes()[:300])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        train(run, cell())


def test_training_learns(trained: Run) -> None:
    with trained.log_file.open() as lines:
        losses = [float(row["loss"]) for row in csv.DictReader(lines)]
    assert losses[-1] < losses[0]


def test_protocols_share_everything_but_the_stem() -> None:
    standard, anchored_model = (folder.build_model(model_config(cell(p)), seed=5) for p in ("standard", "anchored"))
    assert isinstance(anchored_model, AnchoredModel)
    wide = anchored_model.network.state_dict()
    same = [n for n, v in standard.state_dict().items() if n != "stem.weight" and torch.equal(v, wide[n])]
    assert len(same) == len(wide) - 1


def test_references_are_training_images_kept_with_the_model(trained: Run) -> None:
    loaded = anchored.load(trained.path)
    assert isinstance(loaded, AnchoredModel)
    assert loaded.references is not None
    config = folder.read_config(trained)
    images = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.02)
    inputs = to_input(images.images, config.mean, config.std)
    assert len(loaded.references) == 2
    for reference in loaded.references:
        assert (inputs == reference).flatten(1).all(dim=1).any()


def test_a_finished_training_is_kept(trained: Run) -> None:
    before = trained.weights_file.stat().st_mtime_ns
    train(trained, cell())
    assert trained.weights_file.stat().st_mtime_ns == before


def test_another_cell_is_refused(trained: Run) -> None:
    with pytest.raises(UserError, match=r"holds another training \(seed: 0 there, 3 here\)"):
        train(trained, cell(seed=3))


def test_diverging_loss_is_one_line_and_keeps_no_weights(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    with pytest.raises(UserError, match=r"the loss became nan in epoch 1, step 2: lower train.learning_rate"):
        train(run, cell("standard", train=replace(TINY, learning_rate=1e30)))
    assert not run.weights_file.exists()


def test_too_few_images_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fewer than train\.batch_size 999"):
        train(Run(tmp_path / "run"), cell(train=replace(TINY, batch_size=999)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: run.weights_file.write_bytes(run.weights_file.read_bytes()[:500]), "not a whole safetensors file"),
        (lambda run: run.model_file.write_text("{}"), "does not describe a model"),
        (lambda run: run.model_file.write_text(run.model_file.read_text().replace("T-shirt", '","')), "does not fit"),
        (
            lambda run: run.model_file.write_text(
                run.model_file.read_text().replace('"references": 2', '"references": 3')
            ),
            "holds references",
        ),
        (lambda run: run.model_file.unlink(), "is not a trained run"),
        (lambda run: run.weights_file.unlink(), "training is not complete"),
    ],
)
def test_damaged_runs_are_one_line(trained: Run, tmp_path: Path, change: Any, said: str) -> None:
    run = Run(tmp_path / "copy")
    run.path.mkdir()
    for file in (trained.model_file, trained.weights_file):
        (run.path / file.name).write_bytes(file.read_bytes())
    change(run)
    with pytest.raises(UserError, match=said) as raised:
        anchored.load(run.path)
    assert "\n" not in str(raised.value)


class OwnModule(pl.LightningModule):
    """Somebody's own Lightning module around an anchored network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.losses: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss = functional.cross_entropy(self.network(batch[0]), batch[1])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_in_somebody_elses_lightning_module() -> None:
    images = datasets.take_fraction(datasets.load_split("fashion-mini-known", "train"), 0.02)
    batches = Batches(images, 35, (0.3,), (0.3,), shuffle=True)
    network = networks.build_network("small", channels=1, classes=7, seed=0)
    module = OwnModule(anchored.anchor(network, 0.25))
    pl.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, batches)
    assert sum(module.losses[-4:]) < sum(module.losses[:4])


def test_average_of_weights_is_kept_and_resumes(tmp_path: Path) -> None:
    averaged = cell(train=replace(TINY, epochs=2, schedule="cosine", warmup=0.25, average=0.5))
    whole, killed = Run(tmp_path / "whole"), Run(tmp_path / "killed")
    states: list[dict[str, Tensor]] = []

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            assert isinstance(module.model, nn.Module)
            states.append({name: value.clone() for name, value in module.model.state_dict().items()})

    train(
        whole,
        averaged,
        callbacks=[*averaging_callbacks(averaged.train), CheckpointCallback(whole, lambda *_: None), Watch()],
    )
    expected = states[1]  # 8 steps, of which 2 are warm-up: the average begins at the second state
    for state in states[2:]:
        expected = {name: 0.5 * value + 0.5 * state[name] for name, value in expected.items()}
    for name, value in weights(whole).items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], msg=name)
    with pytest.raises(RuntimeError, match="killed"):
        train(
            killed,
            averaged,
            callbacks=[*averaging_callbacks(averaged.train), CheckpointCallback(killed, lambda *_: None), Stop()],
        )
    train(killed, averaged)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(killed).items())


def test_a_compiled_network_trains_on_as_a_step_and_is_saved_as_any_other(tmp_path: Path) -> None:
    """The compiler itself takes minutes: torch is told to run what it is given to compile as it is."""
    compiled = []

    class Watch(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            assert isinstance(module.model, AnchoredModel)
            compiled.append(module.model.network._compiled_call_impl is not None)

    for name in ("none", "reduce-overhead"):
        settings = replace(TINY, epochs=2, compile=name, channels_last=False, average=0.5)
        with torch.compiler.set_stance("force_eager"):
            train(Run(tmp_path / name), cell(train=settings, tail_weight=0.5), callbacks=[Watch()])
    assert compiled == [False, True]
    first, second = (weights(Run(tmp_path / name)) for name in ("none", "reduce-overhead"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert first.keys() == second.keys()


def test_settings_that_came_later_leave_what_earlier_results_are_bound_to() -> None:
    assert not {"compile", "channels_last"} & set(json.loads(canonical(cell()))["train"])
    assert json.loads(canonical(cell(train=replace(TINY, compile="default"))))["train"]["compile"] == "default"
