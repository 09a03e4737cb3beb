"""What a training begins with: checkpoints, converted and trained folders, frozen parts, refusals in one line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anchored
from anchored.config.recipe import Cell, canonical
from anchored.config.settings import Anchoring, Data, Network, Protocol, Tail, Training
from anchored.data import datasets
from anchored.data.catalog import registry as catalog
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import initialisation
from anchored.models import registry as networks
from anchored.models.convert import convert
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.fit import train

TINY = Training(epochs=1, batch_size=32, learning_rate=0.05, crop_padding=2, accelerator="cpu")


def cell(protocol: Protocol = "ram", checkpoint: str | Path = "", **changes: Any) -> Cell:
    made = Cell(
        network="small",
        protocol=protocol,
        mask_probability=0.4 if protocol == "ram" else 0.0,
        tail_weight=0.0,
        seed=0,
        data=Data("fashion-mini-known", 0.02),
        anchoring=Anchoring(stem="kept"),
        tail=Tail(),
        train=TINY,
        start=Network(checkpoint=str(checkpoint)),
    )
    return replace(made, **changes)


@pytest.fixture(scope="module")
def plain() -> nn.Module:
    """A network whose batch norms and weights are not those of any seed."""
    network = networks.build_network("small", channels=1, classes=7, seed=123)
    for index in range(3):
        network(torch.randn(8, 1, 28, 28, generator=torch.Generator().manual_seed(index)))
    return network.eval()


@pytest.fixture(scope="module")
def checkpoint(plain: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "plain.safetensors"
    files.save_tensors(path, dict(plain.state_dict()))
    return path


@pytest.fixture(scope="module")
def converted(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "converted"
    convert("small", folder, checkpoint=str(checkpoint), like="fashion-mini-known")
    return folder


@pytest.fixture(scope="module")
def trained(converted: Path) -> Path:
    run = Run(converted.parent / "trained")
    train(run, cell(checkpoint=converted))
    return run.path


@pytest.mark.parametrize("protocol", ["standard", "anchored", "ram"])
@pytest.mark.parametrize("kind", ["checkpoint", "converted"])
def test_every_protocol_starts_with_the_checkpoints_answers(
    protocol: Protocol, kind: str, plain: nn.Module, request: pytest.FixtureRequest
) -> None:
    chosen = cell(protocol, request.getfixturevalue(kind))
    model = initialisation.initial_model(chosen, initialisation.model_config(chosen)).eval()
    images, references = torch.randn(2, 3, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    if isinstance(model, AnchoredModel):
        model.set_references(references)
    with torch.no_grad():
        assert torch.allclose(model(images), plain(images), atol=1e-5)


def test_a_head_for_other_classes_starts_at_zero(plain: nn.Module, checkpoint: Path) -> None:
    chosen = cell("standard", checkpoint, data=Data("fashion-mini-novel"))
    begun = initialisation.initial_model(chosen, initialisation.model_config(chosen)).state_dict()
    assert begun["head.weight"].shape[0] == 3
    assert not begun["head.weight"].any()
    assert all(torch.equal(value, begun[name]) for name, value in plain.state_dict().items() if "head" not in name)


def test_training_anchored_goes_on_from_a_trained_folder(trained: Path) -> None:
    chosen = cell(checkpoint=trained)
    begun, before = initialisation.initial_model(chosen, initialisation.model_config(chosen)), anchored.load(trained)
    assert isinstance(begun, AnchoredModel)
    assert isinstance(before, AnchoredModel)
    for name, value in before.network.state_dict().items():
        assert torch.equal(begun.network.state_dict()[name], value)
    with pytest.raises(UserError, match="was trained anchored: a standard network cannot start from it"):
        initialisation.initial_model(cell("standard", trained), initialisation.model_config(chosen))


def test_the_checkpoints_normalisation_is_taken_unless_the_recipe_says_otherwise(checkpoint: Path) -> None:
    folder = checkpoint.parent / "half"
    convert("small", folder, checkpoint=str(checkpoint), like="fashion-mini-known", mean=(0.5,), std=(0.25,))
    assert initialisation.model_config(cell(checkpoint=folder)).mean == (0.5,)
    own = cell(checkpoint=folder, data=Data("fashion-mini-known", mean=(0.1,), std=(0.2,)))
    assert (initialisation.model_config(own).mean, initialisation.model_config(own).std) == ((0.1,), (0.2,))
    assert initialisation.model_config(cell()).mean == catalog.get_dataset("fashion-mini-known").mean


def test_input_shape_is_the_recipes(tmp_path: Path) -> None:
    chosen = cell(data=Data("fashion-mini-known", 0.02, size=20, channels=3))
    run = Run(tmp_path / "run")
    train(run, chosen)
    model = anchored.load(run.path)
    assert isinstance(model, AnchoredModel)
    assert model.references is not None
    assert model.references.shape == (1, 3, 20, 20)
    grey = cell(data=Data("cifar10", channels=1))
    with pytest.raises(UserError, match=r"cifar10 has 3 channels and data.channels is 1: give data.mean"):
        initialisation.model_config(grey)


def test_shards_are_bound_by_their_hash(tmp_path: Path) -> None:
    index, shard = tmp_path / "m.safetensors.index.json", tmp_path / "m-1.safetensors"
    files.write_json(index, {"weight_map": {"w": shard.name}})
    files.save_tensors(shard, {"w": torch.zeros(2)})
    network = initialisation.with_checkpoint_hash(Network(checkpoint=str(index)))
    files.save_tensors(shard, {"w": torch.ones(2)})
    with pytest.raises(UserError, match="the recipe says"):
        initialisation.with_checkpoint_hash(network)


def test_weights_are_bound_by_their_hash(checkpoint: Path, tmp_path: Path) -> None:
    network = initialisation.with_checkpoint_hash(Network(checkpoint=str(checkpoint)))
    assert len(network.sha256) == 64
    assert cell(start=network).digest() != cell(checkpoint=checkpoint).digest()
    other = tmp_path / "plain.safetensors"
    files.save_tensors(other, dict(networks.build_network("small", channels=1, classes=7, seed=5).state_dict()))
    changed = replace(network, checkpoint=str(other))
    with pytest.raises(UserError, match="the recipe says"):
        initialisation.with_checkpoint_hash(changed)
    chosen = cell(start=changed)
    with pytest.raises(UserError, match="holds other weights than the study began with"):
        initialisation.initial_model(chosen, initialisation.model_config(chosen))
    with pytest.raises(UserError, match="there is no such file"):
        initialisation.with_checkpoint_hash(Network(checkpoint="nowhere"))


def test_a_file_beside_a_model_is_taken_and_not_the_models_weights(converted: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    own = dict(networks.build_network("small", channels=1, classes=7, seed=5).state_dict())
    files.save_tensors(folder / "other.safetensors", own)
    chosen = cell("standard", folder / "other.safetensors")
    model = initialisation.initial_model(chosen, initialisation.model_config(chosen))
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("stem.weight"), "'stem.weight' is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "'extra' is not one of its weights"),
        (lambda w: w.update({"head.weight": torch.zeros(7, 3)}), "'head.weight' is 7×3, not 7×64"),
        (lambda w: w.update({"head.bias": w["head.bias"].int()}), "'head.bias' is int32, not float32"),
        (lambda w: w["head.bias"].fill_(float("nan")), "'head.bias' holds NaN or infinity"),
    ],
)
def test_unfit_checkpoints_are_one_line(checkpoint: Path, tmp_path: Path, change: Any, said: str) -> None:
    weights, _ = files.load_tensors(checkpoint)
    change(weights)
    path = tmp_path / "unfit.safetensors"
    files.save_tensors(path, weights)
    chosen = cell("standard", path)
    with pytest.raises(UserError, match=said) as raised:
        initialisation.initial_model(chosen, initialisation.model_config(chosen))
    assert "\n" not in str(raised.value)
    assert str(path) in str(raised.value)


def test_only_what_is_not_frozen_moves(converted: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    train(run, cell(checkpoint=converted, train=replace(TINY, rates={"": 0.0, "head": 1.0}, mixup=0.2, cutmix=1.0)))
    before, after = (files.load_tensors(Run(path).weights_file)[0] for path in (converted, run.path))
    moved = {name for name, value in after.items() if name != "references" and not torch.equal(value, before[name])}
    assert moved == {"network.head.weight", "network.head.bias"}  # batch norm's statistics neither


def test_adamw_with_warm_up_and_a_limit_learns(converted: Path, tmp_path: Path) -> None:
    settings = replace(
        TINY, epochs=2, optimizer="adamw", learning_rate=0.003, schedule="cosine", warmup=0.1, clip_norm=1.0,
        rates={"stem": 0.1},
    )  # fmt: skip
    run = Run(tmp_path / "run")
    train(run, cell(checkpoint=converted, train=settings))
    losses = [line.split(",") for line in run.log_file.read_text().splitlines()[1:]]
    assert float(losses[1][1]) < float(losses[0][1])


def test_a_cell_of_before_these_settings_is_still_known(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    chosen = cell(anchoring=Anchoring())
    old = json.loads(canonical(chosen))
    del old["start"], old["data"]["size"], old["train"]["rates"], old["train"]["optimizer"]
    files.write_json(run.cell_file, old)
    train(run, chosen)
    assert run.weights_file.exists()


def test_real_images_are_prepared_alike(checkpoint: Path) -> None:
    """Preprocessing of images that fit already is the one that training and evaluation use."""
    config = initialisation.model_config(cell())
    images = datasets.load_split("fashion-mini-known", "test").images[:4]
    assert torch.equal(config.preprocess(images), to_input(images, config.mean, config.std))
