"""A model anchored at a hidden layer through its folder: trained, saved, loaded, converted, exported, measured."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

import anchored
from anchored.cli.main import main
from anchored.config.recipe import Cell
from anchored.config.settings import Anchoring, Data, Network, Tail, Training
from anchored.data import datasets
from anchored.errors import UserError
from anchored.evaluation.classifier import Classifier
from anchored.method.anchoring import AnchoredModel
from anchored.method.hidden import HiddenAnchoredModel
from anchored.models import initialisation
from anchored.models import registry as networks
from anchored.models.convert import convert
from anchored.models.export import export
from anchored.models.folder import read_config
from anchored.models.model_card import model_card
from anchored.store import files
from anchored.store.layout import Run
from anchored.training.fit import train

FROZEN = Training(
    epochs=1, batch_size=32, learning_rate=0.05, crop_padding=2, accelerator="cpu",
    rates={"": 0, "blocks.1": 1, "blocks.2": 1, "head": 1},
)  # fmt: skip


def cell(at: str = "blocks.1", checkpoint: Path | None = None, **changes: Any) -> Cell:
    start = Network() if checkpoint is None else Network(checkpoint=str(checkpoint))
    anchoring = Anchoring(stem="fresh" if checkpoint is None else "kept", references=2, at=at)
    made = Cell("small", "ram", 0.4, 0.0, 0, Data("fashion-mini-known", 0.02), anchoring, Tail(), FROZEN, start)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained with its front frozen."""
    made = Run(tmp_path_factory.mktemp("runs") / "hidden")
    train(made, cell())
    return made


def images(count: int = 5) -> Tensor:
    return datasets.load_split("fashion-mini-known", "test").images[:count]


def expected(run: Run, raw: Tensor) -> Tensor:
    loaded: Any = anchored.load(run.path)
    with torch.no_grad():
        logits: Tensor = loaded(loaded.preprocess(raw))
    return logits


def test_a_frozen_front_stays_and_the_rear_is_trained(run: Run) -> None:
    begun = initialisation.initial_model(cell(), initialisation.model_config(cell())).state_dict()
    found = anchored.load(run.path)
    assert isinstance(found, HiddenAnchoredModel)
    assert found.place.name == "blocks.1"
    changed = {name for name, value in found.state_dict().items() if name in begun and not value.equal(begun[name])}
    assert {".".join(name.split(".")[1:3]) for name in changed} >= {"blocks.1", "blocks.2", "head.weight"}
    assert not [name for name in changed if name.startswith(("network.stem", "network.blocks.0"))]
    assert found.references is not None
    assert found.references.shape == (2, 1, 28, 28)


def test_logits_and_features_are_the_mean_over_references(run: Run) -> None:
    model: Any = anchored.load(run.path)
    logits, features = Classifier.of(model, read_config(run))(images(), features=True)
    singles = [model.with_references(reference) for reference in torch.split(model.references, 1)]
    each = [Classifier.of(one, read_config(run))(images(), features=True) for one in singles]
    torch.testing.assert_close(logits, torch.stack([one for one, _ in each]).mean(0), rtol=1e-4, atol=1e-5)
    assert features is not None
    seen = torch.stack([one for _, one in each if one is not None])
    torch.testing.assert_close(features, seen.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".safetensors", ""])
def test_exported_it_gives_the_same(run: Run, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    written = export(run.path, str(path))
    assert written.difference <= 1e-5 * written.scale
    if ending == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        for count in (1, 5):
            (found,) = session.run(["logits"], {"images": images(count).numpy()})
            torch.testing.assert_close(torch.from_numpy(found), expected(run, images(count)), rtol=1e-4, atol=1e-4)
    if ending in (".safetensors", ""):
        loaded: Any = anchored.load(path)
        with torch.no_grad():
            found = loaded(loaded.preprocess(images()))
        torch.testing.assert_close(found, expected(run, images()), rtol=1e-4, atol=1e-4)


def test_a_training_goes_on_at_the_same_layer_only(run: Run) -> None:
    chosen = cell(checkpoint=run.path)
    begun = initialisation.initial_model(chosen, initialisation.model_config(chosen))
    before = anchored.load(run.path)
    assert isinstance(begun, AnchoredModel)
    assert isinstance(before, AnchoredModel)
    assert all(value.equal(begun.network.state_dict()[name]) for name, value in before.network.state_dict().items())
    for other in ("", "blocks.2"):
        chosen = cell(other, run.path)
        with pytest.raises(UserError, match=r"anchored at 'blocks.1', anchoring.at is (the image|'blocks.2')"):
            initialisation.initial_model(chosen, initialisation.model_config(chosen))


def test_a_card_names_the_versions_that_trained_it(run: Run, tmp_path: Path) -> None:
    copied = Run(shutil.copytree(run.path, tmp_path / "run"))
    copied.made_file.unlink(missing_ok=True)
    assert "Trained by `anchored train` with these settings" in model_card(copied, "run")
    parts = [{"anchored": "1.0", "torch": torch} for torch in ("2.0", "2.0", "2.1")]
    files.write_json(copied.made_file, {"training": parts, "evaluating": [{"anchored": "9"}]})
    assert "`anchored train` (anchored 1.0, torch 2.0 then anchored 1.0, torch 2.1) with" in model_card(copied, "run")


@pytest.mark.parametrize("at", ["blocks.1", "blocks.0"])
def test_converted_it_is_exact_and_exports_to_its_own_weights(tmp_path: Path, at: str) -> None:
    plain = networks.build_network("small", channels=1, classes=7, seed=4).eval()
    files.save_tensors(tmp_path / "plain.safetensors", dict(plain.state_dict()))
    written = convert(
        "small", tmp_path / "wide", checkpoint=str(tmp_path / "plain.safetensors"), like="fashion-mini-known", at=at
    )
    assert written.difference <= 1e-5 * written.scale
    assert f"anchored at '{at}'" in model_card(Run(tmp_path / "wide"), "wide")
    export(tmp_path / "wide", str(tmp_path / "again.safetensors"))
    again, _ = files.load_tensors(tmp_path / "again.safetensors")
    assert again.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.state_dict().items())
    chosen = cell("blocks.2", tmp_path / "wide")  # not trained since: any layer will do
    begun = initialisation.initial_model(chosen, initialisation.model_config(chosen)).eval()
    x = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(begun(x), plain(x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_cannot_be_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files.save_tensors(
        tmp_path / "plain.safetensors",
        dict(networks.build_network("small", channels=1, classes=10, seed=4).state_dict()),
    )
    words = ["convert", "small", "--checkpoint", str(tmp_path / "plain.safetensors"), "--like", "digits"]
    assert main([*words, "-o", str(tmp_path / "wide"), "--at", "blocks.1.conv1"]) == 2
    assert "'blocks.1.conv1' of ResNet is not the only way" in capsys.readouterr().err
    assert not (tmp_path / "wide").exists()


def test_what_is_anchored_at_the_image_is_described_as_before(tmp_path: Path) -> None:
    from anchored.models import folder

    config = initialisation.model_config(cell(""))
    folder.save_model(Run(tmp_path), folder.build_model(config), config)
    assert "at" not in json.loads(Run(tmp_path).model_file.read_text(encoding="utf-8"))
    assert read_config(Run(tmp_path)) == config
