"""A folded network of timm is opened by timm and by Transformers, with equal logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import folder as models
from anchored.models.decision import Decision, fit_decision
from anchored.models.export import export
from anchored.models.folder import ModelConfig
from anchored.store import files
from anchored.store.layout import Run

CONFIG = ModelConfig(
    network="timm:mobilenetv3_small_050",
    protocol="ram",
    mask_probability=0.25,
    channels=3,
    size=32,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    classes=("a", "b", "c"),
    trained_on="",
    references=1,
    interpolation="bicubic",
    crop=0.9,
)
VIT = replace(CONFIG, network="timm:vit_tiny_patch16_224", size=48)
GREY = replace(CONFIG, network="timm:tf_efficientnet_lite0", channels=1, mean=(0.4,), std=(0.2,), size=33)


def made(config: ModelConfig, folder: Path) -> Run:
    """A model whose halves of the stem differ, with a photograph as its reference."""
    model = models.build_model(config, seed=1)
    inputs = photos(config, 9)
    if isinstance(model, AnchoredModel):
        model.train()(inputs[:8])
        model.references = None
        if config.references:
            model.set_references(inputs[8:])
    models.save_model(Run(folder), model, config)
    return Run(folder)


def photos(config: ModelConfig, count: int = 4) -> Tensor:
    return config.preprocess(datasets.load_split("photos", "test", channels=config.channels, size=64).images[:count])


def logits(run: Run, config: ModelConfig, *, zero: bool = False) -> Tensor:
    model: Any = anchored.load(run.path)
    if zero:
        model.references = None
    with torch.no_grad():
        found: Tensor = model(photos(config))
    return found


def by_timm(folder: Path, config: ModelConfig) -> Tensor:
    with torch.no_grad():
        found: Tensor = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(photos(config))
    return found


def by_transformers(folder: Path, config: ModelConfig) -> Tensor:
    model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    assert model.config.id2label == dict(enumerate(config.classes))
    with torch.no_grad():
        found: Tensor = model(photos(config)).logits
    return found


def test_a_vision_transformer_keeps_its_reference(tmp_path: Path) -> None:
    run = made(VIT, tmp_path / "run")
    export(run.path, f"timm:{tmp_path / 'vit'}")
    expected = logits(run, VIT)
    assert not torch.allclose(logits(run, VIT, zero=True), expected, atol=1e-3)
    torch.testing.assert_close(by_timm(tmp_path / "vit", VIT), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_transformers(tmp_path / "vit", VIT), expected, rtol=1e-4, atol=1e-5)
    kept = json.loads((tmp_path / "vit" / "config.json").read_text())
    assert kept["architecture"] == "vit_tiny_patch16_224"
    assert kept["label_names"] == ["a", "b", "c"]
    resolve: Any = timm.data.resolve_data_config
    data = resolve(model=timm.create_model(f"local-dir:{tmp_path / 'vit'}"))
    assert tuple(data["input_size"]) == (3, 48, 48)  # of some versions a list
    assert (tuple(data["mean"]), tuple(data["std"])) == (VIT.mean, VIT.std)
    assert (data["interpolation"], data["crop_pct"]) == ("bicubic", 0.9)


@pytest.mark.parametrize("config", [CONFIG, GREY], ids=lambda config: str(config.network))
def test_others_are_folded_about_the_zero_reference_if_asked(
    config: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, folder = made(config, tmp_path / "run"), tmp_path / "out"
    with pytest.raises(UserError, match="zero_reference") as error:
        export(run.path, f"timm:{folder}")
    assert "\n" not in str(error.value)
    assert not folder.exists()
    assert main(["export", str(run.path), f"timm:{folder}", "--zero_reference"]) == 0
    assert "of 16 photographs another class" in capsys.readouterr().out
    expected = logits(run, config, zero=True)
    torch.testing.assert_close(by_timm(folder, config), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_transformers(folder, config), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("protocol", ["standard", "ram"])
def test_a_network_without_references_needs_no_word(protocol: Any, tmp_path: Path) -> None:
    alpha = 0.25 if protocol == "ram" else 0.0
    config = replace(CONFIG, protocol=protocol, mask_probability=alpha, references=0)
    run = made(config, tmp_path / "run")
    written = export(run.path, f"timm:{tmp_path / 'out'}")
    assert str(written).count("\n") == 1
    torch.testing.assert_close(by_timm(tmp_path / "out", config), logits(run, config), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="exists"):
        export(run.path, f"timm:{tmp_path / 'out'}")


def test_a_decision_comes_along_where_the_logits_do(tmp_path: Path) -> None:
    kept = {}
    for name, config in (("same", replace(CONFIG, references=0)), ("other", CONFIG)):
        run = made(config, tmp_path / name)
        rule = fit_decision(torch.eye(3).repeat(20, 1), torch.arange(60) % 3, weights=models.weights_digest(run))
        rule.save(run.decision_file)
        written = export(run.path, f"timm:{tmp_path / name}-timm", zero_reference=name == "other")
        kept[name] = ("came along" in str(written), (tmp_path / f"{name}-timm" / "decision.json").exists())
    assert kept == {"same": (True, True), "other": (False, False)}
    folder = tmp_path / "same-timm"
    assert Decision.read(folder / "decision.json").weights == files.digest((folder / "model.safetensors").read_bytes())


def test_what_timm_does_not_have_is_refused(tmp_path: Path) -> None:
    run = made(replace(CONFIG, network="small", references=0), tmp_path / "run")
    with pytest.raises(UserError, match="none of timm's"):
        export(run.path, f"timm:{tmp_path / 'out'}")
    with pytest.raises(UserError, match="zero reference is for timm"):
        export(run.path, str(tmp_path / "model.onnx"), zero_reference=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
