"""Model folders: preprocessing travels with them; hostile, damaged and mixed-up ones are one line."""

import json
import struct
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import v2

import anchored
from anchored.cli.main import main
from anchored.data import datasets
from anchored.data.preprocessing import to_input
from anchored.errors import UserError
from anchored.models import folder
from anchored.models import registry as networks
from anchored.models.folder import ModelConfig
from anchored.models.weights import fit_weights
from anchored.store import files
from anchored.store.layout import Run

CONFIG = ModelConfig(
    network="small",
    protocol="ram",
    mask_probability=0.25,
    channels=1,
    size=28,
    mean=(0.3,),
    std=(0.35,),
    classes=("coat", "bag", "shoe"),
    trained_on="",
    references=2,
)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(tmp_path / "run")
    network: Any = folder.build_model(CONFIG, seed=1)
    network.set_references(torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    folder.save_model(made, network, CONFIG)
    return made


def refused(run: Run, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        anchored.load(run.path)
    assert "\n" not in str(raised.value)


# --- preprocessing -----------------------------------------------------------------------------------------------


def test_images_of_any_size_and_colour_become_inputs(run: Run) -> None:
    loaded: Any = anchored.load(run.path)
    photos = datasets.load_split("photos", "test").images[:3]
    assert loaded.preprocess(photos).shape == (3, 1, 28, 28)
    assert loaded(loaded.preprocess(photos[:, :, :20])).shape == (3, 3)
    assert loaded.classes == ("coat", "bag", "shoe")


def test_images_that_fit_are_prepared_as_in_training() -> None:
    images = datasets.load_split("digits", "test").images[:4]
    assert torch.equal(CONFIG.preprocess(images), to_input(images, CONFIG.mean, CONFIG.std))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(40, 60), (61, 45), (50, 50)])
