"""Convert, fold, export and share: each result is run, and equals the original; refusals leave nothing behind."""

import builtins
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.errors import UserError
from anchored.method.anchoring import AnchoredModel
from anchored.models import export
from anchored.models import folder as model
from anchored.models import registry as networks
from anchored.models.convert import convert
from anchored.models.decision import Deciding, Decision, fit_decision
from anchored.models.folder import ModelConfig, read_config
from anchored.models.programs import open_program
from anchored.store import files
from anchored.store.layout import Run

CONFIG = ModelConfig(
    network="small",
    protocol="ram",
    mask_probability=0.25,
    channels=3,
    size=24,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    classes=("a", "b", "c"),
    trained_on="",
    references=2,
)


def images(count: int = 5) -> Tensor:
    return datasets.load_split("textures", "test", channels=3, size=24).images[:count]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A folder whose halves of the stem, batch norms and references are all different."""
    made = Run(tmp_path_factory.mktemp("runs") / "ram")
    anchored_model = model.build_model(CONFIG, seed=1)
    assert isinstance(anchored_model, AnchoredModel)
    inputs = CONFIG.preprocess(datasets.load_split("photos", "test", channels=3, size=24).images[:40])
    for part in torch.split(inputs, 8):
        anchored_model.train()(part)
    anchored_model.set_references(inputs[7:9])
    model.save_model(made, anchored_model, CONFIG)
    return made


def expected(run: Run, raw: Tensor) -> Tensor:
    loaded: Any = anchored.load(run.path)
    with torch.no_grad():
        logits: Tensor = loaded(loaded.preprocess(raw))
    return logits


def test_onnx_takes_pixels(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    written = export.export(run.path, str(path))
    assert written.difference <= 1e-5 * written.scale
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(["logits"], {"images": images(count).numpy()})
        np.testing.assert_allclose(found, expected(run, images(count)), atol=1e-4)
    kept = json.loads(session.get_modelmeta().custom_metadata_map["anchored"])
    assert kept["input"] == "uint8"
    assert kept["weights"] == model.weights_digest(run)
    assert kept["model"]["classes"] == ["a", "b", "c"]
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_pt2_is_a_plain_program(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    export.export(run.path, str(path), takes="unit")
    kept = {"anchored": ""}
    program = torch.export.load(path, extra_files=kept)
    for count in (1, 5):
        found = program.module()(images(count).float() / 255)
        assert torch.allclose(found, expected(run, images(count)), atol=1e-4)
    assert json.loads(kept["anchored"])["model"]["mean"] == [0.4, 0.5, 0.6]


@pytest.mark.parametrize("takes", export.INPUTS)
def test_every_kind_of_input_gives_the_same(run: Run, takes: Any) -> None:
    module = export.Deployed(anchored.load(run.path), CONFIG, takes)
    with torch.no_grad():
        found = module(export.as_input(images(), CONFIG, takes))
    assert torch.allclose(found, expected(run, images()), atol=1e-4)


def test_safetensors_is_loaded_as_a_plain_network(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    export.export(run.path, str(path), takes="unit")
    loaded: Any = anchored.load(path)
    assert not isinstance(loaded, AnchoredModel)
    assert loaded.classes == ("a", "b", "c")
    with torch.no_grad():
        assert torch.allclose(loaded(loaded.preprocess(images())), expected(run, images()), atol=1e-4)
    files.save_tensors(path, {"a": torch.zeros(1)})
    with pytest.raises(UserError, match="is not a model that anchored exported"):
        anchored.load(path)


def test_a_converted_network_exports_to_its_own_weights(tmp_path: Path) -> None:
    plain = networks.build_network("small", channels=3, classes=3, seed=4).eval()
    files.save_tensors(tmp_path / "plain.safetensors", dict(plain.state_dict()))
    sizes: dict[str, Any] = {"channels": 3, "size": 24, "classes": 3, "mean": CONFIG.mean, "std": CONFIG.std}
    written = convert(
        "small", tmp_path / "wide", checkpoint=str(tmp_path / "plain.safetensors"), mask_probability=0.1, **sizes
    )
    assert written.difference <= 1e-5 * written.scale
    assert read_config(Run(tmp_path / "wide")).protocol == "ram"
    export.export(tmp_path / "wide", str(tmp_path / "again.safetensors"))
    again, _ = files.load_tensors(tmp_path / "again.safetensors")
    assert again.keys() == plain.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.state_dict().items())


def test_timm_weights_bring_their_own_preprocessing(tmp_path: Path) -> None:
    name = "timm:tf_efficientnet_lite0"
    plain = networks.build_network(name, channels=3, classes=1000, seed=0)
    files.save_tensors(tmp_path / "lite.safetensors", dict(plain.state_dict()))
    convert(name, tmp_path / "lite", checkpoint=str(tmp_path / "lite.safetensors"), size=32)
    config = read_config(Run(tmp_path / "lite"))
    assert (config.mean, config.std, config.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert (config.classes[0], config.classes[281], len(config.classes)) == ("tench", "tabby", 1000)


def test_a_standard_run_converts_and_an_anchored_one_does_not(run: Run, tmp_path: Path) -> None:
    config = replace(CONFIG, protocol="standard", mask_probability=0.0, references=0)
    model.save_model(Run(tmp_path / "standard"), model.build_model(config, seed=2), config)
    convert(str(tmp_path / "standard"), tmp_path / "wide")
    assert read_config(Run(tmp_path / "wide")).classes == ("a", "b", "c")
    assert main(["export", str(tmp_path / "standard"), str(tmp_path / "standard.safetensors")]) == 0
    with pytest.raises(UserError, match="is anchored already"):
        convert(str(run.path), tmp_path / "wider")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "small", "--like", "digits"], "say which weights are meant, --pretrained or --checkpoint"),
        (["convert", "small", "--pretrained"], "give --channels, --size, --mean, --std, --classes, or --like"),
        (["convert", "small", "--like", "digits", "--pretrained"], "has no pretrained weights"),
        (["convert", "smalll", "--pretrained"], "no network 'smalll': did you mean 'small'?"),
        (["convert", "small", "--like", "digits", "--checkpoint", "none"], "cannot read none"),
        (["export", "nowhere", "model.onnx"], "is not a trained run"),
        (["export", "hub:alone", "model.onnx"], "'hub:alone' is not a place on the hub"),
        (["export"], "run"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    output = ["-o", "out"] if arguments[0] == "convert" else []
    assert main([*arguments, *output]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.pth", "m.tflite", "M.PT", "folder/m.bin", "m.onnxx"])
def test_endings_of_other_formats_are_refused(run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"files are not written; end it with \.onnx, \.pt2, \.safetensors, or with /"):
        export.export(run.path, str(tmp_path / name))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("M.ONNX", False),
        ("M.PT2", False),
        ("M.Safetensors", False),
        ("ram-0.25", True),
        ("seed0", True),
        ("v1.pth/", True),
    ],
)
def test_endings_may_be_in_capitals_and_other_names_are_folders(
    run: Run, tmp_path: Path, name: str, folder: bool
) -> None:
    written = export.export(run.path, f"{tmp_path}/{name}")
    assert written.difference <= 1e-5 * written.scale
    assert [path.name for path in tmp_path.iterdir()] == [name.rstrip("/")]
    assert (tmp_path / name).is_dir() == folder
    if folder or name.startswith("M.S"):
        torch.testing.assert_close(anchored.load(tmp_path / name)(CONFIG.preprocess(images())), expected(run, images()))


def test_onnx_runtime_is_told_not_to_report_before_it_is_imported(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\ntold = os.environ.get('ORT_DISABLE_TELEMETRY')\noff = []\n"
    (tmp_path / "onnxruntime.py").write_text(f"{text}def disable_telemetry_events(): off.append(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    for asked, told, off in ((None, "1", [1]), ("0", "0", [])):
        monkeypatch.delitem(sys.modules, "onnxruntime")
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", asked or "")
        if asked is None:
            monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
        imported: list[Any] = []
        monkeypatch.setattr(
            torch.onnx, "export", lambda *_, done=imported, **__: done.append(sys.modules["onnxruntime"])
        )
        with pytest.raises(AssertionError):  # there is no program
            export.export(run.path, str(tmp_path / "m.onnx"))
        assert (imported[0].told, imported[0].off) == (told, off)


def own_network(channels: int, classes: int) -> nn.Module:
    return networks.build_network("small", channels=channels, classes=classes, seed=0)


OWN = f"python:{__name__}:own_network"
SHAPE = ["--size", "24", "--classes", "3"]


@pytest.mark.parametrize("channels", [3, 4, 7])
def test_code_that_the_command_line_names_is_converted_and_predicts(
    channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, converted = tmp_path / "own.safetensors", tmp_path / "start"
    files.save_tensors(weights, dict(own_network(channels, 3).state_dict()))
    levels = ["--mean", str([0.5] * channels), "--std", str([0.25] * channels), "--channels", str(channels)]
    assert main(["convert", OWN, "--checkpoint", str(weights), "-o", str(converted), *SHAPE, *levels]) == 0
    assert main(["export", str(converted), str(tmp_path / "m.safetensors"), "--network", OWN]) == 0
    if channels > 3:  # no image files have so many
        return
    photo = tmp_path / "photo.png"
    Image.fromarray(images(1)[0].permute(1, 2, 0).numpy()).save(photo)
    capsys.readouterr()
    assert main(["predict", str(converted), str(photo), "-o", str(tmp_path / "seen")]) == 2
    assert f"add --network {OWN}" in capsys.readouterr().err
    assert main(["predict", str(converted), str(photo), "-o", str(tmp_path / "seen"), "--network", OWN]) == 0


def test_a_standard_run_of_code_is_converted_where_the_caller_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, protocol="standard", mask_probability=0.0, references=0, network=OWN)
    model.save_model(Run(tmp_path / "standard"), own_network(3, 3), config)
    command = ["convert", str(tmp_path / "standard"), "-o", str(tmp_path / "wide")]
    assert main(command) == 2
    assert "is code to be imported" in capsys.readouterr().err
    assert main([*command, "--network", OWN]) == 0


def test_files_are_not_replaced_unasked(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("precious")
    assert main(["export", str(run.path), str(path)]) == 2
    assert "exists already: choose another place, or replace it with --force" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert main(["export", str(run.path), str(path), "--force"]) == 0
    assert "the logits differ by at most" in capsys.readouterr().out
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("precious")
    assert main(["export", str(run.path), str(tmp_path / "folder"), "--force"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_models_own_files_are_never_replaced(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "link.safetensors").symlink_to(copy / "weights.safetensors")
    for target in (copy / "weights.safetensors", tmp_path / "link.safetensors"):
        assert main(["export", str(copy), str(target), "--force"]) == 2
        assert "is a file of the model itself: export to another name" in capsys.readouterr().err
    assert (copy / "weights.safetensors").read_bytes() == run.weights_file.read_bytes()
    for _ in range(2):  # beside them it may stand, and be replaced
        assert main(["export", str(copy), str(copy / "deployed.safetensors"), "--force"]) == 0


def test_a_result_that_differs_is_not_kept(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    honest = anchored.fold

    def wrong(model: nn.Module) -> nn.Module:
        folded = honest(model)
        with torch.no_grad():
            next(folded.parameters()).mul_(1.01)
        return folded

    monkeypatch.setattr(export, "fold", wrong)
    with pytest.raises(UserError, match="so it was not kept"):
        export.export(run.path, str(tmp_path / "model.safetensors"))
    assert not list(tmp_path.iterdir())


def test_without_the_extra_onnx_is_one_line(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(
        UserError, match=r"ONNX needs onnxscript, which is not installed: pip install 'anchored\[onnx\]'"
    ):
        export.export(run.path, str(tmp_path / "model.onnx"))
    assert not list(tmp_path.iterdir())


def test_a_shared_folder_is_three_files_that_load(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    written = export.export(run.path, str(tmp_path / "shared"))
    assert written.difference == 0
    assert sorted(file.name for file in (tmp_path / "shared").iterdir()) == [
        "README.md",
        "model.json",
        "weights.safetensors",
    ]
    imported = builtins.__import__

    def without_pickle(name: str, *rest: Any) -> Any:
        assert name != "pickle", "a model folder must load without pickle"
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pickle)
    loaded: Any = anchored.load(tmp_path / "shared")
    with torch.no_grad():
        assert torch.equal(loaded(loaded.preprocess(images())), expected(run, images()))


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_a_file_decides_as_python_does(
    run: Run, ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Run(Path(shutil.copytree(run.path, tmp_path / "ram")))
    target = str(tmp_path / f"model{ending}")
    assert main(["export", str(kept.path), target, "--decide"]) == 2
    assert "calibrate it first" in capsys.readouterr().err
    loaded, generator = anchored.load(kept.path), torch.Generator().manual_seed(0)
    held = torch.randint(256, (200, 3, 24, 24), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        logits = loaded(CONFIG.preprocess(held))
    labels = logits.argmax(1)
    labels[::9] = 0
    rule = fit_decision(logits, labels, classes=CONFIG.classes, weights=model.weights_digest(kept), error=0.3)
    rule.save(kept.decision_file)
    assert main(["export", str(kept.path), target, "--decide"]) == 0
    assert "Decisions, p-values, scores and probabilities are those of Python" in capsys.readouterr().out
    program = open_program(Path(target))
    new = torch.randint(256, (40, 3, 24, 24), dtype=torch.uint8, generator=generator)
    seen = torch.cat([images(40), new])  # not one that a threshold is the score of, whose sums round either way
    found, wanted = program(seen), loaded.decide(seen)  # type: ignore[operator]
    assert isinstance(found, Mapping)
    assert tuple(found) == ("logits", "probabilities", "score", "p_value", "accepted")
    assert found["accepted"].bool().equal(wanted.accepted)
    torch.testing.assert_close(found["probabilities"].double(), wanted.probabilities, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["score"].double(), wanted.score, atol=1e-4, rtol=1e-4)
    # Logits are sums in another order: an image may change places with a held-out one of nearly its score.
    torch.testing.assert_close(found["p_value"].double(), wanted.p_value, atol=1.01 / 201, rtol=0)
    assert anchored.evaluate(program, (images(20), torch.arange(20) % 3), corruptions=(), bootstrap=100, progress=False,
                             arrays="torch", preprocess=lambda x: x).rows  # fmt: skip


def calibrated(run: Run, folder: Path) -> tuple[Run, Decision]:
    """A copy of a run, with a decision."""
    kept = Run(Path(shutil.copytree(run.path, folder)))
    logits = expected(kept, torch.randint(256, (60, 3, 24, 24), dtype=torch.uint8))
    rule = fit_decision(logits, logits.argmax(1), classes=CONFIG.classes, weights=model.weights_digest(kept))
    rule.save(kept.decision_file)
    return kept, rule


def test_a_decision_travels_with_its_weights(run: Run, tmp_path: Path) -> None:
    kept, rule = calibrated(run, tmp_path / "ram")
    written = export.export(kept.path, str(tmp_path / "shared"))
    assert "decision.json came along" in str(written)
    assert Decision.read(tmp_path / "shared" / "decision.json") == rule  # the same file of weights
    there, here = (anchored.load(place).decide(images()) for place in (tmp_path / "shared", kept.path))  # type: ignore[operator]
    assert there.names == here.names
    tensors, text = files.load_tensors(kept.weights_file)
    files.save_tensors(kept.weights_file, tensors, {**text, "note": "written again"})
    assert "decision.json was left out" in str(export.export(kept.path, str(tmp_path / "later")))
    assert not (tmp_path / "later" / "decision.json").exists()
    assert "decision.json" not in str(export.export(run.path, str(tmp_path / "plain")))


def test_a_decision_travels_to_converted_weights(run: Run, tmp_path: Path) -> None:
    config = replace(CONFIG, protocol="standard", mask_probability=0.0, references=0)
    model.save_model(Run(tmp_path / "plain"), model.build_model(config, seed=1), config)
    kept, rule = calibrated(Run(tmp_path / "plain"), tmp_path / "standard")
    assert "decision.json came along" in str(convert(str(kept.path), tmp_path / "wide"))
    wide = Run(tmp_path / "wide")
    moved = Decision.read(wide.decision_file, model.weights_digest(wide))
    assert moved == replace(rule, weights=moved.weights) != rule
    assert anchored.load(wide.path).decide(images()).names == anchored.load(kept.path).decide(images()).names  # type: ignore[operator]


def test_only_programs_hold_decisions(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in ("model.safetensors", "folder/", "hub:owner/name"):
        assert main(["export", str(run.path), target, "--decide"]) == 2
        assert "cannot hold a decision" in capsys.readouterr().err


def test_a_decision_that_differs_is_refused(run: Run) -> None:
    logits = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    rule = fit_decision(logits, logits.argmax(1).roll(1))
    found = Deciding(nn.Identity(), rule)(logits)
    export.check_decisions("here", found, rule)
    for name in ("probabilities", "score", "p_value", "accepted"):
        with pytest.raises(UserError, match=f"its {name} differs"):
            export.check_decisions("here", found | {name: found[name].double() + 0.2}, rule)