def test_resizing_and_cropping_are_torchvisions(interpolation: Any, shape: tuple[int, int]) -> None:
    config = replace(CONFIG, interpolation=interpolation, crop=0.875)
    images = torch.randint(256, (2, 1, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mode = v2.InterpolationMode(interpolation)
    peer = v2.Compose([v2.ToPILImage(), v2.Resize(32, mode), v2.CenterCrop(28), v2.PILToTensor()])
    expected = to_input(torch.stack([peer(image) for image in images]), config.mean, config.std)
    assert torch.equal(config.preprocess(images), expected)


@pytest.mark.parametrize(
    "images", [torch.zeros(2, 1, 28, 28), torch.zeros(1, 28, 28, dtype=torch.uint8), torch.zeros(2, 4, 28, 28).byte()]
)
def test_what_is_not_raw_images_is_refused(images: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"give uint8 \(B,C,H,W\)|only 1 and 3 convert"):
        CONFIG.preprocess(images)


def test_inputs_of_another_size_are_refused(run: Run) -> None:
    with pytest.raises(UserError, match="images are 1×20×20 but the model's references are 1×28×28"):
        anchored.load(run.path)(torch.zeros(1, 1, 20, 20))


# --- what a folder may hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "python:os:system"}, r"model\.json: network 'python:os:system' is code to be imported"),
        ({"network": "timm:hf-hub:somebody/thing"}, "timm does not have it"),
        ({"network": "wrn40_2"}, "does not fit"),
        ({"network": 3}, "give text"),
        ({"classes": ["a", "b"]}, r"'network.head.weight' is 3×64, not 2×64"),
        ({"classes": []}, "classes is empty"),
        ({"channels": 3}, "mean has 1 values for 3 channels"),
        ({"size": 10**9}, "size is 1000000000: give 1 to 4096"),
        ({"size": 32}, "holds references"),
        ({"references": 3}, "holds references"),
        ({"references": True}, "references is True: give a whole number"),
        ({"std": [0.0]}, r"std has 0\.0: give a finite number above 0"),
        ({"mean": ["x"]}, "mean has 'x': give a number"),
        ({"mean": [float("nan")]}, "mean has nan: give a finite number"),
        ({"protocol": "plain"}, "protocol is 'plain'"),
        ({"protocol": "standard"}, "does not fit"),
        ({"mask_probability": 1.5}, "mask_probability is 1.5"),
        ({"width": 2.0}, "does not fit"),
        ({"width": 1e9}, "width is 1000000000"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ({"crop": 1e-9}, "crop is 1e-09"),
        ({"resume": True}, "no setting resume"),
        ({"mask_unit": "pixel"}, "mask_unit is 'pixel'"),
    ],
)
def test_configurations_that_do_not_fit_are_one_line(run: Run, change: dict[str, Any], said: str) -> None:
    files.write_json(run.model_file, {**asdict(CONFIG), **change})
    refused(run, said)


def changed(run: Run, change: Any) -> None:
    weights, _ = files.load_tensors(run.weights_file)
    change(weights)
    files.save_tensors(run.weights_file, weights)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("network.stem.weight"), "'network.stem.weight' is missing"),
        (lambda w: w.update(hidden=torch.zeros(1)), "'hidden' is not one of its weights"),
        (lambda w: w.update({"network.head.bias": torch.zeros(4)}), "'network.head.bias' is 4, not 3"),
        (lambda w: w.update({"network.head.bias": torch.zeros(3).double()}), "is float64, not float32"),
        (lambda w: w.update({"network.head.bias": torch.zeros(3).long()}), "is int64, not float32"),
        (lambda w: w["network.head.weight"].fill_(float("inf")), "'network.head.weight' holds NaN or infinity"),
        (lambda w: w["references"].fill_(float("nan")), "references contain NaN or infinity"),
        (lambda w: w.update(references=torch.zeros(2, 1, 28, 28).long()), "references must be normalised images"),
        (lambda w: w.pop("references"), "holds references None"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(run: Run, change: Any, said: str) -> None:
    changed(run, change)
    refused(run, said)


def test_files_that_are_not_whole_are_one_line(run: Run) -> None:
    whole = run.weights_file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    lying = {**header, "network.head.bias": {**header["network.head.bias"], "data_offsets": [0, 2**40]}}
    text = json.dumps(lying).encode()
    for content in (
        b"",
        whole[:5],
        whole[: length // 2],
        whole[:-10],
        whole + b"more",
        struct.pack("<Q", 2**62) + whole[8:],
        struct.pack("<Q", len(text)) + text + whole[8 + length :],
        b"PK\x03\x04 a zip, or a pickle",
        b"\x80\x04\x95 renamed",
    ):
        run.weights_file.write_bytes(content)
        refused(run, "is not a whole safetensors file")
    run.model_file.write_text("[1, 2")
    refused(run, "is not valid JSON")
    run.model_file.write_text("[1, 2]")
    refused(run, "expected settings by name, found list")


def test_a_folder_of_before_these_fields_still_loads(run: Run) -> None:
    old = {key: value for key, value in asdict(CONFIG).items() if key not in ("width", "stem", "interpolation", "crop")}
    files.write_json(run.model_file, old)
    assert anchored.load(run.path)(torch.zeros(1, 1, 28, 28)).shape == (1, 3)


def own_network(channels: int, classes: int) -> torch.nn.Module:
    return networks.build_network("small", channels=channels, classes=classes, seed=0)


def test_code_is_imported_only_where_the_caller_names_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"python:{__name__}:own_network"
    files.write_json(run.model_file, {**asdict(CONFIG), "network": name})
    refused(run, "is code to be imported")
    images = torch.zeros(1, 1, 28, 28)
    by_name, by_module = anchored.load(run.path, network=name), anchored.load(run.path, network=own_network(1, 3))
    assert torch.equal(by_name(images), by_module(images))
    with pytest.raises(UserError, match="is of network"):
        anchored.load(run.path, network="small")
    target = str(run.path.parent / "model.safetensors")
    assert main(["export", str(run.path), target]) == 2
    assert "is code to be imported" in capsys.readouterr().err
    assert main(["export", str(run.path), target, "--network", name]) == 0


def test_a_run_that_names_code_is_evaluated_only_where_the_caller_names_it(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train": "digits"}
    cell = {"network": "python:antigravity:fly", "protocol": "ram", "alpha": 0.1, "tail_weight": 0.0, "seed": 0}
    sections = {"data": settings, "anchoring": {}, "tail": {}, "train": {}}
    files.write_json(run.cell_file, {**cell, **sections})
    assert main(["evaluate", str(run.path)]) == 2
    assert "if you trust it, add --network python:antigravity:fly" in capsys.readouterr().err


# --- weights of other people's files ------------------------------------------------------------------------------


def widened(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}


SPELLINGS: dict[str, Any] = {
    "as it is": lambda state: state,
    "float16": lambda state: widened(state, torch.float16),
    "bfloat16": lambda state: widened(state, torch.bfloat16),
    "DataParallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
    "both": lambda state: {f"module._orig_mod.{name}": tensor for name, tensor in state.items()},
    "a compiled part": lambda state: {name.replace("blocks.", "blocks._orig_mod."): t for name, t in state.items()},
    "old": lambda state: {name: t for name, t in state.items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_weights_that_differ_in_spelling_only_are_loaded(spelling: str, strict: bool, tmp_path: Path) -> None:
    given, module = own_network(1, 3), networks.build_network("small", channels=1, classes=3, seed=5)
    state = SPELLINGS[spelling](given.state_dict())
    assert state.keys() != given.state_dict().keys() or spelling in ("as it is", "float16", "bfloat16")
    fit_weights(module, state, tmp_path, strict=strict)
    for name, tensor in given.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)


class Wrapping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)  # a name of its own, not a wrapper's


def test_a_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    given, module = Wrapping(), Wrapping()
    fit_weights(module, {f"module.{name}": t for name, t in given.state_dict().items()}, tmp_path, strict=True)
    assert torch.equal(module.module.weight, given.module.weight)
    with pytest.raises(UserError, match=r"'module\.weight' is missing"):
        fit_weights(module, {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}, tmp_path, strict=True)


def test_pickled_weights_are_told_how_to_become_safetensors(tmp_path: Path) -> None:
    torch.save(own_network(1, 3).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match=r"plain\.pth is not .*safetensors\.torch\.save_file"):
        files.load_tensors(tmp_path / "plain.pth")
